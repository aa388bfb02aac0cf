"""Forward passes replayed as CUDA graphs: one launch in place of hundreds, for the accelerated inference copy.

A pass over few images takes a GPU less time than the host needs to launch its kernels. A graph records the kernels
of one pass with the memory that they read and write, and launches them at once. Therefore each graph serves one batch
size, image size and set of options; its inputs are copied into fixed memory, and its outputs are copied out of it.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.utils import ModelOutput, logging


__all__ = ["CUDARecorder", "CapturedForwards", "Recorder"]

logger = logging.get_logger(__name__)

# Number of graphs that are kept; the one that was not used for the longest time is dropped
_MAX_GRAPHS = 8
# Number of captures of one copy, after which it captures no more: a capture takes as long as many passes, which would
# be lost for inputs whose kinds rarely come again
_MAX_CAPTURES = 64
# Number of kinds of inputs that are remembered until they come again
_MAX_SEEN = 1024
# Largest share of a batch that may be padding
_MAX_PADDING = 0.25
# Passes before a capture, in which libraries choose their kernels and constants are computed
_WARM_UPS = 2
# Largest difference between a graph's first results and those of the warm-up, in units of the largest value, or of 1
# if that is less; 4 roundings in half precision
_TOLERANCE = 2e-3

# A process can capture one graph at a time
_ONE_CAPTURE = threading.Lock()

Inputs = Mapping[str, torch.Tensor]


class Recorder(Protocol):
    """What records and replays a pass on a kind of device."""

    def takes(self, tensor: torch.Tensor) -> bool:
        """Return whether passes over this tensor can be recorded now."""

    def in_turn(self, device: torch.device) -> Any:
        """Return a context in which one pass is recorded or replayed: after the previous one of any stream."""

    def forget(self) -> None:
        """Start anew: all recorded passes were dropped."""

    def record(self, run: Callable[[], ModelOutput]) -> tuple[ModelOutput, Callable[[], None], ModelOutput, int]:
        """
        Record a pass.

        Args:
            run (`Callable`): the pass, over inputs at fixed addresses.

        Returns:
            `tuple`: the results of `run` itself; a function that computes the pass again, with the present values of
            the inputs; the outputs that it writes; the bytes of memory that were reserved.
        """


class CUDARecorder:
    """Record passes as CUDA graphs, which share one pool of memory and, for that, one stream."""

    def __init__(self):
        self._finished: torch.cuda.Event | None = None
        self.forget()

    def forget(self) -> None:
        """Use a new pool of memory: a pool whose graphs were all dropped is not valid any more."""
        if self._finished is not None:  # other streams may still read the memory that will be given back
            self._finished.synchronize()
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def takes(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is on a GPU, and no graph is being captured around this call."""
        return tensor.is_cuda and torch.version.hip is None and not torch.cuda.is_current_stream_capturing()

    @contextmanager
    def in_turn(self, device: torch.device) -> Iterator[None]:
        """Order passes of several streams: they share the memory of inputs, of outputs and between them."""
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._finished is not None:
                stream.wait_event(self._finished)
            yield
            self._finished = stream.record_event()

    def record(self, run: Callable[[], ModelOutput]) -> tuple[ModelOutput, Callable[[], None], ModelOutput, int]:
        """Warm up on the current stream, and capture on another one, as [`Recorder.record`] says."""
        # Not on the stream of the capture: PyTorch keeps the memory that cuBLAS works in for each stream, and other
        # code may give it back, such as torch.compile(mode="reduce-overhead"). The pool keeps what a capture allocates
        for _ in range(_WARM_UPS):
            expected = run()
        self._stream = self._stream or torch.cuda.Stream()
        with _ONE_CAPTURE:
            try:
                return expected, *self._captured(run)
            except RuntimeError:
                _end_failed_capture()
                raise

    def _captured(self, run: Callable[[], ModelOutput]) -> tuple[Callable[[], None], ModelOutput, int]:
        graph, cause = torch.cuda.CUDAGraph(), None
        # "thread_local": other threads may copy batches to the GPU meanwhile
        capture = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        try:
            # The outer context: after an error, `torch.cuda.graph` leaves its stream the current one
            with torch.cuda.stream(self._stream), capture:
                reserved = torch.cuda.memory_reserved()  # after the capture has emptied the cache
                try:
                    outputs = run()
                except RuntimeError as error:
                    cause = error
                    raise
        except RuntimeError as error:  # of the end of the capture, which does not name the cause
            raise cause or error from None
        finally:
            cause = None  # its traceback would keep this function's memory
        self._pool = graph.pool()
        return graph.replay, outputs, torch.cuda.memory_reserved() - reserved


