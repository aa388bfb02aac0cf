"""Benchmarks, ablations, figures and the making of the embedded checkpoint; run from the checkout with `python -m`."""
