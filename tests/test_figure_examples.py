"""The examples that draw the paper's figures, with a tiny model."""

import numpy as np
import pytest
import torch
from PIL import Image

from examples.research import attention_maps as attention_example
from examples.research import text_embedding_tsne as tsne_example
from tests.common import tiny_model
from vcp_clip_hf import VCPCLIPImageProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Write generated datasets to the temporary folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def picture(height: int = 40, width: int = 96) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


# --- attention ------------------------------------------------------------------------------------------------------


def test_attention_maps_are_those_of_the_model(checkpoint):
    model, processor = tiny_model(), VCPCLIPImageProcessor.from_pretrained(checkpoint)
    image = picture(48, 48)  # maps are resized only from patches to pixels
    for layer in (None, 1):
        maps = attention_example.attention_maps(model, processor, image, layer)
        heads = model.config.post_vcp_num_heads
        assert maps.shape == (heads, 2, 48, 48) and maps.dtype == np.float32
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"), output_attentions=True)
        index = model.config.feature_layers.index(layer or model.config.feature_layers[-1])
        attention = outputs.attentions[index][0]
        # bilinear upsampling keeps the mean value approximately: 1
        np.testing.assert_allclose(maps.mean(axis=(2, 3)), 1, atol=0.1)
        expected = torch.nn.functional.interpolate(
            attention.unflatten(-1, (6, 6)) * 36, size=(48, 48), mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(maps, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"layer=9 is not one of the feature layers \[1, 2, 3, 4\]"):
        attention_example.attention_maps(model, processor, image, 9)
    with pytest.raises(ValueError, match="no Post-VCP"):
        attention_example.attention_maps(tiny_model(use_post_vcp=False), processor, image)


def test_padding_is_removed(checkpoint):
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, resize_mode="pad")
    maps = attention_example.attention_maps(model, processor, picture(24, 48))
    assert maps.shape[-2:] == (24, 48)
    whole = attention_example.attention_maps(model, processor, picture(48, 48))
    assert whole.shape[-2:] == (48, 48)


def test_attention_figure_of_files_and_of_generated_pictures(checkpoint, tmp_path, capsys):
    picture().save(tmp_path / "part.png")
    for images in ([], [str(tmp_path / "part.png")]):
        output = tmp_path / f"attention-{len(images)}.png"
        attention_example.main([*images, "--model", checkpoint, "--output", str(output)])
        assert output.name in capsys.readouterr().out
        with Image.open(output) as drawn:
            assert drawn.width > 1000 and np.asarray(drawn.convert("L")).std() > 10
    with pytest.raises(SystemExit, match=r"error: No such image file"):
        attention_example.main([str(tmp_path / "gone.png"), "--model", checkpoint])


# --- t-SNE ----------------------------------------------------------------------------------------------------------


def test_directions_are_those_of_the_model_and_independent_of_the_batch(checkpoint):
    model, processor = tiny_model(), VCPCLIPImageProcessor.from_pretrained(checkpoint)
    images = [picture(48, 48 + 8 * index) for index in range(5)]
    found = tsne_example.text_directions(model, processor, iter(images), batch_size=2)
    assert {name: each.shape for name, each in found.items()} == {
        "pre_vcp": (5, 32),
        "post_vcp": (5, 64),
        "no_context": (1, 32),
    }
    with torch.no_grad():
        embeds = model(**processor(images, return_tensors="pt")).text_embeds
    expected = torch.nn.functional.normalize(embeds[:, 1] - embeds[:, 0], dim=-1)
    np.testing.assert_allclose(found["pre_vcp"], expected, atol=1e-4)
    for directions in found.values():
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-5)
    assert not model.post_vcp._forward_hooks
    assert "post_vcp" not in tsne_example.text_directions(tiny_model(use_post_vcp=False), processor, images)


def test_separation_is_high_for_clusters_and_low_for_a_mixture():
    random = np.random.default_rng(0)
    centers = np.eye(3, dtype=np.float32).repeat(10, axis=0)
    products = [name for name in "abc" for _ in range(10)]
    points = centers + random.normal(0, 0.05, centers.shape).astype(np.float32)
    assert tsne_example.separation(points, products) > 0.8
    assert tsne_example.separation(points, [*products[1::2], *products[::2]]) < 0.3
    assert tsne_example.separation(np.ones((30, 3), np.float32), products) == 0
    projected = tsne_example.project(points)
    assert projected.shape == (30, 2)
    np.testing.assert_array_equal(projected, tsne_example.project(points))
    assert np.isfinite(tsne_example.project(np.ones((30, 3), np.float32))).all()


def test_tsne_figure(checkpoint, tmp_path, capsys):
    output = tmp_path / "tsne.png"
    arguments = ["--model", checkpoint, "--products", "marble", "spring", "--images_per_product", "4"]
    tsne_example.main([*arguments, "--output", str(output)])
    assert "8 pictures of 2 products" in capsys.readouterr().out
    with Image.open(output) as drawn:
        assert drawn.width > 1000 and np.asarray(drawn.convert("L")).std() > 5
    with pytest.raises(SystemExit, match="at least two products"):
        tsne_example.main(["--model", checkpoint, "--products", "marble", "--images_per_product", "4"])
    with pytest.raises(SystemExit, match="error:"):
        tsne_example.main(["--model", checkpoint, "--products", "nothing"])
