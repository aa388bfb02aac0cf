"""
Mutate small image files of every kind and read them, in a process of limited memory.

    python -m tests.fuzz_run FILES FOLDER

writes the mutated files to FOLDER, reads each with `load_image`, the pipeline and an exported model, and prints one
line of JSON: what went wrong (`problems`), counts, and the growth of the memory in MiB.
"""

import io
import json
import os
import random
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.deep_files import write_png
from vcp_clip_hf.image_loading import load_image


MAX_PIXELS = 2_000_000
ADDRESS_SPACE = 4 * 2**30  # beyond what the process has mapped at the start
DOCUMENTED = (ValueError, TypeError, FileNotFoundError)


def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """Return (ending, content) of valid files."""
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    color, gray = Image.fromarray(values), Image.fromarray(values[..., 0])
    wide = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        ("png", color, {}),
        ("png", color.quantize(16), {"transparency": 3}),
        ("png", color.convert("RGBA"), {}),
        ("png", wide, {}),
        ("png", gray.convert("1"), {}),
        ("jpg", color, {"exif": exif}),
        ("jpg", color.convert("CMYK"), {}),
        ("jpg", gray, {"progressive": True}),
        ("tiff", color, {}),
        ("tiff", color, {"compression": "tiff_lzw"}),
        ("tiff", wide, {"compression": "tiff_adobe_deflate"}),
        ("tiff", gray.convert("F"), {}),
        ("bmp", color, {}),
        ("bmp", color.quantize(16), {}),
        ("gif", color.quantize(16), {"save_all": True, "append_images": [color.quantize(8)]}),
        ("webp", color, {}),
        ("webp", color, {"lossless": True, "exif": exif}),
        ("pgm", gray, {}),
        ("ppm", color, {}),
        ("jp2", color, {}),
        ("avif", color, {}),
        ("tga", color, {}),
    ]
    found = []
    for ending, picture, options in kinds:
        stream = io.BytesIO()
        picture.save(stream, Image.registered_extensions()["." + ending], **options)
        found.append((ending, stream.getvalue()))
    for interlaced in (False, True):
        write_png(folder / "deep.png", values.astype(np.uint16) * 200, interlaced, exif.tobytes()[6:])
        found.append(("png", (folder / "deep.png").read_bytes()))
    os.remove(folder / "deep.png")
    import tifffile

    for options in ({}, {"compression": "zlib"}, {"planarconfig": "separate"}):
        deep = values.astype(np.uint16) * 200
        deep = deep.transpose(2, 0, 1) if options.get("planarconfig") else deep
        stream = io.BytesIO()
        tifffile.imwrite(stream, deep, photometric="rgb", **options)
        found.append(("tiff", stream.getvalue()))
    found.append(("pgm", b"P5 40 30 4095\n" + (values[..., 0].astype(">u2") * 16).tobytes()))
    return found


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Return a damaged copy: flipped bits, another header, a cut, a repeated or a removed piece."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        way, length = dice.randrange(5), len(changed)
        if not length:
            break
        if way == 0:
            for _ in range(dice.randint(1, 30)):
                changed[dice.randrange(length)] ^= 1 << dice.randrange(8)
        elif way == 1:
            for _ in range(dice.randint(1, 6)):
                changed[dice.randrange(min(length, 96))] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        elif way == 2:
            del changed[dice.randrange(length) :]
        elif way == 3:
            start = dice.randrange(length)
            changed[start:start] = changed[start : start + dice.randint(1, 64)]
        else:
            start = dice.randrange(length)
            del changed[start : start + dice.randint(1, 16)]
    return bytes(changed)


def write_files(folder: Path, count: int) -> list[str]:
    """Write mutated files; return their paths."""
    dice, kinds, paths = random.Random(12), seeds(folder), []
    for index in range(count):
        ending, content = kinds[index % len(kinds)]
        path = folder / f"{index:05d}.{ending}"
        path.write_bytes(mutated(content, dice) if index >= len(kinds) else content)
        paths.append(str(path))
    return paths


def outcome(action: Callable[[], object], path: str, problems: list[str]) -> str:
    """Return the documented error of an action as text, or "" if it has none."""
    try:
        action()
    except DOCUMENTED as error:
        text = f"{type(error).__name__}: {error}"
        if path not in text:
            problems.append(f"load_image: an error that does not name {path}: {text}")
        return text
    except BaseException:
        problems.append(f"load_image {path}: {traceback.format_exc()}")
        return "undocumented"
    return ""


def check_results(surface: str, results: Iterator[dict], paths: list[str], expected: list[str]) -> list[str]:
    """Return what differs from one result per file, with the error that `load_image` gives for it."""
    problems, results = [], list(results)
    if len(results) != len(paths):
        return [f"{surface}: {len(results)} results of {len(paths)} files"]
    for path, result, error in zip(paths, results, expected, strict=True):
        if result.get("error", "") != error:
            problems.append(f"{surface} {path}: {result.get('error')!r}, load_image: {error!r}")
        elif not error and not (np.isfinite(result["anomaly_map"]).all() and np.isfinite(result["score"])):
            problems.append(f"{surface} {path}: not finite")
    return problems


def main(count: int, folder: Path) -> None:
    """Run everything."""
    from transformers import pipeline

    from tests.export_run import exported
    from vcp_clip_hf.exported_segmenter import ExportedSegmenter

    warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
    segmenter = ExportedSegmenter(exported().folder, num_threads=1)
    pipe = pipeline("anomaly-segmentation", model=str(exported().checkpoint))
    pipe(Image.new("RGB", (40, 30)))
    paths, problems = write_files(folder, count), []
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, mapped + ADDRESS_SPACE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    options = {"max_pixels": MAX_PIXELS}
    expected = [outcome(lambda path=path: load_image(path, **options), path, problems) for path in paths]
    results = pipe((path for path in paths), on_error="return", batch_size=8, **options)
    problems += check_results("pipeline", results, paths, expected)
    parts = (segmenter(paths[i : i + 64], on_error="return", batch_size=8, **options) for i in range(0, count, 64))
    problems += check_results("runtime", (result for part in parts for result in part), paths, expected)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    kinds = Counter(text.partition(":")[0] or "read" for text in expected)
    print(json.dumps({"problems": problems, "outcomes": kinds, "grown_mib": grown}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
