"""Write a model file and prove that it computes what the model does."""

__all__: list[str] = []
