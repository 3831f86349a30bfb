"""Training that lowers ranks: the model, its losses, what shrinks it, what watches over it."""

__all__: list[str] = []
