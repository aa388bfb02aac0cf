"""Images to pixel_values, bit by bit; masks to labels; maps back to the original size."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests.common import tiny_config, tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPOutput
from vcp_clip_hf.anomaly_scoring import gaussian_smooth, resize_map
from vcp_clip_hf.cli.common import ResizeMode
from vcp_clip_hf.pixel_preprocessing import RESIZE_MODES


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def authors_transform(image: Image.Image, side: int) -> torch.Tensor:
    """Apply Resize, RGB, ToTensor and Normalize as torchvision computes them."""
    values = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB"))
    tensor = torch.from_numpy(values.copy()).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    return tensor.sub_(mean).div_(std)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(900, 700), (300, 1200), (518, 518), (40, 30)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bit_exact_with_the_authors_transform(size, mode):
    image = picture(*size).convert(mode)
    inputs = VCPCLIPImageProcessor()(image, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 518, 518) and inputs.pixel_values.dtype == torch.float32
    assert torch.equal(inputs.pixel_values[0], authors_transform(image, 518))


def test_every_kind_of_input_in_one_batch(tmp_path):
    image = picture(50, 40)
    image.save(tmp_path / "image.png")
    values = np.asarray(image)
    kinds = [
        image,
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        values,
        values.astype(np.float32) / 255,
        torch.from_numpy(values.transpose(2, 0, 1).copy()),
        values.astype(np.uint16) * 257,
    ]
    pixel_values = VCPCLIPImageProcessor(size={"height": 56, "width": 42})(kinds, return_tensors="pt").pixel_values
    assert pixel_values.shape == (7, 3, 56, 42)
    for other in pixel_values[1:]:
        assert torch.equal(other, pixel_values[0])
    batch = VCPCLIPImageProcessor(size=56)(np.stack([values, values]), return_tensors="np").pixel_values
    assert isinstance(batch, np.ndarray) and batch.shape == (2, 3, 56, 56)


def test_pad_keeps_the_ratio_and_fills_with_the_mean_color():
    image = Image.new("RGB", (100, 50), "white")
    processor = VCPCLIPImageProcessor(size={"height": 56, "width": 56}, resize_mode="pad")
    values = processor(image, return_tensors="pt").pixel_values[0]
    assert values.shape == (3, 56, 56)
    white = (1 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(values[:, :28], white.view(3, 1, 1).expand(3, 28, 56))
    assert values[:, 28:].abs().max() < 0.01


@pytest.mark.parametrize("ratio", [(460, 1130), (850, 2724), (640, 200), (500, 500)])
def test_keep_ratio_keeps_the_ratio_and_the_area(ratio):
    processor = VCPCLIPImageProcessor(resize_mode="keep_ratio")
    height, width = processor(Image.new("L", ratio[::-1]), return_tensors="pt").pixel_values.shape[-2:]
    assert height % 14 == width % 14 == 0
    assert height * width == pytest.approx(518 * 518, rel=0.05)
    assert height / width == pytest.approx(ratio[0] / ratio[1], rel=0.06)


def test_images_of_one_batch_must_have_one_size():
    processor = VCPCLIPImageProcessor(resize_mode="keep_ratio")
    images = [Image.new("L", (100, 200)), Image.new("L", (200, 100))]
    with pytest.raises(ValueError, match="2 shapes"):
        processor(images, return_tensors="pt")
    assert len(processor(images).pixel_values) == 2, "arrays that are not stacked may differ in size"


def test_steps_can_be_switched_off():
    processor = VCPCLIPImageProcessor(do_resize=False, do_normalize=False)
    image = picture(20, 30)
    values = processor(image, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(values, np.asarray(image).transpose(2, 0, 1) / 255, atol=1e-7)
    raw = processor(image, do_rescale=False, return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(raw, np.asarray(image).transpose(2, 0, 1))


def test_arguments_of_a_call_do_not_change_the_processor():
    processor = VCPCLIPImageProcessor(size=56)
    deep = np.full((8, 8), 1000, np.uint16)
    bright = processor(deep, input_range=(0, 1000), size={"height": 28, "width": 28}, return_tensors="pt").pixel_values
    assert bright.shape[-2:] == (28, 28) and bright.min() > 1
    assert processor.input_range is None and processor.size.height == 56
    assert processor(deep, return_tensors="pt").pixel_values.max() < 0


def test_saved_and_loaded(tmp_path):
    processor = VCPCLIPImageProcessor(
        size={"height": 224, "width": 112},
        resize_mode="pad",
        smoothing_sigma=3.5,
        threshold=0.4,
        input_range=(0, 4095),
    )
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "VCPCLIPImageProcessor" and saved["resize_mode"] == "pad"
    again = VCPCLIPImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert (again.size.height, again.smoothing_sigma, again.threshold) == (224, 3.5, 0.4)
    assert VCPCLIPImageProcessor.from_pretrained(tmp_path, threshold=0.9).threshold == 0.9


def test_for_model_takes_sizes_from_the_configuration():
    processor = VCPCLIPImageProcessor.for_model(tiny_config(image_size=[48, 64]), threshold=0.5)
    assert (processor.size.height, processor.size.width, processor.size_divisor) == (48, 64, 8)
    assert processor.threshold == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize_mode": "crop"}, "resize_mode='crop'"),
        ({"score_mode": "mean"}, "score_mode='mean'"),
        ({"top_k_fraction": 0.0}, "top_k_fraction=0.0"),
        ({"smoothing_sigma": -1.0}, "smoothing_sigma=-1.0"),
        ({"size": {"shortest_edge": 224}}, "'height' and 'width'"),
    ],
)
def test_bad_settings_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_center_crop": True}, "do_center_crop=True .* Crop beforehand"),
        ({"crop_size": 224}, "crop_size={'height': 224, 'width': 224} .* Crop beforehand"),
        ({"do_pad": True}, "do_pad=True .* resize_mode='pad'"),
        ({"pad_size": {"height": 9, "width": 9}}, "pad_size=.* resize_mode='pad'"),
        ({"data_format": "channels_last"}, "data_format='channels_last' .* channels first"),
        ({"image_seq_length": 7}, "image_seq_length=7"),
        ({"image_mean": [0.5, 0.5, 0.5, 0.5]}, "image_mean=.* three"),
        ({"size": {"shortest_edge": 224}}, "'height' and 'width'"),
    ],
)
def test_arguments_without_a_meaning_here_are_refused_when_made_and_when_called(fields, message):
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor(**fields)
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor()(picture(20, 20), **fields)


def test_arguments_of_other_image_processors_that_change_nothing_are_accepted():
    plain = {"do_center_crop": False, "do_pad": False, "do_convert_rgb": True, "data_format": "channels_first"}
    image = picture(20, 30)
    expected = VCPCLIPImageProcessor(size=28)(image, return_tensors="pt").pixel_values
    assert torch.equal(VCPCLIPImageProcessor(size=28, **plain)(image, return_tensors="pt").pixel_values, expected)
    assert torch.equal(VCPCLIPImageProcessor(size=28)(image, return_tensors="pt", **plain).pixel_values, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_without_the_conversion_to_rgb_channels_are_kept(channels, resize_mode):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    processor = VCPCLIPImageProcessor(
        size=28,
        resize_mode=resize_mode,
        do_convert_rgb=False,
        image_mean=[0.25] * channels,
        image_std=[0.5] * channels,
    )
    together = processor(values, input_data_format="channels_last", return_tensors="pt").pixel_values
    assert together.shape == (1, channels, 28, 28)
    for channel in range(channels):
        alone = processor(values[..., channel], image_mean=0.25, image_std=0.5, return_tensors="pt").pixel_values
        assert torch.equal(alone[0, 0], together[0, channel])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resize_mode": "pad"},
        {"resize_mode": "pad", "do_normalize": False},
        {"resize_mode": "keep_ratio"},
        {"do_rescale": False, "image_mean": 100.0, "image_std": 50.0},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_become_the_same_values_on_the_device(settings, channels):
    if channels == 4:
        settings = {**settings, "image_mean": [0.5, 0.4, 0.3, 0.2], "image_std": [0.2, 0.3, 0.4, 0.5]}
    elif channels == 1:
        settings = {"image_mean": 0.5, "image_std": 0.25, **settings}
    processor = VCPCLIPImageProcessor(size=56, do_convert_rgb=channels == 3, **settings)
    values = np.random.default_rng(0).integers(0, 256, (40, 90, channels), dtype=np.uint8)
    picture = Image.fromarray(values if channels > 1 else values[..., 0])
    expected = processor(picture, return_tensors="pt").pixel_values
    pixels = processor.to_bytes(picture)
    assert pixels.dtype == torch.uint8 and torch.equal(processor.to_values(pixels), expected)
    assert torch.equal(processor.to_values(torch.cat([pixels, pixels]))[1:], expected)


def test_tensors_move_to_the_device():
    processor = VCPCLIPImageProcessor(size=28)
    assert processor(picture(20, 20), return_tensors="pt", device="meta").pixel_values.device.type == "meta"
    with pytest.raises(ValueError, match="device='meta' needs return_tensors='pt', got 'np'"):
        processor(picture(20, 20), return_tensors="np", device="meta")


@pytest.mark.parametrize("name", ["threshold", "smoothing_sigma", "score_mode"])
def test_settings_of_results_are_refused_when_images_are_prepared(name):
    with pytest.raises(ValueError, match=f"{name} .* `post_process_anomaly_segmentation`"):
        VCPCLIPImageProcessor()(picture(20, 20), **{name: VCPCLIPImageProcessor(threshold=0.5).to_dict()[name]})


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_auto_classes_return_the_image_processor(with_tokenizer, tmp_path):
    """Check AutoProcessor too, and for checkpoints whose files name no processor class."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    processor = VCPCLIPImageProcessor.for_model(model.config, threshold=0.25)
    processor.save_pretrained(tmp_path)
    if with_tokenizer:
        tiny_tokenizer().save_pretrained(tmp_path)
    assert "processor_class" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    for auto_class in (AutoImageProcessor, AutoProcessor):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is VCPCLIPImageProcessor and loaded.to_dict() == processor.to_dict()


