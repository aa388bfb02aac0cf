"""Evaluate a checkpoint on annotated datasets: per-product table beside the paper's numbers, and sheets of pictures.

    accelerate launch examples/evaluate.py --model vcp-clip-visa --dataset mvtec_ad=datasets/mvtec \
        --dataset folder=my_images --protocol authors --output_dir runs/evaluation
"""

import argparse
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import PROTOCOLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument(
        "--dataset", action="append", required=True, metavar="NAME[=FOLDER]", help="as often as there are datasets"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--products", nargs="+", help="only these")
    parser.add_argument("--protocol", default="default", choices=PROTOCOLS)
    parser.add_argument("--batch_size", type=int, default=8, help="images per process")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read images ahead")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--output_dir", type=Path, help="for results.json, .csv, .md and the sheets")
    parser.add_argument("--no_sheets", action="store_true", help="numbers only")
    options = parser.parse_args()

    accelerator = Accelerator()
    datasets = {}
    for entry in options.dataset:
        name, _, folder = entry.partition("=")
        with accelerator.main_process_first():
            datasets[name] = load_anomaly_dataset(
                name, data_dir=folder or None, split=options.split, products=options.products
            )
    report = evaluate(
        AutoModel.from_pretrained(options.model, dtype=options.dtype),
        AutoImageProcessor.from_pretrained(options.model),
        datasets,
        options.protocol,
        options.batch_size,
        options.num_workers,
        accelerator,
        sheets_dir=None if options.no_sheets or options.output_dir is None else options.output_dir / "sheets",
    )
    if accelerator.is_main_process:
        print(report.to_text())
        if options.output_dir is not None:
            report.save(options.output_dir)
            print(f"results and sheets in {options.output_dir}")


if __name__ == "__main__":
    main()
