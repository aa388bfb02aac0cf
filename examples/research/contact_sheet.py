"""Draw a grid of a dataset's images with the outlines of their masks, to check labels before training.

python -m examples.research.contact_sheet mvtec_ad datasets/mvtec --split test --products bottle --output sheet.png
python -m examples.research.contact_sheet folder photos/gaskets --output sheet.png
"""

import argparse
import itertools
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vcp_clip_hf.data import dataset_builder


__all__ = ["contact_sheet", "main", "make_parser", "outline", "pick"]

CAPTION, GAP = 28, 4
OUTLINE = (255, 40, 40)
COLORS = {0: (40, 140, 60), 1: (190, 50, 40), -1: (110, 110, 110)}


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels just outside a mask (H, W): the defect itself stays visible."""
    padded, (height, breadth) = np.pad(mask, width), mask.shape
    grown = np.zeros_like(mask)
    for y, x in itertools.product(range(2 * width + 1), repeat=2):
        grown |= padded[y : y + height, x : x + breadth]
    return grown & ~mask


def tile(row: dict, side: int, zoom: bool) -> Image.Image:
    """Draw one image, fitted into `side` pixels, with the outline of its mask and a caption."""
    image, mask = row["image"], row["mask"]
    if zoom and mask is not None:
        left, top, right, bottom = mask.getbbox()
        margin = max(right - left, bottom - top, 48) // 2
        box = (
            max(0, left - margin),
            max(0, top - margin),
            min(image.width, right + margin),
            min(image.height, bottom + margin),
        )
        image, mask = image.crop(box), mask.crop(box)
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if mask is not None:
        # BOX instead of NEAREST, so that thin defects do not vanish
        marked = np.asarray(mask.resize(size, Image.Resampling.BOX)) > 0
        pixels = np.array(image)
        pixels[outline(marked, max(1, side // 160))] = OUTLINE
        image = Image.fromarray(pixels)
    area = "" if mask is None else f" {100 * np.mean(np.asarray(row['mask']) > 0):.2f} %"
    framed = Image.new("RGB", (side, size[1] + CAPTION), "white")
    framed.paste(image, ((side - size[0]) // 2, 0))
    draw = ImageDraw.Draw(framed)
    draw.rectangle((0, size[1], side, size[1] + CAPTION), fill=COLORS[row["label"]])
    draw.text((3, size[1] + 1), f"{row['product']}: {row['defect']}{area}"[: side // 6], fill="white")
    draw.text((3, size[1] + 14), row["image_id"][-(side // 6) :], fill="white")
    return framed


def pick(dataset, count: int) -> list[int]:
    """Choose rows spread over products and defects; the choice is deterministic."""
    groups: dict[tuple, list[int]] = {}
    for index, key in enumerate(zip(dataset["product"], dataset["defect"], strict=True)):
        groups.setdefault(key, []).append(index)
    turns = itertools.zip_longest(*groups.values())
    return sorted([index for turn in turns for index in turn if index is not None][:count])


def contact_sheet(dataset, count: int = 24, columns: int = 6, side: int = 240, zoom: bool = False) -> Image.Image:
    """Draw the sheet: up to `count` tiles of `side` pixels."""
    tiles = [tile(dataset[index], side, zoom) for index in pick(dataset, count)]
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(one.height for one in row) + GAP for row in rows]
    sheet = Image.new("RGB", (columns * (side + GAP), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, one in enumerate(row):
            sheet.paste(one, (column * (side + GAP), sum(heights[:number])))
    return sheet


def option(text: str) -> tuple:
    """Parse `size=128` to ("size", 128); a value that is not JSON stays text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="dataset; `vcp-clip info --datasets` lists them")
    parser.add_argument("data_dir", nargs="?")
    parser.add_argument("--split", help="default: all splits together")
    parser.add_argument("--products", nargs="+")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--side", type=int, default=240)
    parser.add_argument("--zoom", action="store_true", help="crop to the surroundings of the defects")
    parser.add_argument(
        "--option", nargs="*", default=[], metavar="NAME=VALUE", help="option of the dataset: num_images=24"
    )
    parser.add_argument("--skip-errors", action="store_true")
    parser.add_argument("--output", default="contact_sheet.png")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a sheet from the command line."""
    options = make_parser().parse_args(arguments)

    builder = dataset_builder(
        options.name,
        options.data_dir,
        products=options.products,
        on_error="skip" if options.skip_errors else "raise",
        **dict(map(option, options.option)),
    )
    builder.download_and_prepare()
    print(builder.describe())
    for problem in builder.left_out:
        print("left out:", problem)
    dataset = builder.as_dataset(options.split or "all")
    sheet = contact_sheet(dataset, options.count, options.columns, options.side, options.zoom)
    sheet.save(options.output)
    print(f"{options.output}: {min(options.count, len(dataset))} of {len(dataset)} images")


if __name__ == "__main__":
    main()
