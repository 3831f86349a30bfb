"""Each way to choose ranks, one a file."""

__all__: list[str] = []
