"""Segment images from Python: what `vcp-clip predict` does, in a few lines to start from.

python examples/predict.py images --output_dir results --tile_size 1024
"""

import argparse

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.prediction import predict_files, read_predictions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="files, folders, patterns or URLs")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--output_dir", required=True, help="for maps, masks, overlays and records")
    parser.add_argument("--threshold", type=float, help="of the mask; default: the checkpoint's")
    parser.add_argument("--tile_size", type=int, help="look at large images in tiles of so many pixels")
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args(arguments)

    inspect = pipeline("anomaly-segmentation", model=options.model)
    given = {name: getattr(options, name) for name in ("threshold", "tile_size")}
    given = {name: value for name, value in given.items() if value is not None}
    summary = predict_files(inspect, options.images, options.output_dir, batch_size=options.batch_size, **given)

    # the most suspicious first
    records = [record for record in read_predictions(options.output_dir) if "error" not in record]
    for record in sorted(records, key=lambda record: -record["score"])[:10]:
        print(f"{record['score']:.3f}  {record['label'] or '-':<10} {record['image']}")
    print(f"{summary.predicted} segmented, {summary.skipped} done before, {len(summary.errors)} failed")


if __name__ == "__main__":
    main()
