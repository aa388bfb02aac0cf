"""Exported models at work, without torch and without transformers: NumPy, Pillow and one runtime.

A copy of this module and of those it imports lies in every folder that `vcp-clip export` writes, so that the folder
works where this package is not installed:

    python onnx_segmenter.py part.png --threshold 0.5
"""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .image_loading import list_images, load_image
from .pixel_preprocessing import place, to_planes, value_table
from .regions import clean_mask, find_regions
from .visualization import overlay


__all__ = ["OnnxAnomalySegmenter", "OpenVINOAnomalySegmenter", "open_segmenter", "resize_map"]

_SETTINGS, _EXPORT = "preprocessor_config.json", "export.json"

_ARGUMENTS = (
    "threshold",
    "image_threshold",
    "input_range",
    "roi_mask",
    "heatmap",
    "regions",
    "min_area",
    "fill_holes",
    "on_error",
    "timeout",
    "batch_size",
)
# What a call of the pipeline can change and a graph cannot
_IN_THE_GRAPH = ("smoothing_sigma", "score_mode", "top_k_fraction", "prompts")
_PIPELINE_ONLY = (
    "tile_size",
    "tile_overlap",
    "tile_batch_size",
    "global_weight",
    "output_branch_maps",
    "output_layer_maps",
    "output_uncertainty",
    "output_format",
)


