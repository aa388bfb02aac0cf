"""Pictures judged together by the pipeline: the numbers are those of the published method, whatever the route."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.common import tiny_hybrid, tiny_model, tiny_tokenizer
from vcp_clip_hf import AnomalySegmentationPipeline, MutualScoring, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.anomaly_scoring import gaussian_smooth, resize_map
from vcp_clip_hf.mutual_scoring import rscin, score_together
from vcp_clip_hf.patch_tokens import states_of
from vcp_clip_hf.together import MutualJudge


def make_pipe(model: VCPCLIPModel | None = None, **settings) -> AnomalySegmentationPipeline:
    model = model or tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, **{"smoothing_sigma": 2.0, **settings})
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return make_pipe()


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Return a gray surface with grain; every fifth one has a dark square."""
    chance = np.random.default_rng(seed)
    values = 150 + chance.normal(0, 6, (size[1], size[0], 3))
    if seed % 5 == 2:
        values[8:24, 10:26] = 20
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(7)]


def together(pipe, images, **options):
    return pipe.segment_together(images, progress=False, **options)


def expected_scores(pipe, pictures, **fields):
    """Return every quantity of the method, from the model's hidden states in memory."""
    pixel_values = torch.cat([pipe.preprocess(each)["pixel_values"] for each in pictures])
    layers = pipe.model.config.feature_layers
    with torch.no_grad():
        outputs = pipe.model(pixel_values, output_hidden_states=True)
    hidden = {layer: outputs.hidden_states[layer] for layer in fields.pop("layers", layers)}
    size = tuple(pixel_values.shape[-2:])
    scores = score_together(hidden, outputs.image_embeds, (size[0] // 8, size[1] // 8), size, MutualScoring(**fields))
    return scores, outputs


@pytest.mark.parametrize("fields", [{}, {"layers": [2, 4], "degrees": [3], "interval": (0.0, 0.6)}])
def test_results_are_those_of_the_published_method(pipe, pictures, fields):
    results = together(pipe, pictures, batch_size=3, **fields)
    expected, _ = expected_scores(pipe, pictures, **fields)
    for index, result in enumerate(results):
        at_size = resize_map(expected.anomaly_maps[index].float() / 2, (40, 60))
        np.testing.assert_allclose(result["anomaly_map"], at_size, atol=1e-5)
        assert result["score"] == pytest.approx(expected.image_scores[index].item(), abs=1e-3)
        assert result["anomaly_map"].dtype == np.float32 and result["anomaly_map"].min() >= 0


def test_what_one_picture_has_alone_is_found(pipe, pictures):
    results = together(pipe, pictures, rescore_neighbors=())
    assert np.argmax([result["score"] for result in results]) == 2
    row, column = np.unravel_index(results[2]["anomaly_map"].argmax(), (40, 60))
    assert 4 <= row < 28 and 6 <= column < 30
    assert all(result["score"] == pytest.approx(result["anomaly_map"].max()) for result in results)


def test_the_result_says_what_it_was_judged_with(pipe, pictures):
    result = together(pipe, pictures, degrees=[1], heatmap=True, output_image=True)[0]
    names = ["score", "label", "threshold", "image_threshold", "anomaly_map", "mask", "judged_with"]
    assert list(result) == [*names, "image", "heatmap"]
    assert result["image"].size == result["heatmap"].size == (60, 40)
    assert result["judged_with"] == {
        "pictures": 7,
        "subset": 7,
        "layers": pipe.model.config.feature_layers,
        "degrees": [1],
        "interval": [0.0, 0.3],
        "subset_size": None,
        "rescore_neighbors": [1, 2, 3],
        "zero_shot_weight": 0.0,
    }


def test_fusion_with_the_zero_shot_map(pipe, pictures):
    alone, fused, zero_shot = (together(pipe, pictures, zero_shot_weight=weight) for weight in (0, 0.25, 1))
    ordinary = pipe(pictures)
    for index in range(7):
        np.testing.assert_allclose(zero_shot[index]["anomaly_map"], ordinary[index]["anomaly_map"], atol=1e-5)
        mixed = 0.75 * alone[index]["anomaly_map"] + 0.25 * ordinary[index]["anomaly_map"]
        np.testing.assert_allclose(fused[index]["anomaly_map"], mixed, atol=1e-5)
    rougher = together(pipe, pictures, zero_shot_weight=1, smoothing_sigma=0, rescore_neighbors=())
    _, outputs = expected_scores(pipe, pictures)
    np.testing.assert_allclose(
        rougher[3]["anomaly_map"], resize_map(gaussian_smooth(outputs.anomaly_map[3], 0), (40, 60)), atol=1e-5
    )
    prompts = {"normal": "flawless", "abnormal": "scratched"}
    other = together(pipe, pictures, zero_shot_weight=1, prompts=prompts)
    np.testing.assert_allclose(other[1]["anomaly_map"], pipe(pictures[1], prompts=prompts)["anomaly_map"], atol=1e-5)


def test_files_and_workers_change_nothing(pipe, pictures):
    expected = together(pipe, pictures, zero_shot_weight=0.5)
    found = together(pipe, pictures, zero_shot_weight=0.5, memory_limit=0, num_workers=2, batch_size=2)
    for result, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-5)


# Sets and subsets


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(20, 4, [10] * 20), (22, 7, [8] * 8 + [7] * 14)])
def test_subsets_are_compared_by_themselves(pipe, count, batch_size, sizes):
    images = [picture(seed) for seed in range(count)]
    results = together(pipe, images, subset_size=10, batch_size=batch_size, rescore_neighbors=(), degrees=[1, 3])
    assert [result["judged_with"]["subset"] for result in results] == sizes
    assert {result["judged_with"]["pictures"] for result in results} == {count}
    start = 0
    while start < count:
        stop = start + sizes[start]
        alone = together(pipe, images[start:stop], rescore_neighbors=(), degrees=[1, 3])
        for result, other in zip(results[start:stop], alone, strict=True):
            np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-5)
        start = stop


