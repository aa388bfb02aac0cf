"""Mistakes and limits of the machine end in a sentence that names the way out, never in a traceback."""

import json
import logging
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, pipeline

from tests.common import tiny_clip, tiny_model, tiny_tokenizer
from tests.processes import run_program
from tests.test_cli import command, run
from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.checkpoint_folder import load_parts
from vcp_clip_hf.cli import main
from vcp_clip_hf.peak_memory import peak_memory
from vcp_clip_hf.training import train
from vcp_clip_hf.version import EMBEDDED_NOTICE


PACKAGE = Path(__file__).parent.parent / "vcp_clip_hf"


def save_checkpoint(folder: Path) -> Path:
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def keep(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


# Name of a damaged checkpoint -> what was done to it
DAMAGES = {
    "truncated": lambda folder: keep(folder / "model.safetensors", 0.5),
    "no_bytes": lambda folder: keep(folder / "model.safetensors", 0),
    "garbage": lambda folder: (folder / "model.safetensors").write_bytes(b"these are not weights"),
    "no_weights": lambda folder: (folder / "model.safetensors").unlink(),
    "pickle": to_pickle,
    "exported": lambda folder: (folder / "config.json").rename(folder / "export.json"),
    "not_json": lambda folder: (folder / "config.json").write_text("{not json"),
    "a_list": lambda folder: (folder / "config.json").write_text("[1, 2]"),
    "no_type": lambda folder: (folder / "config.json").write_text("{}"),
    "bert": lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
    "unknown_type": lambda folder: (folder / "config.json").write_text('{"model_type": "zzz"}'),
    "size_abc": lambda folder: edit(folder / "config.json", image_size="abc"),
    "layer_99": lambda folder: edit(folder / "config.json", feature_layers=[99]),
    "other_shapes": lambda folder: edit(folder / "config.json", num_category_tokens=3),
    "processor_not_json": lambda folder: (folder / "preprocessor_config.json").write_text("{not json"),
    "processor_a_list": lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
    "processor_size_abc": lambda folder: edit(folder / "preprocessor_config.json", size="abc"),
    "processor_no_threshold": lambda folder: edit(folder / "preprocessor_config.json", calibration={"image": {}}),
    "processor_mode_abc": lambda folder: edit(folder / "preprocessor_config.json", score_mode="abc"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with checkpoints, damaged ones, images and files that are not what they seem."""
    place = tmp_path_factory.mktemp("place")
    save_checkpoint(place / "good")
    for name, damage in DAMAGES.items():
        shutil.copytree(place / "good", place / name)
        damage(place / name)
    tiny_clip().save_pretrained(place / "clip")
    (place / "empty").mkdir()
    (place / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "images" / "a.png")
    (place / "text").write_text("neither a folder nor JSON")
    texts = {
        "broken": "a: [1,\n",
        "list": "- 1\n- 2\n",
        "number_name": "1: 2\n",
        "rate": "dataset: synthetic\noutput_dir: out\nlearning_rate: fast\n",
        "nan": "dataset: synthetic\noutput_dir: out\nlearning_rate: .nan\n",
        "products": "dataset: synthetic\noutput_dir: out\nproducts: 3\n",
        "option": "dataset: synthetic\noutput_dir: out\nmodel: good\ndataset_options: {size: big}\n",
    }
    for name, text in texts.items():
        (place / f"{name}.yaml").write_text(text)
    (place / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    return place


PREDICT = "predict images -o out --num-workers 0 -m"
TRAIN = (
    "train --output-dir out --dataset synthetic --split train --num-train-epochs 1 --dataloader-num-workers 0"
    " --per-device-train-batch-size 2 --dataset-options {num_images:4,num_test_images:0,size:48,cache_dir:cache}"
)
# Command line, exit status, words of the message. Status 2: the command line itself is wrong
COMMANDS = [
    (f"{PREDICT} truncated", 1, "weights of 'truncated' are damaged or incomplete"),
    (f"{PREDICT} no_bytes", 1, "weights of 'no_bytes' are damaged or incomplete"),
    (f"{PREDICT} garbage", 1, "Copy or download the checkpoint again"),
    (f"{PREDICT} no_weights", 1, "model.safetensors is missing"),
    (f"{PREDICT} pickle", 1, "vcp-clip convert"),
    (f"{PREDICT} not_json", 1, "not_json/config.json' is not valid JSON"),
    (f"{PREDICT} a_list", 1, "names no model_type"),
    (f"{PREDICT} no_type", 1, "names no model_type"),
    (f"{PREDICT} bert", 1, "a model of type 'bert', expected 'vcp_clip'"),
    (f"{PREDICT} unknown_type", 1, "a model of type 'zzz', expected 'vcp_clip'"),
    (f"{PREDICT} clip", 1, "VCPCLIPModel.from_clip('clip')"),
    (f"{PREDICT} size_abc", 1, "'image_size'"),
    (f"{PREDICT} layer_99", 1, "feature_layers=[99]"),
    (f"{PREDICT} other_shapes", 1, "other shapes than its config.json says"),
    (f"{PREDICT} processor_not_json", 1, "preprocessor_config.json' is not valid JSON"),
    (f"{PREDICT} processor_a_list", 1, "preprocessor_config.json of 'processor_a_list' has a wrong value"),
    (f"{PREDICT} processor_size_abc", 1, "preprocessor_config.json of 'processor_size_abc' has a wrong value"),
    (f"{PREDICT} processor_no_threshold", 1, "preprocessor_config.json of 'processor_no_threshold' has a wrong value"),
    (f"{PREDICT} processor_mode_abc", 1, "'max', 'top_k', 'image_head'"),
    (f"{PREDICT} empty", 1, "empty is not a checkpoint: it has no config.json"),
    (f"{PREDICT} exported", 1, "exported is an exported graph, not a checkpoint"),
    (f"{PREDICT} text", 1, "'text' is not valid JSON"),
    (f"{PREDICT} gone", 1, "There is no folder 'gone'"),
    (f"{PREDICT} ./gone", 1, "There is no folder './gone'"),
    (f"{PREDICT} a/b/c", 1, "There is no folder 'a/b/c'"),
    (f"{PREDICT} good --dtype float8", 1, "float8 needs a model in bfloat16 on an NVIDIA GPU"),
    (f"{PREDICT} good --dtype int8", 2, "'int8' is not one of"),
    (f"{PREDICT} good --device foo", 1, "device='foo' cannot be used"),
    (f"{PREDICT} good --device cuda:x", 1, "device='cuda:x' cannot be used"),
    (f"{PREDICT} good --device cuda:99", 1, "On this machine: cpu"),
    (f"{PREDICT} good --device meta", 1, "device='meta' cannot be used"),
    (f"{PREDICT} good --device -1", 1, "device='-1' cannot be used"),
    (f"{PREDICT} good --normal {'word' * 100} --abnormal bad", 1, "Shorten the prompt"),
    (f"{PREDICT} good --batch-size 0", 2, "--batch-size"),
    (f"{PREDICT} good --batch-size -3", 2, "--batch-size"),
    (f"{PREDICT} good --num-workers -1", 2, "--num-workers"),
    (f"{PREDICT} good --tile-size 0", 2, "--tile-size"),
    (f"{PREDICT} good --threshold abc", 2, "--threshold"),
    ("predict images -o text -m good", 2, "--output"),
    ("predict images -o text/x -m good --num-workers 0", 1, "'text/x': Not a directory. A file has the name"),
    ("predict images -o /proc/x -m good --num-workers 0", 1, "/proc/x"),
    ("predict images -m good", 2, "--output"),
    ("info -m not_json", 1, "not valid JSON"),
    ("info -m processor_a_list", 1, "has a wrong value"),
    ("info -m bert", 1, "'bert'"),
    ("info -m no_type", 1, "model_type"),
    ("info -m gone", 1, "There is no folder 'gone'"),
    ("calibrate images -o out -m truncated", 1, "damaged or incomplete"),
    ("calibrate images -o out -m good --device cuda:99", 1, "cuda:99"),
    ("calibrate images -o text -m good", 2, "--output"),
    ("calibrate images -o text/x -m good", 1, "text/x"),
    ("calibrate images -o out -m good --false-alarm-rate 2", 1, "between 0 and 1"),
    ("evaluate folder -m good", 1, "FOLDER in folder=FOLDER"),
    ("evaluate folder=gone -m good", 1, "FOLDER in folder=FOLDER"),
    ("evaluate folder=empty -m good", 1, "arguments of load_anomaly_dataset"),
    ("evaluate folder=images -m good --num-workers 1", 1, "a has no label"),
    ("evaluate visa -m good", 1, "FOLDER in visa=FOLDER"),
    ("evaluate nothing=images -m good", 1, "There is no dataset 'nothing'"),
    ("evaluate folder=images -m truncated", 1, "damaged or incomplete"),
    ("evaluate folder=images -m bert", 1, "'bert'"),
    ("evaluate folder=images -m good --dtype float8", 1, "float8 needs a model in bfloat16 on an NVIDIA GPU"),
    ("train", 2, "Missing settings: output_dir, dataset"),
    ("train --config gone.yaml", 2, "No such configuration file: 'gone.yaml'"),
    ("train --config empty", 2, "No such configuration file: 'empty'"),
    ("train --config broken.yaml", 2, "broken.yaml could not be read"),
    ("train --config binary.yaml", 2, "binary.yaml could not be read"),
    ("train --config list.yaml", 2, "expected settings as `name: value`"),
    ("train --config number_name.yaml", 2, "Unknown setting 1"),
    ("train --config rate.yaml", 2, "learning_rate='fast' must be FLOAT"),
    ("train --config nan.yaml", 2, "learning_rate=nan must be a finite number"),
    ("train --config products.yaml", 2, "products=3 must be [NAME, ...] or null"),
    ("train --config option.yaml", 1, "size='big' must be a number"),
    (f"{TRAIN} --model truncated", 1, "damaged or incomplete"),
    (f"{TRAIN} --model bert", 1, "'bert'"),
    (f"{TRAIN} --model pickle", 1, "vcp-clip convert"),
    (f"{TRAIN} --model empty", 1, "no config.json"),
    (f"{TRAIN} --model gone", 1, "There is no folder 'gone'"),
    (f"{TRAIN} --model good --learning-rate [1", 2, "--learning-rate '[1' is not valid YAML"),
    (f"{TRAIN} --model good --max-train-steps 0", 2, "max_train_steps=0 must be at least 1"),
    (f"{TRAIN} --model good --mixed-precision fp8", 2, "mixed_precision='fp8' must be no|fp16|bf16 or null"),
    (f"{TRAIN} --model good --per-device-train-batch-size -1", 2, "must be at least 1"),
    (f"{TRAIN} --model good --resume gone", 1, "gone is not a complete checkpoint"),
    (f"{TRAIN} --model good --output-dir text", 1, "'text': File exists. A file has the name of the folder"),
    (f"{TRAIN} --model good --learning-rate 1e30", 1, "Lower learning_rate"),
    ("convert", 2, "vcp-clip convert: error"),
    ("convert --checkpoint gone.pth --output out", 1, "gone.pth"),
    ("convert --checkpoint text --output out --backbone clip", 1, "text could not be read as tensors"),
    ("export -o out -m truncated", 1, "damaged or incomplete"),
    ("export -o out -m gone", 1, "There is no folder 'gone'"),
    ("export -o text -m good", 2, "--output"),
    ("card -m empty", 1, "config.json and preprocessor_config.json are missing"),
    ("card -m not_json", 1, "not_json/config.json' is not valid JSON"),
    ("card -m bert", 1, "'bert'"),
    ("card -m good --results text", 1, "text is not valid JSON"),
    ("card -m good --results gone", 1, "'gone': No such file"),
    ("push-dataset folder=gone a/b", 1, "FOLDER in folder=FOLDER"),
]


@pytest.mark.parametrize(("line", "status", "message"), COMMANDS, ids=[line[:60] for line, _, _ in COMMANDS])
def test_a_mistake_ends_in_a_sentence(place, monkeypatch, line, status, message):
    monkeypatch.chdir(place)
    done = run(*_words(line), check=status)
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr and 'File "' not in done.stderr
    if status == 1:
        sentence = re.search(r"(?:^|[\r\n])error: (.*)", done.stderr, flags=re.DOTALL)[1].strip()
        assert sentence.endswith((".", ")", "...", '"')), sentence


def _words(line: str) -> list[str]:
    """Split a command line; the options of the dataset become YAML."""
    return [word.replace(":", ": ").replace(",", ", ") if word.startswith("{") else word for word in line.split()]


def test_verbose_shows_the_traceback(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(OSError, match="damaged"):
        main(["--verbose", *f"{PREDICT} truncated".split()])


# --- a machine at its limits --------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make every write beyond `size` bytes of a file fail, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_while_saving_names_the_folder(place, monkeypatch):
    monkeypatch.chdir(place)
    with largest_file(20_000):
        done = run(*["calibrate", "images", "-m", "good", "-o", "no_space"], check=1)
    assert "error: 'no_space': File too large. The file system or the limit of this user" in done.stderr


def test_a_full_disk_in_training_says_where_the_run_continues(tmp_path):
    make_model_folder(tmp_path)
    records = make_records(8)
    with largest_file(20_000), pytest.raises(OSError, match=r"No checkpoint was written in .*; start the run again"):
        train(settings(tmp_path), records)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    done = train(settings(tmp_path, num_train_epochs=1), records)
    with largest_file(20_000), pytest.raises(OSError, match=r"newest checkpoint is .*step-0000000\d; resume=latest"):
        train(settings(tmp_path, num_train_epochs=2, resume="latest"), records)
    finished = train(settings(tmp_path, num_train_epochs=2, resume="latest"), records)
    assert finished.state.step == 2 * done.state.step and VCPCLIPModel.from_pretrained(finished.last)


def test_diverged_weights_are_never_saved(tmp_path):
    make_model_folder(tmp_path)
    records = make_records(8)
    with pytest.raises(FloatingPointError, match=r"Lower learning_rate .* in another output_dir") as caught:
        train(settings(tmp_path, learning_rate=1e30, checkpointing_steps=1), records)
    named = re.search(r"The newest checkpoint is (.*)\.$", str(caught.value))[1]
    for checkpoint in (tmp_path / "out" / "checkpoints").iterdir():
        weights = load_file(checkpoint / "learned.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
    assert Path(named) == checkpoint and not (tmp_path / "out" / "last").exists()


def test_a_damaged_training_checkpoint_is_named(tmp_path):
    make_model_folder(tmp_path)
    records = make_records(8)
    train(settings(tmp_path, num_train_epochs=1), records)
    checkpoint = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state[:20])
    with pytest.raises(ValueError, match=r"state.json is damaged .* resume from an earlier one"):
        train(settings(tmp_path, resume="latest"), records)
    (checkpoint / "state.json").write_text(state)
    keep(checkpoint / "optimizer.safetensors", 0.5)
    with pytest.raises(OSError, match=f"{checkpoint.name}.* damaged or incomplete"):
        train(settings(tmp_path, resume="latest"), records)


def test_peak_memory_without_the_resource_module(monkeypatch):
    """Windows has none."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) is None


# --- pickles ------------------------------------------------------------------------------------------------------


def test_pickles_are_refused_and_the_advice_converts_them(place, tmp_path):
    folder = shutil.copytree(place / "pickle", tmp_path / "pickle")
    with pytest.raises(OSError, match="is a pickle, which can run code") as refused:
        VCPCLIPModel.from_pretrained(folder)
    with pytest.raises(OSError, match=r"pytorch_model.bin only"):
        load_parts(folder)
    with pytest.raises(ValueError, match="use_safetensors=False"):
        VCPCLIPModel.from_pretrained(folder, use_safetensors=False)
    advice = re.search(r'python -c "(.*)"', str(refused.value))[1]
    done = run_program("-c", advice)
    assert done.returncode == 0, done.stderr
    expected, found = (VCPCLIPModel.from_pretrained(each).state_dict() for each in (place / "good", folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_backbones_in_pickles_are_refused(place, tmp_path):
    clip = shutil.copytree(place / "clip", tmp_path / "clip")
    model = VCPCLIPModel.from_pretrained(place / "good")
    model.config.backbone_name_or_path = str(clip)
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    to_pickle(clip)
    CLIPModel.from_pretrained(clip, use_safetensors=False)  # what transformers accepts
    for load in (
        lambda: VCPCLIPModel.from_clip(clip, config=model.config),
        lambda: VCPCLIPModel.from_pretrained(tmp_path / "adapter"),
    ):
        with pytest.raises(OSError, match=r"pytorch_model.bin only"):
            load()
    to_pickle(tmp_path / "adapter")
    with pytest.raises(OSError, match=r"adapter has weights in pytorch_model.bin only"):
        VCPCLIPModel.from_pretrained(tmp_path / "adapter")


def test_no_file_of_the_package_runs_code_from_data():
    """`torch.load` reads tensors only, YAML is text only; nothing reads pickles, evaluates text or trusts code."""
    forbidden = (
        r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib|cloudpickle)\b|\bpickle\.|(?<![\w.])(eval|exec)\("
        r"|yaml\.(load\((?!\w+, Loader=yaml\.BaseLoader\))|full_load|unsafe_load)"
        r"|allow_pickle=True|torch\.load\(|\btrust_remote_code=True[,)]"
    )
    found = {
        (path.name, line.strip())
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(forbidden, line) and "pipeline(" not in line and 'trust = "' not in line
    }
    loads = [(file, line) for file, line in found if "torch.load(" in line]
    assert sorted(file for file, _ in loads) == ["checkpoint_errors.py", "official_checkpoint.py"]
    assert all("weights_only=True" in line for _, line in loads)
    assert not found - set(loads)


def test_a_backbone_without_all_weights_is_refused(place, tmp_path):
    clip = shutil.copytree(place / "clip", tmp_path / "clip")
    weights = load_file(clip / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, such as visual_projection.weight"):
        VCPCLIPModel.from_clip(clip, config=VCPCLIPModel.from_pretrained(place / "good").config)


# --- the pipeline -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(place) -> AnomalySegmentationPipeline:
    return pipeline("anomaly-segmentation", model=str(place / "good"), device="cpu")


def test_no_images_give_no_results(pipe):
    assert pipe([]) == [] and pipe(()) == [] and pipe(np.zeros((0, 3, 8, 8), np.uint8)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_size": (32, 32)}, "tile_size=(32, 32) must be a whole number"),
        ({"tile_size": 32.5}, "tile_size=32.5 must be a whole number"),
        ({"tile_size": 32, "tile_overlap": (8, 8)}, "tile_overlap=(8, 8) must be a whole number"),
        ({"tile_size": 32, "tile_batch_size": 0}, "tile_batch_size=0 must be 1 or more"),
        ({"tile_size": 32, "tile_batch_size": "4"}, "tile_batch_size='4' must be a whole number"),
        ({"prompts": {"normal": "word " * 100, "abnormal": "bad"}}, "Shorten the prompt"),
    ],
)
def test_arguments_of_a_call_are_checked(pipe, place, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(str(place / "images" / "a.png"), **arguments)


def test_tiles_are_integers_of_any_kind(pipe, place):
    path = str(place / "images" / "a.png")
    assert pipe(path, tile_size=np.int64(32))["score"] == pipe(path, tile_size=32)["score"]


def test_data_types_and_devices_are_checked(place):
    for dtype in ("float8", "int8", torch.int32):
        with pytest.raises(ValueError, match="must be one of auto, float32, bfloat16, float16, float64"):
            VCPCLIPModel.from_pretrained(place / "good", dtype=dtype)
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used"):
        pipeline("anomaly-segmentation", model=str(place / "good"), device="cuda:99")


# --- quiet runs ---------------------------------------------------------------------------------------------------


@contextmanager
def messages(name: str) -> Iterator[list[str]]:
    """Collect what a logger and its children say at any level from warning up."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logging.getLogger(name).addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger(name).removeHandler(handler)


def test_a_new_learned_part_makes_no_load_report(place):
    config = VCPCLIPModel.from_pretrained(place / "good").config
    with messages("transformers") as found:
        VCPCLIPModel.from_clip(place / "clip", config=config)
        VCPCLIPModel.from_clip(place / "good", config=config)  # of a VCP-CLIP checkpoint, its CLIP is used
    assert found == []


def test_a_report_on_missing_weights_of_a_checkpoint_stays(place, tmp_path):
    folder = shutil.copytree(place / "good", tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    del weights["base_logit_scale"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with messages("transformers") as found:
        VCPCLIPModel.from_pretrained(folder)
    assert "base_logit_scale" in found[0] and "MISSING" in found[0]


def test_the_default_model_is_announced_in_words_that_apply():
    with messages("transformers") as found:
        pipe = pipeline("anomaly-segmentation", device="cpu")
    assert pipe.model.name_or_path == EMBEDDED_CHECKPOINT
    assert found == [EMBEDDED_NOTICE]


def test_normal_runs_say_nothing_that_looks_like_a_failure(tmp_path):
    folder = make_model_folder(tmp_path)
    options = f"{{num_images: 4, num_test_images: 0, size: 48, cache_dir: {tmp_path / 'cache'}}}"
    done = command(
        *("train", "--model", folder, "--dataset", "synthetic", "--split", "train", "--dataset-options", options),
        *("--num-train-epochs", 1, "--per-device-train-batch-size", 2, "--dataloader-num-workers", 0),
        *("--output-dir", tmp_path / "run"),
    )
    lines = [line.split("\r")[-1] for line in done.stderr.splitlines()]
    unexpected = [line for line in lines if not re.match(r"(train|Generating train split): ", line)]
    assert [line for line in unexpected if line.strip()] == []


def test_info_is_readable(place, monkeypatch):
    monkeypatch.chdir(place)
    lines = run("info", "-m", "good").stdout.splitlines()
    assert "image size            48, 48" in lines and "image threshold       none" in lines
    assert "prompts               a photo of a good {}, a photo of a damaged {}" in lines
    assert "calibration           none" in lines and "resize mode           squash" in lines
    embedded = run("info").stdout.splitlines()
    assert "stem branch weight    0.65" in embedded and "resize mode           keep_ratio" in embedded
    first = next(index for index, line in enumerate(embedded) if line.startswith("calibration "))
    assert "400 normal images" in embedded[first] and embedded[first + 1].startswith(" " * 22 + "Masks: ")
    assert not [line for line in lines if "{'" in line or "['" in line or line.endswith("None")]


@pytest.mark.parametrize("verb", ["predict", "calibrate", "evaluate", "train", "convert", "export", "card", "push"])
def test_help_spells_options_with_hyphens(verb):
    text = run(verb, "--help").stdout
    assert f"vcp-clip {verb}" in text and re.search(r"--\w+-\w+", text)
    assert not re.search(r"--[a-z]+_[a-z]", text)
    assert len(text.splitlines()) > 10
