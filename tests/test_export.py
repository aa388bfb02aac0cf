"""Exports return the model's results, or are not written."""

import copy
import json
import logging
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.export_run import (
    checkpoint,
    exported,
    exported_with_references,
    load,
    memory,
    picture,
    pictures,
    referenced_checkpoint,
    small_model,
    small_processor,
    traced,
    traced_with_a_stem,
    traced_with_references,
)
from tests.methods.common import tiny_method
from tests.test_cli import run
from vcp_clip_hf import VCPCLIPImageProcessor, export, references
from vcp_clip_hf.export import SegmentationGraph, export_model
from vcp_clip_hf.exported_segmenter import ExportedSegmenter, open_segmenter
from vcp_clip_hf.referenced_model import ReferencedModel


# --- the graph, before it is exported -------------------------------------------------------------------------------

VARIANTS = {
    "paper": ({}, {}),
    "top_k": ({}, {"score_mode": "top_k", "top_k_fraction": 0.05}),
    "no Pre-VCP, no Post-VCP": ({"use_pre_vcp": False, "use_post_vcp": False}, {"score_mode": "top_k"}),
    "deep prompts at the end": ({"deep_prompt_position": "end", "num_deep_prompt_tokens": 2}, {"smoothing_sigma": 0}),
    "templates": ({"normal": ("a good {}", "{} is fine"), "abnormal": ("a bad {} here", "the broken {}")}, {}),
    "pretrained size": ({"image_size": 32}, {}),
    "not square": ({}, {"size": {"height": 48, "width": 80}}),
    "image head": ({"use_image_head": True}, {"score_mode": "image_head"}),
}