def test_wrong_images_fail_with_their_own_message(tmp_path):
    processor = VCPCLIPImageProcessor()
    with pytest.raises(ValueError, match="list of images is empty"):
        processor([])
    with pytest.raises(ValueError, match="NaN"):
        processor([picture(8, 8), np.full((4, 4), np.nan)])
    (tmp_path / "note.txt").write_text("text")
    with pytest.raises(ValueError, match=r"note\.txt"):
        processor(str(tmp_path / "note.txt"))


# --- masks --------------------------------------------------------------------------------------------------------


def test_masks_are_resized_as_the_authors_do():
    image, mask = picture(60, 80), np.zeros((60, 80), np.uint8)
    mask[10:33, 20:51] = 1
    inputs = VCPCLIPImageProcessor(size=56)([image, image], [Image.fromarray(mask * 255), None], return_tensors="pt")
    assert inputs.labels.shape == (2, 56, 56) and inputs.labels.dtype == torch.long
    resized = Image.fromarray(mask * 255).resize((56, 56), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(resized) / 255 > 0.5).long()
    assert torch.equal(inputs.labels[0], expected) and expected.float().mean() == pytest.approx(mask.mean(), abs=0.01)
    assert not inputs.labels[1].any()


def test_masks_follow_their_image_into_the_padding():
    mask = np.ones((50, 100), bool)
    processor = VCPCLIPImageProcessor(size=56, resize_mode="pad")
    labels = processor(Image.new("L", (100, 50)), mask, return_tensors="pt").labels[0]
    assert labels[:28].all() and not labels[28:].any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([np.zeros((60, 81))], "60 x 81 pixels .* its image 60 x 80"),
        ([np.zeros((60, 80)), np.zeros((60, 80))], "2 segmentation_maps came with 1 images"),
        ([np.arange(4800).reshape(60, 80)], "Binarize"),
    ],
)
def test_wrong_masks_are_explained(masks, message):
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor(size=56)([picture(60, 80)], masks)


