"""The interface between server and model, and the choice between a checkpoint and an exported folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .recipe import Recipe
from .request import SegmentationRequest


__all__ = ["SegmentationEngine", "SegmentationRequest", "is_exported", "open_engine"]


class SegmentationEngine(Protocol):
    """
    A model that answers requests. One thread calls `segment`; every other method may be called from any thread.

    Attributes:
        input_range (`tuple[float, float]`, *optional*): argument of `load_image` for the images of requests: values of
            black and white in data of more than 8 bits.
    """

    input_range: tuple[float, float] | None

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[dict[str, Any] | Exception]:
        """
        Answer requests. Those whose forward pass has the same settings go through the model together.

        Args:
            requests (`Sequence[SegmentationRequest]`): requests of any recipes.

        Returns:
            `list`: for each request, in order, the result of the pipeline or of `ExportedSegmenter` (see
            `anomaly_result.finish`), or the exception that this request caused.
        """

    def describe(self) -> dict[str, Any]:
        """
        Return the facts about the model as plain JSON values: `model`, `fingerprint`, `format` (`"checkpoint"`,
        `"onnx"`, `"openvino"`), `device`, `size` (`[height, width]`), `score_mode` (the checkpoint's), `score_modes`
        (all that a recipe may have), `threshold`, `image_threshold`, `input_range`, `references` (a sentence about the
        checkpoint's own, or `None`) and `takes_references` (whether recipes may have references).
        """

    def fits(self, recipe: Recipe) -> None:
        """
        Check that the model can follow a recipe.

        Raises:
            ValueError: the model cannot follow it; the message is one sentence with the problem and what to do.
        """

    def prepare(self, references: Sequence[Path]) -> None:
        """
        Compute what the requests of a recipe with these references need, and keep it.

        Raises:
            ValueError: an image cannot be read, or the engine takes no references.
        """


def is_exported(model: str | Path) -> bool:
    """Return whether a model is a folder that `vcp-clip export` wrote."""
    return (Path(model) / "export.json").is_file()


def open_engine(
    model: str | Path,
    device: str | None = None,
    dtype: str = "auto",
    num_threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> SegmentationEngine:
    """
    Open a checkpoint or an exported folder.

    Args:
        model (`str` or `Path`): folder of a checkpoint, Hub repository, or folder of `vcp-clip export`.
        device (`str`, *optional*): device of a checkpoint, such as `"cuda"`.
        dtype (`str`, *optional*, defaults to `"auto"`): data type of a checkpoint's weights, such as `"bfloat16"`.
        num_threads, providers (*optional*): arguments of [`ExportedSegmenter`].

    Raises:
        ValueError: an argument of the other kind of model was given, or the model cannot be read.
        FileNotFoundError: there is no such model.
    """
    if is_exported(model):
        _refuse("an exported graph", device=device, dtype=None if dtype == "auto" else dtype)
        from .exported_engine import ExportedEngine

        return ExportedEngine.open(model, num_threads, providers)
    _refuse("a checkpoint", num_threads=num_threads, providers=providers)
    from .pipeline_engine import PipelineEngine

    return PipelineEngine.open(model, device, dtype)


def _refuse(kind: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} has no effect on {kind}; leave it out.")
