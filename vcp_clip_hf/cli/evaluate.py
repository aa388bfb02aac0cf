"""`vcp-clip evaluate`."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..version import EMBEDDED_CHECKPOINT
from .application import Verb
from .common import (
    DATASET_HELP,
    BatchSize,
    Copies,
    DType,
    ImageSize,
    Model,
    NumWorkers,
    Products,
    ReferenceCopies,
    ReferenceWeight,
    Resize,
    ScoreOption,
    WeightType,
    announce_embedded,
    load_dataset,
    name_and_folder,
    printable,
    with_input,
)


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..evaluation_references import ReferenceDraw
    from ..evaluation_report import EvaluationProtocol

__all__ = ["EvaluateVerb", "evaluate"]


class EvaluateVerb(Verb):
    """A verb whose options `--method` and `--dataset` take several values: `--method winclip anovl --dataset visa`."""

    def parse_args(self, context: typer.Context, arguments: list[str]) -> list[str]:
        """Repeat each option before each of its values."""
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


def evaluate(
    dataset: Annotated[list[str], typer.Argument(help=DATASET_HELP)],
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
    image_size: ImageSize = None,
    resize_mode: Resize = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = 2,
    dtype: DType = WeightType.auto,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write report.html into the output folder, and its data: curves, scores, the worst images. Needs"
            " --output and the extra `report`.",
        ),
    ] = False,
) -> None:
    """
    Measure a checkpoint on annotated datasets: a table per product, beside the paper's numbers.

    With --method, several methods are measured on the same data, in one table beside their published numbers.
    Datasets can also be given as `--dataset NAME`.

    accelerate chooses the device: the first accelerator, or the CPU with ACCELERATE_USE_CPU=true.
    """
    from accelerate import Accelerator

    from ..ablations import load_ablation
    from ..acceleration_settings import weights_and_settings
    from ..checkpoint_folder import load_config, load_parts
    from ..evaluation import evaluate as run
    from ..evaluation_details import DETAILS
    from ..evaluation_report import PROTOCOLS

    protocol = ("published" if method else "default") if protocol is None else protocol
    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"protocol {protocol!r} must be one of {', '.join(PROTOCOLS)}")
    measurement = PROTOCOLS[protocol] if score_mode is None else PROTOCOLS[protocol].with_score(score_mode.value)
    if report:
        _check_report(output)
    draw = _reference_draw(references, reference_seeds, reference_weight, reference_copies)
    if method:
        if ablation is not None or model != EMBEDDED_CHECKPOINT:
            raise typer.BadParameter("--method takes no --ablation and no --model; write --method vcp_clip=CHECKPOINT")
        if references == "stored":
            raise typer.BadParameter("--references stored is for one checkpoint; with --method, give k=N")
        if dtype is WeightType.float8:
            raise typer.BadParameter("--dtype float8 is for one checkpoint of VCP-CLIP, not for --method")
        for option, value in (("--image-size", image_size), ("--resize-mode", resize_mode)):
            if value is not None:
                raise typer.BadParameter(f"{option} is not for --method, whose methods have inputs of their own")
        _compare(
            *(method, backbone, dataset, split, products, measurement, seed, output, batch_size, num_workers, dtype),
            draw,
            report,
        )
        return
    if backbone is not None:
        raise typer.BadParameter("--backbone is for the methods of --method")
    announce_embedded(model)
    weights, settings = weights_and_settings(dtype.value)
    if ablation is None:
        parts = load_parts(model, dtype=weights)
    else:
        variant = load_ablation(ablation)
        variant.check_without_training(load_config(model))
        parts = load_parts(model, dtype=weights, **variant.config_fields)
        parts.image_processor = variant.image_processor(parts.image_processor)
    parts.image_processor = with_input(parts.image_processor, image_size, resize_mode)
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
        name, folder = name_and_folder(entry)
        with accelerator.main_process_first():
            datasets[name] = load_dataset(name, folder, split, products, **reading)
    results = run(
        parts.model,
        parts.image_processor,
        datasets,
        measurement,
        batch_size,
        num_workers,
        accelerator,
        accelerate=settings,
        sheets_dir=None if output is None else output / "sheets",
        details_dir=output / DETAILS if report else None,
        references=draw,
        reference_pools=(
            None
            if references in (None, "stored")
            else _training_images(dataset, split, products, accelerator, **reading)
        ),
    )
    if ablation is not None:
        results.settings["ablation"] = ablation
    if accelerator.is_main_process:
        typer.echo(results.to_text())
        if output is not None:
            results.save(output)
            typer.echo(f"results and sheets in {output}")
        if report:
            _write_report(output)


def _check_report(output: Path | None) -> None:
    """Check that a report can be written, before an evaluation that may take hours."""
    from ..reports.extra import require_extra

    if output is None:
        raise typer.BadParameter("--report needs a folder: --output FOLDER")
    require_extra()


def _write_report(output: Path) -> None:
    from ..reports.report import REPORT_FILE, write_report

    typer.echo(printable(f"wrote {write_report([output], output / REPORT_FILE)}"))


def _reference_draw(
    references: str | None, num_seeds: int | None, weight: float | None, copies: Copies | None
) -> "ReferenceDraw | None":
    """Return the draw that `--references k=N` requests; `None` without the option, and for stored references."""
    from ..evaluation_references import ReferenceDraw

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
    for name, folder in map(name_and_folder, dataset):
        # without a training split, references are drawn from the evaluated images
        with accelerator.main_process_first(), contextlib.suppress(ValueError):
            pools[name] = load_dataset(name, folder, "train", products, **options)
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
    report: bool,
) -> None:
    """Measure several methods, and print and write their table."""
    from accelerate import Accelerator

    from ..method_comparison import compare_methods, load_method
    from ..reports.read_run import METHODS_FOLDER

    entries = [name_and_folder(entry) for entry in methods]
    names = [name for name, _ in entries]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"--method names {max(names, key=names.count)!r} more than once")
    accelerator = Accelerator()
    datasets = {}
    for name, folder in map(name_and_folder, dataset):
        with accelerator.main_process_first():
            datasets[name] = load_dataset(name, folder, split, products)
    # all methods are loaded once, so that mistakes are errors before the first evaluation, which may take hours
    for name, source in entries:
        load_method(name, source, backbone, dtype.value)
    comparison = compare_methods(
        ((name, load_method(name, source, backbone, dtype.value)) for name, source in entries),
        datasets,
        protocol,
        seed,
        sheets_dir=None if output is None else output / "sheets",
        details_dir=output / METHODS_FOLDER if report else None,
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
                typer.echo(f"{result.title}: {printable(note)}")
        if output is not None:
            comparison.save(output)
            typer.echo(f"table and sheets in {output}")
        if report:
            for name, result in comparison.results.items():
                result.report.save(output / METHODS_FOLDER / name)
            _write_report(output)
