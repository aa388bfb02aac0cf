"""See it work, offline: the embedded checkpoint on pictures of products it was not trained on.

    python examples/demo.py --output_dir demo_output

Renders a few pictures of each unseen product family, segments them, and writes pictures, maps, masks and tables; the
terminal shows how well each family went. The pictures are generated, and so was all that the checkpoint learned from:
the numbers say that everything works, not how well it does on your products.
"""

import argparse
import shutil
import time
from pathlib import Path

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.prediction import predict_files, read_predictions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="emptied first")
    parser.add_argument("--num_images", type=int, default=80, help="over 20 product families")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    options = parser.parse_args(arguments)
    started = time.perf_counter()

    # 1. pictures of kinds that were never trained on
    dataset = load_anomaly_dataset(
        "synthetic", split="test", num_images=0, num_test_images=options.num_images, size=options.size
    )
    images = options.output_dir / "images"
    for part in ("images", "maps", "masks", "overlays", "sheets"):
        shutil.rmtree(options.output_dir / part, ignore_errors=True)
    images.mkdir(parents=True)
    kinds = {}
    for number, record in enumerate(dataset):
        name = f"{number:03d}-{record['product']}-{record['defect']}.png"
        record["image"].save(images / name)
        kinds[str(images / name)] = record["label"]

    # 2. from files to results on disk, as a user would
    pipe = pipeline("anomaly-segmentation", model=str(options.model), device=-1)
    summary = predict_files(pipe, [images], options.output_dir, overwrite=True, regions=True)
    found = [(kinds[record["image"]], record["label"]) for record in read_predictions(options.output_dir)]

    # 3. how well it went, and sheets of pictures: image, ground truth, map, mask
    report = evaluate(
        pipe.model, pipe.image_processor, {"unseen products": dataset}, sheets_dir=options.output_dir / "sheets"
    )
    report.save(options.output_dir)
    print(report.to_text())
    print(f"\nMeasured on {len(dataset)} generated pictures of product families that were never trained on; percent.")
    if any(label is not None for _, label in found):
        caught = [label == "anomalous" for kind, label in found if kind == 1]
        alarms = [label == "anomalous" for kind, label in found if kind == 0]
        print(
            f"At the stored threshold {sum(caught)} of {len(caught)} defective pictures are flagged, and"
            f" {sum(alarms)} of {len(alarms)} normal ones."
        )
    print(f"{summary.images_per_second:.1f} pictures/s from file to results on disk.")
    print(f"{time.perf_counter() - started:.0f} s in all. Look into {options.output_dir}/: sheets/, overlays/, maps/,")
    print("masks/, predictions.csv, predictions.jsonl (with regions), results.md")


if __name__ == "__main__":
    main()
