"""Files written whole or not at all, locks, settings of a folder, tables on disk."""

__all__: list[str] = []
