"""The running server: its model, recipes and queue, and the steps from an image to its result."""

import asyncio
import math
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request
from PIL import Image
from starlette.requests import ClientDisconnect

from ..version import __version__
from .batching import BatchingQueue, BatchReport, QueueFull, QueueStopped
from .engine import SegmentationEngine
from .limits import Admission, unavailable
from .metrics import ServerMetrics
from .recipe import Recipe
from .recipes import RecipeStore
from .request import SegmentationRequest
from .request_images import ImageSource, load_source
from .settings import ServerSettings


__all__ = ["OpenParts", "RunningServer", "running_server", "unless_client_leaves"]

Value = TypeVar("Value")
# Loads the model and opens the recipes; this takes seconds
OpenParts = Callable[[], tuple[SegmentationEngine, RecipeStore]]

_SECONDS_TO_LOAD = 5
# Place of the image in a template
_NO_IMAGE = Image.new("RGB", (1, 1))


class RunningServer:
    """
    State that all requests share.

    Args:
        settings (`ServerSettings`): limits, times and the token.

    Attributes:
        draining (`bool`): whether a signal to stop has arrived.
        failure (`Exception`, *optional*): why the model could not be loaded.
        on_failure (`Callable[[], None]`): called when the model could not be loaded.
    """

    def __init__(self, settings: ServerSettings):
        self.settings, self.metrics = settings, ServerMetrics()
        self.admission = Admission(settings.max_requests)
        self.draining = False
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._engine: SegmentationEngine | None = None
        self._store: RecipeStore | None = None
        self._queue: BatchingQueue | None = None
        self._model: dict[str, Any] = {}
        self._loading: asyncio.Task | None = None

    # --- start and stop ---------------------------------------------------------------------------------------------

    def start(self, open_parts: OpenParts) -> None:
        """Begin to load the model in the background, so that `/health/live` works during this time."""
        # Decoded images are large, so only as many are decoded as can wait or be computed
        self._decoded = asyncio.Semaphore(self.settings.max_waiting + self.settings.max_batch_size)
        self._processors = CapacityLimiter(os.cpu_count() or 1)
        self._loading = asyncio.create_task(self._load(open_parts))

    async def _load(self, open_parts: OpenParts) -> None:
        try:
            engine, store = await to_thread.run_sync(open_parts)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        settings = self.settings
        self._model, self._engine, self._store = engine.describe(), engine, store
        self._queue = BatchingQueue(
            engine, settings.max_batch_size, settings.max_wait_ms, settings.max_waiting, self._count_batch
        )
        self.metrics.watch_queue(lambda: self._queue.statistics().waiting)

    def _count_batch(self, report: BatchReport) -> None:
        self.metrics.batch_size.observe(report.size)
        self.metrics.model_seconds.observe(report.seconds)

    async def stop(self) -> None:
        """Finish the accepted requests, then close the recipes."""
        self.draining = True
        if self._loading is not None:
            await self._loading
        if self._queue is not None:
            await to_thread.run_sync(self._queue.stop)
        if self._store is not None:
            self._store.close()

    # --- what requests need -----------------------------------------------------------------------------------------

    @property
    def store(self) -> RecipeStore:
        """Return the recipes; raise an `HTTPException` (503) while the model is loading."""
        self._check_loaded()
        return self._store

    @property
    def model(self) -> dict[str, Any]:
        """Return the facts about the model; raise an `HTTPException` (503) while it is loading."""
        self._check_loaded()
        return self._model

    def _check_loaded(self) -> None:
        if self._queue is None:
            raise unavailable("The model is loading.", _SECONDS_TO_LOAD)

    def check_ready(self) -> None:
        """Raise an `HTTPException` (503) while the model is loading, or when the server is stopping."""
        self._check_loaded()
        if self.draining:
            raise unavailable("The server is stopping.", self.settings.drain_seconds)

    def provenance(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe, model and version of the package, which are part of every response."""
        return {
            "recipe": {"name": recipe.name, "version": recipe.version},
            "model": {"name": self.model["model"], "fingerprint": self.model["fingerprint"]},
            "package_version": __version__,
        }

    def retry_seconds(self) -> float:
        """Return the seconds after which a refused client may try again."""
        now = self._queue.statistics() if self._queue is not None else None
        if now is None or not now.finished:
            return 1
        return math.ceil((now.waiting + now.running) * now.engine_seconds / now.finished)

    async def compute(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Decode or encode an image in a thread; at most as many at one time as there are processors."""
        return await to_thread.run_sync(function, *arguments, limiter=self._processors)

    def template(self, recipe: str, parts: tuple[str, ...]) -> SegmentationRequest:
        """
        Return a request without its image: all images of a request are segmented with one version of a recipe.

        Args:
            recipe (`str`): name of the recipe.
            parts (`tuple[str, ...]`): requested parts of the response.

        Raises:
            HTTPException: 503, the model is loading.
            UnknownRecipe: there is no such recipe.
        """
        return self.store.request(_NO_IMAGE, recipe, "regions" in parts, "overlay" in parts)

    async def segment(
        self,
        source: ImageSource,
        template: SegmentationRequest,
        parts: tuple[str, ...],
        encode: Callable[[str | None, dict[str, Any], tuple[str, ...]], Value],
    ) -> Value:
        """
        Decode an image, compute its result, and encode it.

        Args:
            source (`ImageSource`): image of a request.
            template ([`SegmentationRequest`]): return value of `template`.
            parts (`tuple[str, ...]`): requested parts of the answer.
            encode (`Callable`): called with the name of the image, the result and the parts.

        Returns:
            What `encode` returned.

        Raises:
            HTTPException: 403, 413, 422 or 503, with a sentence.
        """
        content = await to_thread.run_sync(source.read)
        async with self._decoded:
            picture = await self.compute(load_source, content, self.settings.max_pixels, self._engine.input_range)
            del content
            try:
                result = await self._queue.submit(replace(template, image=picture))
                answer = await self.compute(encode, source.name, result, parts)
            except QueueFull as error:
                raise unavailable(str(error), error.retry_after) from None
            except QueueStopped as error:
                raise unavailable(str(error), self.settings.drain_seconds) from None
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            self.metrics.images.labels(result["label"] or "none").inc()
            return answer


def running_server(request: Request) -> RunningServer:
    """Return the server that a request belongs to, as a dependency of FastAPI."""
    return request.app.state.server


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """
    Wait for a result; if the client closes the connection before, cancel the work.

    Args:
        request (`Request`): request whose body was read completely.
        work (coroutine): work to do.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
