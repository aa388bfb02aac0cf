"""Names of regions, from words alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import pipeline

from tests.common import tiny_model, tiny_tokenizer
from tests.pipeline_run import picture
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.defect_names import DefectNames, name_regions
from vcp_clip_hf.regions import find_regions


NAMES = ["scratch", "hole", "stain"]


@pytest.fixture(scope="module")
def inspect():
    model = tiny_model()
    return pipeline(
        "anomaly-segmentation",
        model=model,
        image_processor=VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0),
        tokenizer=tiny_tokenizer(),
    )


@pytest.fixture(scope="module")
def image():
    return picture(60, 80)


@pytest.fixture(scope="module")
def threshold(inspect, image):
    return float(np.quantile(inspect(image)["anomaly_map"], 0.8))


def named(inspect, image, threshold, **options):
    return inspect(image, threshold=threshold, regions=True, **{"defect_names": NAMES, **options})


def test_regions_get_names_and_nothing_else_changes(inspect, image, threshold):
    plain = inspect(image, threshold=threshold, regions=True)
    result = named(inspect, image, threshold)
    assert len(result["regions"]) >= 2
    assert list(result) == list(plain)
    np.testing.assert_array_equal(result["anomaly_map"], plain["anomaly_map"])
    for region, expected in zip(result["regions"], plain["regions"], strict=True):
        assert region.pop("name") in NAMES
        assert 1 / 3 <= region.pop("name_probability") <= 1
        assert region == expected


def test_a_name_is_the_softmax_of_pooled_patches_against_texts(inspect, image, threshold):
    """Computed again from encode_image and encode_text, with one call for each name."""
    model, result = inspect.model, named(inspect, image, threshold)
    names = DefectNames.of(NAMES, inspect.tokenizer, model.config.category_token_id)
    pixel_values = inspect.image_processor(image, return_tensors="pt").pixel_values
    side = pixel_values.shape[-1] // model.config.vision_config.patch_size
    with torch.no_grad():
        tokens, image_embeds = model.encode_image(pixel_values)
        texts = [
            model.encode_text(image_embeds, torch.tensor([[row], [row]]))[0, 0] for row in map(list, names.prompt_ids)
        ]
        projected = [
            normalize(projection(each), dim=-1)[0]
            for projection, each in zip(model.feature_projections, tokens, strict=True)
        ]
    mask = np.asarray(result["mask"]) > 0
    for region in result["regions"]:
        xs, ys = (np.array(values) for values in zip(*region["polygon"], strict=True))
        inside = np.zeros_like(mask)
        inside[ys.min() : ys.max(), xs.min() : xs.max()] = mask[ys.min() : ys.max(), xs.min() : xs.max()]
        if inside.sum() != region["area"]:
            continue  # the box holds parts of other regions
        share = torch.from_numpy(
            np.asarray(Image.fromarray(inside.astype(np.float32)).resize((side, side), Image.Resampling.BOX)).copy()
        )
        pooled = [(share.flatten()[:, None] * each).sum(0) / share.sum() for each in projected]
        cosines = torch.stack([torch.stack([each @ text for text in texts]) for each in pooled]).mean(0)
        probabilities = (cosines * model.base_logit_scale.detach().exp()).softmax(0)
        assert region["name"] == NAMES[int(probabilities.argmax())]
        # the grid is 8 x 8 here: its cells do not end at pixels of the image
        assert region["name_probability"] == pytest.approx(float(probabilities.max()), abs=0.02)
        break
    else:
        pytest.fail("no region lies alone in its box")


def test_a_region_gets_the_name_of_its_own_patches():
    mask = np.zeros((40, 60), bool)
    mask[4:10, 5:15] = mask[30:34, 40:55] = True
    logits = np.zeros((2, 8, 12), np.float32)
    logits[0, :4], logits[1, 4:] = 3.0, 3.0
    regions = find_regions(mask, np.where(mask, 0.5, 0).astype(np.float32))
    upper, lower = sorted(
        name_regions(regions, mask, logits, ("scratch", "hole")), key=lambda each: each["box"]["ymin"]
    )
    assert (upper["name"], lower["name"]) == ("scratch", "hole")
    assert upper["name_probability"] == pytest.approx(1 / (1 + np.exp(-3)))


def test_a_region_of_one_pixel_has_a_name():
    mask = np.zeros((500, 500), bool)
    mask[123, 321] = True
    regions = find_regions(mask, mask.astype(np.float32))
    (region,) = name_regions(regions, mask, np.eye(2, dtype=np.float32)[:, :, None].repeat(8, 2), ("a", "b"))
    assert region["name"] == "a"


def test_batches_and_single_images_agree(inspect, threshold):
    images = [picture(*size, seed=seed) for seed, size in enumerate([(60, 80), (48, 48), (33, 120)])]
    together = inspect(images, batch_size=3, threshold=threshold, regions=True, defect_names=NAMES)
    for image, result in zip(images, together, strict=True):
        alone = named(inspect, image, threshold)
        assert [each["name"] for each in result["regions"]] == [each["name"] for each in alone["regions"]]
        for one, other in zip(result["regions"], alone["regions"], strict=True):
            # rounding may move a pixel at the threshold into or out of a region
            assert one["name_probability"] == pytest.approx(other["name_probability"], abs=1e-3)


def test_names_with_references(inspect, image, threshold):
    """A region has the same name with references, whose map has no part in it."""
    fresh = pipeline(
        "anomaly-segmentation",
        model=inspect.model,
        image_processor=inspect.image_processor,
        tokenizer=inspect.tokenizer,
    )
    fresh.set_references([picture(60, 80, seed=5)])
    result = fresh(image, threshold=threshold, regions=True, defect_names=NAMES, reference_weight=1e-9)
    plain = named(inspect, image, threshold)
    assert [each["name"] for each in result["regions"]] == [each["name"] for each in plain["regions"]]


def test_other_words_for_a_name(inspect, image, threshold):
    templates = {"crack": "a photo of a {} with a scratch", "gap": "a photo of a {} with a hole"}
    result = named(inspect, image, threshold, defect_names=templates)
    plain = named(inspect, image, threshold, defect_names=["scratch", "hole"])
    for region, expected in zip(result["regions"], plain["regions"], strict=True):
        assert region["name"] == {"scratch": "crack", "hole": "gap"}[expected["name"]]
        assert region["name_probability"] == expected["name_probability"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["scratch"], "two names or more"),
        ("scratch", "two names or more"),
        (["scratch", " "], "none of them empty"),
        (["scratch", "scratch"], "repeats"),
        (["scratch", "a {} with a hole"], "pass a dictionary"),
        ({"a": "no slot", "b": "a {}"}, "exactly one"),
    ],
)
def test_unusable_names(inspect, image, names, message):
    with pytest.raises(ValueError, match=message):
        inspect(image, threshold=0.5, regions=True, defect_names=names)


def test_names_need_regions_a_tokenizer_and_no_tiles(inspect, image):
    with pytest.raises(ValueError, match="regions=True"):
        inspect(image, threshold=0.5, defect_names=NAMES)
    with pytest.raises(ValueError, match="tiles"):
        inspect(image, threshold=0.5, regions=True, defect_names=NAMES, tile_size=48)
    with pytest.raises(ValueError, match="not supported for images that are judged together"):
        inspect.segment_together([image] * 5, threshold=0.5, regions=True, defect_names=NAMES)
    bare = pipeline("anomaly-segmentation", model=inspect.model, image_processor=inspect.image_processor)
    bare.tokenizer = None
    with pytest.raises(ValueError, match="Names of defects need the backbone's tokenizer"):
        bare(image, threshold=0.5, regions=True, defect_names=NAMES)