def test_scores_are_compared_over_all_subsets(pipe):
    images = [picture(seed, pipe.model.config.input_size) for seed in range(20)]
    results = together(pipe, images, subset_size=10, degrees=[1])
    _, outputs = expected_scores(pipe, images)
    raw = torch.tensor([result["anomaly_map"].max() for result in results])
    scores = rscin(raw, normalize(outputs.image_embeds, dim=-1))
    torch.testing.assert_close(torch.tensor([result["score"] for result in results]), scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("subset_size", [None, 10])
def test_unreadable_images_are_left_out(pipe, pictures, tmp_path, subset_size):
    images = [*pictures[:2], tmp_path / "gone.png", *pictures[2:], tmp_path / "gone too.png", *pictures[:3]]
    results = together(pipe, images, on_error="return", batch_size=2, subset_size=subset_size)
    assert [position for position, result in enumerate(results) if "error" in result] == [2, 8]
    assert list(results[2]) == ["error"] and "gone.png" in results[2]["error"]
    readable = [each for position, each in enumerate(images) if position not in (2, 8)]
    expected = together(pipe, readable)
    found = [result for result in results if "error" not in result]
    for result, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-5)
        assert result["judged_with"]["pictures"] == result["judged_with"]["subset"] == 10
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        together(pipe, images)


def make_judge(pipe, **arguments) -> MutualJudge:
    return MutualJudge(
        pipe.model,
        pipe.image_processor,
        MutualScoring(pipe.model.config.feature_layers),
        lambda image: pipe.preprocess(image, on_error="return"),
        prompt_input_ids=None,
        smoothing_sigma=None,
        threshold=None,
        image_threshold=None,
        **{"batch_size": 3, "num_workers": 0, "memory_limit": 2**30, "progress": False, **arguments},
    )


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_outputs_for_evaluations_have_the_size_of_the_model(pictures, resize_mode):
    pipe = make_pipe(resize_mode=resize_mode)
    judge, size = make_judge(pipe), pipe.image_processor.size
    outputs, results = list(judge.outputs(pictures)), together(pipe, pictures)
    assert judge.seconds > 0
    for output, result in zip(outputs, results, strict=True):
        assert output.anomaly_map.shape == (1, size.height, size.width)
        assert output.image_scores.tolist() == pytest.approx([result["score"]], abs=1e-6)
        (finished,) = pipe.image_processor.post_process_anomaly_segmentation(
            output, [result["anomaly_map"].shape], smoothing_sigma=0.0
        )
        np.testing.assert_allclose(finished["anomaly_map"], result["anomaly_map"], atol=1e-6)


def test_outputs_for_evaluations_need_every_image(pipe, pictures, tmp_path):
    with pytest.raises(ValueError, match="No such image file"):
        list(make_judge(pipe).outputs([*pictures, str(tmp_path / "missing.png")]))
    with pytest.raises(ValueError, match="got 4"):
        list(make_judge(pipe).outputs(pictures[:4]))


