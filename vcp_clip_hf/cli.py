"""The command `vcp-clip`: predict, calibrate, evaluate, train, push, ... Verbs parse options; the work is elsewhere.

Each verb imports what it needs, so that this module itself imports neither torch nor transformers. The package's
`__init__` imports both, so `vcp-clip --help` waits for them; `vcp-clip --version` alone does not (`vcp_clip_cli.py`).
"""

import contextlib
import errno
import json
import platform
import re
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .version import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE, __version__, versions


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .configuration_frozen_clip import FrozenCLIPConfig
    from .evaluation_references import ReferenceDraw
    from .evaluation_report import EvaluationProtocol
    from .image_files import LeftOut
    from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline

__all__ = ["app", "main"]

app = typer.Typer(
    name="vcp-clip",
    help="Find and outline defects in images of products, without training on them (VCP-CLIP, zero-shot).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Options and verbs may be spelled with underscores; values are not normalized
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def _hide_progress_bars(context: typer.Context) -> None:
    """Hide the progress bars of transformers, unless `--verbose` is given."""
    if not context.find_root().params["verbose"]:
        from transformers.utils import logging

        logging.disable_progress_bar()


class _InterruptibleVerb(TyperCommand):
    """A verb that ends with one line and status 130 when it is interrupted."""

    def invoke(self, context: typer.Context) -> Any:
        from .interruption import EXIT_STATUS

        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            if not error.args:  # otherwise, the run has said how to go on
                typer.echo(f"Interrupted: {self.name} ended before it was done; run it again.", err=True)
            raise typer.Exit(EXIT_STATUS) from None


class _Verb(_InterruptibleVerb):
    """A verb that hides progress bars when it runs, which is after `--help` has been answered."""

    def invoke(self, context: typer.Context) -> Any:
        _hide_progress_bars(context)
        return super().invoke(context)


class _EvaluateVerb(_Verb):
    """A verb whose options `--method` and `--dataset` take several values: `--method winclip anovl --dataset visa`."""

    def parse_args(self, context: typer.Context, arguments: list[str]) -> list[str]:
        spread, several = [], None
        for argument in arguments:
            if argument.startswith("-"):
                several = argument if argument in ("--method", "--methods", "--dataset", "--datasets") else None
                if several is None:
                    spread.append(argument)
            elif several is not None and several.startswith("--method"):
                spread += ["--method", argument]
            else:
                spread.append(argument)
        return super().parse_args(context, spread)


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
    """Data types to compute with; auto is the one that the checkpoint is stored in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ScoreMode(str, Enum):
    """Ways to get the score of an image."""

    max = "max"
    top_k = "top_k"
    image_head = "image_head"


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


_DATASET_HELP = "NAME or NAME=FOLDER; names: `vcp-clip info --datasets`."
# Settings of the verbs that parse their arguments and `--help` themselves
_UNPARSED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Checkpoint: a folder or a Hub repository.", show_default="the embedded vcp-clip-tiny"
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; default: the first accelerator.")]
DType = Annotated[WeightType, typer.Option(help="Data type to compute with; auto: as stored.")]
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
Products = Annotated[list[str] | None, typer.Option(help="Products to restrict to; repeat for several.")]


def _announce_embedded(model: str) -> None:
    if model == EMBEDDED_CHECKPOINT:
        typer.echo(EMBEDDED_NOTICE, err=True)


def _make_pipeline(model: str, device: str | None, dtype: WeightType) -> "AnomalySegmentationPipeline":
    from transformers import pipeline

    from .checkpoint_folder import load_parts
    from .devices import check_device

    _announce_embedded(model)
    check_device(device)
    parts = load_parts(model, dtype=dtype.value)
    return pipeline(
        "anomaly-segmentation",
        model=parts.model,
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        device=device,
    )


def _drawn(sources: Sequence[str] | None, images: Sequence[str]) -> Sequence[str] | None:
    """Replace `k=N` among references by N of the given images, drawn at random with a fixed seed."""
    import random

    drawn = []
    for source in sources or ():
        match = re.fullmatch(r"k=(\d+)", source)
        if match is None:
            drawn.append(source)
            continue
        count = int(match[1])
        if not 0 < count < len(images):
            raise typer.BadParameter(
                f"--references {source}: after drawing {count} of the {len(images)} normal images, none would be left"
                " for the thresholds; name the folder to use all of them as references"
            )
        drawn += random.Random(0).sample(list(images), count)
    return drawn or None


def _set_references(
    pipe: "AnomalySegmentationPipeline",
    sources: Sequence[str] | None,
    weight: float | None,
    copies: Copies | None,
    max_patches: int | None,
    **reading: Any,
) -> list[tuple[str, str]]:
    """Set the references of the command line; return the sources and files that could not be read."""
    from .input_images import find_inputs

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
    typer.echo(_printable(memory.describe()), err=True)
    _list_left_out(found.left_out)
    return [*found.problems, *memory.unreadable]


def _origin(sources: Sequence[str]) -> str:
    """Return the names of the sources of references for the model card: at most four, or three and a number."""
    names = list(dict.fromkeys(Path(source).name or source for source in sources))
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"and {len(names) - 3} more"])


@app.command(cls=_Verb)
def predict(
    sources: Annotated[list[str], typer.Argument(help="Images, folders, patterns (in quotes) or URLs.")],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder to write.")],
    model: Model = EMBEDDED_CHECKPOINT,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Pixels of the map at or above it make the mask.")
    ] = None,
    image_threshold: Annotated[
        float | None, typer.Option(min=0, max=2, help="Images with a score at or above it are labeled anomalous.")
    ] = None,
    score_mode: ScoreOption = None,
    maps: Annotated[
        MapFormat, typer.Option(help="Anomaly maps: 16-bit PNG (value x 65535), float32 .npy, or none.")
    ] = MapFormat.png,
    masks: Annotated[bool, typer.Option(help="Write masks if a threshold is known.")] = True,
    overlays: Annotated[bool, typer.Option(help="Write the images with their maps drawn over them.")] = True,
    record_format: Annotated[
        RecordFormat,
        typer.Option(
            "--format", help="Records; jsonl and csv are always written, coco adds COCO annotations of the regions."
        ),
    ] = RecordFormat.jsonl,
    regions: Annotated[bool, typer.Option(help="Add regions (box, polygon, area, score) to the records.")] = False,
    min_area: Annotated[int, typer.Option(min=0, help="Smallest region to keep, in pixels.")] = 0,
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the tiles that large images are cut into, in pixels.")
    ] = None,
    tile_overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles in pixels; default: a quarter of the side.")
    ] = None,
    roi_mask: Annotated[
        Path | None, typer.Option(help="Mask of the images' size; only its non-black pixels are inspected.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest image to read, in pixels; default: 179 million.")
    ] = None,
    normal: Annotated[
        list[str] | None,
        typer.Option(help="State word or template of normal products, e.g. 'flawless'; repeat for several."),
    ] = None,
    abnormal: Annotated[
        list[str] | None, typer.Option(help="State word or template of defective products, e.g. 'scratched'.")
    ] = None,
    product_name: ProductName = None,
    references: References = None,
    reference_weight: ReferenceWeight = None,
    reference_copies: ReferenceCopies = None,
    max_reference_patches: MaxReferencePatches = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Compare all images, unlabeled ones of one product, with each other."),
    ] = False,
    subset_size: Annotated[
        int | None, typer.Option(min=10, help="With --together: images that are compared; default: all of them.")
    ] = None,
    zero_shot_weight: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With --together: weight of the zero-shot map in the result.", show_default="0"
        ),
    ] = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = 2,
    device: Device = None,
    dtype: DType = WeightType.auto,
    overwrite: Annotated[bool, typer.Option(help="Start anew: remove the results of earlier runs first.")] = False,
) -> None:
    """
    Segment images: maps, masks, overlays, and one record per image.

    When the command is run again, it segments what is new, changed, failed or incomplete. With another model or other
    settings it is refused, unless --overwrite starts anew. Images and sources that cannot be read are skipped, and
    listed at the end (exit status 1). `accelerate launch -m vcp_clip_hf.cli predict ...` divides the work among
    processes.

    With --references, each image is compared with normal images of the same product as well. Thresholds then need a
    calibration with the same references (`vcp-clip calibrate --references`), which the checkpoint keeps.

    With --together, results depend on the whole set of images, and the checkpoint's thresholds do not apply: give
    --threshold and --image-threshold for masks and labels. A run with another set of images is refused. The cost,
    which grows with the square of the number of images, is printed first.
    """
    from .coco_format import write_coco
    from .mutual_scoring import MutualScoring
    from .prediction import COCO_FILE, predict_files, read_predictions

    with_regions = regions or record_format is RecordFormat.coco
    options = {
        "min_area": min_area,
        "threshold": threshold,
        "image_threshold": image_threshold,
        "score_mode": None if score_mode is None else score_mode.value,
        "tile_size": tile_size,
        "tile_overlap": tile_overlap,
        "roi_mask": None if roi_mask is None else str(roi_mask),
        "max_pixels": max_pixels,
        "prompts": {"normal": normal or [], "abnormal": abnormal or []} if normal or abnormal else None,
        "product_name": product_name,
        "regions": with_regions or None,
    }
    of_together = {"subset_size": subset_size, "zero_shot_weight": zero_shot_weight}
    of_together = {name: value for name, value in of_together.items() if value is not None}
    if of_together and not together:
        raise typer.BadParameter("--subset-size and --zero-shot-weight need --together")
    if together and tile_size is not None:
        raise typer.BadParameter("--tile-size cannot be used with --together")
    if together and references:
        raise typer.BadParameter("--references cannot be used with --together")
    if together and reference_weight is not None:
        raise typer.BadParameter("--reference-weight cannot be used with --together")
    pipe = _make_pipeline(model, device, dtype)
    reading = {name: options[name] for name in ("tile_size", "tile_overlap", "max_pixels")}
    problems = _set_references(
        pipe,
        references,
        reference_weight,
        reference_copies,
        max_reference_patches,
        **{name: value for name, value in reading.items() if value is not None},
    )
    if with_regions and threshold is None and (together or pipe.image_processor.threshold is None):
        raise typer.BadParameter("regions need --threshold, or a checkpoint with one (`vcp-clip calibrate`)")
    summary = predict_files(
        pipe,
        sources,
        output,
        None if maps is MapFormat.none else maps.value,
        masks,
        overlays,
        batch_size,
        num_workers,
        overwrite,
        together=MutualScoring(**{**_own_mutual_scoring(pipe.model), **of_together}) if together else None,
        **{name: value for name, value in options.items() if value is not None},
    )
    if not _is_main_process():
        return
    if record_format is RecordFormat.coco:
        write_coco(read_predictions(output), output / COCO_FILE)
    typer.echo(_printable(summary.describe()))
    _list_left_out(summary.left_out)
    for path, error in (*problems, *summary.errors):
        typer.echo(f"failed: {_printable(path)}: {_printable(error)}", err=True)
    if problems or summary.errors:
        raise typer.Exit(1)


def _printable(text: str) -> str:
    """Return text on one line that every terminal can print, whatever bytes a file name has."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _list_left_out(left_out: "Sequence[tuple[str, LeftOut]]") -> None:
    for folder, counts in left_out:
        typer.echo(f"{_printable(folder)}: {counts}", err=True)


@app.command(cls=_Verb)
def calibrate(
    images: Annotated[
        list[str], typer.Argument(help="Normal images (files, folders, patterns), taken like those to inspect.")
    ],
    model: Model = EMBEDDED_CHECKPOINT,
    defects: Annotated[
        list[str] | None,
        typer.Option(help="Images with defects; with them, the threshold with the best F1 is chosen."),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            help="Target false-alarm rate on normal images, in (0, 1); not with --defects.", show_default="0.01"
        ),
    ] = None,
    pixel_false_alarm_rate: Annotated[
        float | None, typer.Option(help="Target false-alarm rate on normal pixels, in (0, 1), for masks.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", file_okay=False, help="Folder to save to; default: the checkpoint's own folder."
        ),
    ] = None,
    score_mode: ScoreOption = None,
    product_name: ProductName = None,
    references: References = None,
    reference_weight: ReferenceWeight = None,
    reference_copies: ReferenceCopies = None,
    max_reference_patches: MaxReferencePatches = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: DType = WeightType.auto,
) -> None:
    """
    Set the thresholds of a checkpoint, from normal images for a target false-alarm rate, or with defects too.

    With --references, the checkpoint keeps these images as its memory, and the thresholds hold for it. The references
    can be the normal images themselves: each is then scored against the others. If only some of the normal images are
    references, such as 4 that are drawn with `--references k=4`, the others set the thresholds.

    A rate needs at least 1 / rate - 1 normal images: 19 for 0.05, 99 for 0.01. Images that cannot be read are left
    out, and listed (exit status 1).
    """
    from .calibration import describe_calibration
    from .checkpoint_folder import CheckpointParts, save_calibration
    from .input_images import find_inputs

    if output is None:
        if model == EMBEDDED_CHECKPOINT or not Path(model).is_dir():
            raise typer.BadParameter(f"give --output: {model} is not a folder that can be changed")
        output = Path(model)
    pipe = _make_pipeline(model, device, dtype)
    normal, abnormal = find_inputs(images), find_inputs(defects or ())
    if not normal.images:
        raise FileNotFoundError(normal.describe_problems())
    references = _drawn(references, [image.path for image in normal.images])
    problems = _set_references(pipe, references, reference_weight, reference_copies, max_reference_patches)
    paths = [image.path for image in (*normal.images, *abnormal.images)]
    labels = [0] * len(normal.images) + [1] * len(abnormal.images) if defects else None
    calibration = pipe.calibrate(
        paths,
        labels,
        false_alarm_rate,
        pixel_false_alarm_rate,
        progress=True,
        batch_size=batch_size,
        on_error="return",
        **({} if score_mode is None else {"score_mode": score_mode.value}),
        **({} if product_name is None else {"product_name": product_name}),
    )
    save_calibration(output, CheckpointParts(pipe.model, pipe.image_processor, pipe.tokenizer, pipe.references))
    for line in describe_calibration(pipe.image_processor.calibration):
        typer.echo(line)
    typer.echo(f"saved in {output}")
    _list_left_out([*normal.left_out, *abnormal.left_out])
    problems += [*normal.problems, *abnormal.problems]
    for path, error in problems:
        typer.echo(f"failed: {_printable(path)}: {_printable(error)}", err=True)
    # the pipeline warns of each image that it cannot read
    if problems or calibration.num_images + (calibration.num_left_out or 0) < len(paths):
        raise typer.Exit(1)


