"""The model card: its text and metadata, its claims, and which files it never overwrites.

`python -m tests.test_model_card` regenerates the golden card; review the difference before committing it.
"""

import contextlib
import html
import io
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import pipeline

from tests.common import FIXTURES, HYBRID_VISION, tiny_model, tiny_tokenizer
from tests.evaluation_run import run as evaluation_run
from tests.methods.common import tiny_method
from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.checkpoint_facts import (
    FACTS_FILES,
    RESULTS_FILE,
    TRAINING_FILE,
    CheckpointFacts,
    add_results,
    learned_fingerprint,
    set_statements,
    write_training_facts,
)
from vcp_clip_hf.cli import main
from vcp_clip_hf.evaluation_report import paper_results
from vcp_clip_hf.model_card import card_text, is_generated, model_card, stamped, write_model_card
from vcp_clip_hf.reference_pictures import build_memory, load_references, save_references
from vcp_clip_hf.training import train


ROOT = Path(__file__).parent.parent
GOLDEN = FIXTURES / "model_card"
CALIBRATION = {
    "image": {
        "threshold": 0.4321,
        "method": "conformal",
        "num_images": 99,
        "false_alarm_rate": 0.01,
        "false_alarm_bound": 0.01,
        "num_above": 0,
        "date": "2026-02-02",
    },
    "score_mode": "max",
}


def save(folder: Path, facts: bool = True, **fields) -> Path:
    """Save a tiny checkpoint, with or without the facts of the fixture."""
    torch.manual_seed(0)
    model = tiny_model(**fields)
    model.save_pretrained(folder, adapter_only=not model.config.backbone_included)
    thresholds = {"threshold": 0.4321, "image_threshold": 0.4321, "calibration": CALIBRATION} if facts else {}
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0, **thresholds).save_pretrained(folder)
    if facts:
        for name in FACTS_FILES:
            shutil.copyfile(GOLDEN / name, folder / name)
    return folder


def example(folder: Path) -> Path:
    return save(folder, backbone_name_or_path="openai/clip-vit-base-patch16", backbone_revision="main")


CARDS = {"example": GOLDEN / "card.md", "embedded": ROOT / "MODEL_CARD.md"}


@pytest.mark.parametrize(("checkpoint", "golden"), CARDS.items(), ids=CARDS)
def test_the_card_as_a_whole(checkpoint, golden, tmp_path):
    folder = example(tmp_path) if checkpoint == "example" else Path(EMBEDDED_CHECKPOINT)
    text = golden.read_text(encoding="utf-8")
    assert text == card_text(folder)
    assert is_generated(text)
    if checkpoint == "embedded":
        assert (folder / "README.md").read_text(encoding="utf-8") == text
        assert (
            "license: apache-2.0" in text
            and "generate" in CheckpointFacts.from_folder(folder).statements["license_note"]
        )
        assert "has not been evaluated" not in text and "no record of its training" not in text


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "[x](javascript:alert(1))",
    "two\n---\nlines",
    "`x`",
    "# y",
    "&lt;",
    "\udcff",
]


