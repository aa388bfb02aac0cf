"""The process of a server: its socket, its signals, and a time limit for headers."""

import asyncio
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..interruption import EXIT_STATUS


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
        reason = error.strerror or str(error)
        raise ValueError(
            f"Port {port} of {host} cannot be opened ({reason}). Choose another --port, or stop the process that uses"
            " it; --host must be an address of this machine."
        ) from error


def run(app: FastAPI, listener: socket.socket, header_seconds: float, drain_seconds: float) -> None:
    """
    Serve until SIGTERM or Ctrl-C; then finish the accepted requests. A second signal ends the process at once.

    Args:
        app (`FastAPI`): application of `create_app`.
        listener (`socket.socket`): open port.
        header_seconds (`float`): maximum time in seconds for the headers of a request.
        drain_seconds (`float`): maximum time in seconds for the accepted requests.

    Raises:
        Exception: the model could not be loaded.
    """
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_PatientProtocol,), {"header_seconds": header_seconds}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(EXIT_STATUS if sig == signal.SIGINT else 128 + sig)
        self.config.app.state.server.draining = True
        self.should_exit = True
        os.write(sys.stderr.fileno(), _STOPPING.encode())


class _PatientProtocol(H11Protocol):
    """Closes connections whose request has not arrived with all its headers in time; uvicorn would wait for ever."""

    header_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
