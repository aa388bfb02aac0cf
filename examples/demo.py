"""Segment generated pictures of products that the embedded checkpoint was not trained on; works offline.

    python examples/demo.py demo_output

Renders pictures of each unseen product family, segments them, and writes pictures, maps, masks and tables; the
terminal shows the metrics of each family. The pictures are generated, and so were those that the checkpoint was
trained on: the numbers show that everything works, not how well it works on your products.
"""

import shutil
import sys
import time
from pathlib import Path

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, evaluate, load_anomaly_dataset, predict_files
from vcp_clip_hf.prediction import read_predictions


def main(output_dir: str = "demo_output", num_images: int = 80, size: int = 256) -> None:
    started, folder = time.perf_counter(), Path(output_dir)
    for part in ("images", "maps", "masks", "overlays", "sheets"):
        shutil.rmtree(folder / part, ignore_errors=True)

    # 1. pictures of product families that no training saw
    dataset = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=num_images, size=size)
    (folder / "images").mkdir(parents=True)
    is_defective = {}
    for number, record in enumerate(dataset):
        path = folder / "images" / f"{number:03d}-{record['product']}-{record['defect']}.png"
        record["image"].save(path)
        is_defective[str(path)] = bool(record["label"])

    # 2. from files to results on disk
    pipe = pipeline("anomaly-segmentation", model=EMBEDDED_CHECKPOINT, device=-1)
    summary = predict_files(pipe, [folder / "images"], folder, overwrite=True, regions=True)
    flagged = {record["image"]: record["label"] == "anomalous" for record in read_predictions(folder)}

    # 3. metrics of each family, and sheets with image, ground truth, map and mask
    data = {"unseen products": dataset}
    report = evaluate(pipe.model, pipe.image_processor, data, sheets_dir=folder / "sheets")
    report.save(folder)
    print(report.to_text())
    print(f"\nMeasured on {len(dataset)} generated pictures of product families that were never trained on; percent.")
    caught, alarms = ([flagged[path] for path, bad in is_defective.items() if bad is kind] for kind in (True, False))
    print(
        f"At the stored threshold {sum(caught)} of {len(caught)} defective pictures are flagged, and {sum(alarms)} of"
        f" {len(alarms)} normal ones."
    )
    print(f"{summary.images_per_second:.1f} pictures/s from file to results on disk.")
    print(f"{time.perf_counter() - started:.0f} s in all. Look into {folder}/: sheets/, overlays/, maps/, masks/,")
    print("predictions.csv, predictions.jsonl (with regions), results.md")


if __name__ == "__main__":
    main(*sys.argv[1:2])
