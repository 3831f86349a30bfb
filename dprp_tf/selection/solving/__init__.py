"""From losses and costs per layer to ranks that keep a budget."""

__all__: list[str] = []
