"""Segment images and list the most suspicious ones.

    python examples/predict.py images results

`images` is a file, a folder, a pattern or a URL; `results` gets maps, masks, overlays and records. `vcp-clip predict`
does the same and takes options.
"""

import sys

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, predict_files
from vcp_clip_hf.prediction import read_predictions


MODEL = EMBEDDED_CHECKPOINT  # a folder or a Hub repository


def main(images: str = "images", output_dir: str = "results") -> None:
    pipe = pipeline("anomaly-segmentation", model=MODEL)
    summary = predict_files(pipe, [images], output_dir, regions=True)
    records = [record for record in read_predictions(output_dir) if "error" not in record]
    for record in sorted(records, key=lambda record: -record["score"])[:10]:
        print(f"{record['score']:.3f}  {record['label'] or '-':<10} {record['image']}")
    print(f"{summary.predicted} segmented, {summary.skipped} done before, {len(summary.errors)} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
