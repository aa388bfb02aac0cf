"""Options that several verbs have, and what verbs do with them."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..version import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE


if TYPE_CHECKING:
    from ..image_files import LeftOut
    from ..image_processing_vcp_clip import VCPCLIPImageProcessor
    from ..pipeline_anomaly_segmentation import AnomalySegmentationPipeline

__all__ = [
    "DATASET_HELP",
    "UNPARSED",
    "AbnormalWords",
    "BatchSize",
    "Copies",
    "DType",
    "DefectName",
    "Device",
    "ExportFormat",
    "FastDecode",
    "ImageSize",
    "ImageThreshold",
    "MakeReport",
    "MapFormat",
    "Maps",
    "Masks",
    "MaxPixels",
    "MaxReferencePatches",
    "MinArea",
    "Model",
    "NormalWords",
    "NumWorkers",
    "Output",
    "Overlays",
    "ProductName",
    "Products",
    "RecordFormat",
    "ReferenceCopies",
    "ReferenceWeight",
    "References",
    "Regions",
    "Resize",
    "ResizeMode",
    "RoiMask",
    "ScoreMode",
    "ScoreOption",
    "Threshold",
    "TileOverlap",
    "TileSize",
    "WeightType",
    "announce_embedded",
    "call_options",
    "check_regions",
    "is_main_process",
    "list_left_out",
    "load_dataset",
    "make_pipeline",
    "name_and_folder",
    "printable",
    "reading_options",
    "set_references",
    "with_input",
]


class MapFormat(str, Enum):
    """File formats of anomaly maps."""

    png = "png"
    npy = "npy"
    none = "none"


class ExportFormat(str, Enum):
    """Formats that a model can be exported to."""

    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"


class WeightType(str, Enum):
    """
    Data types to compute with; auto is the one that the checkpoint is stored in, and float8 is bfloat16 with products
    of the image tower in float8, on a GPU.
    """

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float8 = "float8"


class ScoreMode(str, Enum):
    """Ways to get the score of an image."""

    max = "max"
    top_k = "top_k"
    image_head = "image_head"


class ResizeMode(str, Enum):
    """Ways to bring an image to the size of the model's input."""

    squash = "squash"
    pad = "pad"
    keep_ratio = "keep_ratio"


class Copies(str, Enum):
    """Copies of references: none, flips (2), rotations by right angles (3), or all (7)."""

    none = "none"
    flips = "flips"
    rotations = "rotations"
    all = "all"


class RecordFormat(str, Enum):
    """Formats written beside the records."""

    jsonl = "jsonl"
    csv = "csv"
    coco = "coco"
    labelme = "labelme"
    yolo = "yolo"


DATASET_HELP = "NAME or NAME=FOLDER; names: `vcp-clip info --datasets`."
# Settings of the verbs that parse their arguments and `--help` themselves
UNPARSED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Checkpoint: a folder or a Hub repository.", show_default="the embedded vcp-clip-tiny"
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; default: the first accelerator.")]
DType = Annotated[WeightType, typer.Option(help="Data type to compute with; auto: as stored; float8: GPU only.")]


class InputSize(tuple[int, int]):
    """Height and width of the model's input in pixels."""