def test_names_from_users_data_stay_text(tmp_path):
    folder = example(tmp_path)
    training = json.loads((folder / TRAINING_FILE).read_text())
    training.update(dataset=HOSTILE[0], split="a`b|c", products=HOSTILE, held_out_products=HOSTILE[:2])
    training["dataset_options"] = {"data_dir": "photos/`x`|<b>\nz"}
    (folder / TRAINING_FILE).write_text(json.dumps(training))
    results = json.loads((folder / RESULTS_FILE).read_text())
    for report in results if isinstance(results, list) else results["reports"]:
        values = next(iter(report["results"].values()))
        metrics, counts = (next(iter(values[kind].values())) for kind in ("per_product", "counts"))
        values.update(per_product=dict.fromkeys(HOSTILE, metrics), counts=dict.fromkeys(HOSTILE, counts))
        values["reasons"] = {name: {"pixel_ap": f"{name} has no defect"} for name in HOSTILE}
        report["results"] = {"<i>|": values}
        report["settings"]["splits"] = {"<i>|": "a`b|c"}
    (folder / RESULTS_FILE).write_text(json.dumps(results))

    write_model_card(folder)
    card = ModelCard.load(folder / "README.md")
    configs = [each.dataset_config for each in card.data.eval_results]
    assert {" ".join(name.replace("\udcff", "?").split()) for name in HOSTILE} <= set(configs)
    assert {each.dataset_type for each in card.data.eval_results} == {"<i>|"}
    rendered = MarkdownIt("commonmark").enable("table").render(card.text)
    plain = MarkdownIt("commonmark").enable("table").render(ModelCard(card_text(example(tmp_path / "plain"))).text)
    tags, expected = (set(re.findall(r"<(\w+)", text)) for text in (rendered, plain))
    assert tags <= expected | {"code"} and "<script" not in rendered
    assert not re.search(r'href="(?!https?:)', rendered)
    rows = re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)
    assert html.unescape(rendered).count("[x](javascript:alert(1))") >= 3
    widths = {row.count("<t") for row in rows}
    assert widths <= {row.count("<t") for row in re.findall(r"<tr>(.*?)</tr>", plain, re.DOTALL)}


# --- metadata -----------------------------------------------------------------------------------------------------


def test_metadata(tmp_path):
    (tmp_path / "README.md").write_text(card_text(example(tmp_path), "someone/name"))
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-segmentation"
    assert data.license == "apache-2.0" and "anomaly-segmentation" in data.tags
    assert data.base_model == "openai/clip-vit-base-patch16" and data.base_model_relation == "finetune"
    assert data.metrics == ["roc_auc", "pro", "average_precision"]
    results = {(each.dataset_type, each.dataset_config, each.metric_name): each for each in data.eval_results}
    assert results["visa", "candle", "pixel AP"].metric_value == 0.2531
    assert results["visa", "candle", "pixel AP"].dataset_split == "test"
    assert results["visa", None, "pixel AUROC, mean over products"].metric_value == round((0.9712 + 0.9034) / 2, 4)
    # undefined metrics are left out
    assert ("visa", "pcb1", "image AUROC") not in results and ("visa", "candle", "image AUROC") in results
    assert len(results) == len(data.eval_results) == 5 + 3 + 3 + 5 + 5


def test_the_papers_numbers_are_apart_from_measured_ones(tmp_path):
    card = model_card(example(tmp_path))
    paper = paper_results()["datasets"]["visa"]["VCP-CLIP"]
    before, after = card.text.split("### The paper's numbers")
    quoted = f"| visa | {paper['auroc']:.1f} | {paper['pro']:.1f} | {paper['ap']:.1f} |"
    assert quoted in after and "Not measured with this checkpoint" in after
    assert quoted not in before
    values = {result.metric_value for result in card.data.eval_results}
    assert not values & {value for each in paper.values() for value in (each, each / 100)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"backbone_name_or_path": "/data/clip"}, (None, None)),
        ({"backbone_name_or_path": "runs/clip/last"}, (None, None)),
        ({"backbone_name_or_path": "some/clip"}, ("some/clip", "finetune")),
        ({"backbone_name_or_path": "some/clip", "backbone_included": False}, ("some/clip", "adapter")),
    ],
)
def test_base_model_and_relation(fields, expected, tmp_path):
    card = model_card(save(tmp_path, facts=False, **fields))
    assert (card.data.base_model, card.data.get("base_model_relation")) == expected
    assert ("learned part only" in card.text) == (expected[1] == "adapter")
    assert "/data" not in str(card)


def test_a_stem_is_part_of_the_backbone(tmp_path):
    card = card_text(save(tmp_path, vision_config=dict(HYBRID_VISION)))
    assert "patches of 8 x 8 after a convolutional stem (efficientnet_lite0) |" in card


def test_missing_facts_are_stated(tmp_path):
    card = model_card(save(tmp_path, facts=False))
    for words in (
        "no record of its training",
        "has not been evaluated",
        "No threshold is set",
        "Weights of this checkpoint: not stated",
        "Code: Apache-2.0",
        "8 x 8 of the 48 x 48 input pixels",
    ):
        assert words in card.text
    assert card.data.eval_results is None and card.data.license is None and card.data.metrics is None