@app.command(cls=_EvaluateVerb)
def evaluate(
    dataset: Annotated[list[str], typer.Argument(help=_DATASET_HELP)],
    model: Model = EMBEDDED_CHECKPOINT,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods to compare in one table, NAME or NAME=CHECKPOINT, instead of --model; names: `vcp-clip info"
            " --methods`. Several after one --method."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="CLIP of the methods without a checkpoint: a folder, a Hub repository, or embedded."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed that each of the methods starts from.")] = 0,
    split: Annotated[str, typer.Option(help="Part of the dataset.")] = "test",
    products: Products = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol of the measurement: default, authors, published or native.",
            show_default="default; published with --method",
        ),
    ] = None,
    score_mode: ScoreOption = None,
    references: Annotated[
        str | None,
        typer.Option(
            help="k=N: compare with N normal images of each product, drawn from its training images (or held out from"
            " the test images). stored: compare with the references in the checkpoint. Default: zero-shot."
        ),
    ] = None,
    reference_seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of draws of references; means and standard deviations are over them.",
            show_default="3",
        ),
    ] = None,
    reference_weight: ReferenceWeight = None,
    reference_copies: ReferenceCopies = None,
    ablation: Annotated[
        str | None, typer.Option(help="Ablation of the paper to apply to the checkpoint; one that needs no training.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="Folder for tables and sheets of pictures.")
    ] = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = 2,
    dtype: DType = WeightType.auto,
) -> None:
    """
    Measure a checkpoint on annotated datasets: a table per product, beside the paper's numbers.

    With --method, several methods are measured on the same data, in one table beside their published numbers.
    Datasets can also be given as `--dataset NAME`.

    accelerate chooses the device: the first accelerator, or the CPU with ACCELERATE_USE_CPU=true.
    """
    from accelerate import Accelerator

    from .ablations import load_ablation
    from .checkpoint_folder import load_config, load_parts
    from .evaluation import evaluate as run
    from .evaluation_report import PROTOCOLS

    protocol = ("published" if method else "default") if protocol is None else protocol
    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"protocol {protocol!r} must be one of {', '.join(PROTOCOLS)}")
    measurement = PROTOCOLS[protocol] if score_mode is None else PROTOCOLS[protocol].with_score(score_mode.value)
    draw = _reference_draw(references, reference_seeds, reference_weight, reference_copies)
    if method:
        if ablation is not None or model != EMBEDDED_CHECKPOINT:
            raise typer.BadParameter("--method takes no --ablation and no --model; write --method vcp_clip=CHECKPOINT")
        if references == "stored":
            raise typer.BadParameter("--references stored is for one checkpoint; with --method, give k=N")
        _compare(
            method, backbone, dataset, split, products, measurement, seed, output, batch_size, num_workers, dtype, draw
        )
        return
    if backbone is not None:
        raise typer.BadParameter("--backbone is for the methods of --method")
    _announce_embedded(model)
    if ablation is None:
        parts = load_parts(model, dtype=dtype.value)
    else:
        variant = load_ablation(ablation)
        variant.check_without_training(load_config(model))
        parts = load_parts(model, dtype=dtype.value, **variant.config_fields)
        parts.image_processor = variant.image_processor(parts.image_processor)
    if references == "stored":
        draw = parts.references
        if draw is None:
            raise typer.BadParameter(
                f"--references stored: {model} has no references; set some with `vcp-clip calibrate --references`, or"
                " draw some with --references k=N"
            )
    elif parts.references is not None and draw is None:
        typer.echo("The references of this checkpoint are not used: --references stored uses them.", err=True)
    accelerator, reading = Accelerator(), {"input_range": parts.image_processor.input_range}
    datasets = {}
    for entry in dataset:
        name, folder = _name_and_folder(entry)
        with accelerator.main_process_first():
            datasets[name] = _load_dataset(name, folder, split, products, **reading)
    report = run(
        parts.model,
        parts.image_processor,
        datasets,
        measurement,
        batch_size,
        num_workers,
        accelerator,
        sheets_dir=None if output is None else output / "sheets",
        references=draw,
        reference_pools=(
            None
            if references in (None, "stored")
            else _training_images(dataset, split, products, accelerator, **reading)
        ),
    )
    if ablation is not None:
        report.settings["ablation"] = ablation
    if accelerator.is_main_process:
        typer.echo(report.to_text())
        if output is not None:
            report.save(output)
            typer.echo(f"results and sheets in {output}")