# --- back to the original size --------------------------------------------------------------------------------------


def output(maps: torch.Tensor, base=None, vcp=None) -> VCPCLIPOutput:
    return VCPCLIPOutput(anomaly_map=maps, base_map=maps if base is None else base, vcp_map=vcp)


def test_maps_return_to_the_original_size():
    maps = torch.zeros(2, 56, 56)
    maps[0, 14:28, 28:42] = 1
    processor = VCPCLIPImageProcessor(size=56, smoothing_sigma=0)
    tall, wide = processor.post_process_anomaly_segmentation(output(maps), target_sizes=[(224, 112), (20, 30)])
    assert tall["anomaly_map"].shape == (224, 112) and wide["anomaly_map"].shape == (20, 30)
    assert tall["anomaly_map"][56:112, 56:84].mean() > 0.9 and tall["anomaly_map"].sum() == pytest.approx(
        56 * 28, rel=0.1
    )
    assert tall["score"] == 1 and wide["score"] == 0
    assert tall["label"] is tall["mask"] is tall["threshold"] is None, "no verdict without a threshold"
    unresized = processor.post_process_anomaly_segmentation(output(maps))
    assert torch.equal(unresized[0]["anomaly_map"], maps[0])


def test_padding_affects_neither_map_nor_score():
    maps = torch.zeros(1, 56, 56)
    maps[:, :28] = torch.rand(1, 28, 56)
    maps[:, 28:] = 1
    processor = VCPCLIPImageProcessor(size=56, resize_mode="pad", smoothing_sigma=2)
    (result,) = processor.post_process_anomaly_segmentation(output(maps), target_sizes=[(50, 100)])
    content = gaussian_smooth(maps[:, :28], 2)
    assert result["anomaly_map"].shape == (50, 100)
    assert result["score"] == result["anomaly_map"].max().item()
    torch.testing.assert_close(result["anomaly_map"], resize_map(content[0], (50, 100)))
    top = processor.post_process_anomaly_segmentation(
        output(maps), target_sizes=[(50, 100)], score_mode="top_k", top_k_fraction=1.0
    )
    assert top[0]["score"] == pytest.approx(maps[:, :28].mean().item(), abs=1e-6)


