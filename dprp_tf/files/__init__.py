"""Files written whole or not at all, locks, settings, tables; checks of arguments and packages."""

__all__: list[str] = []