def _reference_draw(
    references: str | None, num_seeds: int | None, weight: float | None, copies: Copies | None
) -> "ReferenceDraw | None":
    """Return the draw that `--references k=N` requests; `None` without the option, and for stored references."""
    from .evaluation_references import ReferenceDraw

    match = re.fullmatch(r"k=([1-9]\d*)", references or "")
    if match is None:
        if references not in (None, "stored"):
            raise typer.BadParameter(f"--references {references!r} must be k=N, such as k=4, or stored")
        if (num_seeds, weight, copies) != (None, None, None):
            raise typer.BadParameter(
                "--reference-seeds, --reference-weight and --reference-copies need --references k=N"
            )
        return None
    settings = {"weight": weight, "copies": None if copies is None else copies.value}
    settings = {name: value for name, value in settings.items() if value is not None}
    return ReferenceDraw(
        int(match[1]), **({} if num_seeds is None else {"seeds": range(num_seeds)}), settings=settings
    )


def _training_images(
    dataset: list[str], split: str, products: list[str] | None, accelerator: "Accelerator", **options: Any
) -> dict[str, Any]:
    """Return the training images of the datasets that have some, for references, unless they are evaluated too."""
    pools = {}
    if re.search(r"\b(train|all)\b", split):
        return pools
    for name, folder in map(_name_and_folder, dataset):
        # without a training split, references are drawn from the evaluated images
        with accelerator.main_process_first(), contextlib.suppress(ValueError):
            pools[name] = _load_dataset(name, folder, "train", products, **options)
    return pools


