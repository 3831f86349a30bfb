"""From a trained model to the best file: a search of stages, kept in a folder and a study."""

__all__: list[str] = []
