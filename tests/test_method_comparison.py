"""Several methods on the same data in one table, beside what was published."""

import csv
import json
import math

import pytest
import torch

from tests.common import tiny_model
from tests.methods.common import tiny_method
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor
from vcp_clip_hf.checkpoint_facts import write_training_facts
from vcp_clip_hf.checkpoint_folder import CheckpointParts, complete_parts, load_parts, save_parts
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import paper_results
from vcp_clip_hf.method_comparison import compare_methods, load_method, published_results
from vcp_clip_hf.methods import AprilGANModel, ClipADConfig, WinCLIPConfig


def parts_of(model) -> CheckpointParts:
    return CheckpointParts(model, VCPCLIPImageProcessor.for_model(model.config))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    torch.manual_seed(0)
    methods = {
        "vcp_clip": parts_of(tiny_model()),
        "april_gan": parts_of(tiny_method("april_gan")),
        "winclip": parts_of(tiny_method("winclip")),
    }
    folder = tmp_path_factory.mktemp("sheets")
    return compare_methods(methods, {"visa": make_records(12)}, seed=3, progress=False, sheets_dir=folder), folder


def test_one_table_has_all_methods_products_and_means(comparison):
    table, _ = comparison
    rows = [(row["method"], row["product"]) for row in table.rows()]
    products = ["product_0", "product_1", "product_2", "mean"]
    assert rows == [(name, product) for name in ("vcp_clip", "april_gan", "winclip") for product in products]
    for row in table.rows():
        assert not math.isnan(row["pixel_auroc"]) and row["images"] in (4, 12)
    text, markdown = table.to_text(), table.to_markdown()
    for title in ("VCP-CLIP", "APRIL-GAN", "WinCLIP"):
        assert title in text and f"**{title}**" in markdown
    assert "seed 3" in markdown and "ms per image" in markdown


def test_each_method_counts_its_parameters_and_its_time(comparison):
    table, _ = comparison
    assert table.results["winclip"].learned == 0
    adapters = 4 * (64 * 32 + 32)
    assert table.results["april_gan"].learned == adapters
    for result in table.results.values():
        assert result.parameters > 100_000 and result.seconds_per_image > 0


def test_each_method_says_whether_it_is_zero_shot(comparison):
    table, _ = comparison
    assert table.results["winclip"].notes == ["visa: zero-shot, nothing is trained."]
    assert "not recorded" in table.results["april_gan"].notes[0]


def test_training_on_the_same_products_is_marked(tmp_path):
    model = tiny_method("april_gan")
    save_parts(tmp_path, complete_parts(model, tokenizer=model.tokenizer))
    facts = {"dataset": "visa", "products": ["product_1"], "held_out_products": []}
    write_training_facts(tmp_path, facts)
    table = compare_methods({"april_gan": load_parts(tmp_path)}, {"visa": make_records(6)}, progress=False)
    assert "**not zero-shot**" in table.results["april_gan"].notes[0]
    assert "**not zero-shot**" in table.to_markdown()


def test_the_numbers_are_those_of_single_evaluations(comparison):
    table, _ = comparison
    torch.manual_seed(0)
    model = tiny_model()
    report = evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"visa": make_records(12)}, "published")
    assert report.rows() == table.results["vcp_clip"].report.rows()


def test_files_and_sheets(comparison, tmp_path):
    table, sheets = comparison
    table.save(tmp_path)
    values = json.loads((tmp_path / "methods.json").read_text())
    assert set(values["methods"]) == set(table.results) and values["seed"] == 3
    with open(tmp_path / "methods.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert (tmp_path / "methods.md").read_text() == table.to_markdown()
    assert (sheets / "winclip" / "visa" / "product_0.png").is_file()


# --- products as names, and scores over a whole product -------------------------------------------------------------


def test_methods_get_the_products_of_the_records_as_names():
    model, records = tiny_method("april_gan"), make_records(6)
    asked = []
    original = type(model).segment

    class Listening(AprilGANModel):
        def segment(self, features, product_names, references=None):
            asked.extend(product_names)
            return original(self, features, product_names, references)

    model.__class__ = Listening
    evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"x": records}, batch_size=4, progress=False)
    assert asked == records["product"]


def test_scores_over_a_product_replace_those_of_single_images():
    torch.manual_seed(0)
    model, records = tiny_method("clip_ad"), make_records(12)
    processor = VCPCLIPImageProcessor.for_model(model.config)
    published = evaluate(model, processor, {"x": records}, "published", progress=False)
    model.__class__ = type("PerImage", (type(model),), {"scores_depend_on_product": False})
    per_image = evaluate(model, processor, {"x": records}, "published", progress=False)
    by_map = evaluate(model, processor, {"x": records}, "published", progress=False, batch_size=5)
    assert by_map.rows() == per_image.rows()  # not of the batches
    pixel, image = "pixel_auroc", "image_auroc"
    assert [row[pixel] for row in published.rows()] == pytest.approx([row[pixel] for row in per_image.rows()])
    assert [row[image] for row in published.rows()] != [row[image] for row in per_image.rows()]


