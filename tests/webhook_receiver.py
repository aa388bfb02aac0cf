"""A receiver of webhooks on this machine: a real HTTP server in a thread, which fails as a test asks it to."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log nothing about connections that a killed client leaves."""


class Receiver:
    """
    Collects what is posted; a context.

    `answers(number)` chooses the answer to a request, 0 for the first: a status, a pair of a status and headers,
    "hang", "close" (the connection, without an answer) or "cut" (in the middle of an answer).
    """

    def __init__(self, answers: Callable[[int], object] = lambda number: 200):
        self.answers = answers
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/results?token=abc"

    def bodies(self) -> list[dict]:
        return [json.loads(body) for _, body in self.taken]

    def received_keys(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.taken]

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while len(self.taken) < count:
            assert time.monotonic() < end, f"{len(self.taken)} of {count} results came"
            time.sleep(0.01)

    def __enter__(self) -> "Receiver":
        self.server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # a killed client
                    self.close_connection = True
                    return
                request = ({name.lower(): value for name, value in self.headers.items()}, body)
                number = len(receiver.requests)
                receiver.requests.append(request)
                self._answer(receiver.answers(number), request)

            do_GET = do_POST

            def _answer(self, answer: object, request: tuple) -> None:
                if answer in ("hang", "close", "cut"):
                    if answer == "hang":
                        receiver.released.wait(20)
                    if answer == "cut":
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                    self.close_connection = True
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                if status < 300:
                    receiver.taken.append(request)
                text = f"answer {status}".encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
