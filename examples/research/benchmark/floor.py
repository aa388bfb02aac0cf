"""The lowest possible time of a forward pass: the image encoder's FLOPs at the rate of a large matrix product."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from vcp_clip_hf.configuration_frozen_clip import FrozenCLIPConfig
from vcp_clip_hf.vision_tower import VCPCLIPVisionEmbeddings

from .clock import seconds


__all__ = ["image_encoder_flops", "matrix_product", "tower_flops"]


def image_encoder_flops(config: FrozenCLIPConfig, size: int) -> float:
    """Return the multiplications and additions of the image tower for one image, products and convolutions only."""
    vision = config.vision_config
    with torch.device("meta"), FlopCounterMode(display=False) as embedding:
        VCPCLIPVisionEmbeddings(vision).patch_embedding(torch.empty(1, vision.num_channels, size, size))
    return tower_flops(config, (size // vision.patch_size) ** 2 + 1) + embedding.get_total_flops()


def tower_flops(config: FrozenCLIPConfig, tokens: int) -> float:
    """Return the multiplications and additions of all blocks of the image tower for one sequence of tokens."""
    vision = config.vision_config
    width = vision.hidden_size
    per_layer = tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * tokens**2 * width
    return 2.0 * vision.num_hidden_layers * per_layer


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], torch.Tensor], float]:
    """
    Return a matrix product that is large enough to run at full rate, and its FLOPs.

    On a CPU, PyTorch computes products and convolutions with different libraries, and which one is faster depends on
    the processor: the faster of both is returned.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    ways = [lambda: a @ b]
    if device.type == "cpu":
        pixels, kernel = a[None].transpose(1, 2).unsqueeze(2), b[:, :, None, None]
        ways.append(lambda: torch.nn.functional.conv2d(pixels, kernel))
        for way in ways:
            way()
    return min(ways, key=lambda way: seconds(way, device)), 2.0 * side**3
