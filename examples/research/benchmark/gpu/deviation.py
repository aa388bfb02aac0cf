"""How far the maps of one way are from those of another."""

import copy
from collections.abc import Callable

import torch

from .measurement import Measurement
from .ways import BOTH, COMPILED, FLOAT8, GRAPHS, NO_GRAPHS, PLAIN


__all__ = ["WITH_GRAPHS", "deviation_of_exact_ways", "deviation_of_float8", "deviation_of_fused_pointwise"]

# Beginning of the rows that compare replayed passes with others
WITH_GRAPHS = "with graphs"


@torch.inference_mode()
def deviation_of_exact_ways(run: Measurement) -> None:
    """Compare precisions, the accelerated copy, graphs, and batch and single image."""
    size = run.options.batch_sizes[min(1, len(run.options.batch_sizes) - 1)]
    batch, one = run.inputs(size), run.inputs(1)
    _compare(run, f"{run.dtype_name} beside float32, plain", lambda: (_maps(run, PLAIN, one), _exact_maps(run)))
    _compare(run, "accelerated beside plain", lambda: (_maps(run, NO_GRAPHS, one), _maps(run, PLAIN, one)))
    for images in (one, batch):
        _compare(
            run,
            f"{WITH_GRAPHS} beside without, batch of {len(images)}",
            lambda images=images: (_maps(run, GRAPHS, images), _maps(run, NO_GRAPHS, images)),
        )
    for way in (NO_GRAPHS, GRAPHS):
        _compare(
            run,
            f"batch of {size} beside single images, {way}",
            lambda way=way: (_maps(run, way, batch), torch.cat([_maps(run, way, each[None]) for each in batch])),
        )


@torch.inference_mode()
def deviation_of_float8(run: Measurement) -> None:
    """Compare float8 with the dtype of the model."""
    one = run.inputs(1)
    _compare(run, f"float8 beside {run.dtype_name}", lambda: (_maps(run, FLOAT8, one), _maps(run, NO_GRAPHS, one)))


@torch.inference_mode()
def deviation_of_fused_pointwise(run: Measurement) -> None:
    """Compare compiled pointwise operations with those of PyTorch."""
    one = run.inputs(1)
    for way, beside in ((COMPILED, NO_GRAPHS), (BOTH, FLOAT8)):
        pair = (way, beside)
        _compare(run, f"{way}, beside {beside}", lambda pair=pair: tuple(_maps(run, each, one) for each in pair))


def _maps(run: Measurement, name: str, images: torch.Tensor) -> torch.Tensor:
    """Return the maps of a way, in float32. A way with graphs is called until its graph replays."""
    way = run.ways.get(name)
    for _ in range(3 if way.graphs else 1):
        maps = way.forward(images).anomaly_map
    way.check_graph(images)
    return maps.float()


def _exact_maps(run: Measurement) -> torch.Tensor:
    """Return the maps of one image, from the plain model in true float32 on the same device."""
    model = copy.deepcopy(run.exact_model).to(run.device)
    # By default, cuDNN rounds the inputs of convolutions to 10 bits
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model(run.setting(1).pixel_values().to(run.device)).anomaly_map


def _compare(run: Measurement, what: str, maps: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Report the largest and the mean difference of two maps, or why it cannot be measured."""
    if not run.has_time(0.5, what):
        return
    try:
        ours, theirs = maps()
    except Exception as error:  # a way that this machine cannot compute does not end the others
        run.leave_out(what, error)
        return
    difference = (ours - theirs).abs()
    run.row(
        "deviation",
        {
            "what": what,
            "equal": torch.equal(ours, theirs),
            "map_deviation_max": difference.max().item(),
            "map_deviation_mean": difference.mean().item(),
        },
    )
