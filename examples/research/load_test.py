"""Start a server on this machine, send requests from many clients, and compare its throughput with that of the model.

    python -m examples.research.load_test --requests 300
    python -m examples.research.load_test --model exported --requests 20000 --clients 32

The table has the images per second of the pipeline (of the torch-free runtime for an exported folder), measured before
and after in this process, and of the server, with the latency that its clients see and the memory of its process.
Clients keep their connections, and send the next image when they have the response to the last one.
"""

import argparse
import http.client
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vcp_clip_hf import EMBEDDED_CHECKPOINT, open_segmenter
from vcp_clip_hf.markdown_text import table as markdown_table
from vcp_clip_hf.server.engine import is_exported


__all__ = ["Load", "load_server", "main", "make_parser", "own_rate", "pictures"]

_NUM_PICTURES = 16
_SECONDS_TO_START = 120
_MEBIBYTE = 2**20


@dataclass
class Load:
    """
    Measurements of a load.

    Args:
        seconds (`float`): time from the first request to the last answer.
        latencies (`list[float]`): seconds of each answered request.
        refused (`int`): answers 503; these requests were sent again.
        processor_seconds (`float`): time that the server's process computed, on all processors.
        memory (`list[int]`): bytes of the server's resident memory after each tenth of the requests.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    processor_seconds: float = 0.0
    memory: list[int] = field(default_factory=list)


def pictures(side: int) -> list[bytes]:
    """Return JPEG files of smooth textures, all different, of `side` x `side` pixels."""
    random, files = np.random.default_rng(0), []
    for _ in range(_NUM_PICTURES):
        coarse = Image.fromarray(random.integers(60, 200, (12, 12, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def own_rate(model: str, files: Sequence[bytes], count: int, batch_size: int) -> Callable[[], tuple[float, float]]:
    """Load a model, and return a function that measures its images per second and its processor seconds per image."""
    if is_exported(model):
        call: Callable[..., Any] = open_segmenter(model)
    else:
        from transformers import pipeline

        call = pipeline("anomaly-segmentation", model=model)
    images = list(itertools.islice(itertools.cycle(files), count))
    call(images[:batch_size], batch_size=batch_size)

    def measure() -> tuple[float, float]:
        begin, begin_computing = time.perf_counter(), time.process_time()
        call(images, batch_size=batch_size)
        return count / (time.perf_counter() - begin), (time.process_time() - begin_computing) / count

    return measure


@contextmanager
def _server(model: str, options: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start `vcp-clip serve`; yield its port and process id when it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.txt")
        command = [sys.executable, "-m", "vcp_clip_hf.cli", "serve", "--model", model, "--port", "0"]
        command += ["--recipes", str(Path(folder, "recipes")), *options]
        with open(log, "w") as file:
            process = subprocess.Popen(command, stderr=file, env={**os.environ, "VCP_CLIP_IMPORT_ON_USE": "1"})
        try:
            yield _wait_until_ready(process, log), process.pid
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen, log: Path) -> int:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            with closing(http.client.HTTPConnection("127.0.0.1", int(found[1]))) as connection:
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"The server did not start: {log.read_text()}")


def load_server(port: int, process_id: int, files: Sequence[bytes], count: int, clients: int) -> Load:
    """
    Send requests from several clients at one time.

    Args:
        port, process_id (`int`): the server's.
        files (`Sequence[bytes]`): contents of the images, sent in turn.
        count (`int`): number of requests.
        clients (`int`): number of clients.
    """
    load, numbers, lock = Load(), iter(range(count)), threading.Lock()
    marks = {round(count * tenth / 10) for tenth in range(1, 11)}

    def send(connection: http.client.HTTPConnection, content: bytes) -> None:
        while True:
            begin = time.perf_counter()
            connection.request("POST", "/v1/segment", content, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body, seconds = response.read(), time.perf_counter() - begin
            if response.status == 200:
                break
            if response.status != 503:
                raise RuntimeError(f"Status {response.status}: {body!r}")
            load.refused += 1
            time.sleep(float(response.headers["Retry-After"]))
        with lock:
            load.latencies.append(seconds)
            if len(load.latencies) in marks:
                load.memory.append(_resident_bytes(process_id))

    def client(_: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for number in numbers:
                send(connection, files[number % len(files)])

    begin, begin_computing = time.perf_counter(), _processor_seconds(process_id)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    load.seconds = time.perf_counter() - begin
    load.processor_seconds = _processor_seconds(process_id) - begin_computing
    return load


def _resident_bytes(process_id: int) -> int:
    """Return the resident memory of a process, from Linux's /proc."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _processor_seconds(process_id: int) -> float:
    """Return the time that a process has computed, from Linux's /proc."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def to_markdown(options: argparse.Namespace, own: Sequence[tuple[float, float]], load: Load) -> str:
    """Return the table of a run; `own` are the results of `own_rate`."""
    count, rates = len(load.latencies), [rate for rate, _ in own]
    rate, computing = (sum(values) / len(values) for values in zip(*own, strict=True))
    throughput = count / load.seconds
    p50, p95, p99 = (1000 * value for value in np.percentile(load.latencies, (50, 95, 99)))
    memory = [each / _MEBIBYTE for each in load.memory]
    rows = [
        ("model's own rate, before and after", " and ".join(f"{each:.1f}" for each in rates) + " images / s"),
        (f"server, {options.clients} clients, {count} requests", f"{throughput:.1f} images / s"),
        ("share of the model's own rate", f"{100 * throughput / rate:.0f} %"),
        (
            "processor time per image, model alone and server",
            f"{1000 * computing:.0f} and {1000 * load.processor_seconds / count:.0f} ms",
        ),
        ("latency p50 / p95 / p99", f"{p50:.0f} / {p95:.0f} / {p99:.0f} ms"),
        ("refused by 503, and sent again", str(load.refused)),
        ("memory after 10 % / at the end / maximum", f"{memory[0]:.0f} / {memory[-1]:.0f} / {max(memory):.0f} MiB"),
    ]
    return markdown_table(["", ""], rows, "lr")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint or exported folder")
    parser.add_argument("--requests", type=int, default=300, help="number of requests")
    parser.add_argument("--clients", type=int, default=32, help="clients at one time")
    parser.add_argument("--image_size", type=int, default=320, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="images in one run of the model, for both")
    parser.add_argument("--max_wait_ms", type=float, default=5.0, help="see `vcp-clip serve`")
    parser.add_argument("--own_images", type=int, default=64, help="images in each measurement of the own rate")
    parser.add_argument("--output_file", type=Path, help="JSON file for the numbers")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    files = pictures(options.image_size)
    measure = own_rate(options.model, files, options.own_images, options.batch_size)
    own = [measure()]
    batches = ["--max-batch-size", str(options.batch_size), "--max-wait-ms", str(options.max_wait_ms)]
    with _server(options.model, batches) as (port, process_id):
        load_server(port, process_id, files, 2 * options.batch_size, options.clients)  # first runs are slower
        load = load_server(port, process_id, files, options.requests, options.clients)
    own.append(measure())
    print(to_markdown(options, own, load))
    if options.output_file is not None:
        options.output_file.write_text(json.dumps({"own": own, **load.__dict__}))


if __name__ == "__main__":
    main()
