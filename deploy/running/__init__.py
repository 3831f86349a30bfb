"""Run a model file here, in the runtime that it is for."""

__all__: list[str] = []