def test_a_padded_image_comes_back_where_it_was():
    """Check that a mask used as the model's map returns to its own place."""
    for size in ((50, 100), (130, 40), (33, 33)):
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 3 * 2] = 1
        for mode in ("squash", "pad", "keep_ratio"):
            processor = VCPCLIPImageProcessor(size=560, resize_mode=mode, size_divisor=8, smoothing_sigma=0)
            labels = processor(Image.new("L", size[::-1]), mask, return_tensors="pt").labels
            (result,) = processor.post_process_anomaly_segmentation(output(labels.float()), target_sizes=[size])
            found = result["anomaly_map"].numpy() > 0.5
            assert (found & (mask > 0)).sum() / (found | (mask > 0)).sum() > 0.95, (size, mode)


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_the_models_own_score_of_each_image(resize_mode):
    outputs = output(torch.rand(3, 56, 56))
    outputs.image_scores = torch.tensor([0.1, 0.2, 0.3])
    processor = VCPCLIPImageProcessor(size=56, resize_mode=resize_mode, score_mode="image_head", threshold=0.9)
    sizes = [(50, 100), (56, 56), (80, 20)]
    results = processor.post_process_anomaly_segmentation(outputs, sizes)
    assert [result["score"] for result in results] == pytest.approx([0.1, 0.2, 0.3], abs=1e-7)
    assert {result["label"] for result in results} == {None}
    judged = processor.post_process_anomaly_segmentation(outputs, sizes, image_threshold=0.2)
    assert [result["label"] for result in judged] == ["normal", "anomalous", "anomalous"]
    inside = np.ones((56, 56), bool)
    with pytest.raises(ValueError, match="scores the whole image"):
        processor.post_process_anomaly_segmentation(outputs, sizes, [None, inside, None])
    with pytest.raises(ValueError, match=r"outputs\.image_scores is None"):
        processor.post_process_anomaly_segmentation(output(torch.rand(3, 56, 56)), sizes)


def test_scores():
    base, vcp = torch.rand(2, 20, 20), torch.rand(2, 20, 20)
    fused = 0.25 * base + 0.75 * vcp
    processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=1.5)
    for index, result in enumerate(processor.post_process_anomaly_segmentation(output(fused, base, vcp))):
        assert result["score"] == pytest.approx(gaussian_smooth(fused[index], 1.5).max().item(), abs=1e-6)
    results = processor.post_process_anomaly_segmentation(
        output(fused, base, vcp), score_mode="top_k", top_k_fraction=0.1
    )
    for index, result in enumerate(results):
        expected = sum(np.sort(each[index].flatten())[-40:].mean() for each in (base.numpy(), vcp.numpy()))
        assert result["score"] == pytest.approx(expected, abs=1e-6)
    # without Post-VCP there is only the base branch
    (only,) = processor.post_process_anomaly_segmentation(output(base[:1]), score_mode="top_k", top_k_fraction=1.0)
    assert only["score"] == pytest.approx(base[0].mean().item(), abs=1e-6)


