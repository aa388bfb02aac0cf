"""Segment pictures that the embedded checkpoint was not trained on; works offline.

    python -m examples.demo demo_output

1. Rendered pictures of each unseen product family, zero-shot: pictures, maps, masks, tables.
2. Photographs of surfaces (CC0), with painted anomalies: zero-shot, and with four normal pictures of each surface as
   references. Twenty other normal pictures give the threshold of a surface. All pictures of a surface are crops of one
   photograph and overlap, which is easier than other parts of one product.

The products and photographs had no part in the training, but other rendered products and other photographs of this
collection had; the photographs had a part in the choice of the settings of references. The anomalies are generated.
The numbers show that everything works, not how well it works on your products.
"""

import shutil
import sys
import time
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, evaluate, load_anomaly_dataset, predict_files
from vcp_clip_hf.data.records import FEATURES, GOOD
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.generator.fields import Dice
from vcp_clip_hf.prediction import read_predictions

from .research.material_scenes import MaterialScene, MaterialScenes, damage


__all__ = ["main", "surfaces"]

NUM_REFERENCES = 4
NUM_FOR_THRESHOLD = 20  # normal pictures; a false-alarm rate of 0.05 needs at least 19
FALSE_ALARM_RATE = 0.05


def surfaces(num_surfaces: int, num_images: int, size: int) -> tuple[datasets.Dataset, dict[str, list[Image.Image]]]:
    """
    Make pictures of photographed surfaces, half of them with painted anomalies.

    Args:
        num_surfaces (`int`): number of photographs, none of which the checkpoint was trained on.
        num_images (`int`): number of pictures of each, besides the normal ones that can serve as references.
        size (`int`): side of the pictures in pixels.

    Returns:
        `tuple`: a `datasets.Dataset` with the columns of every dataset of this package, in which each photograph is a
        product, and product -> further normal pictures, for its threshold.
    """
    materials, records, normal = MaterialScenes("test"), [], {}
    for place in range(num_surfaces):
        number = place * len(materials.photos) // num_surfaces
        name = f"{materials.names[number].replace(' ', '_')}_{number}"
        dice = Dice((place, 0))
        for index, pixels in enumerate(materials.crops(number, num_images + NUM_REFERENCES, size, dice)):
            mask, kind = None, GOOD
            if index % 2 and index < num_images:
                scene = MaterialScene(pixels, np.ones((size, size), bool), name)
                pixels, mask, kind = damage(scene, dice, materials)
            records.append(
                {
                    "image": Image.fromarray(pixels),
                    "mask": None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255),
                    "label": int(mask is not None),
                    "product": name,
                    "defect": kind,
                    "image_id": f"{name}/{index:03d}",
                }
            )
        normal[name] = [Image.fromarray(each) for each in materials.crops(number, NUM_FOR_THRESHOLD, size, dice)]
    return datasets.Dataset.from_list(records, features=FEATURES), normal


def save_pictures(dataset: datasets.Dataset, folder: Path) -> dict[str, bool]:
    """Save the pictures of a dataset; return path -> whether it is defective."""
    folder.mkdir(parents=True, exist_ok=True)
    is_defective = {}
    for number, record in enumerate(dataset):
        path = folder / f"{number:03d}-{record['product']}-{record['defect']}.png"
        record["image"].save(path)
        is_defective[str(path)] = bool(record["label"])
    return is_defective


def counts(flagged: list[bool], is_defective: list[bool]) -> str:
    """Return in words how many pictures are flagged."""
    of_kind = {True: [], False: []}
    for each, bad in zip(flagged, is_defective, strict=True):
        of_kind[bad].append(each)
    caught, alarms = of_kind[True], of_kind[False]
    defective = f"{sum(caught)} of {len(caught)} defective pictures"
    return f"{defective} are flagged, and {sum(alarms)} of {len(alarms)} normal pictures"


