"""Model and settings of a run of `predict`, stored beside its records and compared by the next run."""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from .acceleration_settings import Acceleration, precision_name
from .anomaly_result import finish
from .atomic_write import atomic_file
from .backbone_loading import BACKBONE_PREFIX
from .input_images import image_key
from .mutual_scoring import MutualScoring
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .pixel_preprocessing import mode_of_one_shape
from .prediction_records import file_state
from .version import __version__


__all__ = ["RUN_FILE", "RunSettings", "model_fingerprint"]

RUN_FILE = "run.json"
# Arguments of a call that change no record. Regions are an addition: records without them are made again
_WITHOUT_EFFECT = frozenset(
    (
        *("timeout", "on_error", "tile_batch_size", "output_format", "regions"),
        *("output_image", "output_maps", "heatmap", "output_branch_maps", "output_layer_maps", "output_uncertainty"),
    )
)
_PATHS_AND_VERSIONS = frozenset(
    (
        *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"),
        *("backbone_name_or_path", "backbone_revision", "backbone_included", "custom_pipelines"),
    )
)
_PROCESSOR_NAMES = frozenset(
    ("calibration", "image_processor_type", "processor_class", "auto_map", "_processor_class")
)
# Values per tensor of CLIP that enter the fingerprint: hashing all of them takes seconds for a ViT-L/14
_SAMPLED_VALUES = 1024


@dataclass(frozen=True)
class RunSettings:
    """
    Settings of a run that change its results.

    Args:
        values (`dict`): setting -> plain value: package version, model, thresholds, scoring, prompts, tiles, ...
        context (`dict`, *optional*):
            Facts for reports, which are not compared between runs: the checkpoint's `calibration`, and the `folder`
            that relative paths of images start from.
    """

    values: dict[str, Any]
    context: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, pipe: AnomalySegmentationPipeline, options: Mapping[str, Any]) -> "RunSettings":
        """
        Return the settings of a call.

        Args:
            pipe ([`AnomalySegmentationPipeline`]): the pipeline; its own defaults count.
            options (`Mapping`): arguments of the call.
        """
        steps = zip(
            (pipe._preprocess_params, pipe._forward_params, pipe._postprocess_params),
            pipe._sanitize_parameters(**options),
            strict=True,
        )
        given = {name: value for own, called in steps for name, value in {**own, **called}.items()}
        defaults = {
            name: parameter.default
            for function in (pipe.preprocess, pipe._begin, pipe._forward, finish)
            for name, parameter in inspect.signature(function).parameters.items()
        }
        given = {
            name: value
            for name, value in given.items()
            if name not in _WITHOUT_EFFECT and value is not None and not _equals(value, defaults.get(name))
        }
        processor = {
            name: value
            for name, value in pipe.image_processor.to_dict().items()
            if name not in _PROCESSOR_NAMES and value is not None
        }
        values = {
            "package version": __version__,
            "model": f"{pipe.model.name_or_path or type(pipe.model).__name__} ({model_fingerprint(pipe.model)[:16]})",
            "dtype": precision_name(pipe.model.dtype, Acceleration.of(pipe.accelerate)),
            # a call's setting replaces the checkpoint's
            **{name: _plain(value) for name, value in {**processor, **given}.items()},
        }
        if options.get("prompts") is not None:  # words are easier to compare than token ids
            values["prompt_input_ids"] = _plain(options["prompts"])
        if options.get("defect_names") is not None:
            values["defect_names"] = _plain(options["defect_names"])
        values.pop("reference_weight", None)
        references = pipe.active_references(given.get("reference_weight"))
        if references is not None:
            values["references"] = references.identity()
        if isinstance(given.get("roi_mask"), (str, os.PathLike)):
            values["roi_mask"] = _file_hash(given["roi_mask"])
        context = {"folder": os.getcwd(), "calibration": _plain(pipe.image_processor.calibration)}
        return cls(json.loads(json.dumps(values)), context)

    def judged_together(self, scoring: MutualScoring, paths: Sequence[str]) -> "RunSettings":
        """
        Return the settings of a run whose images are judged together: each result depends on all images.

        Args:
            scoring ([`MutualScoring`]): settings of the comparison.
            paths (`Sequence[str]`): paths or URLs of the images, in order.
        """
        states = [(image_key(path), file_state(path)) for path in paths]
        digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]
        values = {"together": scoring.settings(), "images": f"{len(paths)} images (list {digest})"}
        # references have no part in the comparison
        own = {name: value for name, value in self.values.items() if name != "references"}
        if "resize_mode" in own:
            own["resize_mode"] = mode_of_one_shape(own["resize_mode"])
        # and the checkpoint's thresholds do not apply
        return replace(self, values={**own, **values}, context={**self.context, "calibration": None})

    def of_video(self, video: Mapping[str, Any]) -> "RunSettings":
        """
        Return the settings of a run on frames of a video.

        Args:
            video (`Mapping`): identity of the video, and which frames are analyzed.
        """
        return replace(self, values={**self.values, "video": _plain(video)})

    def watched(self) -> "RunSettings":
        """Return the settings of a watched folder: it may have several records of one file, which `predict` merges."""
        return replace(self, values={**self.values, "kind of run": "watch"})

    @classmethod
    def read(cls, output_dir: Path) -> "RunSettings | None":
        """Return the settings stored in an output folder, or `None` without readable ones."""
        try:
            stored = json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8"))
            values, context = stored["settings"], stored.get("context")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return cls(values, context if isinstance(context, dict) else {}) if isinstance(values, dict) else None

    def write(self, output_dir: Path) -> None:
        """Store the settings in an output folder."""
        with atomic_file(output_dir / RUN_FILE) as unfinished:
            text = json.dumps({"settings": self.values, "context": self.context}, indent=2)
            unfinished.write_text(text + "\n", encoding="utf-8")

    def check_folder(self, output_dir: Path, advice: str) -> None:
        """
        Check that the records of an output folder were computed with these settings.

        Args:
            output_dir (`Path`): folder that has records.
            advice (`str`): last sentence of the error, which says what to do.

        Raises:
            ValueError: the records were computed with other settings, or their settings are not known.
        """
        stored = RunSettings.read(output_dir)
        if stored is None:
            raise ValueError(
                f"{output_dir} has records, but no {RUN_FILE} with the settings that they were computed with, as runs"
                f" of version 0.1.0 left it. {advice}"
            )
        differences = self.differences(stored)
        if differences:
            raise ValueError(
                f"{output_dir} has results of another model or other settings, and one folder never mixes two:"
                f" {'; '.join(differences)}. {advice}"
            )

    def differences(self, earlier: "RunSettings") -> list[str]:
        """Return `name: earlier -> now` for each setting that differs; parts of settings are named one by one."""
        now, before = _by_part(self.values), _by_part(earlier.values)
        return [
            f"{name}: {_shown(before.get(name))} -> {_shown(now.get(name))}"
            for name in [*now, *(name for name in before if name not in now)]
            if _identity(name, now.get(name)) != _identity(name, before.get(name))
        ]


