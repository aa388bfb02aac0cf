"""The process of a server: its socket, its signals, and time limits for headers and for clients that read slowly."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..interruption import EXIT_STATUS
from .settings import ServerSettings


__all__ = ["bind", "run"]

_BACKLOG = 2048
_STOPPING = "Stopping: requests that were accepted are finished first. A second signal ends the process at once.\n"


def bind(host: str, port: int) -> socket.socket:
    """
    Open the port of a server.

    Args:
        host (`str`): address or name of this machine.
        port (`int`): port; 0 for any that is free.

    Raises:
        ValueError: the port is in use, may not be opened, or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        # asyncio and `create_server` repeat the address in the sentence of the system
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror or str(error)
        raise ValueError(
            f"Port {port} of {host} cannot be opened ({reason}). Choose another --port, or stop the process that uses"
            " it; --host must be an address of this machine."
        ) from error


def run(app: FastAPI, listener: socket.socket, settings: ServerSettings) -> None:
    """
    Serve until SIGTERM, SIGHUP or Ctrl-C; then finish the accepted requests. A second signal ends the process at once.

    Args:
        app (`FastAPI`): application of `create_app`.
        listener (`socket.socket`): open port.
        settings (`ServerSettings`): the settings that the application was made with.

    Raises:
        Exception: the model could not be loaded.
    """
    # Pillow decodes a picture inside an icon while it opens the icon, up to twice this limit
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_PatientProtocol,), {"settings": settings}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    server = _Server(config)
    app.state.server.on_failure = server.stop
    server.run(sockets=[listener])
    if app.state.server.failure is not None:
        raise app.state.server.failure


class _Server(uvicorn.Server):
    """A server that ends with status 0 after a signal, where uvicorn would end by the signal itself."""

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        # `nohup` lets a process ignore it
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
            signal.signal(hangup, self.handle_exit)
        with super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(EXIT_STATUS if sig == signal.SIGINT else 128 + sig)
        self.config.app.state.server.draining = True
        self.should_exit = True
        with contextlib.suppress(OSError):  # SIGHUP can mean that the terminal is gone
            os.write(sys.stderr.fileno(), _STOPPING.encode())


class _PatientProtocol(H11Protocol):
    """
    Closes connections whose request has not arrived with all its headers in time, and those of clients that do not
    read their answer, which stays in memory; uvicorn would wait for ever.
    """

    settings: ServerSettings
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._end_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.settings.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_reading()

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.settings.header_seconds, self._close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
