"""Python programs as processes of their own that start within a fraction of a second.

They are forks of a process that has imported the package: a new Python needs 5 to 10 seconds to import torch and
transformers. What depends on the imports themselves, or on environment variables that a library reads while it is
imported, needs a new Python: `subprocess`.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

import torch


__all__ = ["Program", "fork_context", "run_program", "run_two_ranks"]

ROOT = Path(__file__).parent.parent
# What the tests run, with what it imports on use
_PRELOADED = [
    "tests.evaluation_run",
    "tests.training_run",
    "tests.watch_run",
    "vcp_clip_hf.convert_vcp_clip_to_hf",
    "vcp_clip_hf.prediction",
    "vcp_clip_hf.reports",
    "vcp_clip_hf.server.app",
    "vcp_clip_hf.server.engine",
    "vcp_clip_hf.server.process",
    "vcp_clip_hf.video",
]


@lru_cache
def fork_context() -> ForkServerContext:
    """Return the context whose processes have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class Program:
    """
    `python -m module arguments`, `python -c code arguments` or `python file.py arguments`, with
    the methods of `subprocess.Popen` that tests use.

    Args:
        words: command line without "python".
        cwd: working directory.
        env: environment; that of the tests by default.
        output: file for standard output and standard error; by default `stdout` and `stderr` are pipes of text.
        start_new_session: whether the process leads a session of its own.
    """

    stdout: IO[str] | None = None
    stderr: IO[str] | None = None

    def __init__(
        self,
        *words: object,
        cwd: Path | str = ROOT,
        env: Mapping[str, str] | None = None,
        output: Path | None = None,
        start_new_session: bool = False,
    ):
        self.args = list(map(str, words))
        context, environment = fork_context(), dict(os.environ if env is None else env)
        pipes = [context.Pipe(duplex=False) for _ in range(0 if output else 2)]
        outputs = [sender for _, sender in pipes] or output
        arguments = (self.args, str(cwd), environment, outputs, start_new_session)
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        for name, (receiver, sender) in zip(("stdout", "stderr"), pipes, strict=False):
            sender.close()
            setattr(self, name, os.fdopen(os.dup(receiver.fileno()), encoding="utf-8"))
            receiver.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; -N after signal N; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both pipes to their end, and wait."""
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # else the pipes stay open
                raise
            return tuple(each.result() for each in reading)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_program(*words: object, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Run a `Program` to its end."""
    program = Program(*words, **options)
    output, errors = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.returncode, output, errors)


def run_two_ranks(*words: object, timeout: float = 300) -> str:
    """
    Run two processes of one distributed run on the CPU, as `accelerate launch` starts them.

    Returns:
        Standard output and standard error of both.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ranks = [Program(*words, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    with ThreadPoolExecutor(2) as pool:
        outputs, errors = zip(*pool.map(lambda rank: rank.communicate(timeout), ranks), strict=True)
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(errors)
    assert "2 processes" in outputs[0], outputs
    return "".join((*outputs, *errors))


def _run(
    words: list[str], cwd: str, environment: dict[str, str], outputs: list[Connection] | Path, new_session: bool
) -> None:
    """Become the program; runs in the new process."""
    if isinstance(outputs, Path):
        with open(outputs, "a") as file:
            descriptors = [os.dup(file.fileno())] * 2
    else:
        descriptors = [each.fileno() for each in outputs]
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors):
        os.close(descriptor)
    if new_session:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # `nohup` before the tests lets them ignore SIGHUP
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # Else processes that the program starts are forks of a new server, which has imported nothing
    multiprocessing.set_start_method(None, force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
