"""The command `dprp`."""

__all__: list[str] = []