def test_too_few_images(pipe, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"At least 5 images .* got 4"):
        together(pipe, pictures[:4])
    for single in (pictures[0], np.zeros((40, 60, 3), np.uint8), str(tmp_path / "x.png"), tmp_path / "x.png"):
        with pytest.raises(ValueError, match=r"At least 5 images .* got 1"):
            list(together(pipe, single))
    with pytest.raises(ValueError, match=r"4 of 6 could be read \(FileNotFoundError: .*one\.png"):
        together(pipe, [*pictures[:4], tmp_path / "one.png", tmp_path / "two.png"], on_error="return")
    with pytest.raises(ValueError, match="7 images cannot be averaged over 9"):
        together(pipe, pictures, rescore_neighbors=(1, 8, 9))


def test_an_image_that_changes_in_between_is_an_error(pipe, tmp_path):
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    results = pipe.segment_together(iter(paths), progress=False)
    first = next(results)
    assert "error" not in first
    picture(1, (30, 30)).save(paths[1])
    paths[2].unlink()
    assert "was (40, 60) when it was compared, now it is (30, 30)" in next(results)["error"]
    with pytest.raises(FileNotFoundError):
        next(results)


# Kinds of input, sizes and regions


def test_a_list_gives_a_list_and_other_inputs_an_iterator(pipe, pictures):
    class Stored(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            return pictures[index]

    expected = together(pipe, pictures, degrees=[1])
    array = np.stack([np.asarray(each) for each in pictures])
    assert isinstance(together(pipe, tuple(pictures), degrees=[1]), list)
    for images in (array, Stored(), (each for each in pictures)):
        results = together(pipe, images, degrees=[1])
        assert isinstance(results, list) == isinstance(images, np.ndarray)
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=1e-5)


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_images_of_several_sizes(resize_mode):
    pipe = make_pipe(resize_mode=resize_mode)
    images = [picture(seed, size) for seed, size in enumerate([(60, 40), (40, 60), (48, 48), (96, 30), (50, 50)])]
    results = together(pipe, images, zero_shot_weight=1.0)
    for result, image, ordinary in zip(results, images, pipe(images), strict=True):
        assert result["anomaly_map"].shape == (image.height, image.width)
        np.testing.assert_allclose(result["anomaly_map"], ordinary["anomaly_map"], atol=1e-5)


def test_images_whose_ratio_is_kept_are_squashed_to_one_grid():
    images = [picture(seed, size) for seed, size in enumerate([(60, 40), (40, 60), (48, 48), (96, 30), (50, 50)])]
    pipe = make_pipe(resize_mode="keep_ratio")
    results = together(pipe, images, zero_shot_weight=0.5)
    assert pipe.image_processor.resize_mode == "keep_ratio"
    pipe.image_processor.resize_mode = "squash"
    for result, other in zip(results, together(pipe, images, zero_shot_weight=0.5), strict=True):
        np.testing.assert_array_equal(result["anomaly_map"], other["anomaly_map"])


def test_the_judge_refuses_grids_that_differ():
    pipe = make_pipe(resize_mode="keep_ratio")
    with pytest.raises(ValueError, match="resize_mode='keep_ratio'"):
        MutualJudge(
            *(pipe.model, pipe.image_processor, MutualScoring(layers=(2,)), pipe.preprocess, None, None, None, None),
            **{"batch_size": 1, "num_workers": 0, "memory_limit": 1, "progress": False},
        )


@pytest.mark.parametrize("rescore_neighbors", [(), (1, 2, 3)])
def test_region_of_interest(pipe, rescore_neighbors):
    images = [picture(seed, pipe.model.config.input_size) for seed in range(7)]  # the maps are not resized
    inside = np.zeros((48, 48), np.uint8)
    inside[:, 30:] = 255
    results = together(pipe, images, threshold=0.0, rescore_neighbors=rescore_neighbors, roi_mask=inside)
    whole = together(pipe, images)
    for result, other in zip(results, whole, strict=True):
        assert not result["anomaly_map"][:, :30].any() and not np.asarray(result["mask"])[:, :30].any()
        np.testing.assert_array_equal(result["anomaly_map"][:, 30:], other["anomaly_map"][:, 30:])
    # the dark square, which has the highest score, lies outside of the region
    assert results[2]["anomaly_map"].max() < whole[2]["anomaly_map"].max()
    raw = torch.tensor([result["anomaly_map"].max() for result in results])
    if rescore_neighbors:
        _, outputs = expected_scores(pipe, images)
        raw = rscin(raw, normalize(outputs.image_embeds, dim=-1), rescore_neighbors)
    torch.testing.assert_close(torch.tensor([result["score"] for result in results]), raw, rtol=0, atol=1e-5)


