"""Maps and scores of a batch: one computation for each size, equal to that of each image alone."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vcp_clip_hf import VCPCLIPImageProcessor, finished_maps, image_processing_vcp_clip
from vcp_clip_hf.finished_maps import groups_of_one_size, of_group, regions_at_size
from vcp_clip_hf.modeling_vcp_clip import VCPCLIPOutput


SIZES = [(60, 80), (48, 48), (60, 80), (33, 70), (60, 80)]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Group images on the CPU as on a GPU."""
    monkeypatch.setattr(
        image_processing_vcp_clip, "groups_of_one_size", lambda sizes, device: groups_of_one_size(sizes, CUDA)
    )


def test_images_of_one_size_are_a_group_on_a_gpu():
    assert groups_of_one_size(SIZES, CUDA) == [[0, 2, 4], [1], [3]]
    assert groups_of_one_size(SIZES, CPU) == [[0], [1], [2], [3], [4]]
    batch = torch.arange(10).view(5, 2)
    assert torch.equal(of_group(batch, [0, 2, 4]), batch[[0, 2, 4]])
    assert of_group(batch, [1, 2, 3]).data_ptr() == batch[1:].data_ptr()


def test_regions_are_one_tensor_and_none_is_everywhere():
    inside = np.zeros((6, 8), np.uint8)
    inside[:3] = 7
    both = regions_at_size([inside, None], (12, 16), CPU)
    assert both.shape == (2, 12, 16) and both[0, :6].all() and not both[0, 6:].any() and both[1].all()


def outputs_of(count: int) -> VCPCLIPOutput:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, count, 48, 48, generator=generator)
    return VCPCLIPOutput(
        anomaly_map=maps[0], base_map=maps[1], vcp_map=maps[2], image_scores=torch.rand(count, generator=generator)
    )


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
@pytest.mark.parametrize(
    ("score_mode", "with_region"),
    [("max", False), ("max", True), ("top_k", False), ("top_k", True), ("image_head", False)],
)
def test_groups_give_the_results_of_each_image_alone(as_on_a_gpu, resize_mode, score_mode, with_region):
    processor = VCPCLIPImageProcessor(
        size=48, resize_mode=resize_mode, score_mode=score_mode, threshold=0.5, image_threshold=0.5, smoothing_sigma=2
    )
    outputs, roi_masks = outputs_of(len(SIZES)), None
    if with_region:
        roi_masks = [np.arange(width)[None].repeat(height, 0) > width // 3 for height, width in SIZES]
        roi_masks[1] = None
    together = processor.finish_maps(outputs, SIZES, roi_masks)
    assert together.groups == [[0, 2, 4], [1], [3]]
    for index, (result, size) in enumerate(zip(together.results(), SIZES, strict=True)):
        one = VCPCLIPOutput(**{name: value[index : index + 1] for name, value in outputs.items()})
        own = None if roi_masks is None else [roi_masks[index]]
        (alone,) = processor.post_process_anomaly_segmentation(one, [size], own)
        torch.testing.assert_close(result["anomaly_map"], alone["anomaly_map"], rtol=0, atol=1e-6)
        assert result["score"] == pytest.approx(alone["score"], abs=1e-6) and result["label"] == alone["label"]
        assert torch.equal(result["mask"], alone["mask"])


class Kernels(TorchDispatchMode):
    """Count operators that compute or copy."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        returned = operator(*args, **(kwargs or {}))
        self.count += not operator.is_view
        return returned


@pytest.mark.parametrize("score_mode", ["max", "top_k", "image_head"])
@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_a_gpu_gets_few_kernels_for_a_batch_of_one_size_and_nothing_waits_for_it(resize_mode, score_mode):
    processor = VCPCLIPImageProcessor(size=48, resize_mode=resize_mode, score_mode=score_mode)
    counts = {}
    for count in (1, 2, 16):  # the first one makes the matrix that smooths
        # tensors without values, which cannot be read
        maps = {name: torch.empty(count, 48, 48, device="meta") for name in ("anomaly_map", "base_map", "vcp_map")}
        outputs = VCPCLIPOutput(**maps, image_scores=torch.empty(count, device="meta"))
        with Kernels() as kernels:
            finished = processor.finish_maps(outputs, [(60, 80)] * count)
        counts[count] = kernels.count
        assert [each.device.type for each in (*finished.maps, *finished.scores)] == ["meta", "meta"]
    assert counts[2] == counts[16] < 20


def test_regions_reach_a_gpu_in_one_copy(monkeypatch):
    seen = []
    monkeypatch.setattr(finished_maps, "to_device", lambda tensor, device: seen.append(tensor.shape) or tensor)
    regions_at_size([np.ones((4, 4))] * 3, (8, 8), CUDA)
    assert seen == [(3, 8, 8)]