def test_thresholds_make_masks_and_labels():
    maps = torch.zeros(2, 28, 28)
    maps[0, 5:9, 5:9] = 0.8
    processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=0, threshold=0.5)
    first, second = processor.post_process_anomaly_segmentation(output(maps))
    assert (first["label"], second["label"]) == ("anomalous", "normal")
    assert first["mask"].dtype == torch.bool and first["mask"].sum() == 16 and not second["mask"].any()
    assert first["threshold"] == first["image_threshold"] == 0.5

    apart = processor.post_process_anomaly_segmentation(output(maps), threshold=0.8, image_threshold=0.9)[0]
    assert apart["mask"].sum() == 16 and apart["label"] == "normal"
    top = processor.post_process_anomaly_segmentation(output(maps), score_mode="top_k")[0]
    assert top["mask"] is not None and top["label"] is None, "another scale needs its own threshold"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 50}, r"threshold=50.* must be a number in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"image_threshold": 1.5}, r"image_threshold=1\.5 .* scale of the score 'max'"),
        ({"image_threshold": 2.5, "score_mode": "top_k"}, r"image_threshold=2\.5 .* \[0, 2\]"),
        ({"smoothing_sigma": float("inf")}, "smoothing_sigma=inf"),
    ],
)
def test_settings_of_results_out_of_range_are_refused_when_made_and_when_called(settings, message):
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor(size=28, **settings)
    with pytest.raises(ValueError, match=message):
        VCPCLIPImageProcessor(size=28).post_process_anomaly_segmentation(output(torch.rand(1, 28, 28)), **settings)


def test_the_score_is_the_maximum_of_the_map_that_the_mask_is_read_from():
    maps = torch.rand(6, 28, 28)
    sizes = [(28, 28), (64, 64), (9, 50), (200, 31), (28, 29), (1, 1)]
    for mode in ("squash", "pad"):
        processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=1.5, resize_mode=mode)
        for result in processor.post_process_anomaly_segmentation(output(maps), sizes):
            score = result["score"]
            assert score == result["anomaly_map"].max().item()
        for result in processor.post_process_anomaly_segmentation(output(maps), sizes, threshold=score):
            assert result["mask"].any().item() == (result["label"] == "anomalous") == (result["score"] >= score)


def test_a_region_of_interest_changes_nothing_inside_of_it():
    maps, inside = torch.rand(1, 28, 28), np.zeros((90, 70), bool)
    inside[30:33, 40:41] = True
    processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=1, threshold=0.0)
    (whole,) = processor.post_process_anomaly_segmentation(output(maps), [(90, 70)])
    (part,) = processor.post_process_anomaly_segmentation(output(maps), [(90, 70)], [inside])
    expected = whole["anomaly_map"] * torch.from_numpy(inside)
    torch.testing.assert_close(part["anomaly_map"], expected)
    assert part["score"] == expected.max().item() and torch.equal(part["mask"], torch.from_numpy(inside))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"smoothing_sigma": 3.0}, 28),
        ({"score_mode": "top_k"}, 28),
        ({"resize_mode": "pad"}, 28),
        ({"roi_masks": [np.ones((28, 28), bool)]}, 28),
        ({"conditions": {"tiling": {"tile_size": 9}}}, 28),
        ({}, 42),
    ],
)
def test_calibrated_thresholds_apply_only_with_their_settings(arguments, size, tmp_path):
    processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=1.0)
    processor.threshold = processor.image_threshold = 0.25
    settings = {**processor.measured_with(), "tiling": None, "region_of_interest": False}
    processor.calibration = {"image": {"threshold": 0.25}, "settings": settings}
    processor.save_pretrained(tmp_path)
    maps = output(torch.rand(1, 28, 28))
    (same,) = VCPCLIPImageProcessor.from_pretrained(tmp_path).post_process_anomaly_segmentation(maps)
    assert same["threshold"] == same["image_threshold"] == 0.25 and same["mask"] is not None
    other = VCPCLIPImageProcessor.from_pretrained(tmp_path, size=size)
    (result,) = other.post_process_anomaly_segmentation(maps, **arguments)
    assert result["label"] is result["mask"] is result["threshold"] is result["image_threshold"] is None
    (explicit,) = other.post_process_anomaly_segmentation(maps, threshold=0.25, image_threshold=0.0, **arguments)
    assert explicit["label"] == "anomalous" and explicit["mask"] is not None
    bare = processor.without_thresholds()
    assert bare.threshold is bare.image_threshold is bare.calibration is None and processor.threshold == 0.25


