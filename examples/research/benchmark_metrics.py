"""Measure time and memory of the pixel metrics.

    python -m examples.research.benchmark_metrics      # 83 maps of 518 x 518, as in MVTec AD's largest product
    python -m examples.research.benchmark_metrics --images 8 --size 128

Three methods compute the same metrics, each in its own process because of its peak memory: scikit-learn and
scikit-image, as usual in evaluation code for anomaly segmentation (pip install scikit-learn scikit-image scipy), and
this package, exact and streaming. The values are compared too; a difference ends the program with an error.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


__all__ = [
    "main",
    "make_images",
    "make_parser",
    "measure_in_a_process",
    "measure_method",
    "run_package",
    "run_reference",
]

ROOT = Path(__file__).parents[2]
METHODS = ("reference", "exact", "streaming")
FPR_LIMIT = 0.3


def make_images(images: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth random maps (float32 in [0, 1]) and masks (bool); three of four images have defects."""
    from scipy.ndimage import gaussian_filter, zoom

    generator = np.random.default_rng(seed)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), bool)
    rows, columns = np.mgrid[:size, :size]
    for number in range(images):
        coarse = gaussian_filter(generator.standard_normal((size // 8 + 1,) * 2), 2)
        logits = zoom(coarse / coarse.std(), size / len(coarse), order=1)[:size, :size] - 3.5
        for _ in range(generator.integers(1, 5) if number % 4 else 0):
            center, radii = generator.uniform(0, size, 2), generator.uniform(0.01, 0.12, 2) * size
            defect = ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 < 1
            masks[number] |= defect
            logits += generator.uniform(0, 6) * gaussian_filter(defect.astype(np.float32), size / 60)
        logits += 0.02 * generator.standard_normal((size, size))
        maps[number] = 1 / (1 + np.exp(-logits))
    return maps, masks


def reference_ranking(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute AUROC, average precision, F1-max and IoU with scikit-learn."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    threshold = thresholds[f1.argmax()]
    found = scores > threshold
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1_max": f1.max(),
        "pixel_f1_threshold": threshold,
        "pixel_iou": np.logical_and(found, labels).sum() / np.logical_or(found, labels).sum(),
    }


def reference_pro(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Compute the exact PRO from sorted pixels, as MVTec AD's evaluation code does, with regions of scikit-image."""
    from skimage import measure
    from sklearn.metrics import auc

    weights, regions = np.zeros(maps.shape), 0
    for number, mask in enumerate(masks):
        for region in measure.regionprops(measure.label(mask)):
            weights[number][region.coords[:, 0], region.coords[:, 1]] = 1 / region.area
            regions += 1
    order = np.argsort(maps, axis=None)[::-1]
    scores = maps.ravel()[order]
    last = np.append(scores[1:] != scores[:-1], True)
    rates = np.append(0, (np.cumsum(~masks.ravel()[order]) / (~masks).sum())[last])
    overlaps = np.append(0, (np.cumsum(weights.ravel()[order]) / regions)[last])
    inside = np.searchsorted(rates, FPR_LIMIT, side="right")
    end = np.interp(FPR_LIMIT, rates[inside - 1 : inside + 1], overlaps[inside - 1 : inside + 1])
    return {"pixel_pro": auc(np.append(rates[:inside], FPR_LIMIT), np.append(overlaps[:inside], end)) / FPR_LIMIT}


def reference_pro_200(maps: np.ndarray, masks: np.ndarray, as_the_authors: bool) -> dict[str, float]:
    """Compute the authors' estimate. They find the regions again for each threshold; by default this is done once."""
    from skimage import measure
    from sklearn.metrics import auc

    def find_regions() -> list[list]:
        return [[region.coords for region in measure.regionprops(measure.label(mask))] for mask in masks]

    rates, overlaps, regions = [], [], find_regions()
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / 200):
        found = maps > threshold
        if as_the_authors:
            regions = find_regions()
        overlaps.append(
            np.mean([found[number][c[:, 0], c[:, 1]].mean() for number, coords in enumerate(regions) for c in coords])
        )
        rates.append(np.logical_and(~masks, found).sum() / (~masks).sum())
    kept = np.array(rates) < FPR_LIMIT
    rates, overlaps = np.array(rates)[kept], np.array(overlaps)[kept]
    return {"pixel_pro_200": auc((rates - rates.min()) / (rates.max() - rates.min()), overlaps)}


def run_reference(folder: Path, as_the_authors: bool) -> tuple[dict, dict]:
    """Return metrics, and seconds per part."""
    maps, masks = np.load(folder / "maps.npy"), np.load(folder / "masks.npy")
    parts = {
        "ranking": lambda: reference_ranking(maps.ravel(), masks.ravel()),
        "PRO": lambda: reference_pro(maps, masks),
        "PRO, 200 steps": lambda: reference_pro_200(maps, masks, as_the_authors),
    }
    values, seconds = {}, {}
    for name, compute in parts.items():
        start = time.perf_counter()
        values |= compute()
        seconds[name] = time.perf_counter() - start
    return {"values": {name: float(value) for name, value in values.items()}}, seconds


def run_package(folder: Path, mode: str) -> tuple[dict, dict]:
    """Return metrics, and seconds per part; images are read one by one, as a model would produce them."""
    from vcp_clip_hf.metrics import PIXEL_METRICS, AnomalySegmentationEvaluator

    evaluator = AnomalySegmentationEvaluator(PIXEL_METRICS, mode=mode, fpr_limit=FPR_LIMIT)
    seconds = {"add": 0.0}
    with open(folder / "maps.npy", "rb") as maps, open(folder / "masks.npy", "rb") as masks:
        shape, dtypes = None, []
        for file in (maps, masks):
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            dtypes.append(dtype)
        for _ in range(shape[0]):
            images = [
                np.frombuffer(file.read(shape[1] * shape[2] * dtype.itemsize), dtype).reshape(1, *shape[1:])
                for file, dtype in zip((maps, masks), dtypes, strict=True)
            ]
            start = time.perf_counter()
            evaluator.add(*images)
            seconds["add"] += time.perf_counter() - start
    start = time.perf_counter()
    result = evaluator.compute()
    seconds["compute"] = time.perf_counter() - start
    bounds = result["bounds"]["per_product"]["all"] if mode == "streaming" else {}
    return {"values": result["per_product"]["all"], "bounds": bounds}, seconds


def measure_method(method: str, folder: Path, as_the_authors: bool) -> dict:
    """Run one method in this process; time and memory are counted from after the imports."""
    if method == "reference":
        import skimage.measure  # noqa: F401
        import sklearn.metrics  # noqa: F401
    else:
        import vcp_clip_hf.metrics  # noqa: F401

    before = peak_memory()
    if method == "reference":
        result, seconds = run_reference(folder, as_the_authors)
    else:
        result, seconds = run_package(folder, method)
    return {**result, "seconds": seconds, "megabytes": peak_memory() - before}


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage starts from the peak of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_in_a_process(method: str, folder: Path, as_the_authors: bool) -> dict:
    """Run one method in a new process."""
    command = [sys.executable, "-m", "examples.research.benchmark_metrics"]
    command += ["--method", method, "--folder", str(folder)]
    command += ["--as-the-authors"] if as_the_authors else []
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return json.loads(output.splitlines()[-1])


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=83)
    parser.add_argument("--size", type=int, default=518, help="side of the maps in pixels")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the package's methods; the fastest counts")
    parser.add_argument(
        "--as-the-authors",
        action="store_true",
        help="let the reference find the regions again for each of the 200 thresholds, as the authors' code does",
    )
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all methods and print two tables."""
    options = make_parser().parse_args(arguments)
    if options.method:
        print(json.dumps(measure_method(options.method, options.folder, options.as_the_authors)))
        return

    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maps, masks = make_images(options.images, options.size)
        np.save(folder / "maps.npy", maps)
        np.save(folder / "masks.npy", masks)
        print(
            f"{len(maps)} maps of {options.size} x {options.size}, {maps.nbytes / 1e6:.0f} MB;"
            f" {masks.mean():.1%} of the pixels and {masks.any(axis=(1, 2)).mean():.0%} of the images are abnormal;"
            f" {os.cpu_count()} cores, NumPy {np.__version__}\n"
        )
        del maps, masks
        for method in METHODS:
            runs = [
                measure_in_a_process(method, folder, options.as_the_authors)
                for _ in range(1 if method == "reference" else options.repeat)
            ]
            results[method] = min(runs, key=lambda run: sum(run["seconds"].values()))
        # constant memory has to be shown with more images
        more, masks = (np.concatenate([np.load(folder / f"{kind}.npy")] * 3) for kind in ("maps", "masks"))
        np.save(folder / "maps.npy", more)
        np.save(folder / "masks.npy", masks)
        del more, masks
        results["streaming, 3 x the images"] = measure_in_a_process("streaming", folder, False)

    total = sum(results["reference"]["seconds"].values())
    print("| method | seconds | times faster | peak memory | parts |\n|---|---|---|---|---|")
    for method, result in results.items():
        seconds = sum(result["seconds"].values())
        ratio = "" if "3 x" in method else f"{total / seconds:.0f}"
        parts = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
        print(f"| {method} | {seconds:.2f} | {ratio} | {result['megabytes']:.0f} MB | {parts} |")
    ranking = results["reference"]["seconds"]["ranking"]
    print(
        f"\nscikit-learn alone, without PRO: {ranking:.2f} s,"
        f" {ranking / sum(results['exact']['seconds'].values()):.0f} times the time of all exact metrics together\n"
    )

    print("| metric | reference | exact | streaming | bounds |\n|---|---|---|---|---|")
    wrong = []
    for name, value in results["reference"]["values"].items():
        exact, streaming = results["exact"]["values"][name], results["streaming"]["values"][name]
        lower, upper = results["streaming"]["bounds"][name]
        print(f"| {name} | {value:.6f} | {exact:.6f} | {streaming:.6f} | {lower:.6f} .. {upper:.6f} |")
        if abs(exact - value) > 1e-6 or not lower <= exact <= upper:
            wrong.append(name)
    if wrong:
        raise SystemExit(f"The methods disagree about {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
