"""The queue between clients and engine: batches, limits, faults and the end."""

import asyncio
import gc
import math
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from tests.export_run import picture
from tests.server.engines import FaultyEngine, pipeline_engine
from tests.server.test_pipeline_engine import assert_equal
from vcp_clip_hf.server.batching import BatchingQueue, QueueFull, QueueStatistics, QueueStopped
from vcp_clip_hf.server.recipe import Recipe
from vcp_clip_hf.server.request import SegmentationRequest


BROKEN = 13
RECIPE = Recipe("default")


def request(width: int = 60, height: int = 40) -> SegmentationRequest:
    return SegmentationRequest(picture(height, width), RECIPE)


@pytest.fixture
def engine():
    return FaultyEngine(broken_width=BROKEN)


@pytest.fixture
def queue(engine):
    queue = BatchingQueue(engine, max_batch_size=4, max_wait_ms=5, max_waiting=6)
    yield queue
    engine.open_gate.set()
    assert queue.stop(timeout=30)


def hold_one(queue, engine):
    """Let the engine compute a request that does not end; return its future."""
    engine.hold()
    future = queue.accept(request())
    assert engine.entered.wait(30)
    return future


def test_results_are_those_of_the_engine(queue):
    (expected,) = pipeline_engine().segment([request()])
    assert_equal(queue.submit_blocking(request()), expected)
    assert_equal(asyncio.run(queue.submit(request())), expected)


def test_an_idle_engine_waits_for_the_window_and_no_longer():
    engine = FaultyEngine()
    engine.segment([request()])
    for window in (0, 150):
        queue = BatchingQueue(engine, max_wait_ms=window, on_batch=(reports := []).append)
        queue.submit_blocking(request())
        queue.stop()
        (report,) = reports
        assert window / 1000 <= report.waits[0] < window / 1000 + 1


def test_a_full_batch_does_not_wait_for_the_window(engine):
    queue = BatchingQueue(engine, max_batch_size=2, max_wait_ms=60_000)
    futures = [queue.accept(request()) for _ in range(4)]
    for future in futures:
        future.result(30)
    assert queue.statistics().batches == {2: 2}
    assert queue.stop(timeout=30)


def test_batches_fill_while_the_engine_computes(queue, engine):
    first = hold_one(queue, engine)
    futures = [queue.accept(request()) for _ in range(5)]
    assert queue.statistics() == QueueStatistics(waiting=5, running=1, accepted=6)
    engine.open_gate.set()
    for future in (first, *futures):
        future.result(30)
    assert [len(batch) for batch in engine.batches] == [1, 4, 1]
    statistics = queue.statistics()
    assert statistics.batches == {1: 2, 4: 1} and statistics.finished == 6 and statistics.engine_seconds > 0


def test_a_full_queue_refuses_with_the_time_to_come_back(queue, engine):
    queue.submit_blocking(request())
    queue._seconds_each = 0.9  # as measured with a slow model
    first = hold_one(queue, engine)
    futures = [queue.accept(request()) for _ in range(6)]
    with pytest.raises(
        QueueFull, match="6 requests are waiting, and no more are accepted; try again in 7 s"
    ) as refused:
        queue.submit_blocking(request())
    assert refused.value.retry_after == 7  # 6 that wait and 1 that is computed
    with pytest.raises(QueueFull):
        asyncio.run(queue.submit(request()))
    assert queue.statistics().refused == 2
    engine.open_gate.set()
    assert all(future.result(30) for future in (first, *futures))
    queue.submit_blocking(request())


def test_the_expected_time_is_measured(queue, engine):
    queue.submit_blocking(request())
    hold_one(queue, engine)
    for _ in range(6):
        queue.accept(request())
    with pytest.raises(QueueFull) as refused:
        queue.accept(request())
    assert refused.value.retry_after == math.ceil(7 * queue.statistics().engine_seconds)