def _end_failed_capture() -> None:
    """
    Capture something else after a failure: PyTorch 2.11 and earlier refuse random numbers on the GPU until a capture
    succeeds.
    """
    with suppress(RuntimeError):
        stream = torch.cuda.Stream()
        capture = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local")
        with torch.cuda.stream(stream), capture:
            torch.zeros(1, device=stream.device)


@dataclass
class _Graph:
    """
    A recorded pass.

    Args:
        inputs (`dict[str, torch.Tensor]`): the memory that it reads.
        outputs (`ModelOutput`): the memory that it writes.
        replay (`Callable`): computes the pass.
        num_bytes (`int`): memory reserved for it, in bytes; later graphs use parts of it too.
        kept (`list`): further values whose memory it reads.
    """

    inputs: Inputs
    outputs: ModelOutput
    replay: Callable[[], None]
    num_bytes: int
    kept: list[Any] = field(repr=False)

    @property
    def batch_size(self) -> int:
        return len(self.inputs["pixel_values"])


class CapturedForwards:
    """
    The recorded passes of one model.

    A pass is recorded when inputs of the same kind come for the second time: batch size, image size, dtype and
    options. From then on, such inputs are replayed. A smaller batch, such as the last one of a run, is replayed too if
    at most a quarter of the recorded batch is padding. All others run without a graph.

    Padded or not, each image's results depend on it alone. The first replay of each graph is compared with the pass
    itself: if they differ, or if recording fails, such inputs run without a graph, with a warning. After a failure
    for another reason than too little memory, nothing else is recorded.

    Passes of several threads and streams wait for each other. While a pass is recorded, other
    threads may use the GPU, but `torch.cuda.synchronize` is an error in them, and so are random numbers on this GPU
    with PyTorch 2.11 and earlier.

    At most 8 graphs are kept. They share their memory, about that of one pass over the largest batch and the outputs
    of each.

    Args:
        recorder ([`Recorder`], *optional*): how passes are recorded; as CUDA graphs by default.
    """

    def __init__(self, recorder: Recorder | None = None):
        self._recorder = CUDARecorder() if recorder is None else recorder
        self._lock = threading.RLock()
        self._disabled = threading.local()
        self.clear()

    def __deepcopy__(self, memo: dict) -> "CapturedForwards":
        return CapturedForwards()

    def __reduce__(self):
        return CapturedForwards, ()

    def clear(self) -> None:
        """Drop all graphs: the memory that they read is no longer that of the model."""
        with self._lock:
            # Least recently used first; `None`: this kind and size cannot be recorded
            self._graphs: dict[tuple[Hashable, int], _Graph | None] = {}
            self._seen: set[tuple[Hashable, int]] = set()
            self._captures = 0
            self._recorder.forget()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run passes of this thread without graphs inside this context."""
        before = getattr(self._disabled, "value", False)
        self._disabled.value = True
        try:
            yield
        finally:
            self._disabled.value = before

    def describe(self) -> list[str]:
        """Return one sentence for each graph: its batch and image size, and the memory that was reserved for it."""
        return [
            f"{graph.batch_size} images of {' x '.join(map(str, graph.inputs['pixel_values'].shape[-2:]))} pixels,"
            f" {graph.inputs['pixel_values'].dtype}: {graph.num_bytes / 2**20:.0f} MiB reserved"
            for graph in self._graphs.values()
            if graph is not None
        ]

    def applies(self, inputs: Inputs) -> bool:
        """
        Return whether passes over these inputs are recorded: on a GPU, outside of tracing and autocast.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): tensors of the pass by name.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or getattr(self._disabled, "value", False):
            return False
        tensors = list(inputs.values())
        if not all(map(self._recorder.takes, tensors)) or len({each.device for each in tensors}) > 1:
            return False
        return len(tensors[0]) > 0 and not torch.is_autocast_enabled(tensors[0].device.type)

    def run(
        self,
        forward: Callable[[Inputs], ModelOutput],
        inputs: Inputs,
        options: Hashable,
        keep: Callable[[], list[Any]],
    ) -> ModelOutput:
        """
        Compute a pass, replayed if it can be.

        Args:
            forward (`Callable`): the pass. It reads nothing that changes but `inputs`.
            inputs (`Mapping[str, torch.Tensor]`): `pixel_values` first, and further tensors with one row per image or
                a single row.
            options (`Hashable`): everything else that the pass depends on.
            keep (`Callable`): returns a list of further values that the pass read, whose memory has to stay.

        Returns:
            `ModelOutput`: new tensors.
        """
        size = len(inputs["pixel_values"])
        kinds = [(name, each.device, each.dtype, each.shape[1:], len(each) == size) for name, each in inputs.items()]
        kind = (options, _global_settings(), *kinds)
        with self._lock:
            graph = self._graph_for(kind, size)
            if graph is not None:
                return self._replayed(graph, inputs)
            if self._comes_again(kind, size):
                return self._recorded(forward, inputs, (kind, size), keep)
        return forward(inputs)

    def _graph_for(self, kind: Hashable, size: int) -> _Graph | None:
        """Return the smallest graph that serves a batch, as the last one used."""
        fitting = [
            key
            for key, graph in self._graphs.items()
            if graph is not None and key[1] * (1 - _MAX_PADDING) <= size <= key[1] and key[0] == kind
        ]
        if not fitting:
            return None
        key = min(fitting, key=lambda each: each[1])
        graph = self._graphs[key] = self._graphs.pop(key)
        return graph

    def _comes_again(self, kind: Hashable, size: int) -> bool:
        """Return whether inputs came before and were never recorded; remember them."""
        if (kind, size) in self._graphs or self._captures >= _MAX_CAPTURES:
            return False
        if (kind, size) in self._seen:
            return True
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add((kind, size))
        return False

    def _recorded(
        self,
        forward: Callable[[Inputs], ModelOutput],
        inputs: Inputs,
        key: tuple[Hashable, int],
        keep: Callable[[], list[Any]],
    ) -> ModelOutput:
        """Record a pass, and return its results."""
        self._captures += 1
        graph, results, obstacle, is_last = None, None, None, False
        try:
            graph, results = self._new_graph(forward, inputs, keep)
            if graph is None:
                obstacle = "its first results differed from those without a graph"
        except RuntimeError as error:  # what cannot be captured, and too little memory
            obstacle = str(error).partition("\n")[0]
            is_last = not isinstance(error, torch.OutOfMemoryError)
        self._graphs[key] = graph
        if obstacle is not None:
            if not any(self._graphs.values()):
                self._recorder.forget()
            results = forward(inputs)  # raises errors of the inputs
            if is_last:
                self._captures = _MAX_CAPTURES
            logger.warning_once(f"A forward pass is not replayed as a CUDA graph: {obstacle}. It runs as usual.")
        for oldest in [each for each, known in self._graphs.items() if known is not None][:-_MAX_GRAPHS]:
            del self._graphs[oldest]
        return results

    def _new_graph(
        self, forward: Callable[[Inputs], ModelOutput], inputs: Inputs, keep: Callable[[], list[Any]]
    ) -> tuple[_Graph | None, ModelOutput | None]:
        """Record a pass; return its graph and its results, or `None` if those of the first replay differ."""
        # Ordinary tensors, also inside `torch.inference_mode`: they are written later, outside of it
        with torch.inference_mode(False), torch.no_grad():
            fixed = {name: each.detach().clone() for name, each in inputs.items()}
            kept: list[Any] = []

            def run() -> ModelOutput:
                outputs = forward(fixed)
                kept.extend(keep())  # after each pass: another thread may drop values meanwhile
                return outputs

            with self._recorder.in_turn(fixed["pixel_values"].device):
                expected, replay, outputs, num_bytes = self._recorder.record(run)
                replay()
                if _differ(expected, outputs):
                    return None, None
        return _Graph(fixed, outputs, replay, num_bytes, kept), expected

    def _replayed(self, graph: _Graph, inputs: Inputs) -> ModelOutput:
        size = len(inputs["pixel_values"])
        with self._recorder.in_turn(graph.inputs["pixel_values"].device):
            for name, fixed in graph.inputs.items():
                given = inputs[name]
                # The images of a former batch stay in the rows of the padding
                fixed[: len(given)].copy_(given)
            graph.replay()
            return _with_tensors(graph.outputs, lambda each: each[:size].clone())


