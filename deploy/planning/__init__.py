"""Which form of each layer is the fastest on a target."""

__all__: list[str] = []
