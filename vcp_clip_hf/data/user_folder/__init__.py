"""Datasets from folders of the user's own images."""
