"""The published datasets, one file of facts each."""