class OnnxAnomalySegmenter:
    """
    A model exported with `--format onnx`: images in, the answer of `pipeline("anomaly-segmentation")` out.

    Args:
        folder (`str` or `os.PathLike`): what `vcp-clip export` wrote.
        num_threads (`int`, *optional*): threads of the runtime; its own choice if absent.
        providers (`Sequence`, *optional*, defaults to the CPU):
            ONNX Runtime's execution providers, best first; the measured deviation holds for the CPU.

    Raises:
        FileNotFoundError: a file of the export is not there.
        ValueError: an export of another format, or settings that the graph was not made for.
        ImportError: the runtime is not installed.

    ```python
    >>> segmenter = OnnxAnomalySegmenter("exported")
    >>> result = segmenter("part.png", threshold=0.5, regions=True)
    >>> result["score"], result["label"]
    (0.87, 'anomalous')
    ```
    """

    format = "onnx"

    def __init__(
        self,
        folder: str | os.PathLike,
        num_threads: int | None = None,
        providers: Sequence = ("CPUExecutionProvider",),
    ):
        self.folder = Path(folder)
        self.settings, self.export = _read_json(self.folder, _SETTINGS), _read_json(self.folder, _EXPORT)
        if self.export["format"] != self.format:
            raise ValueError(
                f"{self.folder} was exported as {self.export['format']!r}, {type(self).__name__} runs {self.format!r}."
                " Use `open_segmenter`, which takes what it finds."
            )
        for name, built_in in self.export["settings"].items():
            if self.settings.get(name) != built_in:
                raise ValueError(
                    f"{_SETTINGS} has {name}={self.settings.get(name)!r}, but the graph was made for {built_in!r}."
                    " Change the checkpoint's settings and export again."
                )
        self.size = (self.settings["size"]["height"], self.settings["size"]["width"])
        self.threshold = self.settings.get("threshold")
        self.image_threshold = self.settings.get("image_threshold")
        self._table = value_table(
            self.settings["rescale_factor"] if self.settings["do_rescale"] else 1.0,
            self.settings["image_mean"] if self.settings["do_normalize"] else None,
            self.settings["image_std"],
        )
        graph = self.folder / self.export["graph"]
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} is not there: the export is incomplete. Copy the whole folder.")
        self._run = self._load(graph, num_threads, providers)

    def _load(self, graph: Path, num_threads: int | None, providers: Sequence) -> Callable[[np.ndarray], Sequence]:
        """-> a function from pixel_values to maps and scores."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                'Running this model needs ONNX Runtime: pip install onnxruntime (or pip install "vcp-clip-hf[onnx]")'
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about how it optimises
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(graph, options, providers=list(providers))
        expected = [3, *self.size]
        if session.get_inputs()[0].shape[1:] != expected:
            raise ValueError(
                f"{graph} takes images of shape {session.get_inputs()[0].shape[1:]}, {_SETTINGS} says {expected}:"
                " they are of different exports."
            )
        names = ["anomaly_map", "score"]
        return lambda pixel_values: session.run(names, {"pixel_values": pixel_values})

    def preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures, upright -> `pixel_values`, float32 of shape `(batch_size, 3, height, width)`."""
        if self.settings["do_resize"]:
            images = [place(image, (self.size, self.size), self.settings["resample"], 0) for image in images]
        for image in images:
            if (image.height, image.width) != self.size:
                raise ValueError(
                    f"An image is {image.height} x {image.width} pixels, and {_SETTINGS} forbids resizing."
                )
        return np.stack([to_planes(image, self._table) for image in images])

    def forward(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The graph.

        Args:
            pixel_values (`np.ndarray` of shape `(batch_size, 3, height, width)`, float32): from `preprocess`.

        Returns:
            `tuple`: smoothed maps `(batch_size, height, width)` in [0, 1] and scores `(batch_size,)`, float32.
        """
        maps, scores = self._run(np.ascontiguousarray(pixel_values, dtype=np.float32))
        return maps, scores

    def __call__(
        self,
        images,
        threshold: float | None = None,
        image_threshold: float | None = None,
        input_range: tuple[float, float] | None = None,
        roi_mask=None,
        heatmap: bool = False,
        regions: bool = False,
        min_area: int = 0,
        fill_holes: bool = False,
        on_error: str = "raise",
        timeout: float = 30.0,
        batch_size: int = 1,
        **unknown,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Segment anomalies.

        Args:
            images: one image, a list of them, or a 4-dimensional array; each a path, a URL, the content of a file, a
                PIL picture of any mode, or an array.
            threshold (`float`, *optional*): pixels at or above it are abnormal. Default: the checkpoint's. Without
                any, there are no masks and no labels.
            image_threshold (`float`, *optional*): images at or above it are anomalous.
            input_range (`tuple[float, float]`, *optional*): black and white of data of more than 8 bits.
            roi_mask (image or array, *optional*): of the images' size, non-zero where to look.
            heatmap (`bool`, *optional*): add `heatmap`, the image under its map on the fixed scale [0, 1].
            regions (`bool`, *optional*): add `regions`, see `find_regions`; needs a threshold.
            min_area (`int`, *optional*): regions of fewer pixels are dropped from mask and regions; an image whose
                regions are all dropped is normal.
            fill_holes (`bool`, *optional*): holes in the mask are filled.
            on_error (`"raise"` or `"return"`, *optional*, defaults to `"raise"`):
                With `"return"`, an image that cannot be read gives `{"error": message}` and the others their results.
            timeout (`float`, *optional*, defaults to 30): seconds to wait for a URL.
            batch_size (`int`, *optional*, defaults to 1): images in one run of the graph.

        Returns:
            `dict` for one image, else a list of them, with
            - **score** (`float`);
            - **label** (`"normal"`, `"anomalous"` or `None`);
            - **threshold**, **image_threshold** (`float` or `None`);
            - **anomaly_map** (`np.ndarray` of shape `(height, width)`, float32): in [0, 1], at the original size;
            - **mask** (`PIL.Image.Image`, mode L, 0 or 255, or `None`), at the original size;
            and what was asked for.

        Raises:
            ValueError, TypeError, FileNotFoundError: an image or an argument is wrong; the message says which.
        """
        _refuse(unknown)
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error={on_error!r} must be "raise" or "return".')
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more.")
        threshold = self.threshold if threshold is None else threshold
        image_threshold = self.image_threshold if image_threshold is None else image_threshold
        if image_threshold is None and self.settings["score_mode"] == "max":
            image_threshold = threshold  # both are on one scale
        if regions and threshold is None:
            raise ValueError(
                "Regions need a threshold, and this export has none. Pass threshold=..., or calibrate the checkpoint"
                " on normal images and export again."
            )
        if roi_mask is not None and self.settings["score_mode"] != "max":
            raise ValueError(
                f"roi_mask needs score_mode='max', and this graph has {self.settings['score_mode']!r} built in, over"
                " the whole image. Use the pipeline, or set score_mode='max' in the checkpoint and export again."
            )

        many = isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4
        sources = list_images(images)
        results: list[dict[str, Any]] = []
        for start in range(0, len(sources), batch_size):
            loaded = [
                self._read(source, input_range, roi_mask, on_error, timeout)
                for source in sources[start : start + batch_size]
            ]
            pictures = [each[0] for each in loaded if each[0] is not None]
            maps = iter(zip(*self.forward(self.preprocess(pictures)), strict=True)) if pictures else iter(())
            for picture, roi, error in loaded:
                if picture is None:
                    results.append({"error": error})
                    continue
                anomaly_map, score = next(maps)
                results.append(
                    self._answer(
                        picture,
                        roi,
                        anomaly_map,
                        float(score),
                        threshold,
                        image_threshold,
                        heatmap,
                        regions,
                        min_area,
                        fill_holes,
                    )
                )
        return results if many else results[0]

    def _read(
        self, source, input_range, roi_mask, on_error: str, timeout: float
    ) -> tuple[Image.Image | None, np.ndarray | None, str | None]:
        """-> picture, region of interest, error."""
        try:
            picture = load_image(source, input_range or self.settings.get("input_range"), timeout=timeout)
            return picture, None if roi_mask is None else _load_roi(roi_mask, picture), None
        except (ValueError, TypeError, OSError) as problem:
            if on_error == "raise":
                raise
            return None, None, f"{type(problem).__name__}: {problem}"

    @staticmethod
    def _answer(
        picture: Image.Image,
        roi: np.ndarray | None,
        anomaly_map: np.ndarray,
        score: float,
        threshold: float | None,
        image_threshold: float | None,
        heatmap: bool,
        regions: bool,
        min_area: int,
        fill_holes: bool,
    ) -> dict[str, Any]:
        if roi is not None:
            anomaly_map = anomaly_map * _nearest(roi, anomaly_map.shape)
            score = float(anomaly_map.max())
        anomaly_map = resize_map(anomaly_map, (picture.height, picture.width))
        if roi is not None:
            anomaly_map = anomaly_map * roi
        label = None
        if image_threshold is not None:
            label = "anomalous" if score >= image_threshold else "normal"
        mask = None if threshold is None else anomaly_map >= threshold
        if mask is not None and (min_area > 1 or fill_holes):
            mask = clean_mask(mask, min_area, fill_holes)
            if label == "anomalous" and min_area > 1 and not mask.any():
                label = "normal"
        result = {
            "score": score,
            "label": label,
            "threshold": threshold,
            "image_threshold": image_threshold,
            "anomaly_map": anomaly_map,
            "mask": None if mask is None else Image.fromarray(mask.astype(np.uint8) * np.uint8(255)),
        }
        if heatmap:
            result["heatmap"] = overlay(picture, anomaly_map, mask)
        if regions:
            result["regions"] = find_regions(mask, anomaly_map)
        return result


class OpenVINOAnomalySegmenter(OnnxAnomalySegmenter):
    """
    A model exported with `--format openvino`; a call is that of [`OnnxAnomalySegmenter`].

    Args:
        folder (`str` or `os.PathLike`): what `vcp-clip export` wrote.
        num_threads (`int`, *optional*): threads of the runtime; its own choice if absent.
        providers (`Sequence`, *optional*, defaults to the CPU): OpenVINO's name of one device, `("GPU",)` say.
    """

    format = "openvino"

    def __init__(self, folder: str | os.PathLike, num_threads: int | None = None, providers: Sequence = ("CPU",)):
        super().__init__(folder, num_threads, providers)

    def _load(self, graph: Path, num_threads: int | None, providers: Sequence) -> Callable[[np.ndarray], Sequence]:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                'Running this model needs OpenVINO: pip install openvino (or pip install "vcp-clip-hf[openvino]")'
            ) from error
        # without the hint, processors with bfloat16 units use it: maps would differ in the second decimal
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        compiled = openvino.Core().compile_model(graph, providers[0], options)
        shape = compiled.input(0).get_partial_shape()
        if [shape[axis].get_length() for axis in (1, 2, 3)] != [3, *self.size]:
            raise ValueError(
                f"{graph} takes images of shape {shape}, {_SETTINGS} says {[3, *self.size]}: they are of different"
                " exports."
            )

        def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            outputs = compiled(pixel_values, share_outputs=False)
            return outputs[0], outputs[1]

        return run


