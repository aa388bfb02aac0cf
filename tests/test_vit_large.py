"""ViT-L/14 at 518 x 518 with random weights. It takes minutes and gigabytes, so it is not part of `make test`."""

import pytest
import torch

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel, accelerate_inference


@pytest.mark.slow
@torch.no_grad()
def test_builds_and_runs_in_float32_and_bfloat16():
    model = VCPCLIPModel(VCPCLIPConfig()).eval()
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learned == pytest.approx(7.69e6, rel=1e-3)
    images = torch.randn(1, 3, 518, 518)
    exact = model(images).anomaly_map
    assert exact.shape == (1, 518, 518) and exact.isfinite().all()
    fast = accelerate_inference(model)(images).anomaly_map
    torch.testing.assert_close(fast, exact, atol=1e-6, rtol=0)
    half = model.to(torch.bfloat16)(images).anomaly_map
    assert half.dtype == torch.float32 and half.isfinite().all()
    assert (half - exact).abs().mean() < 0.02
