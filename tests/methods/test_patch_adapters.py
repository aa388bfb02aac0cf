"""Linear maps of patches, their comparison with text, and the upsampling."""

import torch
from torch.nn.functional import cosine_similarity, interpolate, normalize

from vcp_clip_hf.methods.patch_adapters import PatchAdapters, patch_logits, text_cosines, upsample


def test_the_names_are_those_of_official_checkpoints():
    assert set(PatchAdapters(2, 4, 3).state_dict()) == {"fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"}


def test_one_channel_equals_the_softmax_over_both_states():
    features = [torch.randn(2, 9, 5) for _ in range(3)]
    text = normalize(torch.randn(2, 2, 5), dim=-1)
    got = patch_logits(features, text, 100.0).sigmoid()
    for layer, each in enumerate(features):
        cosines = torch.stack([cosine_similarity(each, text[:, None, state], dim=-1) for state in (0, 1)], dim=-1)
        assert torch.allclose(got[:, layer], (100 * cosines).softmax(dim=-1)[..., 1], atol=1e-5)


def test_patches_are_upsampled_row_by_row():
    values = torch.arange(6.0).view(1, 1, 6)
    got = upsample(values, (2, 3), (4, 6), align_corners=False)
    assert torch.equal(got, interpolate(values.view(1, 1, 2, 3), size=(4, 6), mode="bilinear"))


def test_cosines_are_float32_inside_autocast():
    embeds, text = torch.randn(2, 9, 5), normalize(torch.randn(2, 2, 5), dim=-1)
    expected = text_cosines(embeds, text)
    with torch.autocast("cpu", torch.bfloat16):
        got = text_cosines(embeds, text)
    assert got.dtype == torch.float32 and torch.equal(got, expected)