def open_segmenter(folder: str | os.PathLike, **options) -> OnnxAnomalySegmenter:
    """
    The segmenter for what lies in a folder.

    Args:
        folder (`str` or `os.PathLike`): what `vcp-clip export` wrote, as onnx or openvino.
        options: of the segmenter's constructor.
    """
    kind = _read_json(Path(folder), _EXPORT)["format"]
    known = {cls.format: cls for cls in (OnnxAnomalySegmenter, OpenVINOAnomalySegmenter)}
    if kind not in known:
        raise ValueError(f"{folder} was exported as {kind!r}; without torch run {' and '.join(known)} only.")
    return known[kind](folder, **options)


def resize_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (height, width), float32, bilinear: the image processor's resize, weight for weight."""
    for axis, length in ((1, size[1]), (0, size[0])):
        if anomaly_map.shape[axis] == length:
            continue
        known = anomaly_map.shape[axis]
        # all in float32, as torch has it: in float64 some places would come out in another pixel
        scale = np.float32(known) / np.float32(length)
        places = np.maximum(scale * (np.arange(length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        before = np.minimum(places.astype(np.int64), known - 1)
        after = np.minimum(before + 1, known - 1)
        weights = np.expand_dims((places - before).astype(np.float32), 1 - axis)
        first, second = anomaly_map.take(before, axis), anomaly_map.take(after, axis)
        anomaly_map = first * (1 - weights) + second * weights
    return anomaly_map


def _nearest(roi: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A region of interest at the size of a map, by the nearest pixel centre."""
    for axis, length in enumerate(size):
        scale = np.float32(roi.shape[axis]) / np.float32(length)
        places = ((np.arange(length, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
        roi = roi.take(np.minimum(places, roi.shape[axis] - 1), axis)
    return roi


def _load_roi(roi_mask, picture: Image.Image) -> np.ndarray:
    if not (isinstance(roi_mask, np.ndarray) or hasattr(roi_mask, "detach")):
        roi_mask = load_image(roi_mask).convert("L")
    roi_mask = np.asarray(roi_mask) != 0
    if roi_mask.shape != (picture.height, picture.width):
        raise ValueError(
            f"roi_mask is {roi_mask.shape} (height, width), the image ({picture.height}, {picture.width})."
        )
    return roi_mask


def _refuse(unknown: dict) -> None:
    for name in unknown:
        if name in _IN_THE_GRAPH:
            raise TypeError(
                f"{name} is built into the exported graph. Change it in the checkpoint and export again, or use the"
                " pipeline."
            )
        if name in _PIPELINE_ONLY:
            raise TypeError(f"{name} is an argument of the pipeline; an exported graph does not have it.")
        close = difflib.get_close_matches(name, _ARGUMENTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_ARGUMENTS)}."
        raise TypeError(f"An exported model has no argument {name!r}; {hint}")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {name}: it is no folder that `vcp-clip export` wrote.")
    return json.loads(file.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of an exported folder: one line of JSON for each image."""
    parser = argparse.ArgumentParser(description="Segment anomalies with the exported model in this folder.")
    parser.add_argument("images", nargs="+", help="image files or URLs")
    parser.add_argument("--model", default=Path(__file__).parent, help="exported folder (default: this file's)")
    parser.add_argument("--threshold", type=float, help="pixels at or above it are abnormal")
    parser.add_argument("--heatmaps", type=Path, help="folder for pictures of the maps")
    options = parser.parse_args(arguments)
    try:
        segmenter = open_segmenter(options.model)
        for index, image in enumerate(options.images):
            result = segmenter(image, options.threshold, heatmap=options.heatmaps is not None, on_error="return")
            record = {"image": image}
            record.update({name: result[name] for name in ("error", "score", "label", "threshold") if name in result})
            if "heatmap" in result:
                options.heatmaps.mkdir(parents=True, exist_ok=True)
                picture = options.heatmaps / f"{index:04d}-{Path(image).stem}.png"
                result["heatmap"].save(picture)
                record["heatmap"] = str(picture)
            print(json.dumps(record))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