def _compare(
    methods: list[str],
    backbone: str | None,
    dataset: list[str],
    split: str,
    products: list[str] | None,
    protocol: "EvaluationProtocol",
    seed: int,
    output: Path | None,
    batch_size: int,
    num_workers: int,
    dtype: WeightType,
    draw: "ReferenceDraw | None",
) -> None:
    """Measure several methods, and print and write their table."""
    from accelerate import Accelerator

    from .method_comparison import compare_methods, load_method

    entries = [_name_and_folder(entry) for entry in methods]
    names = [name for name, _ in entries]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"--method names {max(names, key=names.count)!r} more than once")
    accelerator = Accelerator()
    datasets = {}
    for name, folder in map(_name_and_folder, dataset):
        with accelerator.main_process_first():
            datasets[name] = _load_dataset(name, folder, split, products)
    # all methods are loaded once, so that mistakes are errors before the first evaluation, which may take hours
    for name, source in entries:
        load_method(name, source, backbone, dtype.value)
    comparison = compare_methods(
        ((name, load_method(name, source, backbone, dtype.value)) for name, source in entries),
        datasets,
        protocol,
        seed,
        sheets_dir=None if output is None else output / "sheets",
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        references=draw,
        reference_pools=None if draw is None else _training_images(dataset, split, products, accelerator),
    )
    if accelerator.is_main_process:
        typer.echo(comparison.to_text())
        for result in comparison.results.values():
            for note in result.notes:
                typer.echo(f"{result.title}: {_printable(note)}")
        if output is not None:
            comparison.save(output)
            typer.echo(f"table and sheets in {output}")


