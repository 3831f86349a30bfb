"""How good a candidate is: run it, or compare its feature maps."""

__all__: list[str] = []
