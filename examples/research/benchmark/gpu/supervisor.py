"""Sections that run one after the other in a second process, within limits of time."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


__all__ = ["supervise"]

# Seconds that a process may take until its first section: imports, and the start of the GPU
START_SECONDS = 60.0
# Seconds that a section may take beyond its limit before its process is ended. A section watches its own time, but one
# call can be long, or never return
GRACE_SECONDS = 3.0


def supervise(
    worker: Callable[..., None],
    arguments: Sequence[Any],
    limits: Mapping[str, float],
    end: float,
    receive: Callable[[dict], None],
) -> None:
    """
    Run sections in a second process. If it dies, or a section takes too long, go on with the next in a new process.

    Args:
        worker (`Callable`): function of a module, called as `worker(connection, limits, end, *arguments)` with the
            limits of the sections that are left. For each of them in turn, it sends `{"begin": name}`, messages of its
            own, and `{"end": name}`. It may return early, when its process cannot go on.
        arguments (`Sequence`): further arguments of `worker`, which can be pickled.
        limits (`Mapping[str, float]`): name of each section -> seconds that it may take.
        end (`float`): time in seconds, as of `time.time()`, at which everything must be done.
        receive (`Callable[[dict], None]`): called with each message of the worker other than begin and end, and with
            `{"failed": name, "why": sentence}` and `{"left_out": name, "why": sentence}`.
    """
    left = dict(limits)
    while left:
        if time.time() >= end:
            for name in left:
                receive({"left_out": name, "why": "no time was left"})
            return
        _one_process(worker, arguments, left, end, receive)


def _one_process(
    worker: Callable[..., None],
    arguments: Sequence[Any],
    left: dict[str, float],
    end: float,
    receive: Callable[[dict], None],
) -> None:
    """Run a process until it ends or must be ended; remove the sections that it has begun from `left`."""
    # A forked process could not use a GPU that its parent has used
    processes = multiprocessing.get_context("spawn")
    messages, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=worker, args=(sender, dict(left), end, *arguments))
    process.start()
    sender.close()
    begun, current, deadline = 0, None, min(time.time() + START_SECONDS, end)
    try:
        while messages.poll(max(0.0, deadline + GRACE_SECONDS - time.time())):
            message = messages.recv()
            if "begin" in message:
                begun, current = begun + 1, message["begin"]
                deadline = min(time.time() + left.pop(current), end)
            elif "end" in message:
                current, deadline = None, min(time.time() + START_SECONDS, end)
            else:
                receive(message)
        why = "its limit of time was over, and its process was ended"
    except EOFError:
        process.join(GRACE_SECONDS)
        why = f"its process ended with exit code {process.exitcode}"
    finally:
        messages.close()
        process.kill()
        process.join()
    if current is not None:
        receive({"failed": current, "why": why})
    elif not begun:  # a new process would end the same way
        for name in left:
            receive({"failed": name, "why": f"no section was begun: {why}"})
        left.clear()