def _load_dataset(name: str, folder: str | None, split: str | None, products: list[str] | None, **options: Any) -> Any:
    from .data import load_anomaly_dataset

    try:
        return load_anomaly_dataset(name, data_dir=folder, split=split, products=products, **options)
    except ValueError as error:
        advice = str(error).rstrip()
        if "data_dir" in advice:
            advice += f" (On the command line, data_dir is FOLDER in {name}=FOLDER.)"
        if "layout=" in advice or "_names=" in advice:
            advice += " (Options such as layout are arguments of load_anomaly_dataset, in Python.)"
        raise ValueError(advice) from error


def _name_and_folder(entry: str) -> tuple[str, str | None]:
    """Split NAME=FOLDER or NAME."""
    name, _, folder = entry.partition("=")
    return name, folder or None


@app.command(cls=_InterruptibleVerb, context_settings=_UNPARSED)
def train(context: typer.Context) -> None:
    """Train a checkpoint: `--config FILE` and `--SETTING VALUE`; see `vcp-clip train --help`."""
    from .training_config import TrainingConfig

    config = TrainingConfig.from_arguments(
        context.args,
        prog="vcp-clip train",
        description="Train the learned part of a checkpoint on an auxiliary dataset. Settings come from a file"
        " (`learning_rate: 4e-5`) and from the command line (`--learning-rate 4e-5`), which overrides the file. The"
        " defaults are the paper's with VisA as auxiliary dataset.",
    )
    _hide_progress_bars(context)
    from .interruption import EXIT_STATUS
    from .training import train as run

    result = run(config)
    if _is_main_process():
        typer.echo(f"step {result.state.step}, loss {result.loss:.4f}, {result.images_per_second:.1f} images/s")
        for folder in (result.last, result.best):
            if folder is not None:
                typer.echo(str(folder))
    if result.interrupted:
        raise typer.Exit(EXIT_STATUS)


