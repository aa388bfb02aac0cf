"""The published datasets, one file of facts each."""

__all__: list[str] = []
