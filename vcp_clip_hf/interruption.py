"""React to Ctrl-C and to SIGTERM: one line that says how to go on at once, and a second Ctrl-C ends the process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


__all__ = ["EXIT_STATUS", "stop_on_signal"]

# Exit status of an interrupted run, as shells report it for SIGINT: 128 + 2
EXIT_STATUS = 130


@contextmanager
def stop_on_signal(message: str | None, raise_at_once: bool) -> Iterator[list[int]]:
    """
    Collect interrupt and termination signals while the body runs. A second Ctrl-C ends the process at once.

    Args:
        message (`str`, *optional*): line to print to standard error when the first signal arrives.
        raise_at_once (`bool`):
            Whether the first signal also raises `KeyboardInterrupt` where the main thread is. Without it, the body
            reads the list and ends by itself.

    Yields:
        `list[int]`: received signals; empty until the first one. It stays empty outside the main thread, the only one
        that receives signals.
    """
    received: list[int] = []
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker: its parent ends it
            return
        if received:
            if number == signal.SIGINT:
                os._exit(EXIT_STATUS)
            return
        received.append(number)
        if message is not None:
            # print() may not be called in a handler that interrupts another print()
            os.write(2, f"\n{message}\n".encode())
        if raise_at_once:
            raise KeyboardInterrupt(message or "")

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