# --- references ---------------------------------------------------------------------------------------------------


def normal_pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(4)]


def with_references(folder: Path, **settings) -> Path:
    model, processor = VCPCLIPModel.from_pretrained(folder), VCPCLIPImageProcessor.from_pretrained(folder)
    save_references(build_memory(model, processor, normal_pictures(), **settings), folder)
    return folder


def test_the_card_describes_the_references(tmp_path):
    plain = model_card(save(tmp_path, facts=False)).text
    assert "References" not in plain
    settings = {"source": "line 2, May", "layers": [0, 3], "neighborhood": 3, "copies": "flips", "max_patches": 50}
    text = model_card(with_references(tmp_path, weight=0.25, **settings)).text
    section = text[text.index("## References") : text.index("## Training")]
    for words in (
        "References: 4 normal pictures from line 2, May; a coreset of 50 of 432 patches in each of the layers 0, 3,",
        f"{load_references(tmp_path).num_bytes / 1e6:.1f} MB; weight 0.25.",
        "Patch tokens are averaged over 3 x 3 patches.",
        "zero-shot map: `(1 - weight) * zero_shot + weight * memory`.",
        "copies of each picture: `flips`",
        "`size=[48, 48]`",
        "in the same way as these pictures",
    ):
        assert words in section, words
    assert text.replace(section, "") == plain, "nothing else changes without thresholds"
    text = model_card(with_references(tmp_path, source=HOSTILE[0])).text
    assert "all of 144 patches" in text and "averaged over" not in text and "<script>" not in text
    text = model_card(with_references(tmp_path, distance="relative", scale=2.5)).text
    assert "divided by the square root of that patch's spacing" in text and "limited to 1" not in text
    assert "smallest of these ratios, as mean over layers, times 2.5." in text
    save_references(None, tmp_path)
    assert model_card(tmp_path).text == plain


def test_the_card_of_another_method_describes_its_references(tmp_path):
    model = tiny_method(few_shot_layers=[2, 3])
    processor = VCPCLIPImageProcessor.for_model(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = model_card(tmp_path).text
    save_references(build_memory(model, processor, normal_pictures()), tmp_path)
    text = model_card(tmp_path).text
    section = text[text.index("## References") : text.index("## Training")]
    assert "zero-shot map as APRIL-GAN was published." in section and "4 normal pictures" in section
    assert text.replace(section, "") == plain


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("april_gan", 'inspect("part.png", product_name="metal nut", threshold=0.5)'),
        ("anomaly_clip", 'inspect("part.png", threshold=0.5)'),
    ],
)
def test_the_example_names_the_product_where_results_depend_on_it(tmp_path, model_type, words):
    model = tiny_method(model_type)
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    assert words in model_card(tmp_path).text