def model_fingerprint(model: PreTrainedModel) -> str:
    """
    Return a hash of a model: its configuration, all learned weights, and a sample of CLIP's.

    Args:
        model ([`VCPCLIPModel`]): the model as it is in memory, wherever it comes from.
    """
    config = _without_paths(model.config.to_dict())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(str(tuple(value.shape)).encode())
            if not value.is_meta:  # offloaded weights have no values here
                digest.update(_values(value.detach(), sampled=name.startswith(BACKBONE_PREFIX)))
    return digest.hexdigest()


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _PATHS_AND_VERSIONS
    }


def _values(tensor: torch.Tensor, sampled: bool) -> bytes:
    if hasattr(tensor, "dequantize") and type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        tensor = tensor.dequantize()
    flat = tensor.reshape(-1)
    if sampled:
        flat = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)]
    # float32 is exact for the other data types of weights, and NumPy has no bfloat16
    return flat.float().cpu().numpy().tobytes()


def _file_hash(path: str | os.PathLike) -> str:
    """Return a hash of a file's content; the path itself for a URL or a file that is missing."""
    if not os.path.isfile(path):
        return os.fspath(path)
    return f"file, sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


def _equals(value: Any, default: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and value == default


def _plain(value: Any) -> Any:
    """Return a value for JSON; pictures and arrays as a hash."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray):
        return f"array {value.shape}, sha256 {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, Image.Image):
        return f"picture {value.size}, sha256 {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _by_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with each part of a setting under a name of its own, such as "together: degrees"."""
    parts = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts.update({f"{name}: {part}": each for part, each in _by_part(value).items()})
        else:
            parts[name] = value
    return parts


def _identity(name: str, value: Any) -> Any:
    """Return what is compared: of a model the fingerprint, since one checkpoint may lie in several places."""
    return value.rpartition(" ")[2] if name == "model" and isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    # the ends of paths differ
    return text if len(text) <= 80 else f"{text[:25]}...{text[-50:]}"