# --- published numbers ----------------------------------------------------------------------------------------------


def test_each_published_number_has_its_source():
    found = published_results(WinCLIPConfig(), "mvtec_ad")
    assert found["pixel_auroc"] == (85.1, "WinCLIP's paper (arXiv 2303.14814)")
    value, source = found["pixel_ap"]
    assert value == 18.2 and "zqhang" in source
    assert published_results(WinCLIPConfig(), "bsd")["pixel_auroc"] == (87.7, "VCP-CLIP's paper (arXiv 2407.12276)")
    assert published_results(VCPCLIPConfig(), "visa")["image_auroc"][0] == 83.8


def test_numbers_of_a_variant_are_not_those_of_another():
    assert published_results(ClipADConfig(), "mvtec_ad") == {}
    assert published_results(ClipADConfig(use_adapters=True), "mvtec_ad")["pixel_pro_200"][0] == 85.6


def test_a_published_mean_is_quoted_for_all_products_only():
    table = compare_methods({"vcp_clip": parts_of(tiny_model())}, {"visa": make_records(6)}, progress=False)
    assert table.results["vcp_clip"].published == {}


# --- loading --------------------------------------------------------------------------------------------------------


def test_methods_without_a_learned_part_need_a_backbone_only():
    model = load_method("winclip", backbone="embedded").model
    assert model.config.image_size == 224 and len(model.tokenizer) == model.config.text_config.vocab_size


def test_methods_with_a_learned_part_need_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="april_gan=FOLDER"):
        load_method("april_gan", backbone="embedded")
    model = tiny_method("april_gan")
    save_parts(tmp_path, complete_parts(model, tokenizer=model.tokenizer))
    assert isinstance(load_method("april_gan", str(tmp_path)).model, AprilGANModel)
    with pytest.raises(ValueError, match="checkpoint of 'april_gan', and not of 'winclip'"):
        load_method("winclip", str(tmp_path))


def test_wrong_names_and_missing_backbones():
    with pytest.raises(ValueError, match="known are vcp_clip, anomaly_clip"):
        load_method("winclap")
    with pytest.raises(ValueError, match="--backbone"):
        load_method("winclip")


# --- references -----------------------------------------------------------------------------------------------------


def test_few_shot_results_stand_beside_few_shot_publications():
    assert published_results(WinCLIPConfig(), "visa", shots=4)["image_auroc"][0] == 87.3
    assert "pixel_ap" not in published_results(WinCLIPConfig(), "visa", shots=4)
    assert published_results(WinCLIPConfig(), "visa", shots=3) == {}
    assert published_results(VCPCLIPConfig(), "visa", shots=4) == {}


def test_references_are_drawn_for_each_method_and_product():
    torch.manual_seed(0)
    methods = {name: parts_of(tiny_method(name)) for name in ("april_gan", "winclip")}
    draw = ReferenceDraw(1, seeds=(0, 1))
    table = compare_methods(methods, {"x": make_records(18)}, progress=False, references=draw)
    zero_shot = compare_methods(methods, {"x": make_records(18)}, progress=False)
    for name, result in table.results.items():
        assert result.report.settings["references"]["per_product"] == 1
        assert result.report.rows() != zero_shot.results[name].report.rows()


def test_published_numbers_are_those_of_as_many_references():
    products = list(paper_results()["products"]["visa"])
    records = make_records(4 * len(products)).remove_columns("product")
    records = records.add_column("product", [products[index // 4] for index in range(len(records))])
    methods = {name: parts_of(tiny_method(name)) for name in ("winclip", "anovl")}
    table = compare_methods(methods, {"visa": records}, progress=False, references=ReferenceDraw(1, seeds=(0,)))
    value, source = table.results["winclip"].published["visa", "mean"]["image_auroc"]
    assert value == 83.8 and "1-shot" in source
    assert table.results["winclip"].notes[0] == "visa: nothing is trained."
    # AnoVL has no few-shot mode, so its numbers are zero-shot, as published
    assert table.results["anovl"].published["visa", "mean"]["pixel_auroc"][0] == 91.4
    assert table.results["anovl"].notes[0] == "visa: zero-shot, nothing is trained."


def test_few_shot_scores_of_april_gan_are_scaled_over_the_product(monkeypatch):
    torch.manual_seed(0)
    model, asked = tiny_method("april_gan"), []
    original = AprilGANModel.scores_of_product

    def listening(self, text_scores, map_maxima):
        asked.append(len(text_scores))
        return original(self, text_scores, map_maxima)

    monkeypatch.setattr(AprilGANModel, "scores_of_product", listening)
    processor, records = VCPCLIPImageProcessor.for_model(model.config), {"x": make_records(18)}
    evaluate(model, processor, records, "published", progress=False)
    assert asked == []
    evaluate(model, processor, records, "published", progress=False, references=ReferenceDraw(1, seeds=(0,)))
    assert asked == [5, 5, 5]  # six images of each product, one of them a reference