@pytest.mark.parametrize(("fields", "settings"), VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_graph_is_model_and_image_processor(fields, settings):
    model = small_model(**fields)
    processor = small_processor(model, **settings)
    graph = SegmentationGraph(model, processor.scoring(), (processor.size.height, processor.size.width))
    inputs = processor(pictures(), return_tensors="pt")
    maps, scores = graph(**inputs)
    for index, expected in enumerate(processor.post_process_anomaly_segmentation(model(**inputs))):
        torch.testing.assert_close(maps[index], expected["anomaly_map"], atol=1e-5, rtol=0)
        assert scores[index].item() == pytest.approx(expected["score"], abs=1e-5)


MEMORIES = {
    "coreset, neighbors, embedded patches": {},
    "exact": {"layers": [1, 2], "max_patches": 10_000, "neighborhood": 1},
    "memory alone": {"weight": 1},
    "turned copies": {"copies": "all", "layers": [2]},
}


@pytest.mark.parametrize("score_mode", ["max", "top_k", "image_head"])
@pytest.mark.parametrize("built_with", MEMORIES.values(), ids=MEMORIES.keys())
@torch.no_grad()
def test_the_graph_has_the_memory(built_with, score_mode):
    model = small_model(use_image_head=score_mode == "image_head")
    processor = small_processor(model, score_mode=score_mode)
    known = memory(model, processor, **built_with)
    graph = SegmentationGraph(model, processor.scoring(), (processor.size.height, processor.size.width), known)
    inputs = processor(pictures(), return_tensors="pt")
    maps, scores = graph(**inputs)
    outputs = ReferencedModel(model, known)(**inputs)
    for index, expected in enumerate(processor.post_process_anomaly_segmentation(outputs)):
        torch.testing.assert_close(maps[index], expected["anomaly_map"], atol=1e-5, rtol=0)
        assert scores[index].item() == pytest.approx(expected["score"], abs=1e-5)
    assert (maps - SegmentationGraph(model, processor.scoring(), (48, 48))(**inputs)[0]).abs().max() > 0.01


def test_the_score_of_the_image_head_needs_a_head(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=r"outputs\.image_scores is None"):
        export_model(model, small_processor(model, score_mode="image_head"), tmp_path / "exported", "torch")
    assert not (tmp_path / "exported").exists()


@torch.no_grad()
def test_the_model_is_not_changed():
    model = small_model()
    model.train()
    model.set_attn_implementation("eager")
    before = copy.deepcopy(model.state_dict())
    graph = SegmentationGraph(model, small_processor(model).scoring(), (48, 48))
    assert model.training and not graph.model.training
    assert model.clip.vision_model.config._attn_implementation == "eager"
    assert len(model.get_input_embeddings().weight) == 514 > len(graph.model.get_input_embeddings().weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ours, theirs = model.post_vcp.key_projection.weight, graph.model.post_vcp.key_projection.weight
    assert ours.data_ptr() == theirs.data_ptr(), "weights are not copied"
    model.eval()
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(graph.model(images).anomaly_map, model(images).anomaly_map, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="frozen"):
        graph.model(torch.randn(1, 3, 24, 24))


def test_half_precision_is_exported_in_float32():
    model = small_model().to(torch.bfloat16)
    graph = SegmentationGraph(model, small_processor(model).scoring(), (48, 48))
    assert {each.dtype for each in graph.parameters()} == {torch.float32}
    assert model.dtype == torch.bfloat16


# --- written files --------------------------------------------------------------------------------------------------


def test_onnx_has_the_models_results_and_no_path_of_this_machine():
    result = exported()
    report = result.report
    assert report.format == "onnx" and report.num_images == 5 and report.image_source == "given"
    assert 0 < report.map_deviation < 1e-5 and report.score_deviation < 1e-5
    assert report.map_range[1] - report.map_range[0] > 0.05, "constant maps would prove nothing"
    names = {each.name for each in result.folder.iterdir()}
    assert names == {
        "model.onnx",
        "export.json",
        "preprocessor_config.json",
        "requirements.txt",
        "exported_segmenter.py",
        "anomaly_result.py",
        "call_arguments.py",
        "connected_components.py",
        "deep_pixels.py",
        "image_loading.py",
        "image_opening.py",
        "image_sources.py",
        "pixel_preprocessing.py",
        "region_of_interest.py",
        "regions.py",
        "thresholds.py",
        "value_ranges.py",
        "visualization.py",
    }
    facts = json.loads((result.folder / "export.json").read_text())
    assert facts["parity"]["map_deviation"] == report.map_deviation and facts["parity"]["tolerance"] == 1e-4
    assert facts["settings"]["smoothing_sigma"] == 2.0 and facts["source"]["model"] == "checkpoint"
    assert facts["versions"]["torch"] == torch.__version__ and "license" in facts
    content = b"".join(each.read_bytes() for each in result.folder.iterdir())
    for trace in (str(Path(export.__file__).parent), str(result.checkpoint.parent), "site-packages"):
        assert trace.encode() not in content


def test_onnx_takes_any_number_of_images_and_keeps_only_what_it_needs():
    graph = onnx.load(exported().folder / "model.onnx").graph
    assert [each.name for each in graph.input] == ["pixel_values"]
    assert [each.name for each in graph.output] == ["anomaly_map", "score"]
    sizes = graph.input[0].type.tensor_type.shape.dim
    assert sizes[0].dim_param and [each.dim_value for each in sizes[1:]] == [3, 48, 48]
    # neither the vocabulary nor the position table of another size
    assert not [each.name for each in graph.initializer if each.dims and each.dims[0] in (514, 17)]
    assert not any(node.op_type == "Resize" and len(node.input) == 0 for node in graph.node)


def test_torch_program(tmp_path):
    model = small_model()
    processor = small_processor(model, score_mode="top_k")
    report = export_model(model, processor, tmp_path / "program", "torch")
    assert report.map_deviation < 1e-5 and report.image_source == "generated"
    assert {each.name for each in (tmp_path / "program").iterdir()} == {
        "model.pt2",
        "export.json",
        "preprocessor_config.json",
    }
    assert str(Path(export.__file__).parent).encode() not in (tmp_path / "program" / "model.pt2").read_bytes()
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    inputs = processor(pictures(), return_tensors="pt")
    with torch.no_grad():
        maps, scores = program(inputs.pixel_values)
        expected = processor.post_process_anomaly_segmentation(model(**inputs))
    np.testing.assert_allclose(maps, [each["anomaly_map"] for each in expected], atol=1e-5)
    np.testing.assert_allclose(scores, [each["score"] for each in expected], atol=1e-5)
    with pytest.raises(ValueError, match="without torch only onnx and openvino run"):
        open_segmenter(tmp_path / "program")


def test_openvino():
    result = exported("openvino")
    assert result.report.map_deviation < 1e-5
    segmenter = open_segmenter(result.folder, num_threads=1)
    assert segmenter.format == "openvino"
    model, processor = load()
    for image in pictures()[:3]:
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (expected,) = processor.post_process_anomaly_segmentation(outputs, [(image.height, image.width)])
        answer = segmenter(image)
        np.testing.assert_allclose(answer["anomaly_map"], expected["anomaly_map"], atol=1e-5)
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.fixture
def already_traced(monkeypatch):
    """Let exports of the shared checkpoint start from its graph, which is traced once."""
    monkeypatch.setattr(export, "_trace", lambda graph, image_size: traced())


def test_int8(already_traced, tmp_path):
    result = exported()
    model, processor = load()
    report = export_model(
        model,
        processor,
        tmp_path / "int8",
        images=pictures(),
        int8=True,
        tolerance=0.2,
        calibration_images=[picture(48, 48, seed) for seed in range(50, 54)],
    )
    assert report.int8 and 1e-4 < report.map_deviation <= 0.2 and "int8" in report.describe()
    assert {each.name for each in (tmp_path / "int8").iterdir()} == {each.name for each in result.folder.iterdir()}
    facts = json.loads((tmp_path / "int8" / "export.json").read_text())
    assert facts["int8"]["calibration_images"] == 4 and facts["parity"]["map_deviation"] == report.map_deviation
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    of_weights = [
        each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
    ]
    # four attention and two MLP products in each of two blocks of two towers
    assert len(of_weights) == 24 and report.megabytes < result.report.megabytes

    full, small = ExportedSegmenter(result.folder, 1), ExportedSegmenter(tmp_path / "int8", 1)
    for image in pictures():
        difference = np.abs(full(image)["anomaly_map"] - small(image)["anomaly_map"])
        assert 0 < difference.max() <= report.map_deviation + 1e-4


# --- with a memory of normal pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "torch"])
def test_a_stem_its_branch_and_a_memory_of_its_features(format, monkeypatch, tmp_path):
    model, processor, known, program = traced_with_a_stem()
    monkeypatch.setattr(export, "_trace", lambda graph, image_size: program)
    report = export_model(model, processor, tmp_path / format, format, pictures(), references=known)
    assert 0 < report.map_deviation < 1e-5 and report.score_deviation < 1e-5
    assert "in each of the layers stem, 2" in report.references and report.num_images == 5


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "torch"])
def test_the_memory_passes_the_parity_check(format):
    result = exported_with_references(format)
    report = result.report
    assert 0 < report.map_deviation < 1e-5 and report.score_deviation < 1e-5
    known = references.ReferenceMemory.load(result.checkpoint / "references.safetensors")
    assert not known.exact and known.settings.layers == (0, 1, 2) and known.settings.neighborhood == 3
    assert report.references == known.describe() and report.describe().endswith(known.describe())
    assert json.loads((result.folder / "export.json").read_text())["references"] == {
        "identity": {"memory": known.digest, "weight": 0.7},
        "pictures": 3,
        "description": known.describe(),
    }


