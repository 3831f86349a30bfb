"""A run in a folder: train, select ranks, compare, the demo."""

__all__: list[str] = []
