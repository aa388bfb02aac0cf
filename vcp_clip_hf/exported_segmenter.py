"""Runtime of exported models, without torch and without transformers: NumPy, Pillow and ONNX Runtime or OpenVINO.

Every folder that `vcp-clip export` writes holds copies of this module and of the modules it imports, so that it works
where this package is not installed:

    python exported_segmenter.py part.png --threshold 0.5
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .anomaly_result import finish, resize_array
from .call_arguments import argument_names, refuse_unknown
from .image_loading import ImageLike, list_images, load_image
from .image_sources import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT
from .pixel_preprocessing import place, to_planes, value_table
from .region_of_interest import load_region_of_interest
from .thresholds import UNRECORDED, Thresholds, resolve_thresholds
from .visualization import overlay_with_scale


__all__ = ["ExportedSegmenter", "open_segmenter"]

_SETTINGS, _EXPORT = "preprocessor_config.json", "export.json"


class _Backend(Protocol):
    """
    A graph, loaded by a runtime.

    Attributes:
        input_shape (`list`): channels, height and width of `pixel_values`.
    """

    input_shape: list[int]

    def run(self, pixel_values: np.ndarray) -> Sequence[np.ndarray]:
        """Return maps and scores."""


class _OnnxBackend:
    def __init__(self, graph: Path, num_threads: int | None, providers: Sequence[str | tuple[str, dict]] | None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                'Running this model needs ONNX Runtime: pip install onnxruntime (or pip install "vcp-clip-hf[onnx]")'
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings concern the optimization of the graph
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=list(providers or ("CPUExecutionProvider",))
        )
        self.input_shape = self._session.get_inputs()[0].shape[1:]

    def run(self, pixel_values: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(["anomaly_map", "score"], {"pixel_values": pixel_values})


class _OpenVINOBackend:
    def __init__(self, graph: Path, num_threads: int | None, providers: Sequence[str] | None):
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                'Running this model needs OpenVINO: pip install openvino (or pip install "vcp-clip-hf[openvino]")'
            ) from error
        # without this hint, processors with bfloat16 units use them: maps would differ in the second decimal
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        self._compiled = openvino.Core().compile_model(graph, (providers or ("CPU",))[0], options)
        shape = self._compiled.input(0).get_partial_shape()
        self.input_shape = [shape[axis].get_length() for axis in (1, 2, 3)]

    def run(self, pixel_values: np.ndarray) -> Sequence[np.ndarray]:
        outputs = self._compiled(pixel_values, share_outputs=False)
        return outputs[0], outputs[1]


_BACKENDS = {"onnx": _OnnxBackend, "openvino": _OpenVINOBackend}


class ExportedSegmenter:
    """
    An exported model: images in, the results of `pipeline("anomaly-segmentation")` out.

    Args:
        folder (`str` or `os.PathLike`): folder that `vcp-clip export` wrote, as onnx or openvino.
        num_threads (`int`, *optional*): threads of the runtime; the runtime decides if absent.
        providers (`Sequence`, *optional*, defaults to the CPU):
            ONNX Runtime's execution providers, best first, or the name of one OpenVINO device, such as `("GPU",)`. The
            deviation measured at export holds for the CPU.

    Raises:
        FileNotFoundError: a file of the export is missing.
        ValueError: the export is of a format that needs torch, its settings do not belong to the graph, or a
            threshold is out of range.
        ImportError: the runtime is not installed.

    ```python
    >>> segmenter = ExportedSegmenter("exported")
    >>> result = segmenter("part.png", threshold=0.5, regions=True)
    >>> result["score"], result["label"]
    (0.87, 'anomalous')
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        num_threads: int | None = None,
        providers: Sequence[str | tuple[str, dict]] | None = None,
    ):
        self.folder = Path(folder)
        self.settings, self.export = _read_json(self.folder, _SETTINGS), _read_json(self.folder, _EXPORT)
        self.format = self.export["format"]
        if self.format not in _BACKENDS:
            raise ValueError(
                f"{self.folder} was exported as {self.format!r}; without torch only {' and '.join(_BACKENDS)} run."
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
        Thresholds.of(self.threshold, self.image_threshold, self.settings["score_mode"])  # checks their ranges
        self._table = value_table(
            self.settings["rescale_factor"] if self.settings["do_rescale"] else 1.0,
            self.settings["image_mean"] if self.settings["do_normalize"] else None,
            self.settings["image_std"],
        )
        self._backend = self._load(num_threads, providers)

    def _load(self, num_threads: int | None, providers: Sequence[str | tuple[str, dict]] | None) -> _Backend:
        graph = self.folder / self.export["graph"]
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} is missing: the export is incomplete. Copy the whole folder.")
        backend = _BACKENDS[self.format](graph, num_threads, providers)
        expected = [3, *self.size]
        if backend.input_shape != expected:
            raise ValueError(
                f"{graph} takes images of shape {backend.input_shape}, {_SETTINGS} says {expected}: the two files are"
                " of different exports."
            )
        return backend

    def preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        """
        Prepare images for the graph.

        Args:
            images (`Sequence[PIL.Image.Image]`): upright RGB pictures.

        Returns:
            `np.ndarray` of shape `(batch_size, 3, height, width)`, float32: `pixel_values`.

        Raises:
            ValueError: an image has another size, and the settings forbid resizing.
        """
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
        Run the graph.

        Args:
            pixel_values (`np.ndarray` of shape `(batch_size, 3, height, width)`, float32): pixels from `preprocess`.

        Returns:
            `tuple`: smoothed maps `(batch_size, height, width)` in [0, 1] and scores `(batch_size,)`, float32.
        """
        maps, scores = self._backend.run(np.ascontiguousarray(pixel_values, dtype=np.float32))
        return maps, scores

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: float | None = None,
        image_threshold: float | None = None,
        input_range: tuple[float, float] | None = None,
        roi_mask: ImageLike | None = None,
        on_error: str = "raise",
        timeout: float = DEFAULT_TIMEOUT,
        batch_size: int = 1,
        max_pixels: int | None = None,
        max_download_bytes: int = DEFAULT_MAX_BYTES,
        **options: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Segment anomalies.

        Args:
            images (`ImageLike` or a sequence of them): one image, a list, or a 4-dimensional array. An image is a
                path, a URL, a data URI, a base64 string, the content of a file, a PIL image of any mode, or an array.
            threshold (`float`, *optional*): pixels at or above it are abnormal. Default: the checkpoint's, if it was
                calibrated with the settings of this call. Without a threshold there are no masks and no labels.
            image_threshold (`float`, *optional*): images with a score at or above it are anomalous.
            input_range (`tuple[float, float]`, *optional*): values of black and white in data of more than 8 bits.
            roi_mask (`ImageLike`, *optional*):
                Region of interest of the images' size: pixels that are neither black nor transparent are inspected.
            on_error (`"raise"` or `"return"`, *optional*, defaults to `"raise"`):
                Treatment of unreadable images: `"return"` gives `{"error": message}` for each, and goes on.
            timeout (`float`, *optional*, defaults to 30): seconds for a URL, until its last byte.
            batch_size (`int`, *optional*, defaults to 1): images in one run of the graph.
            max_pixels (`int`, *optional*): maximum number of pixels of a file; see `image_loading.load_image`.
            max_download_bytes (`int`, *optional*, defaults to 256 MiB): maximum size of the file at a URL.
            options: `min_area`, `fill_holes`, `output_image`, `heatmap` and `regions`, see `anomaly_result.finish`.

        Returns:
            `dict` for one image, otherwise a list of them, as `anomaly_result.finish` makes them.

        Raises:
            ValueError, TypeError, FileNotFoundError: an image or an argument is wrong; the message says which.
        """
        self._check_options(options)
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error={on_error!r} must be "raise" or "return".')
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more.")
        self.check_region(roi_mask is not None)
        thresholds = self.thresholds_of(threshold, image_threshold, input_range, roi_mask is not None)
        reading = {
            "input_range": input_range or self.settings.get("input_range"),
            "timeout": timeout,
            "max_pixels": max_pixels,
            "max_download_bytes": max_download_bytes,
        }
        sources = list_images(images)
        results: list[dict[str, Any]] = []
        for start in range(0, len(sources), batch_size):
            chosen = sources[start : start + batch_size]
            loaded = [self._read(source, reading, roi_mask, on_error) for source in chosen]
            results += self._segment(loaded, thresholds, options)
        many = isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4
        return results if many else results[0]

    def check_region(self, has_region: bool) -> None:
        """
        Check that the graph's score can be restricted to a region of interest.

        Args:
            has_region (`bool`): whether the call has a region of interest.

        Raises:
            ValueError: a score other than "max" with a region.
        """
        if has_region and self.settings["score_mode"] != "max":
            pipeline_too = "" if self.settings["score_mode"] == "image_head" else "use the pipeline, or "
            raise ValueError(
                f"roi_mask needs score_mode='max', and this graph has {self.settings['score_mode']!r} built in, which"
                f" reads the whole image. Way out: {pipeline_too}set score_mode='max' in the checkpoint and export"
                " again."
            )

    def thresholds_of(
        self,
        threshold: float | None = None,
        image_threshold: float | None = None,
        input_range: tuple[float, float] | None = None,
        region_of_interest: bool = False,
    ) -> Thresholds:
        """
        Return the thresholds of a call: its own, or the checkpoint's if they were measured with its settings.

        Args:
            threshold, image_threshold, input_range (*optional*): arguments of the call.
            region_of_interest (`bool`, *optional*, defaults to `False`): whether the call has a region of interest.

        Raises:
            ValueError: a threshold is out of range.
        """
        size = self.settings["size"]
        current = {
            **UNRECORDED,
            **self.export["settings"],
            **self.export.get("fusion", {}),  # exports of version 0.1.0 do not record it
            "size": [size["height"], size["width"]],
            "tiling": None,
            "dtype": "float32",
            "region_of_interest": region_of_interest,
            "input_range": input_range or self.settings.get("input_range"),
            "references": (self.export.get("references") or {}).get("identity"),
        }
        if "prompt_input_ids" in self.export:
            current["prompts"] = self.export["prompt_input_ids"]
        given = {"threshold": threshold, "image_threshold": image_threshold}
        stored = {**self.settings, "threshold": self.threshold, "image_threshold": self.image_threshold}
        return Thresholds.of(**resolve_thresholds(given, stored, current), score_mode=self.settings["score_mode"])

    def _check_options(self, options: dict[str, Any]) -> None:
        for name in options:
            if name in self.export["settings"] or name in ("prompts", "reference_weight"):
                raise TypeError(
                    f"{name} is built into the exported graph. Change it in the checkpoint and export again, or use"
                    " the pipeline."
                )
        known = [*argument_names(self.__call__), *argument_names(finish)]
        refuse_unknown(options, known, "An exported model")

    def _read(
        self,
        source: ImageLike,
        reading: dict[str, Any],
        roi_mask: ImageLike | None,
        on_error: str,
    ) -> tuple[Image.Image | None, np.ndarray | None, str | None]:
        """Return the picture, its region of interest, and the error, if any."""
        try:
            picture = load_image(source, **reading)
            size = (picture.height, picture.width)
            return picture, None if roi_mask is None else load_region_of_interest(roi_mask, size), None
        except (ValueError, TypeError, OSError) as problem:
            if on_error == "raise":
                raise
            return None, None, f"{type(problem).__name__}: {problem}"

    def _segment(self, loaded: list[tuple], thresholds: Thresholds, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one result, or one error, for each image that `_read` returned."""
        pictures = [picture for picture, _, _ in loaded if picture is not None]
        maps = iter(zip(*self.forward(self.preprocess(pictures)), strict=True)) if pictures else iter(())
        results = []
        for picture, inside, error in loaded:
            if picture is None:
                results.append({"error": error})
                continue
            results.append(self.result(picture, inside, *next(maps), thresholds, **options))
        return results

    def result(
        self,
        picture: Image.Image,
        inside: np.ndarray | None,
        anomaly_map: np.ndarray,
        score: float,
        thresholds: Thresholds,
        **options: Any,
    ) -> dict[str, Any]:
        """
        Make the result of one image from what `forward` returned for it.

        Args:
            picture (`PIL.Image.Image`): the image, mode RGB.
            inside (`np.ndarray` of shape `(height, width)`, bool, *optional*): region of interest.
            anomaly_map (`np.ndarray` of shape `(h, w)`, float32): its map, at the graph's size.
            score (`float`): its score.
            thresholds ([`Thresholds`]): limits for mask and label.
            options: see `anomaly_result.finish`.

        Returns:
            `dict`, as `anomaly_result.finish` makes it.
        """
        anomaly_map = resize_array(anomaly_map, (picture.height, picture.width))
        if inside is not None:
            anomaly_map = anomaly_map * inside
        if self.settings["score_mode"] == "max":
            score = anomaly_map.max()  # of the map that the mask is read from, not of the graph's own size
        return finish(picture, anomaly_map, float(score), thresholds, inside, **options)


def open_segmenter(
    folder: str | os.PathLike,
    num_threads: int | None = None,
    providers: Sequence[str | tuple[str, dict]] | None = None,
) -> ExportedSegmenter:
    """
    Open an exported folder.

    Args:
        folder, num_threads, providers: arguments of [`ExportedSegmenter`].

    Returns:
        [`ExportedSegmenter`]
    """
    return ExportedSegmenter(folder, num_threads, providers)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {name}: the folder was not written by `vcp-clip export`.")
    return json.loads(file.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line of an exported folder: print one line of JSON for each image.

    Args:
        arguments (`Sequence[str]`, *optional*, defaults to those of the process): words of the command line.
    """
    parser = argparse.ArgumentParser(description="Segment anomalies with the exported model in this folder.")
    parser.add_argument("images", nargs="+", help="image files or URLs")
    parser.add_argument("--model", default=Path(__file__).parent, help="exported folder (default: this file's)")
    parser.add_argument("--threshold", type=float, help="pixels at or above it are abnormal")
    parser.add_argument("--heatmaps", type=Path, help="folder for pictures of the maps")
    options = parser.parse_args(arguments)
    try:
        segmenter = open_segmenter(options.model)
        for index, image in enumerate(options.images):
            with_picture = options.heatmaps is not None
            result = segmenter(image, options.threshold, output_image=with_picture, on_error="return")
            record = {"image": image}
            record.update({name: result[name] for name in ("error", "score", "label", "threshold") if name in result})
            if "image" in result:
                options.heatmaps.mkdir(parents=True, exist_ok=True)
                picture = options.heatmaps / f"{index:04d}-{Path(image).stem}.png"
                shown = overlay_with_scale(result["image"], result["anomaly_map"], result["mask"], result["threshold"])
                shown.save(picture)
                record["heatmap"] = str(picture)
            print(json.dumps(record))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