@app.command(cls=_InterruptibleVerb, context_settings=_UNPARSED)
def convert(context: typer.Context) -> None:
    """Convert the authors' .pth checkpoint into a folder for from_pretrained; see `vcp-clip convert --help`."""
    from .convert_vcp_clip_to_hf import main as run

    _hide_progress_bars(context)
    run(context.args, prog="vcp-clip convert")


@app.command(cls=_Verb)
def export(
    output: Annotated[Path, typer.Option("--output", "--output-dir", "-o", file_okay=False, help="Folder to write.")],
    format: Annotated[ExportFormat, typer.Option(help="Format to write.")] = ExportFormat.onnx,
    model: Model = EMBEDDED_CHECKPOINT,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images for the comparison of export and model; default: generated ones."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference allowed; default: 1e-4. Required with --int8.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize to 8 bits (onnx only).")] = False,
    calibration_images: Annotated[Path | None, typer.Option(help="Folder of images for --int8.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the square input in pixels; default: the checkpoint's.")
    ] = None,
    references: Annotated[
        bool,
        typer.Option("--references/--no-references", help="Build the checkpoint's references into the graph."),
    ] = True,
) -> None:
    """Export to ONNX, OpenVINO or a torch program; nothing is written unless its results equal the model's."""
    from .checkpoint_folder import load_parts
    from .export import export_model

    _announce_embedded(model)
    parts = load_parts(model, dtype="float32")
    report = export_model(
        parts.model,
        parts.image_processor,
        output,
        format.value,
        images,
        tolerance,
        int8,
        calibration_images,
        image_size,
        parts.references if references else None,
    )
    typer.echo(report.describe())


