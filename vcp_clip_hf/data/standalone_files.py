"""Write a dataset as files that `datasets.load_dataset` and the Hub read without this package."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from ..atomic_write import atomic_folder
from .file_tree import absolute_path
from .records import FEATURES, LABEL_NAMES


__all__ = ["export_dataset"]

_FORMATS = ("parquet", "imagefolder")
_ROW_GROUP_BYTES = 64 * 2**20
_HUB_LICENSES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "GPL-3.0": "gpl-3.0",
}
_ENCODED = FEATURES.copy()
_ENCODED["image"] = datasets.Image(mode="RGB", decode=False)
_ENCODED["mask"] = datasets.Image(mode="L", decode=False)


def export_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset | Mapping[str, Any],
    folder: str | os.PathLike,
    format: str = "parquet",
    max_shard_size: int = 500 * 2**20,
) -> str:
    """
    Write a dataset as a folder that needs no other files: images as their original bytes, masks as 8-bit PNG.

    Read it back with `datasets.load_dataset(folder)`, or `datasets.load_dataset(folder, "bottle")` for one product.
    `huggingface_hub.upload_folder` uploads it to the Hub; respect the license, which the written README.md states.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dict of them by split):
            Dataset with the columns of `records.FEATURES`.
        folder (`str` or `os.PathLike`): new or empty folder. It appears after everything was written.
        format (`"parquet"` or `"imagefolder"`, *optional*, defaults to `"parquet"`):
            Tables with the images inside; or image files with a `metadata.parquet` per product and split, and an
            `index.csv` for people.
        max_shard_size (`int`, *optional*, defaults to 500 MiB): size in bytes after which a new parquet file begins.

    Returns:
        `str`: the absolute path of the folder.

    Raises:
        ValueError: the folder is not empty, columns are missing, or an image file no longer exists.
    """
    if format not in _FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(_FORMATS)}.")
    folder = absolute_path(folder)
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise ValueError(f"{folder} exists and is not empty; export into a new folder.")
    splits = dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "test"): dataset}
    for name, part in splits.items():
        missing = [column for column in FEATURES if column not in (part.column_names or ())]
        if missing:
            raise ValueError(f"The split {name!r} lacks the columns {', '.join(missing)}.")

    with atomic_folder(folder) as unfinished:
        writer = (_ParquetFiles if format == "parquet" else _ImageFiles)(str(unfinished), max_shard_size)
        for name, part in splits.items():
            for row in _rows(part):
                writer.write(name, row)
        writer.close()
        info = next(iter(splits.values())).info
        (unfinished / "README.md").write_text(_readme(info, writer, os.path.basename(folder)), encoding="utf-8")
    return folder


def _rows(part: datasets.Dataset | datasets.IterableDataset) -> Iterator[dict]:
    """Yield rows with the bytes of image files, whether the dataset held bytes or paths; masks have 8 bits."""
    part = part.with_format(None) if isinstance(part, datasets.Dataset) else part
    part = part.select_columns(list(FEATURES))
    for column in ("image", "mask"):
        part = part.cast_column(column, _ENCODED[column])
    for row in part:
        row["image"] = _bytes_of(row["image"], row["image_id"])
        if row["mask"] is not None:
            mask = Image.open(io.BytesIO(_bytes_of(row["mask"], row["image_id"])["bytes"])).convert("L")
            buffer = io.BytesIO()
            mask.save(buffer, format="PNG")
            row["mask"] = {"bytes": buffer.getvalue(), "path": None}
        yield row


def _bytes_of(image: dict, image_id: str) -> dict:
    content, path = image["bytes"], image["path"]
    if content is None:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ValueError(f"{image_id}: cannot read {path} ({error}).") from error
    return {"bytes": content, "path": os.path.basename(path) if path else None}


def _plain(name: str) -> str:
    """Return a name that is safe in paths, patterns and configurations."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"


