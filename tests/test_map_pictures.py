"""Maps as PNG files of 16 bits."""

import io

import numpy as np
from PIL import Image

from vcp_clip_hf.map_pictures import save_map_png


def test_a_map_is_restored_up_to_16_bits(tmp_path):
    values = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    values[0, :3] = (0, 1, 1.5)
    file = io.BytesIO()
    save_map_png(values, file)
    save_map_png(values, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes() == file.getvalue()
    picture = Image.open(file)
    assert picture.mode == "I;16" and picture.size == (30, 20)
    assert np.abs(np.asarray(picture) / 65535 - values.clip(0, 1)).max() <= 0.5 / 65535 + 1e-7