def _input_size(text: str) -> InputSize:
    """Convert "320", a square, or "144x352", height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise typer.BadParameter(
            f"{text!r} must be a number of pixels, such as 320, or HEIGHTxWIDTH, such as 144x352."
        )
    return InputSize((int(sides[0]), int(sides[-1])))


ImageSize = Annotated[
    InputSize | None,
    typer.Option(
        parser=_input_size,
        metavar="SIZE",
        help="Size of the model's input in pixels, a side or HEIGHTxWIDTH, multiples of its patch size; default: the"
        " checkpoint's. A larger one reveals smaller defects and takes more time; calibrate with the same one.",
    ),
]
Resize = Annotated[
    ResizeMode | None,
    typer.Option(
        "--resize-mode",
        help="Images of another ratio than the input: squash them to it, pad them, or keep their ratio at the area of"
        " the input. Default: the checkpoint's way; calibrate with the same one.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Processes that read images ahead of the model.")]
ScoreOption = Annotated[
    ScoreMode | None,
    typer.Option(
        "--score-mode", help="Image score; image_head needs a checkpoint with one. Default: the checkpoint's setting."
    ),
]
ProductName = Annotated[
    str | None,
    typer.Option("--product-name", help="Product in the images, for other methods than VCP-CLIP; default: object."),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--references",
        help="Normal images of the product to compare with (file, folder, pattern); repeat for several.",
    ),
]
ReferenceWeight = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Weight of the references in the map; 0: zero-shot.", show_default="the checkpoint's"
    ),
]
ReferenceCopies = Annotated[
    Copies | None,
    typer.Option(
        help="Turned and mirrored copies of each reference, for parts that lie in any direction.", show_default="none"
    ),
]
MaxReferencePatches = Annotated[
    int | None,
    typer.Option(
        min=1, help="Patches of references to keep in each layer; beyond it, a coreset is kept.", show_default="10000"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder to write.")]
Threshold = Annotated[float | None, typer.Option(min=0, max=1, help="Pixels of the map at or above it make the mask.")]
ImageThreshold = Annotated[
    float | None, typer.Option(min=0, max=2, help="Images with a score at or above it are labeled anomalous.")
]
Maps = Annotated[MapFormat, typer.Option(help="Anomaly maps: 16-bit PNG (value x 65535), float32 .npy, or none.")]
Masks = Annotated[bool, typer.Option(help="Write masks if a threshold is known.")]
Overlays = Annotated[bool, typer.Option(help="Write the images with their maps drawn over them.")]
Regions = Annotated[bool, typer.Option(help="Add regions (box, polygon, area, score) to the records.")]
MinArea = Annotated[int, typer.Option(min=0, help="Smallest region to keep, in pixels.")]
TileSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the tiles that large images are cut into, in pixels.")
]
TileOverlap = Annotated[
    int | None, typer.Option(min=0, help="Overlap of tiles in pixels; default: a quarter of the side.")
]
RoiMask = Annotated[
    Path | None, typer.Option(help="Mask of the images' size; only its non-black pixels are inspected.")
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Largest image to read, in pixels; default: 179 million.")]
FastDecode = Annotated[
    bool,
    typer.Option(
        "--fast-decode", help="Decode large JPEG files at a reduced size: faster, with slightly different results."
    ),
]
NormalWords = Annotated[
    list[str] | None,
    typer.Option("--normal", help="State word or template of normal products, e.g. 'flawless'; repeat for several."),
]
AbnormalWords = Annotated[
    list[str] | None,
    typer.Option("--abnormal", help="State word or template of defective products, e.g. 'scratched'."),
]
DefectName = Annotated[
    list[str] | None,
    typer.Option(
        help="Noun for a kind of defect, e.g. 'scratch'; repeat for several. Each region gets the best name."
    ),
]
MakeReport = Annotated[
    bool, typer.Option("--report", help="Write report.html into the output folder; needs the extra `report`.")
]
Products = Annotated[list[str] | None, typer.Option(help="Products to restrict to; repeat for several.")]


def announce_embedded(model: str) -> None:
    """Say what the embedded checkpoint is, if it is the one in use."""
    if model == EMBEDDED_CHECKPOINT:
        typer.echo(EMBEDDED_NOTICE, err=True)


def with_input(
    image_processor: "VCPCLIPImageProcessor", image_size: InputSize | None, resize_mode: ResizeMode | None
) -> "VCPCLIPImageProcessor":
    """Return an image processor with another size of the input and another way to bring images to it, if given."""
    if resize_mode is not None:
        image_processor = image_processor.with_resize_mode(resize_mode.value)
    return image_processor if image_size is None else image_processor.at_size(image_size)


def make_pipeline(
    model: str,
    device: str | None,
    dtype: WeightType,
    image_size: InputSize | None = None,
    resize_mode: ResizeMode | None = None,
) -> "AnomalySegmentationPipeline":
    """Return the pipeline of a checkpoint, with the changes of its input that [`with_input`] makes."""
    from transformers import pipeline

    from ..acceleration_settings import weights_and_settings
    from ..checkpoint_folder import load_parts
    from ..devices import check_device
    from ..prediction import process_state

    announce_embedded(model)
    check_device(device)
    weights, settings = weights_and_settings(dtype.value)
    parts, state = load_parts(model, dtype=weights), process_state()
    processor = with_input(parts.image_processor, image_size, resize_mode)
    if state.num_processes > 1:
        # Without a device, every process would take the first one. In launched processes, a pipeline of
        # transformers leaves the model where it is
        device = device or state.device
        parts.model.to(device)
    return pipeline(
        "anomaly-segmentation",
        model=parts.model,
        image_processor=processor,
        tokenizer=parts.tokenizer,
        device=device,
        accelerate=settings,
    )


def set_references(
    pipe: "AnomalySegmentationPipeline",
    sources: Sequence[str] | None,
    weight: float | None,
    copies: Copies | None,
    max_patches: int | None,
    **reading: Any,
) -> list[tuple[str, str]]:
    """Set the references of the command line; return the sources and files that could not be read."""
    from ..input_images import find_inputs

    settings = {"copies": None if copies is None else copies.value, "max_patches": max_patches}
    settings = {name: value for name, value in settings.items() if value is not None}
    if not sources:
        if settings:
            raise typer.BadParameter("--reference-copies and --max-reference-patches need --references")
        if weight is not None and pipe.references is None:
            raise typer.BadParameter("--reference-weight needs --references, or a checkpoint with references")
        if weight is not None:
            pipe.set_references(pipe.references, weight)
        return []
    found = find_inputs(sources)
    if not found.images:
        raise FileNotFoundError(found.describe_problems() or f"No reference image was found in {', '.join(sources)}.")
    memory = pipe.set_references(
        [image.path for image in found.images],
        weight,
        **settings,
        source=_origin(sources),
        progress=True,
        on_error="return",
        **reading,
    )
    typer.echo(printable(memory.describe()), err=True)
    list_left_out(found.left_out)
    return [*found.problems, *memory.unreadable]


def call_options(
    score_mode: ScoreMode | None,
    roi_mask: Path | None,
    normal: Sequence[str] | None,
    abnormal: Sequence[str] | None,
    defect_name: Sequence[str] | None,
    regions: bool,
    **others: Any,
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that options of the command line stand for; `None` has no effect."""
    options = {
        "score_mode": None if score_mode is None else score_mode.value,
        "roi_mask": None if roi_mask is None else str(roi_mask),
        "prompts": {"normal": normal or [], "abnormal": abnormal or []} if normal or abnormal else None,
        "defect_names": defect_name or None,
        "regions": regions or bool(defect_name) or None,
        **others,
    }
    return {name: value for name, value in options.items() if value is not None}


