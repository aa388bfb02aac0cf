"""The ways to compute a forward pass that are compared on a GPU."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference_forward import reference_forward
from vcp_clip_hf import VCPCLIPModel, accelerate_inference
from vcp_clip_hf.acceleration_settings import Acceleration

from ..clock import REFERENCE


__all__ = [
    "ATTENTIONS",
    "BOTH",
    "COMPILED",
    "EXACT_WAYS",
    "FLOAT8",
    "FLOAT8_WAYS",
    "GRAPHS",
    "NO_GRAPHS",
    "PLAIN",
    "WHOLE_COMPILED",
    "LeftOut",
    "Way",
    "Ways",
    "attention_way",
]

PLAIN = "plain"
NO_GRAPHS = "accelerated, without graphs"
GRAPHS = "accelerated"
COMPILED = "accelerated, compile_pointwise"
FLOAT8 = "accelerated, float8"
BOTH = "accelerated, float8 and compile_pointwise"
WHOLE_COMPILED = "torch.compile"

# What computes in the model's own dtype, and what does not
EXACT_WAYS = (PLAIN, NO_GRAPHS, GRAPHS, COMPILED)
FLOAT8_WAYS = (FLOAT8, BOTH)

# Kernels of PyTorch's attention, and implementations of transformers that need packages of their own
ATTENTIONS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash_attention_2": None,
    "flash_attention_3": None,
    "flex_attention": None,
}

# Settings of each way of the accelerated copy
_SETTINGS = {
    NO_GRAPHS: Acceleration(),
    GRAPHS: Acceleration(),
    COMPILED: Acceleration(compile_pointwise=True),
    FLOAT8: Acceleration(float8=True),
    BOTH: Acceleration(float8=True, compile_pointwise=True),
}


class LeftOut(Exception):
    """Something that this machine cannot measure; the message says why."""


def attention_way(attention: str) -> str:
    """Return the name of the way with an attention of `ATTENTIONS`."""
    return f"accelerated, attention {attention}"


@dataclass
class Way:
    """
    One way to compute a forward pass.

    Args:
        name (`str`): its name in the tables.
        network (`Callable`): a model, or a function with its `forward`.
        encoder (`Callable`, *optional*): its image encoder alone.
        graphs (`bool`): whether passes are replayed as CUDA graphs.
        around (`Callable`): makes a context manager for each call.
    """

    name: str
    network: Callable
    encoder: Callable | None
    graphs: bool = False
    around: Callable[[], AbstractContextManager] = field(default=contextlib.nullcontext, repr=False)

    def forward(self, inputs: torch.Tensor) -> dict:
        """Compute a forward pass of images (B, 3, S, S)."""
        with self.around():
            return self.network(inputs)

    def encoder_over(self, inputs: torch.Tensor) -> Callable[[], object] | None:
        """Return the image encoder over these images as a function; for a way with graphs, captured on its own."""
        if self.encoder is None:
            return None

        def encode() -> object:
            with self.around():
                return self.encoder(inputs)

        return captured(encode) if self.graphs else encode

    def check_graph(self, inputs: torch.Tensor) -> None:
        """Raise unless passes over these images were replayed, for a way with graphs."""
        graphs = self.network.captured.describe() if self.graphs else []
        if self.graphs and not any(each.startswith(f"{len(inputs)} images ") for each in graphs):
            raise RuntimeError(f"no graph was captured for a batch of {len(inputs)}")


class Ways:
    """
    The ways of one model; the accelerated copies that they need are made once.

    Args:
        model ([`VCPCLIPModel`]): the plain model on the device that is measured.
        compile_mode (`str`): mode of `torch.compile` for the whole model.
    """

    def __init__(self, model: VCPCLIPModel, compile_mode: str = "reduce-overhead"):
        self.model = model
        self.compile_mode = compile_mode
        self._copies: dict[Acceleration, VCPCLIPModel] = {}

    def copy(self, settings: Acceleration) -> VCPCLIPModel:
        """Return the accelerated copy with these settings."""
        if settings not in self._copies:
            self._copies[settings] = accelerate_inference(self.model, settings)
        return self._copies[settings]

    def get(self, name: str) -> Way:
        """
        Return a way.

        Raises:
            LeftOut: it has no effect without a GPU.
            ValueError: this GPU cannot compute in this way.
        """
        if name == PLAIN:
            return Way(name, self.model, self.model.encode_image)
        if name == REFERENCE:
            return Way(name, lambda inputs: reference_forward(self.model, inputs), None)
        if name == WHOLE_COMPILED:
            compiled = torch.compile(self.model, fullgraph=True, dynamic=False, mode=self.compile_mode)
            return Way(f"{name}, {self.compile_mode}", compiled, None)
        if name != NO_GRAPHS and self.model.device.type != "cuda":
            raise LeftOut("it needs a GPU")
        for attention in ATTENTIONS:
            if name == attention_way(attention):
                return self._with_attention(attention)
        fast = self.copy(_SETTINGS[name])
        if name == NO_GRAPHS:
            return Way(name, fast, fast.encode_image, around=fast.captured.disabled)
        return Way(name, fast, fast.encode_image, graphs=True)

    def _with_attention(self, attention: str) -> Way:
        """Return the accelerated copy with another attention of the image tower."""
        name, backend = attention_way(attention), ATTENTIONS[attention]
        fast = accelerate_inference(self.model)
        if backend is None:
            fast.clip.vision_model.set_attn_implementation(attention)
            return Way(name, fast, fast.encode_image, graphs=True)
        # The text tower has masks, which not every kernel takes
        backends = list(dict.fromkeys((backend, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)))
        return Way(name, fast, fast.encode_image, graphs=True, around=lambda: sdpa_kernel(backends, set_priority=True))


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return `run` as a CUDA graph; its inputs are the same at each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay
