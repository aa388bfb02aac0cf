"""Surface defects, one function each. Importing this package registers all of them."""

from . import lines, patches, relief


__all__ = ["lines", "patches", "relief"]