def _global_settings() -> Hashable:
    """Return the settings of PyTorch that choose kernels."""
    backends = torch.backends
    if hasattr(backends, "fp32_precision"):  # once these were set, reading the former names is an error
        precisions = (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision)
    else:
        precisions = (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    return (
        precisions,
        torch.are_deterministic_algorithms_enabled(),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        backends.cuda.math_sdp_enabled(),
        backends.cuda.cudnn_sdp_enabled(),
    )


def _with_tensors(outputs: ModelOutput, change: Callable[[torch.Tensor], torch.Tensor]) -> ModelOutput:
    """Return outputs whose tensors are changed; the first axis of all is that of the images."""

    def changed(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value)
        return None if value is None else tuple(map(changed, value))

    return type(outputs)(**{name: changed(value) for name, value in outputs.items()})


def _differ(expected: ModelOutput, outputs: ModelOutput) -> bool:
    """Return whether a tensor of two passes differs by more than rounding, or in its NaN."""
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            tolerance = max(_TOLERANCE, 4 * torch.finfo(value.dtype).eps)
            value, other = value.float(), outputs[name].float()
            if not torch.equal(value.isnan(), other.isnan()):
                return True
            difference = (value - other).abs().nan_to_num(nan=0.0).amax()
            if difference / value.nan_to_num(nan=0.0).abs().amax().clamp(min=1) > tolerance:
                return True
    return False