def products(file: Path) -> int:
    return sum(node.op_type in ("MatMul", "Gemm") for node in onnx.load(file).graph.node)


@pytest.mark.slow
def test_one_product_for_each_layer_searches_the_memory():
    file = exported_with_references().folder / "model.onnx"
    assert products(file) == products(exported().folder / "model.onnx") + 3


@pytest.mark.slow
def test_a_large_memory_is_searched_in_blocks_and_can_stand_alone(monkeypatch, tmp_path):
    model, processor = load()
    known = memory(model, processor, layers=[2], neighborhood=1, max_patches=10_000, weight=1)
    monkeypatch.setattr(references, "nearest_distance", partial(references.nearest_distance, block_values=36 * 30))
    report = export_model(model, processor, tmp_path / "onnx", images=pictures(), references=known)
    assert report.map_deviation < 1e-5 and known.exact and len(known.banks[2]) == 108
    assert products(tmp_path / "onnx" / "model.onnx") == products(exported().folder / "model.onnx") + 4
    alone, zero_shot = (ExportedSegmenter(folder, 1) for folder in (tmp_path / "onnx", exported().folder))
    for image in pictures():
        assert abs(alone(image)["score"] - zero_shot(image)["score"]) > 0.01


@pytest.mark.slow
def test_int8_leaves_the_memory_in_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_trace", lambda graph, image_size: traced_with_references())
    model, processor = load()
    report = export_model(
        *(model, processor, tmp_path / "int8"),
        images=pictures(),
        int8=True,
        tolerance=0.2,
        calibration_images=[picture(48, 48, seed) for seed in range(50, 54)],
        references=memory(model, processor),
    )
    assert report.int8 and 1e-4 < report.map_deviation <= 0.2
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    kinds = [each.data_type for each in graph.initializer if sorted(each.dims) == [64, 70]]
    assert kinds == [onnx.TensorProto.FLOAT] * 3
    quantized = [each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2]
    assert len(quantized) == 24, "the products of CLIP's blocks, and no others"


