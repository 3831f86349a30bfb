"""One script per table or figure: what was run, how, and where its figures are kept."""

__all__: list[str] = []