def report_unseen(folder: Path, is_defective: dict[str, bool]) -> None:
    """Print how many pictures the stored threshold flags."""
    flagged = {record["image"]: record["label"] == "anomalous" for record in read_predictions(folder)}
    found = counts([flagged[path] for path in is_defective], list(is_defective.values()))
    print(f"At the stored threshold, {found}.")


def report_surfaces(
    pipe: AnomalySegmentationPipeline, pictures: datasets.Dataset, normal: dict[str, list[Image.Image]]
) -> None:
    """Print how many pictures are flagged: zero-shot, and with references and a threshold of each surface."""
    zero_shot, compared, is_defective = [], [], []
    own = pipeline("anomaly-segmentation", model=EMBEDDED_CHECKPOINT, device=-1)
    for name, for_threshold in normal.items():
        records = [record for record in pictures if record["product"] == name]
        tested, references = records[:-NUM_REFERENCES], records[-NUM_REFERENCES:]
        images = [record["image"] for record in tested]
        is_defective += [bool(record["label"]) for record in tested]
        zero_shot += [result["label"] == "anomalous" for result in pipe(images, batch_size=8)]
        own.set_references([record["image"] for record in references])
        own.calibrate(for_threshold, false_alarm_rate=FALSE_ALARM_RATE, batch_size=8)
        compared += [result["label"] == "anomalous" for result in own(images, batch_size=8)]
    print(f"At the stored threshold, {counts(zero_shot, is_defective)}.")
    print(
        f"With {NUM_REFERENCES} references of each surface, and its threshold from {NUM_FOR_THRESHOLD} other normal"
        f" pictures,\n{counts(compared, is_defective)}."
    )


def main(
    output_dir: str = "demo_output", num_images: int = 80, size: int = 256, num_surfaces: int = 5, num_crops: int = 16
) -> None:
    started, folder = time.perf_counter(), Path(output_dir)
    for part in ("images", "maps", "masks", "overlays", "sheets", "surfaces"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipe = pipeline("anomaly-segmentation", model=EMBEDDED_CHECKPOINT, device=-1)

    # 1. pictures of product families that no training saw: from files to results on disk, then metrics and sheets
    unseen = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=num_images, size=size)
    is_defective = save_pictures(unseen, folder / "images")
    summary = predict_files(pipe, [folder / "images"], folder, overwrite=True, regions=True)
    report = evaluate(pipe.model, pipe.image_processor, {"unseen products": unseen}, sheets_dir=folder / "sheets")
    report.save(folder)
    print(report.to_text())
    print(f"\nMeasured on {len(unseen)} generated pictures of product families that were never trained on; percent.")
    report_unseen(folder, is_defective)
    print(f"{summary.images_per_second:.1f} pictures/s from file to results on disk.\n")

    # 2. photographed surfaces, without and with normal pictures to compare with
    pictures, normal = surfaces(num_surfaces, num_crops, size)
    save_pictures(pictures, folder / "surfaces" / "images")
    data, sheets = {"photographed surfaces": pictures}, folder / "surfaces" / "sheets"
    zero_shot = evaluate(pipe.model, pipe.image_processor, data, sheets_dir=sheets)
    draw = ReferenceDraw(NUM_REFERENCES, seeds=(0,))
    compared = evaluate(pipe.model, pipe.image_processor, data, references=draw, sheets_dir=f"{sheets}_references")
    print(f"Zero-shot:\n{zero_shot.to_text()}\n\n{compared.to_text()}")
    print(f"\nMeasured on {num_surfaces} photographs of materials that were never trained on; percent.")
    report_surfaces(pipe, pictures, normal)
    print(f"{time.perf_counter() - started:.0f} s in all. Look into {folder}/: sheets/, overlays/, maps/, masks/,")
    print("predictions.csv, predictions.jsonl (with regions), results.md, surfaces/")


if __name__ == "__main__":
    main(*sys.argv[1:2])
