"""What is measured: a model on a device, in a dtype, with a batch size and an image size."""

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel


__all__ = ["DEFAULT_CONFIG", "DTYPES", "Setting", "load"]

DEFAULT_CONFIG = Path(__file__).parents[3] / "hub_configs" / "vcp-clip-vit-large-patch14-336-visa"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """
    One setting of a benchmark.

    Args:
        device (`torch.device`): device of the model.
        dtype_name (`str`): a name of `DTYPES`.
        batch_size (`int`): images in one forward pass.
        image_size (`int`): side of the model's input in pixels.
    """

    device: torch.device
    dtype_name: str
    batch_size: int
    image_size: int

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype itself."""
        return DTYPES[self.dtype_name]

    @property
    def device_name(self) -> str:
        """Return the name of the GPU, or the number of CPU threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def pixel_values(self) -> torch.Tensor:
        """Return random inputs, float32 on the CPU; the same ones at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, generator=generator)

    def row(self, way: str, **values) -> dict:
        """Return one row of the report; values that are `None` are left out."""
        row = {
            "device": self.device_name,
            "dtype": self.dtype_name,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "way": way,
        }
        return row | {name: value for name, value in values.items() if value is not None}


def load(options: argparse.Namespace, default: str | None = None) -> tuple[VCPCLIPModel, VCPCLIPImageProcessor]:
    """Load `--model`, or `default`; without both, fill `--model_config` with random weights."""
    checkpoint = options.model or default
    if checkpoint is not None:
        model = VCPCLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
        return model, VCPCLIPImageProcessor.from_pretrained(checkpoint)
    model = _random_model(options.model_config or DEFAULT_CONFIG, options.weights_on)
    return model, VCPCLIPImageProcessor.for_model(model.config)


@lru_cache(maxsize=1)
def _random_model(config: str | Path, device: str) -> VCPCLIPModel:
    """Make a model on a device; several measurements of one process use the same one, and copy it."""
    torch.manual_seed(0)
    with torch.device(device):
        return VCPCLIPModel(VCPCLIPConfig.from_pretrained(config)).eval()
