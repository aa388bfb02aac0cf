"""Reports: one HTML file per run that needs neither a server nor a network, and figures for papers.

`parts.py` has the parts of a page, `page.py` writes them, `charts.py` draws, `thumbnails.py` makes small pictures,
and each kind of run has a file that turns its output folder into sections.
"""

__all__ = []