# Thresholds


def test_thresholds_of_the_checkpoint_do_not_apply(pictures):
    pipe = make_pipe(threshold=0.2, image_threshold=0.3)
    for result in together(pipe, pictures):
        assert result["label"] is result["mask"] is result["threshold"] is result["image_threshold"] is None
    with pytest.raises(ValueError, match="Regions need a threshold"):
        together(pipe, pictures, regions=True)


def test_thresholds_of_the_call(pipe, pictures):
    highest = max(result["anomaly_map"].max() for result in together(pipe, pictures))
    results = together(pipe, pictures, threshold=float(highest) - 1e-3, regions=True)
    assert [bool(np.asarray(result["mask"]).any()) for result in results].count(True) == 1
    # a rescored score is not a value of the map
    assert all(result["label"] is None and result["image_threshold"] is None for result in results)
    labels = [result["label"] for result in together(pipe, pictures, image_threshold=0.5)]
    scores = [result["score"] for result in results]
    assert labels == ["anomalous" if score >= 0.5 else "normal" for score in scores] and len(set(labels)) == 2
    plain = together(pipe, pictures, threshold=float(highest) - 1e-3, rescore_neighbors=())
    assert [result["label"] for result in plain].count("anomalous") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 24}, "tile_size=24 is not supported for images that are judged together"),
        ({"tile_overlap": 24}, "tile_overlap=24 is not supported"),
        ({"output_layer_maps": True}, "output_layer_maps=True is not supported"),
        ({"score_mode": "top_k"}, "score_mode='top_k' is not supported"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"smoothing_sigma": -1.0}, "smoothing_sigma=-1.0"),
        ({"layers": [9]}, "the image tower has 4 blocks"),
        ({"degrees": [2]}, "must be odd"),
    ],
)
def test_arguments_out_of_range(pipe, pictures, options, message):
    with pytest.raises(ValueError, match=message):
        together(pipe, pictures, **options)
    with pytest.raises(TypeError, match="has no argument 'degree'"):
        together(pipe, pictures, degree=3)


def test_the_cost_is_said_first(pipe, pictures, capsys):
    pipe.segment_together(pictures, degrees=[1, 3])
    said = capsys.readouterr().err
    assert "7 images together: 168 comparisons of two images" in said  # 21 pairs, 4 layers, 2 degrees
    assert said.index("comparisons") < said.index("features") < said.index("compare:")


def test_bfloat16(pictures):
    pipe = make_pipe()
    expected = together(pipe, pictures)
    pipe.model.to(torch.bfloat16)
    for result, other in zip(together(pipe, pictures), expected, strict=True):
        np.testing.assert_allclose(result["anomaly_map"], other["anomaly_map"], atol=0.03)


# --- a convolutional stem -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [["stem"], ["stem", 4]])
def test_the_features_of_a_stem_are_compared(pictures, layers, capsys):
    pipe = make_pipe(model=tiny_hybrid())
    results = pipe.segment_together(pictures, layers=layers, degrees=[3], batch_size=3, memory_limit=1)
    pixel_values = torch.cat([pipe.preprocess(each)["pixel_values"] for each in pictures])
    with torch.no_grad():
        outputs = pipe.model(pixel_values, output_hidden_states=layers)
    states = states_of(outputs, layers)
    expected = score_together(states, outputs.image_embeds, (6, 6), (48, 48), MutualScoring(degrees=[3]))
    for index, result in enumerate(results):
        at_size = resize_map(expected.anomaly_maps[index].float() / 2, (40, 60))
        np.testing.assert_allclose(result["anomaly_map"], at_size, atol=1e-5)
        assert result["judged_with"]["layers"] == layers
    width = 176 + 64 * (len(layers) - 1)
    flops = 7 * 6 // 2 * 2 * 36 * 36 * width
    assert f"{flops / 1e12:,.3g} TFLOP" in capsys.readouterr().err


def test_a_stem_that_is_not_there(pipe, pictures):
    with pytest.raises(ValueError, match="this tower has none"):
        together(pipe, pictures, layers=["stem"])
    with pytest.raises(ValueError, match="different whole numbers"):
        together(pipe, pictures, layers=[1, "stem"])
