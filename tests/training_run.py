"""A small training run for tests, also as a program that can be killed and started again."""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image

from tests.common import tiny_clip, tiny_config, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.data import FEATURES
from vcp_clip_hf.training import train
from vcp_clip_hf.training_config import TrainingConfig


def make_model_folder(folder: Path, **fields) -> Path:
    """Write a backbone and the configuration of a model with it; return the model's folder."""
    torch.manual_seed(0)
    tiny_clip().save_pretrained(folder / "clip")
    tiny_tokenizer().save_pretrained(folder / "clip")
    config = tiny_config(backbone_name_or_path=str(folder / "clip"), **fields)
    config.save_pretrained(folder / "model")
    VCPCLIPImageProcessor.for_model(config, smoothing_sigma=1.0).save_pretrained(folder / "model")
    return folder / "model"


def make_records(count: int = 24, seed: int = 0) -> Dataset:
    """Return images of three products: gray noise, with bright squares as defects."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        pixels = generator.integers(80, 150, (48, 48, 3), dtype=np.uint8)
        mask = None
        if index % 2:
            marks = np.zeros((48, 48), np.uint8)
            top, left = generator.integers(0, 34, 2)
            marks[top : top + 14, left : left + 14] = 255
            pixels[marks > 0] = generator.integers(220, 256, 3, dtype=np.uint8)
            mask = Image.fromarray(marks)
        rows.append(
            {
                "image": Image.fromarray(pixels),
                "mask": mask,
                "label": index % 2,
                "product": f"product_{index % 3}",
                "defect": "square" if index % 2 else "good",
                "image_id": f"{index}",
            }
        )
    return Dataset.from_list(rows, features=FEATURES)


def settings(folder: Path, output: str = "out", **changes) -> TrainingConfig:
    """Return the settings of a run of a few seconds."""
    return TrainingConfig(
        **{
            "output_dir": str(folder / output),
            "dataset": "synthetic",
            "model": str(folder / "model"),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 3,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            "checkpointing_steps": 2,
            **changes,
        }
    )


# Settings of the runs that tests start as programs; ONE_RANK has the global batch of TWO_RANKS in one process
TWO_RANKS = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-3}
ONE_RANK = {**TWO_RANKS, "per_device_train_batch_size": 2 * TWO_RANKS["per_device_train_batch_size"]}
LONG = {"num_train_epochs": 500, "checkpointing_steps": 5}


def on_cached_features(folder: Path) -> dict:
    """Return settings for training on image features stored in the folder."""
    return {"augmentation": False, "image_feature_dir": str(folder / "features")}


def main(folder: str, output: str, kind: str) -> None:
    """Run `python -m tests.training_run FOLDER OUTPUT two_ranks|two_ranks_cached|long`."""
    torch.set_num_threads(1)
    changes, count = {
        "two_ranks": (TWO_RANKS, 5),
        "two_ranks_cached": ({**TWO_RANKS, **on_cached_features(Path(folder))}, 5),
        "long": ({**LONG, "resume": "latest"}, 4),
    }[kind]
    accelerator = Accelerator()
    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes")
    records = make_records()
    train(settings(Path(folder), output, **changes), records, records.select(range(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
