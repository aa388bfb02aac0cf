"""The package's version, and facts that need neither torch nor transformers. Imports nothing of this package."""

import importlib.metadata
import platform
import sys
from pathlib import Path


__all__ = ["EMBEDDED_CHECKPOINT", "EMBEDDED_NOTICE", "__version__", "versions"]

__version__ = "0.1.0"

# The checkpoint that ships with the package, for demonstrations and tests: trained on generated images, and on
# photographs of materials with painted defects
EMBEDDED_CHECKPOINT = str(Path(__file__).parent / "assets" / "vcp-clip-tiny")
# Said when no model is named
EMBEDDED_NOTICE = (
    "No model given: using the embedded vcp-clip-tiny, for demonstrations; its training had rendered and painted"
    " defects, but no real ones."
)


def versions(*names: str) -> dict[str, str]:
    """
    Return the version of this package, followed by the versions of other software.

    Args:
        names (`str`): distributions as pip names them, or `"python"`. An imported module's `__version__` wins over the
            installed metadata, since torch's names the build too (`2.13.0+cpu`).

    Returns:
        `dict[str, str]`: name -> version, in the given order.

    Raises:
        importlib.metadata.PackageNotFoundError: a distribution is not installed.
    """
    found = {"vcp_clip_hf": __version__}
    for name in names:
        if name == "python":
            found[name] = platform.python_version()
        else:
            imported = getattr(sys.modules.get(name), "__version__", None)
            found[name] = imported or importlib.metadata.version(name)
    return found