def test_a_damaged_memory_is_named(tmp_path):
    folder = with_references(save(tmp_path, facts=False))
    (folder / "references.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"references\.safetensors' cannot be read as a memory"):
        card_text(folder)


def test_the_card_says_whether_thresholds_belong_to_the_references(tmp_path):
    folder = save(tmp_path / "one", facts=False)
    tiny_tokenizer().save_pretrained(folder)
    pipe = pipeline("anomaly-segmentation", model=str(folder))
    unused = "Calibrated thresholds are **not used**: they were measured "

    def saved(references) -> str:
        pipe.set_references(references)
        pipe.save_pretrained(tmp_path / "two")
        return (tmp_path / "two" / "README.md").read_text()

    pipe.calibrate(normal_pictures(), false_alarm_rate=0.25)
    text = saved(None)
    assert "Calibrated (image)" in text and unused not in text and "with the references" not in text
    assert f"{unused}without the references of this checkpoint" in saved(normal_pictures())
    pipe.calibrate(normal_pictures(), false_alarm_rate=0.25)
    memory = pipe.references
    text = saved(memory)
    assert "- Measured with the references of this checkpoint." in text and unused not in text
    assert f"{unused}without the references of this checkpoint" in saved(normal_pictures()[:3])
    assert f"{unused}with references, and this checkpoint has none" in saved(None)
    pipe.image_processor.threshold = pipe.image_processor.image_threshold = 0.5
    pipe.image_processor.calibration = None
    assert "not used" not in saved(memory), "thresholds set by hand always apply"


# --- results and zero-shot claims ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (None, "cannot be excluded"),
        ({"dataset": "visa"}, "squares: zero-shot, the checkpoint was trained on visa"),
        (
            {"products": ["product_0", "other"]},
            "squares: **not zero-shot**, the checkpoint was trained on images of product_0",
        ),
        ({"held_out_products": ["product_1"]}, "product_1 served for model selection"),
        ({}, "trained on other products of the same dataset"),
        ({"products": []}, "not recorded"),
    ],
)
def test_whether_numbers_are_zero_shot(training, words, tmp_path):
    folder = save(tmp_path, facts=False)
    if training is not None:
        values = json.loads((GOLDEN / TRAINING_FILE).read_text())
        write_training_facts(folder, {**values, "dataset": "squares", "held_out_products": [], **training})
    add_results(folder, evaluation_run(progress=False))
    assert words in model_card(folder).text


def test_the_card_says_how_images_are_resized_and_whether_results_are_of_another_input(tmp_path):
    folder = save(tmp_path, facts=False)
    add_results(folder, evaluation_run(progress=False))
    text = model_card(folder).text
    assert "48 x 48 pixels; images are resized to it without keeping their ratio (`squash`)" in text
    assert "Measured with an input" not in text and "Measured with `resize_mode`" not in text
    processor = VCPCLIPImageProcessor.from_pretrained(folder).with_resize_mode("keep_ratio").at_size(56)
    processor.save_pretrained(folder)
    text = model_card(folder).text
    assert "56 x 56 pixels; other images keep their ratio at about this area (`keep_ratio`)" in text
    assert "Measured with an input of 48 x 48 pixels, not with that of this checkpoint." in text
    assert "Measured with `resize_mode` `squash`; this checkpoint has `keep_ratio`." in text


def test_results_replace_those_of_the_same_datasets_and_protocol(tmp_path):
    folder = save(tmp_path / "checkpoint", facts=False)
    report = evaluation_run(progress=False)
    add_results(folder, report)
    report.save(tmp_path / "results")
    add_results(folder, json.loads((tmp_path / "results" / "results.json").read_text()))
    assert len(json.loads((folder / RESULTS_FILE).read_text())) == 1
    other = evaluation_run(protocol="authors", progress=False)
    add_results(folder, other)
    kept = json.loads((folder / RESULTS_FILE).read_text())
    assert len(kept) == 2 and all("model" not in each["settings"] for each in kept)
    with pytest.raises(ValueError, match=r"not an evaluation report.*vcp-clip evaluate"):
        add_results(folder, {"accuracy": 1.0})


def test_facts_of_other_weights_are_left_out(tmp_path):
    folder = save(tmp_path, facts=False)
    write_training_facts(folder, {"converted_from": {"file": "train.pth", "sha256": "0"}})
    add_results(folder, evaluation_run(progress=False))
    assert "train.pth" in model_card(folder).text
    model = tiny_model()
    model.save_pretrained(folder)
    card = model_card(folder)
    assert "no record of its training" in card.text and "has not been evaluated" in card.text


def test_fingerprints_depend_on_the_learned_part_only(tmp_path):
    model = tiny_model(backbone_name_or_path="some/clip")
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model.half().save_pretrained(tmp_path / "half")
    prints = {learned_fingerprint(folder) for folder in tmp_path.iterdir()}
    assert len(prints) == 1
    with torch.no_grad():
        model.base_logit_scale += 1
    model.save_pretrained(tmp_path / "other")
    assert learned_fingerprint(tmp_path / "other") not in prints


# --- files --------------------------------------------------------------------------------------------------------