@dataclass
class _Files:
    """Base of both formats: one part per product and split. `counts` holds numbers of images, anomalies and masks."""

    folder: str
    max_shard_size: int
    parts: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)

    def write(self, split: str, row: dict) -> None:
        key = row["product"], split
        if key not in self.parts:
            taken = {_plain(product): product for product, _ in self.parts}
            if taken.get(_plain(row["product"]), row["product"]) != row["product"]:
                raise ValueError(
                    f"The products {taken[_plain(row['product'])]!r} and {row['product']!r} would share a folder."
                )
            self.parts[key] = self.new_part(_plain(row["product"]), split)
            self.counts[key] = [0, 0, 0]
        counts = self.counts[key]
        counts[0] += 1
        counts[1] += row["label"] == 1
        counts[2] += row["mask"] is not None
        self.parts[key].write(row)

    def close(self) -> None:
        for part in self.parts.values():
            part.close()

    def configs(self) -> list[dict]:
        """Return the `configs` for the README: "all" and one per product."""
        products = dict.fromkeys(product for product, _ in self.parts)
        groups = {"all": list(self.parts)}
        if len(products) > 1 or "all" not in products:
            groups |= {_plain(product): [key for key in self.parts if key[0] == product] for product in products}
        configs = []
        for name, keys in groups.items():
            splits: dict[str, list[str]] = {}
            for product, split in keys:
                splits.setdefault(split, []).append(self.pattern(_plain(product), split))
            config = {"config_name": name, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
            configs.append(config | self.config_options())
        configs[0]["default"] = True
        return configs


class _ParquetFiles(_Files):
    """Files data/<product>/<split>-00000.parquet, ..."""

    def new_part(self, product: str, split: str) -> "_ParquetPart":
        os.makedirs(os.path.join(self.folder, "data", product), exist_ok=True)
        return _ParquetPart(os.path.join(self.folder, "data", product, split), self.max_shard_size)

    def write(self, split: str, row: dict) -> None:
        super().write(split, row)
        if sum(part.row_bytes for part in self.parts.values()) >= min(_ROW_GROUP_BYTES, self.max_shard_size):
            for part in self.parts.values():
                part.flush()

    def pattern(self, product: str, split: str) -> str:
        return f"data/{product}/{split}-*.parquet"

    def config_options(self) -> dict:
        return {}


@dataclass
class _ParquetPart:
    stem: str
    max_shard_size: int
    writer: pq.ParquetWriter | None = None
    shards: int = 0
    shard_bytes: int = 0
    rows: list = field(default_factory=list)
    row_bytes: int = 0

    def write(self, row: dict) -> None:
        self.rows.append(row)
        self.row_bytes += len(row["image"]["bytes"]) + (len(row["mask"]["bytes"]) if row["mask"] else 0)

    def flush(self) -> None:
        """Write the collected rows as one row group, the amount that a reader holds in memory at once."""
        if not self.rows:
            return
        if self.writer is None:
            path = f"{self.stem}-{self.shards:05d}.parquet"
            self.writer = pq.ParquetWriter(path, FEATURES.arrow_schema, compression="none")  # images are compressed
            self.shards, self.shard_bytes = self.shards + 1, 0
        columns = {name: [row[name] for row in self.rows] for name in FEATURES}
        self.writer.write_table(pa.table(columns, schema=FEATURES.arrow_schema))
        self.shard_bytes += self.row_bytes
        self.rows, self.row_bytes = [], 0
        if self.shard_bytes >= self.max_shard_size:
            self._close_shard()

    def _close_shard(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close(self) -> None:
        self.flush()
        self._close_shard()


class _ImageFiles(_Files):
    """Files <product>/<split>/{metadata.parquet, images/..., masks/...}, and index.csv."""

    def new_part(self, product: str, split: str) -> "_ImagePart":
        return _ImagePart(self.folder, f"{product}/{split}")

    def pattern(self, product: str, split: str) -> str:
        return f"{product}/{split}/**"

    def config_options(self) -> dict:
        return {"drop_labels": True, "features": FEATURES._to_yaml_list()}

    def close(self) -> None:
        super().close()
        with open(os.path.join(self.folder, "index.csv"), "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image", "mask", "label", "product", "defect", "split", "image_id"))
            for (_, split), part in self.parts.items():
                for row in part.rows:
                    mask = f"{part.place}/{row['mask_file_name']}" if row["mask_file_name"] else ""
                    label = LABEL_NAMES[row["label"]] if row["label"] >= 0 else "unknown"
                    image = f"{part.place}/{row['file_name']}"
                    table.writerow((image, mask, label, row["product"], row["defect"], split, row["image_id"]))


@dataclass
class _ImagePart:
    folder: str
    place: str
    rows: list = field(default_factory=list)
    taken: set = field(default_factory=set)

    def write(self, row: dict) -> None:
        name = stem = _plain(row["image_id"].replace("/", "_"))
        number = 1
        while name.casefold() in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name.casefold())
        image = f"images/{name}{_suffix(row['image'])}"
        mask = f"masks/{name}.png" if row["mask"] is not None else None
        for path, content in ((image, row["image"]), (mask, row["mask"])):
            if path is not None:
                path = os.path.join(self.folder, *self.place.split("/"), *path.split("/"))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content["bytes"])
        plain = {name: row[name] for name in ("label", "product", "defect", "image_id")}
        self.rows.append({"file_name": image, "mask_file_name": mask, **plain})

    def close(self) -> None:
        # parquet, because a CSV or JSON file cannot tell the type of a column without a single mask
        schema = pa.schema(
            [(name, pa.int64() if name == "label" else pa.string()) for name in self.rows[0]] if self.rows else []
        )
        path = os.path.join(self.folder, *self.place.split("/"), "metadata.parquet")
        pq.write_table(pa.Table.from_pylist(self.rows, schema=schema), path)


def _suffix(image: dict) -> str:
    with Image.open(io.BytesIO(image["bytes"])) as picture:
        known = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}
        return known.get(picture.format, f".{(picture.format or 'png').lower()}")


def _readme(info: datasets.DatasetInfo, files: _Files, name: str) -> str:
    license_name = info.license or ""
    header = {
        "license": _HUB_LICENSES.get(license_name, "other"),
        "task_categories": ["image-segmentation"],
        "tags": ["anomaly-detection", "anomaly-segmentation", "industrial-inspection"],
        "configs": files.configs(),
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {name}", ""]
    if info.description:
        lines += [info.description, ""]
    lines += [
        f"License of the images: {license_name or 'not stated'}."
        + (f" Source: {info.homepage}" if info.homepage else ""),
        "",
        "Columns: `image` (RGB), `mask` (0 normal, 255 abnormal; null without a mask), `label` (0 normal,"
        " 1 anomalous, -1 unknown), `product`, `defect`, `image_id`.",
        "",
        "| product | split | images | anomalous | masks |",
        "|---|---|---|---|---|",
        *(f"| {product} | {split} | {n} | {bad} | {m} |" for (product, split), (n, bad, m) in files.counts.items()),
    ]
    if info.citation:
        lines += ["", "```bibtex", info.citation.strip(), "```"]
    return "\n".join(lines) + "\n"
