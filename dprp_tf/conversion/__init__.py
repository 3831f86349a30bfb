"""Between a dense model and a low-rank one: factorize, cut, fold, summarize."""

__all__: list[str] = []