def test_with_resize_mode_changes_the_mode_only():
    processor = VCPCLIPImageProcessor(size=28, size_divisor=14, smoothing_sigma=1.0, threshold=0.5)
    other = processor.with_resize_mode("keep_ratio")
    assert {**other.to_dict(), "resize_mode": None} == {**processor.to_dict(), "resize_mode": None}
    assert (processor.resize_mode, other.resize_mode) == ("squash", "keep_ratio")
    assert other(Image.new("RGB", (400, 100)), return_tensors="pt").pixel_values.shape == (1, 3, 14, 56)
    with pytest.raises(ValueError, match=r"resize_mode='crop' must be 'squash', 'pad' or 'keep_ratio'\."):
        processor.with_resize_mode("crop")
    assert [mode.value for mode in ResizeMode] == list(RESIZE_MODES), "the command line has the same modes"
    assert other.with_one_shape().resize_mode == "squash" and processor.with_one_shape() is processor


def test_at_size_changes_the_size_only():
    processor = VCPCLIPImageProcessor(size=28, size_divisor=14, smoothing_sigma=1.0, resize_mode="pad", threshold=0.5)
    larger = processor.at_size(np.int64(56))
    assert {**larger.to_dict(), "size": None} == {**processor.to_dict(), "size": None}
    assert larger(Image.new("RGB", (9, 5)), return_tensors="pt").pixel_values.shape == (1, 3, 56, 56)
    assert larger.to_dict()["size"] == {"height": 56, "width": 56}
    assert (processor.size.height, processor.size.width) == (28, 28)
    with pytest.raises(ValueError, match=r"image_size=\(56, 84\) is not square, but with resize_mode='keep_ratio'"):
        processor.with_resize_mode("keep_ratio").at_size((56, 84))
    wide = processor.at_size((56, 84))
    assert wide(Image.new("RGB", (9, 5)), return_tensors="pt").pixel_values.shape == (1, 3, 56, 84)
    for side in (0, -14, 42, 60, 14 * 2000, 56.0, True, (56, 60), (56,), (56, 56, 56), "56x84"):
        message = rf"image_size={re.escape(repr(side))} must be a whole number of pixels, at least 56"
        with pytest.raises(ValueError, match=message):
            processor.at_size(side)
    with pytest.raises(ValueError, match="image_size=60 must be"):
        processor.at_size((60, 60))


def test_at_size_says_nothing_of_thresholds_before_a_call_would_use_them(caplog):
    processor = VCPCLIPImageProcessor(size=28, size_divisor=7, smoothing_sigma=1.0)
    processor.threshold = 0.3
    processor.calibration = {"image": {"threshold": 0.3}, "settings": processor.measured_with()}
    larger = processor.at_size(42)
    assert not caplog.records and larger.scoring().threshold is None


def test_results_do_not_depend_on_the_batch():
    maps = torch.rand(4, 28, 28)
    processor = VCPCLIPImageProcessor(size=28, smoothing_sigma=3)
    sizes = [(28, 28), (50, 60), (13, 99), (28, 28)]
    together = processor.post_process_anomaly_segmentation(output(maps), sizes)
    for index in range(4):
        (alone,) = processor.post_process_anomaly_segmentation(output(maps[index : index + 1]), [sizes[index]])
        torch.testing.assert_close(alone["anomaly_map"], together[index]["anomaly_map"], atol=1e-6, rtol=0)
        assert alone["score"] == pytest.approx(together[index]["score"], abs=1e-6)


def test_each_image_needs_a_target_size():
    with pytest.raises(ValueError, match="1 target_sizes came with 2 images"):
        VCPCLIPImageProcessor().post_process_anomaly_segmentation(output(torch.zeros(2, 28, 28)), [(28, 28)])
