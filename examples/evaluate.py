"""Evaluate a checkpoint: a table of metrics per product beside the paper's numbers, and sheets of pictures.

    python examples/evaluate.py evaluation
    accelerate launch examples/evaluate.py evaluation       # on several processes

Change the constants to evaluate another checkpoint or other datasets; `vcp-clip evaluate` takes them as options.
"""

import sys
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT, evaluate, load_anomaly_dataset


MODEL = EMBEDDED_CHECKPOINT  # a folder or a Hub repository
# Name -> arguments of `load_anomaly_dataset`, for example {"mvtec_ad": {"data_dir": "datasets/mvtec"}}
DATASETS = {"synthetic": {"num_images": 0, "num_test_images": 40}}
PROTOCOL = "default"  # "authors": the protocol of the paper's tables


def main(output_dir: str = "evaluation") -> None:
    accelerator = Accelerator()
    with accelerator.main_process_first():
        datasets = {name: load_anomaly_dataset(name, split="test", **options) for name, options in DATASETS.items()}
    model, image_processor = AutoModel.from_pretrained(MODEL), AutoImageProcessor.from_pretrained(MODEL)
    report = evaluate(
        model, image_processor, datasets, PROTOCOL, accelerator=accelerator, sheets_dir=Path(output_dir) / "sheets"
    )
    if accelerator.is_main_process:
        print(report.to_text())
        report.save(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