def test_a_graph_without_the_memory_is_refused(already_traced, tmp_path):
    model, processor = load()
    with pytest.raises(ValueError, match=r"nothing was written.*differ"):
        export_model(
            model, processor, tmp_path / "out", "torch", images=pictures(), references=memory(model, processor)
        )
    assert not list(tmp_path.iterdir())


def test_a_memory_without_weight_is_left_out(already_traced, tmp_path):
    model, processor = load()
    unused = memory(model, processor, weight=0)
    report = export_model(model, processor, tmp_path / "out", "torch", images=pictures(), references=unused)
    assert report.references is None
    assert json.loads((tmp_path / "out" / "export.json").read_text())["references"] is None


def test_a_memory_of_other_images_or_of_another_model_is_refused(tmp_path):
    model, processor = load()
    torch.manual_seed(7)
    other = small_model()
    for known, settings, message in (
        (memory(other, processor), {}, "computed by another image tower"),
        (memory(model, processor, tile_size=30), {}, r"in tiles \(.*'tile_size': 30.*Set the references without"),
        (memory(model, processor), {"image_size": 64}, r"size was \[48, 48\], is \[64, 64\].*--no-references"),
        (
            memory(model, small_processor(model, resize_mode="pad")),
            {},
            "resize_mode was 'pad', is 'squash'.*references=None",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, processor, tmp_path / "out", references=known, **settings)
    assert not list(tmp_path.iterdir())


# --- parity check ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tampered(monkeypatch):
    """Let exports write the right file with one parameter changed."""

    def tamper(change) -> None:
        def write(program, file):
            model = onnx.load(exported().folder / "model.onnx")
            for each in model.graph.initializer:
                if each.name.endswith("post_vcp.output_projection.bias"):
                    values = onnx.numpy_helper.to_array(each).copy()
                    each.CopyFrom(onnx.numpy_helper.from_array(change(values), each.name))
            onnx.save(model, file)

        monkeypatch.setattr(export, "_trace", lambda graph, image_size: None)
        monkeypatch.setitem(export._WRITERS, "onnx", write)

    return tamper


@pytest.mark.parametrize(
    "change", [lambda x: x + np.float32(0.5) * (np.arange(len(x)) % 3), lambda x: x * np.float32("nan")]
)
def test_a_tampered_graph_is_refused_and_nothing_is_written(tampered, change, tmp_path):
    result = exported()
    model, processor = load()
    tampered(lambda values: change(values).astype(np.float32))
    with pytest.raises(ValueError, match=r"nothing was written.*differ"):
        export_model(model, processor, tmp_path / "new", images=pictures())
    assert not list(tmp_path.iterdir())
    # an earlier export stays, and works
    shutil.copytree(result.folder, tmp_path / "earlier")
    with pytest.raises(ValueError, match="nothing was written"):
        export_model(model, processor, tmp_path / "earlier", images=pictures())
    assert [each.name for each in tmp_path.iterdir()] == ["earlier"]
    assert (tmp_path / "earlier" / "model.onnx").read_bytes() == (result.folder / "model.onnx").read_bytes()


def test_an_unchanged_graph_passes_the_same_check(tampered, tmp_path):
    """Export without the change that the test above refuses."""
    result = exported()
    tampered(lambda values: values)
    shutil.copytree(result.folder, tmp_path / "exported")
    (tmp_path / "exported" / "left over").touch()
    model, processor = load()
    report = export_model(model, processor, tmp_path / "exported", images=pictures())
    assert report.map_deviation == pytest.approx(result.report.map_deviation, abs=1e-6)
    assert not (tmp_path / "exported" / "left over").exists(), "an earlier export is replaced as a whole"


def test_another_models_graph_is_refused(tampered, tmp_path):
    tampered(lambda values: values)
    torch.manual_seed(7)  # every test starts from the seed of the shared checkpoint
    other = small_model()
    with pytest.raises(ValueError, match="nothing was written"):
        export_model(other, small_processor(other), tmp_path / "other", images=pictures())
    assert not list(tmp_path.iterdir())


# --- errors ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown format": ({}, {"format": "tflite"}, "onnx, openvino, torch"),
    "int8 without a tolerance": ({}, {"int8": True}, "tolerance=0.1"),
    "int8 elsewhere": ({}, {"int8": True, "tolerance": 0.1, "format": "torch"}, "format='onnx'"),
    "a processor of other patches": ({"size": {"height": 48, "width": 50}}, {}, "size=48 x 50 must be multiples of"),
    "not of patches": (
        {},
        {"image_size": 50},
        "image_size=50 must be a whole number of pixels, at least 32, at most 16384, and a multiple of the model's",
    ),
    "no resize": ({"do_resize": False}, {}, "Set do_resize=True"),
    "no images": ({}, {"images": []}, "list of images is empty"),
}


