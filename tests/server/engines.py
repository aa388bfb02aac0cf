"""Engines for the tests of the server: real ones on the small model, and one that can be held up and fail."""

import io
import threading
from functools import lru_cache

from PIL import Image

from tests.export_run import checkpoint, exported, referenced_checkpoint
from vcp_clip_hf.exported_segmenter import ExportedSegmenter
from vcp_clip_hf.server.exported_engine import ExportedEngine
from vcp_clip_hf.server.pipeline_engine import PipelineEngine


@lru_cache
def pipeline_engine() -> PipelineEngine:
    return PipelineEngine.open(checkpoint())


@lru_cache
def referenced_engine() -> PipelineEngine:
    """Return an engine whose checkpoint has references."""
    return PipelineEngine.open(referenced_checkpoint())


@lru_cache
def exported_engine() -> ExportedEngine:
    return ExportedEngine(ExportedSegmenter(exported().folder, num_threads=1))


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


class FaultyEngine:
    """
    A real engine that waits while it is held, and breaks its contract: for a request whose image has the width
    `broken_width`, `segment` raises instead of returning the exception.
    """

    def __init__(self, broken_width: int = 0, error: BaseException | None = None):
        self.engine = pipeline_engine()
        self.broken_width, self.error = broken_width, error or RuntimeError("the model is broken")
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.entered = threading.Event()
        self.batches: list[list[tuple[int, int]]] = []
        self.input_range = self.engine.input_range

    def hold(self) -> None:
        self.open_gate.clear()
        self.entered.clear()

    def segment(self, requests):
        self.batches.append([request.image.size for request in requests])
        self.entered.set()
        assert self.open_gate.wait(30)
        if any(request.image.width == self.broken_width for request in requests):
            raise self.error
        return self.engine.segment(requests)