@app.command(cls=_Verb)
def card(
    model: Annotated[
        Path, typer.Option("--model", "-m", exists=True, file_okay=False, help="Folder of the checkpoint.")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="results.json of `vcp-clip evaluate --output`, made with this checkpoint."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    description: Annotated[str | None, typer.Option(help="One or two sentences below the title.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights: apache-2.0, other, ...")] = None,
    license_note: Annotated[str | None, typer.Option(help="Remark on the license.")] = None,
    backbone_note: Annotated[str | None, typer.Option(help="Origin of CLIP, if it is not from the Hub.")] = None,
    repository: Annotated[str | None, typer.Option(help="Address of the code.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="The Hub repository that the card is for.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: README.md in the folder.")
    ] = None,
) -> None:
    """
    Write the model card of a checkpoint's folder from its facts; new facts are stored in the folder first.

    A README that a person wrote or edited is not changed.
    """
    from .checkpoint_facts import add_results, set_statements
    from .model_card import write_model_card

    set_statements(
        model,
        name=name,
        description=description,
        license=license,
        license_note=license_note,
        backbone=backbone_note,
        repository=repository,
    )
    for path in results or ():
        add_results(model, _read_json(path))
    written = write_model_card(model, output, repo_id)
    if written is None:
        raise typer.Exit(1)
    typer.echo(f"wrote {written}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Pass a results.json of `vcp-clip evaluate`.") from error


RepoId = Annotated[str, typer.Argument(help="Hub repository: owner/name. Created if missing.")]
Revision = Annotated[str | None, typer.Option(help="Branch to push to; created if missing.")]
Tag = Annotated[str | None, typer.Option(help="Tag for the commit, e.g. v1.0.")]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Visibility of a repository that is created.")
]
Message = Annotated[str | None, typer.Option("--message", help="Commit message.")]


@app.command(cls=_Verb)
def push(
    repo_id: RepoId,
    model: Model = EMBEDDED_CHECKPOINT,
    adapter_only: Annotated[
        bool | None,
        typer.Option("--adapter-only/--full", help="Push the learned part only, or CLIP too; default: as stored."),
    ] = None,
    code: Annotated[bool, typer.Option("--code/--no-code", help="Push the code too, for trust_remote_code.")] = True,
    backbone: Annotated[str | None, typer.Option(help="Hub repository of CLIP, for --adapter-only.")] = None,
    backbone_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the backbone's repository.")
    ] = None,
    revision: Revision = None,
    tag: Tag = None,
    private: Private = None,
    message: Message = None,
) -> None:
    """
    Push a checkpoint to the Hub: weights, image processor, tokenizer, card, code; in one commit.

    Log in first with `hf auth login`, or set HF_TOKEN.
    """
    from .hub import push_checkpoint

    commit = push_checkpoint(
        model,
        repo_id,
        adapter_only=adapter_only,
        include_code=code,
        backbone=backbone,
        backbone_revision=backbone_revision,
        revision=revision,
        tag=tag,
        private=private,
        commit_message=message,
    )
    typer.echo(commit.commit_url)


@app.command(cls=_Verb)
def push_dataset(
    dataset: Annotated[str, typer.Argument(help=_DATASET_HELP)],
    repo_id: RepoId,
    split: Annotated[str | None, typer.Option(help="Part of the dataset; default: all parts.")] = None,
    products: Products = None,
    revision: Revision = None,
    tag: Tag = None,
    private: Private = None,
    message: Message = None,
) -> None:
    """
    Push a dataset to the Hub as parquet with a card, for plain `datasets.load_dataset`.

    Check the dataset's license first: a permission to use images is not a permission to publish them.
    """
    from .hub import push_dataset as run

    name, folder = _name_and_folder(dataset)
    records = _load_dataset(name, folder, split, products)
    commit = run(records, repo_id, revision=revision, tag=tag, private=private, commit_message=message)
    typer.echo(commit.commit_url)


