"""Time files on targets, in turns, and say what may have disturbed it."""

__all__: list[str] = []