def test_a_persons_readme_is_never_overwritten(tmp_path):
    folder = save(tmp_path, facts=False)
    readme = folder / "README.md"
    assert write_model_card(folder) == readme
    set_statements(folder, name="renamed")
    assert write_model_card(folder) == readme and "# renamed" in readme.read_text()

    generated = readme.read_text()
    readme.write_bytes(generated.replace("\n", "\r\n").encode())  # other line ends do not count as an edit
    assert write_model_card(folder) == readme
    for text in (
        generated.replace("## Limitations", "## Limitations and more"),
        generated + "\nA word.\n",
        "# Mine\n",
        "",
    ):
        readme.write_text(text)
        assert write_model_card(folder) is None and readme.read_text() == text
        AnomalySegmentationPipeline(
            model=tiny_model(), image_processor=VCPCLIPImageProcessor.from_pretrained(folder)
        ).save_pretrained(folder)
        assert readme.read_text() == text
    readme.unlink()
    assert write_model_card(folder, tmp_path / "elsewhere.md") == tmp_path / "elsewhere.md" and not readme.exists()


def test_a_stamp_marks_unchanged_texts():
    text = stamped("one\ntwo\n")
    assert is_generated(text) and stamped(text) == text and text.startswith("one\ntwo\n")
    assert not is_generated(text.replace("two", "three")) and not is_generated("one\ntwo\n")


def test_errors_name_the_mistake(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"not a saved checkpoint: config\.json and preprocessor_config\.json are"
    ):
        card_text(tmp_path)
    folder = save(tmp_path, facts=False)
    with pytest.raises(ValueError, match=r"has no statement 'licence'; did you mean 'license'"):
        set_statements(folder, licence="mit")
    (folder / "card.json").write_text('{"name": 3}')
    with pytest.raises(ValueError, match=r"name=3 in card\.json must be a string"):
        card_text(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        card_text(folder)
    (folder / "card.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        card_text(folder)


def test_training_writes_the_card(tmp_path):
    make_model_folder(tmp_path)
    records = make_records()
    result = train(settings(tmp_path, num_train_epochs=1, seed=7), records, records.select(range(5)))
    for folder in (result.last, result.best):
        text = (folder / "README.md").read_text()
        assert is_generated(text) and str(tmp_path) not in text + (folder / TRAINING_FILE).read_text()
        for words in (
            "Synthetic defects",
            "12 normal, 12 anomalous",
            "`seed=7`",
            "product_0",
            "6 |",
            "1 process on cpu",
        ):
            assert words in text, words
    assert "best on the held-out products: pixel AP" in text
    assert "after the last step" in (result.last / "README.md").read_text()


def test_pipelines_carry_facts_and_calibration(tmp_path):
    folder = example(tmp_path / "one")
    tiny_tokenizer().save_pretrained(folder)
    pipe = AnomalySegmentationPipeline(
        model=VCPCLIPModel.from_pretrained(folder), image_processor=VCPCLIPImageProcessor.from_pretrained(folder)
    )
    calibration = pipe.calibrate(normal_pictures(), false_alarm_rate=0.25)
    pipe.save_pretrained(tmp_path / "two")
    text = (tmp_path / "two" / "README.md").read_text()
    assert calibration.describe() in text and "# vcp-clip-example" in text and "NVIDIA H200" in text


def test_the_command(tmp_path):
    folder = save(tmp_path / "checkpoint", facts=False)
    evaluation_run(progress=False).save(tmp_path / "results")
    options = ["--results", tmp_path / "results" / "results.json", "--name", "mine", "--license", "mit"]
    options += ["--license-note", "as agreed", "--output", tmp_path / "CARD.md"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([str(word) for word in ("card", "--model", folder, *options)])
    assert printed.getvalue() == f"wrote {tmp_path / 'CARD.md'}\n"
    text = (tmp_path / "CARD.md").read_text()
    assert text == card_text(folder)
    assert "# mine" in text and "mit; as agreed" in text and "| squares | product_0 |" in text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        (GOLDEN / "card.md").write_text(card_text(example(Path(temporary))), encoding="utf-8")
