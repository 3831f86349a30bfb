"""Put a model file into a folder to ship: with labels, metadata, a model card and samples."""

__all__: list[str] = []