@app.command(cls=_Verb)
def info(
    model: Model = EMBEDDED_CHECKPOINT,
    datasets: Annotated[bool, typer.Option("--datasets", help="List the datasets that can be read.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods that can be compared.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print versions, device and the facts of a checkpoint, for bug reports."""
    if datasets:
        from .data import list_datasets

        for summary in list_datasets():
            paper = " (paper)" if summary.in_paper else ""
            typer.echo(f"{summary.name:<16}{summary.title}{paper}; {summary.license}")
        return
    if methods:
        from .configuration_vcp_clip import VCPCLIPConfig
        from .methods import METHODS

        for config in (VCPCLIPConfig, *(METHODS[name].config_class for name in sorted(METHODS))):
            typer.echo(f"{config.model_type:<16}{config.title}: {config.source}")
        return
    facts = _facts(model)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        for line in _as_text(value).splitlines():
            typer.echo(f"{name:<22}{line}")
            name = ""


def _facts_of_vcp_clip(config: "FrozenCLIPConfig") -> dict[str, Any]:
    """Return facts that other methods do not have."""
    from .configuration_vcp_clip import VCPCLIPConfig

    if not isinstance(config, VCPCLIPConfig):
        return {}
    prompts = [*config.normal_prompts, *config.abnormal_prompts]
    return {"prompts": prompts, "fusion weight": config.fusion_weight}


def _as_text(value: Any) -> str:
    """Return a fact as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_as_text, value))
    return "none" if value is None else str(value)


def _facts(model: str) -> dict[str, Any]:
    import torch

    from .calibration import describe_calibration
    from .checkpoint_folder import load_config, load_image_processor
    from .reference_pictures import load_references

    config = load_config(model)
    processor = load_image_processor(model, config)
    references = load_references(model)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        **versions("torch", "transformers", "accelerate", "huggingface_hub", "numpy", "pillow"),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "device": str(accelerator) if accelerator is not None else f"cpu, {torch.get_num_threads()} threads",
        "checkpoint": model,
        "method": config.title,
        "backbone": " ".join(
            [*([config.backbone_name_or_path] if config.backbone_name_or_path else []), "included"]
            if config.backbone_included
            else [f"{config.backbone_name_or_path} (not included)"]
        ),
        "image size": list(config.input_size),
        "feature layers": getattr(config, "feature_layers", None),
        **_facts_of_vcp_clip(config),
        "smoothing sigma": processor.smoothing_sigma,
        "score mode": processor.score_mode,
        "threshold": processor.threshold,
        "image threshold": processor.image_threshold,
        "references": None if references is None else references.describe(),
        "calibration": "\n".join(describe_calibration(processor.calibration)) if processor.calibration else None,
    }


def _own_mutual_scoring(model: Any) -> dict[str, Any]:
    """Return the comparison settings of a model such as MuSc; an empty dictionary for other models."""
    return model.config.mutual_scoring().settings() if getattr(model, "judges_products", False) else {}


def _is_main_process() -> bool:
    from .prediction import process_state

    return process_state().is_main_process


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show progress bars of loading, and tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line. A mistake of the user ends in a sentence, with `--verbose` in a traceback.

    Args:
        arguments (`Sequence[str]`, *optional*): arguments after the name of the program; `sys.argv[1:]` by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(arguments, prog_name="vcp-clip")
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or "--verbose" in arguments:
            raise
        typer.echo(f"error: {sentence}".encode("utf-8", "backslashreplace").decode(), err=True)
        sys.exit(1)


def _sentence(error: Exception) -> str | None:
    """Return what a mistake of the user or a limit of the machine is called; `None` for errors of the program."""
    if isinstance(error, OSError) and error.errno is not None:
        return _system_sentence(error)
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return "The memory is not sufficient. Use a smaller batch size (--batch-size), smaller tiles, or --device cpu."
    # ImportError: an extra is not installed; FloatingPointError: a training run diverged
    if not isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return None
    # A worker process of a data loader sends its traceback as text
    return re.sub(r"^Caught .*\nOriginal Traceback .*\n\w+: ", "", str(error).rstrip(), flags=re.DOTALL)


def _system_sentence(error: OSError) -> str:
    """Return an error of the operating system with the way out."""
    reason = error.strerror or str(error)
    place = "" if error.filename is None else f"{str(error.filename)!r}: "
    ways = {
        errno.ENOSPC: "Free some space, or write to another disk; then run the command again.",
        errno.EDQUOT: "Free some space, or write to another disk; then run the command again.",
        errno.EFBIG: "The file system or the limit of this user (ulimit -f) allows no larger file.",
        errno.EACCES: "Change the permissions, or choose another place.",
        errno.EPERM: "Change the permissions, or choose another place.",
        errno.EROFS: "Choose a place that can be written.",
        errno.EEXIST: "A file has the name of the folder to write. Choose another name.",
        errno.ENOTDIR: "A file has the name of a folder. Choose another name.",
        errno.EISDIR: "A folder has the name of a file. Choose another name.",
        errno.ENOENT: "Check the spelling.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }
    return f"{place}{reason}. {ways.get(error.errno, '')}".rstrip()


if __name__ == "__main__":
    main()
