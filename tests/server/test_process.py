"""A real server on loopback: many clients, bad clients, and the end."""

import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from tests.server.serving import AUTHORIZED, PNG, ROOT, TOKEN, png, read_answer, server_process
from vcp_clip_hf.server.process import _Server, bind


KINDS = (
    "image/png",
    "application/octet-stream",
    "application/json",
    "multipart/form-data; boundary=xyz",
    "text/plain",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    limits = {"body_seconds": 1, "header_seconds": 1, "max_body_bytes": 200_000, "max_pixels": 100_000}
    with server_process(folder, settings=limits) as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()


def test_32_clients_at_one_time_get_the_results_of_single_requests(server):
    pictures = [png(seed=seed) for seed in range(4)]
    alone = [server.segment(content).json()["score"] for content in pictures]
    batches = server.metric("vcp_clip_batch_size_count")
    with ThreadPoolExecutor(32) as pool:
        scores = list(pool.map(lambda number: server.segment(pictures[number % 4]).json()["score"], range(32)))
    for number, score in enumerate(scores):
        assert score == pytest.approx(alone[number % 4], abs=1e-5)
    # at least some of them went through the model together
    assert server.metric("vcp_clip_batch_size_count") - batches < 32
    assert server.metric("vcp_clip_queue_length") == 0


def test_clients_that_leave_do_not_matter(server):
    content = png()
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    for sent in (head[:30], head, head.encode() + content[:100], head.encode() + content):
        for reset in (False, True):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(sent.encode() if isinstance(sent, str) else sent)
                if reset:  # RST instead of FIN
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.segment(content).status == 200
    assert server.metric("vcp_clip_queue_length") == 0
    left = r'vcp_clip_requests_total{method="POST",route="/v1/segment",status="499"}'
    assert left in server.ask("GET", "/metrics").body.decode()


def malformed(number: int) -> tuple[str, bytes]:
    """Return media type and content of a body that is broken in one of many ways, the same for each number."""
    chance, content = random.Random(number), png(seed=number % 3)
    form = (
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + content
        + b"\r\n--xyz--\r\n"
    )
    text = json.dumps({"image": base64.b64encode(content).decode()}).encode()
    body = chance.choice((content, form, text, b"[" * 50_000, b'{"image": 1e999}', chance.randbytes(500)))
    damage = chance.randrange(4)
    if damage == 0:
        body = body[: chance.randrange(len(body))]
    elif damage == 1:
        body = bytearray(body)
        for _ in range(chance.randrange(1, 30)):
            body[chance.randrange(len(body))] = chance.randrange(256)
    elif damage == 2:
        body = body[: len(body) // 2] + chance.randbytes(chance.randrange(200)) + body[len(body) // 2 :]
    return chance.choice(KINDS), bytes(body)


def send_malformed(server, numbers: range) -> None:
    before = server.segment(png()).json()

    def send(number: int) -> None:
        kind, body = malformed(number)
        answer = server.ask("POST", "/v1/segment" + "/batch" * (number % 2), body, {"Content-Type": kind})
        # a few bodies survive their damage
        assert answer.status in (200, 400, 413, 415, 422), (number, answer)
        assert b"Traceback" not in answer.body and b'File "' not in answer.body
        if answer.status != 200:
            assert answer.json()["detail"], number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, numbers))
    assert server.segment(png()).json() == before


def test_200_malformed_bodies(server):
    send_malformed(server, range(200))


@pytest.mark.slow
def test_1000_malformed_bodies(server):
    send_malformed(server, range(200, 1200))


def test_slow_clients_time_out(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
        )
        begin = time.monotonic()
        for _ in range(4):  # a byte now and then does not start the time again
            client.sendall(b"x")
            time.sleep(0.2)
        answer = b"".join(iter(lambda: client.recv(10_000), b""))  # the body may come after the headers
    assert b" 408 " in answer and b"within 1 s; 4 bytes did" in answer
    assert time.monotonic() - begin < 3


