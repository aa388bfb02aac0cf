"""Errors of users and limits of the machine, as the sentences that the command line prints."""

import errno
import re


__all__ = ["error_sentence"]


def error_sentence(error: Exception) -> str | None:
    """Return what a mistake of the user or a limit of the machine is called; `None` for errors of the program."""
    if isinstance(error, OSError) and error.errno is not None:
        return _system_sentence(error)
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return "The memory is not sufficient. Use a smaller batch size (--batch-size), smaller tiles, or --device cpu."
    # ImportError: an extra is not installed; FloatingPointError: a training run diverged
    if not isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return None
    # A worker process of a data loader sends its traceback as text
    return re.sub(r"^Caught .*\nOriginal Traceback .*\n\w+: ", "", str(error).rstrip(), flags=re.DOTALL)


def _system_sentence(error: OSError) -> str:
    """Return an error of the operating system with the way out."""
    reason = error.strerror or str(error)
    place = "" if error.filename is None else f"{str(error.filename)!r}: "
    ways = {
        errno.ENOSPC: "Free some space, or write to another disk; then run the command again.",
        errno.EDQUOT: "Free some space, or write to another disk; then run the command again.",
        errno.EFBIG: "The file system or the limit of this user (ulimit -f) allows no larger file.",
        errno.EACCES: "Change the permissions, or choose another place.",
        errno.EPERM: "Change the permissions, or choose another place.",
        errno.EROFS: "Choose a place that can be written.",
        errno.EEXIST: "A file has the name of the folder to write. Choose another name.",
        errno.ENOTDIR: "A file has the name of a folder. Choose another name.",
        errno.EISDIR: "A folder has the name of a file. Choose another name.",
        errno.ENOENT: "Check the spelling.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }
    return f"{place}{reason}. {ways.get(error.errno, '')}".rstrip()