def reading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call's arguments that references are read with, too."""
    return {name: options[name] for name in ("tile_size", "tile_overlap", "max_pixels") if name in options}


def check_regions(pipe: "AnomalySegmentationPipeline", options: Mapping[str, Any], together: bool = False) -> None:
    """Raise an error if regions are requested, and there is no threshold that finds them."""
    known = None if together else pipe.image_processor.threshold
    if options.get("regions") and options.get("threshold", known) is None:
        raise typer.BadParameter("regions need --threshold, or a checkpoint with one (`vcp-clip calibrate`)")


def _origin(sources: Sequence[str]) -> str:
    """Return the names of the sources of references for the model card: at most four, or three and a number."""
    names = list(dict.fromkeys(Path(source).name or source for source in sources))
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"and {len(names) - 3} more"])


# Characters that a terminal obeys: C0, delete, C1, and those that change the direction of text
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return text on one line that every terminal can print, and none obeys, whatever bytes a file name has."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.encode("utf-8", "backslashreplace").decode())


def list_left_out(left_out: "Sequence[tuple[str, LeftOut]]") -> None:
    """Print what was left out of folders."""
    for folder, counts in left_out:
        typer.echo(f"{printable(folder)}: {counts}", err=True)


def load_dataset(name: str, folder: str | None, split: str | None, products: list[str] | None, **options: Any) -> Any:
    """Load a dataset; its errors name the options of the command line."""
    from ..data import load_anomaly_dataset

    try:
        return load_anomaly_dataset(name, data_dir=folder, split=split, products=products, **options)
    except ValueError as error:
        advice = str(error).rstrip()
        if "data_dir" in advice:
            advice += f" (On the command line, data_dir is FOLDER in {name}=FOLDER.)"
        if "layout=" in advice or "_names=" in advice:
            advice += " (Options such as layout are arguments of load_anomaly_dataset, in Python.)"
        raise ValueError(advice) from error


def name_and_folder(entry: str) -> tuple[str, str | None]:
    """Split NAME=FOLDER or NAME."""
    name, _, folder = entry.partition("=")
    return name, folder or None


def is_main_process() -> bool:
    """Return whether this process prints, among those that `accelerate launch` started."""
    from ..prediction import process_state

    return process_state().is_main_process
