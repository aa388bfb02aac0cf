"""The table of results in float32, bfloat16 and emulated float8."""

import torch

from examples.research.float8_accuracy import deviation, main, ways_of
from tests.common import pixels, tiny_model
from vcp_clip_hf import VCPCLIPImageProcessor


def test_the_table(tmp_path, capsys):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--dataset", "synthetic", "--num_test_images", "12", "--num_compared", "2"]
    (values,) = main(options).values()
    exact, half, quarter = values.values()
    assert list(values) == ["float32", "bfloat16", "float8, emulated"]
    assert exact["largest"] == 0 and half["largest"] > half["mean"] > 0
    assert quarter["mean"] > half["mean"]
    assert "| synthetic | float8, emulated |" in capsys.readouterr().out


@torch.no_grad()
def test_only_the_image_tower_is_emulated():
    ways = ways_of(tiny_model())
    values = deviation(ways, [pixels(1), pixels(1)])
    half, quarter = ways["bfloat16"], ways["float8, emulated"]
    changed = {name for name, module in quarter.named_modules() if type(module).__name__ == "EmulatedFloat8Linear"}
    assert len(changed) == 4 * 6 and all(name.startswith("clip.vision_model.encoder.layers.") for name in changed)
    assert half.dtype == quarter.dtype == torch.bfloat16
    assert 0 == values["float32"]["largest"] < values["bfloat16"]["largest"]
