"""Models that are trained or changed to be small in few bits, by way of Keras 2."""

__all__: list[str] = []
