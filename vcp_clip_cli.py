"""Entry point of the command `vcp-clip`.

It lies beside the package, because importing any part of the package imports torch and transformers. All verbs and
`vcp-clip --help` wait for them; only `vcp-clip --version` and `vcp-clip serve` do not. `serve` imports them later, and
only if it is given a checkpoint.
"""

import os
import runpy
import sys
from pathlib import Path


__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process."""
    if sys.argv[1:] == ["--version"]:
        version_file = Path(__file__).parent / "vcp_clip_hf" / "version.py"
        print(runpy.run_path(str(version_file))["__version__"])
        return
    if "serve" in sys.argv[1:]:
        os.environ["VCP_CLIP_IMPORT_ON_USE"] = "1"  # read by vcp_clip_hf/__init__.py
    from vcp_clip_hf.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
