"""The parts of `vcp-clip serve`: engines, requests batched across clients, and named recipes on disk.

Apart from `pipeline_engine.py`, nothing here imports torch or transformers. No file but those of the HTTP app imports
a web framework.
"""

__all__ = []