@pytest.mark.parametrize(("settings", "options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_reported_before_any_work(settings, options, message, tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        export_model(model, small_processor(model, **settings), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_another_method_is_refused(tmp_path):
    model = tiny_method()
    with pytest.raises(ValueError, match=r"Only VCP-CLIP can be exported, and this is a AprilGAN\w*"):
        export_model(model, VCPCLIPImageProcessor.for_model(model.config), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    model = small_model()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="give a new folder"):
        export_model(model, small_processor(model), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("openvino",) * 2])
def test_a_missing_extra_names_the_command(format, package, monkeypatch, tmp_path):
    model = small_model()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "vcp-clip-hf\[{format}\]"'):
        export_model(model, small_processor(model), tmp_path / "out", format)


def calibrated(processor: VCPCLIPImageProcessor) -> VCPCLIPImageProcessor:
    processor.threshold = processor.image_threshold = 0.4
    processor.calibration = {"image": {"threshold": 0.4}, "settings": processor.measured_with()}
    return processor


def test_another_size_drops_calibrated_thresholds(caplog):
    model = small_model()
    processor = calibrated(small_processor(model, resize_mode="pad", size={"height": 48, "width": 64}))
    with caplog.at_level(logging.WARNING, "vcp_clip_hf.export"):
        export.logger.propagate = True
        squashed = export._at_size(processor, model, 64)
    assert dict(squashed.size) == {"height": 64, "width": 64} and squashed.resize_mode == "squash"
    assert squashed.threshold is None and "64 x 64 (squash) has none. Calibrate with --image-size 64x64" in caplog.text
    assert "resize_mode='pad': the results of images with another ratio" in caplog.text
    assert processor.threshold == 0.4 and processor.resize_mode == "pad"
    same = calibrated(small_processor(model))
    for size in (None, 48, (48, 48)):
        assert export._at_size(same, model, size).threshold == 0.4, "nothing changes"
    rectangle = export._at_size(same, model, (48, 64))
    assert dict(rectangle.size) == {"height": 48, "width": 64} and rectangle.threshold is None
    own = small_processor(model, threshold=0.4)
    assert export._at_size(own, model, (48, 64)).threshold == 0.4, "the user's own holds for every input"
    with pytest.raises(ValueError, match=r"image_size=\(48, 50\) must be a whole number of pixels"):
        export._at_size(same, model, (48, 50))


def test_images_of_another_ratio_than_an_input_that_is_not_square_are_named(caplog):
    processor = small_processor(small_model())
    images = [picture(60, 120), picture(120, 60), picture(66, 120)]
    with caplog.at_level(logging.WARNING, "vcp_clip_hf.export"):
        export.logger.propagate = True
        export._warn_of_other_ratios(images, processor)
        assert not caplog.records, "a square input squashes on purpose"
        export._warn_of_other_ratios(images, processor.at_size((48, 96)))
    assert "1 of 3 given images have another ratio of height to width, such as 2.00, than the input" in caplog.text


@pytest.mark.parametrize("known", [True, False], ids=["of one way to resize", "of square images"])
def test_a_checkpoint_that_keeps_ratios_is_exported_for_squashed_images(known, caplog):
    model = small_model()
    processor = small_processor(model, resize_mode="keep_ratio")
    processor.threshold = processor.image_threshold = 0.4
    settings = {name: value for name, value in processor.measured_with().items() if known or name != "resize_mode"}
    processor.calibration = {"image": {"threshold": 0.4}, "settings": settings}
    with caplog.at_level(logging.WARNING, "vcp_clip_hf.export"):
        export.logger.propagate = True
        squashed = export._at_size(processor, model, None)
    assert squashed.resize_mode == "squash" and squashed.size == processor.size
    assert squashed.threshold == (None if known else 0.4)
    assert "48 x 48 pixels (height x width), and the checkpoint has resize_mode='keep_ratio'" in caplog.text
    assert "--image-size HEIGHTxWIDTH" in caplog.text
    assert ("has none" in caplog.text) == known
    assert export._at_size(processor, model, 64).threshold is None
    assert "--image-size HEIGHTxWIDTH" not in caplog.text.split("has none")[-1], "a size was given"


@torch.no_grad()
def test_an_export_with_the_ratio_of_the_images_has_the_maps_of_the_checkpoint():
    model = small_model()
    processor = small_processor(model, resize_mode="keep_ratio")
    images = [picture(60, 120, seed=index) for index in range(2)]
    inputs = processor(images, return_tensors="pt")
    height, width = inputs.pixel_values.shape[-2:]
    assert width == 2 * height != 96, "the ratio of the images, at about the area of 48 x 48"
    squashing = export._at_size(processor, model, (height, width))
    graph = SegmentationGraph(model, squashing.scoring(), (height, width))
    maps, scores = graph(**squashing(images, return_tensors="pt"))
    for index, expected in enumerate(processor.post_process_anomaly_segmentation(model(**inputs))):
        torch.testing.assert_close(maps[index], expected["anomaly_map"], atol=1e-5, rtol=0)
        assert scores[index].item() == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.slow
def test_an_exported_folder_has_an_input_that_is_not_square(tmp_path):
    model = small_model()
    report = export_model(model, small_processor(model), tmp_path / "wide", images=pictures(), image_size=(48, 96))
    assert report.map_deviation < 1e-5
    segmenter = ExportedSegmenter(tmp_path / "wide", 1)
    assert segmenter.size == (48, 96)
    assert segmenter(picture(60, 120))["anomaly_map"].shape == (60, 120)


# --- the command ----------------------------------------------------------------------------------------------------


def test_command(already_traced, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index, image in enumerate(pictures()):
        image.save(images / f"{index}.png")
    model = checkpoint()
    done = run("export", "--format", "torch", "--output_dir", tmp_path / "out", "--model", model, "--images", images)
    assert "5 given images" in done.stdout and "allowed: 1.0e-04" in done.stdout
    assert (tmp_path / "out" / "model.pt2").is_file()
    done = run("info", "--model", tmp_path / "out", check=1)
    assert "is an exported graph, not a checkpoint. Load its graph (.pt2) with torch.export.load;" in done.stderr
    done = run("export", "--int8", "-o", tmp_path / "int8", "--model", model, check=1)
    assert done.stderr.startswith("error: ") and "tolerance" in done.stderr and done.stderr.count("\n") == 1


def test_the_command_exports_the_references_of_a_checkpoint(monkeypatch, tmp_path):
    programs = {True: traced_with_references, False: traced}
    monkeypatch.setattr(export, "_trace", lambda graph, _: programs[isinstance(graph.model, ReferencedModel)]())
    for option, count in ((), 3), (("--no-references",), None):
        folder = tmp_path / f"{count}"
        done = run("export", "--format", "torch", "-o", folder, "--model", referenced_checkpoint(), *option)
        assert ("References: 3 normal pictures" in done.stdout) == (count is not None)
        facts = json.loads((folder / "export.json").read_text())["references"]
        assert (facts or {}).get("pictures") == count
