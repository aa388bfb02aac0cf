"""Datasets from folders of the user's own images."""

__all__: list[str] = []
