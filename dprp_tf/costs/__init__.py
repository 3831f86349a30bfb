"""What a model costs, and what is decided about that: budgets, plans, forms, tables of times."""

__all__: list[str] = []