def test_requests_of_clients_that_are_gone_are_not_computed(queue, engine):
    first = hold_one(queue, engine)

    async def give_up():
        task = asyncio.create_task(queue.submit(request(width=99)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    with pytest.raises(TimeoutError):
        queue.submit_blocking(request(width=98), timeout=0.01)
    futures = [queue.accept(request()) for _ in range(6)]  # cancelled requests do not count in the queue
    assert queue.statistics().dropped == 2
    futures[0].cancel()
    engine.open_gate.set()
    for future in (first, *futures[1:]):
        future.result(30)
    with pytest.raises(CancelledError):
        futures[0].result(0)
    assert not {99, 98} & {width for batch in engine.batches for width, _ in batch}
    assert sum(map(len, engine.batches)) == 6 and queue.statistics().dropped == 3


@pytest.mark.parametrize("error", [RuntimeError("the model is broken"), SystemExit(3), MemoryError()])
def test_an_engine_that_raises_fails_the_one_request(error):
    engine = FaultyEngine(BROKEN, error)
    queue = BatchingQueue(engine, max_batch_size=4, max_wait_ms=5)
    first = hold_one(queue, engine)
    good, broken = queue.accept(request()), queue.accept(request(width=BROKEN))
    engine.open_gate.set()
    assert first.result(30) and good.result(30)
    with pytest.raises(type(error) if isinstance(error, Exception) else RuntimeError) as raised:
        broken.result(30)
    assert raised.value is error or "The engine raised SystemExit(3)" in str(raised.value)
    assert queue.submit_blocking(request())["score"] == first.result()["score"]
    assert queue.statistics().failed == 1
    assert queue.stop(timeout=30)


def test_an_answer_of_the_engine_that_is_an_exception_is_raised(queue):
    with pytest.raises(ValueError, match="Regions need a threshold"):
        queue.submit_blocking(SegmentationRequest(picture(40, 60), RECIPE, with_regions=True))
    assert queue.statistics().failed == 1


def test_the_end_answers_what_was_accepted_and_refuses_the_rest(queue, engine):
    first = hold_one(queue, engine)
    futures = [queue.accept(request()) for _ in range(6)]
    assert not queue.stop(timeout=0.01)
    with pytest.raises(QueueStopped, match="accepts no further requests"):
        queue.accept(request())
    engine.open_gate.set()
    assert queue.stop(timeout=30)
    assert all(future.result(0)["score"] > 0 for future in (first, *futures))


def test_the_end_without_draining_tells_those_who_wait(queue, engine):
    first = hold_one(queue, engine)
    futures = [queue.accept(request()) for _ in range(3)]
    futures[0].cancel()
    assert not queue.stop(drain=False, timeout=0.01)
    for future in futures[1:]:
        with pytest.raises(QueueStopped, match="stopped before this request was computed"):
            future.result(0)
    engine.open_gate.set()
    assert queue.stop(timeout=30) and first.result(0)


def test_many_clients_get_each_their_own_answer():
    """32 threads, some of which send broken requests, and the end in the middle: no answer is lost or exchanged."""
    engine = FaultyEngine(BROKEN, ZeroDivisionError("the model is broken"))
    queue = BatchingQueue(engine, max_batch_size=8, max_waiting=64)
    widths = [40 + index for index in range(32)]
    expected = {width: pipeline_engine().segment([request(width)])[0] for width in widths}
    counts, lock = {"good": 0, "broken": 0, "stopped": 0}, threading.Lock()

    def count(name):
        with lock:
            counts[name] += 1

    def client(width):
        for index in range(8):
            try:
                if (width + index) % 16 == 0:
                    with pytest.raises(ZeroDivisionError, match="the model is broken"):
                        queue.submit_blocking(request(BROKEN), timeout=60)
                    count("broken")
                else:
                    assert_equal(queue.submit_blocking(request(width), timeout=60), expected[width], atol=1e-6)
                    count("good")
            except QueueStopped:
                count("stopped")

    with ThreadPoolExecutor(32) as clients:
        done = [clients.submit(client, width) for width in widths]
        while queue.statistics().finished < 150:
            time.sleep(0.005)
        assert queue.stop(timeout=60)
        for each in done:
            each.result()
    statistics = queue.statistics()
    assert sum(counts.values()) == 32 * 8 and counts["stopped"] > 0
    assert statistics.finished == statistics.accepted == counts["good"] + counts["broken"]
    assert statistics.failed == counts["broken"] > 0 and statistics.waiting == statistics.running == 0
    assert sum(size * number for size, number in statistics.batches.items()) == statistics.finished
    assert max(statistics.batches) == 8


def test_nothing_is_kept_of_requests_and_results(queue):
    sent = request()
    image = weakref.ref(sent.image)
    result = weakref.ref(queue.submit_blocking(sent)["anomaly_map"].base)
    del sent
    for _ in range(100):  # the worker thread may still leave its function
        if image() is None and result() is None:
            break
        time.sleep(0.01)
        gc.collect()
    assert image() is None and result() is None


def test_an_observer_that_fails_stops_nothing(engine, caplog):
    queue = BatchingQueue(engine, on_batch=lambda report: 1 / 0)
    assert queue.submit_blocking(request()) and queue.submit_blocking(request())
    assert queue.stop() and "The function on_batch failed" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch_size", 0), ("max_waiting", 1.5), ("max_wait_ms", -1), ("max_wait_ms", float("nan"))],
)
def test_numbers_out_of_range(name, value, engine):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BatchingQueue(engine, **{name: value})