def test_slow_headers_time_out(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        begin = time.monotonic()
        client.sendall(b"GET /health/live HTTP/1.1\r\n")
        assert client.recv(100) == b""
    assert 0.5 < time.monotonic() - begin < 3


def test_a_client_that_does_not_read_its_answer_loses_it(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    # together more than the buffers of the system take
    content = json.dumps({"images": [{"image": base64.b64encode(png(noise)).decode()}] * 2}).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with server_process(tmp_path, settings={"answer_seconds": 1}) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"POST /v1/segment/batch?include=map,overlay HTTP/1.1\r\n" + head + content)
        client.settimeout(30)
        received = client.recv(1000)
        expected = int(re.search(rb"content-length: (\d+)", received)[1])
        time.sleep(2)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(2**16):
                received += part
        assert len(received) < expected


def test_a_picture_inside_an_icon_is_not_decoded_if_it_is_too_large(server):
    inside = png(Image.new("RGB", (500, 500)))
    content = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    answer = server.segment(content)
    # after the icon was opened, the sentence would be "500 x 500 pixels exceed ..."
    assert answer.status == 413 and "more than max_pixels=100000 pixels" in answer.json()["detail"]


def test_a_body_that_is_too_large_is_answered_while_it_is_sent(server):
    for headers in (PNG, {**PNG, "Transfer-Encoding": "chunked"}):
        chunks = (b"x" * 50_000 for _ in range(8))
        body = b"".join(chunks) if headers is PNG else chunks
        connection = server.connect()
        connection.request("POST", "/v1/segment", body, headers, encode_chunked="Transfer-Encoding" in headers)
        answer = read_answer(connection)
        assert answer.status == 413 and "at most 200000" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"


def test_a_picture_with_too_many_pixels_is_not_decoded(server):
    answer = server.segment(png(Image.new("RGB", (1000, 1000))))
    assert answer.status == 413 and "more than max_pixels=100000 pixels" in answer.json()["detail"]


def test_what_is_not_http_gets_no_answer_with_details(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in client.recv(1000)


def test_an_over_full_queue_is_answered_by_503_and_a_second_signal_ends_at_once(tmp_path):
    options = ("--max-waiting", "2", "--max-batch-size", "1", "--no-token")
    with server_process(tmp_path, *options) as server:
        content = png()
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: server.segment(content), range(24)))
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 503}
        for answer in answers:
            if answer.status == 503:
                assert 1 <= int(answer.headers["retry-after"]) < 60
                assert answer.json()["detail"]
        # what was refused is done by sending it again
        assert server.segment(content).status == 200
        # this server was started without a token
        answer = server.ask("PUT", "/v1/recipes/a", b"{}", {"Content-Type": "application/json", **AUTHORIZED})
        assert answer.status == 403 and "--token-file" in answer.json()["detail"]
        # an unfinished body keeps the server from its end, and a second signal does not wait for it
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(
                b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nx"
            )
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_what_was_accepted(tmp_path, number):
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    options = ("--token-file", str(token), "--max-batch-size", "1")
    with server_process(tmp_path, *options, VCP_CLIP_TOKEN="") as server:
        content, answers = png(), []
        put = server.ask("PUT", "/v1/recipes/a", b"{}", {"Content-Type": "application/json", **AUTHORIZED})
        assert put.status == 200

        def client() -> None:
            answers.append(server.segment(content, "?recipe=a").status)

        clients = [threading.Thread(target=client) for _ in range(6)]
        for each in clients:
            each.start()
        while not answers:
            time.sleep(0.005)
        assert len(answers) < 6
        server.process.send_signal(number)
        for each in clients:
            each.join(30)
        assert answers == [200] * 6
        assert server.process.wait(30) == 0
        assert "accepted are finished" in server.log.read_text()


def test_the_message_at_the_end_does_not_need_the_terminal(monkeypatch):
    """SIGHUP comes because the terminal was closed: nothing can be written to it any more."""
    app = FastAPI()
    app.state.server = SimpleNamespace(draining=False)
    server = _Server(uvicorn.Config(app))
    other_end, terminal = os.openpty()
    os.close(other_end)
    with open(terminal, "w") as stream, monkeypatch.context() as patch:
        with pytest.raises(OSError):
            os.write(terminal, b"x")
        patch.setattr(sys, "stderr", stream)
        server.handle_exit(signal.SIGHUP, None)
    assert server.should_exit and app.state.server.draining


def test_the_curl_commands_of_the_guide_work(server, tmp_path):
    """All of them in order, with the files that they name."""
    for name in ("part", "normal", "normal2"):
        (tmp_path / f"{name}.png").write_bytes(png(seed=len(name)))
    (tmp_path / "roi.png").write_bytes(png(Image.new("L", (80, 60), 255)))
    commands = re.findall(r"^    (curl .*|export .*)$", (ROOT / "docs" / "on_the_line.md").read_text(), re.M)
    assert len(commands) > 8
    (tmp_path / "token").write_text(TOKEN)
    script = "\n".join(commands).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace("curl ", "curl -sSf ")
    subprocess.run(["bash", "-euxc", script], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert Image.open(tmp_path / "overlay.png").size == (80, 60)
    recipe = server.ask("GET", "/v1/recipes/screws").json()
    assert recipe["threshold"] == 0.4 and recipe["roi"] and len(recipe["references"]) == 2


def test_a_port_in_use_is_one_sentence():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} of 127.0.0.1 cannot be opened .Address already in use.\\."):
            bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="must be an address of this machine"):
        bind("192.0.2.1", 0)
