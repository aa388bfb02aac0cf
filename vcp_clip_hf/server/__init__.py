"""The parts of `vcp-clip serve`: engines, requests batched across clients, and named recipes on disk.

Only `pipeline_engine.py` imports torch or transformers, and only the files of the HTTP application import a web
framework.
"""

__all__ = []
