"""`vcp-clip calibrate`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..version import EMBEDDED_CHECKPOINT
from .common import (
    BatchSize,
    Device,
    DType,
    FastDecode,
    ImageSize,
    MaxReferencePatches,
    Model,
    ProductName,
    ReferenceCopies,
    References,
    ReferenceWeight,
    Resize,
    ScoreOption,
    WeightType,
    list_left_out,
    make_pipeline,
    printable,
    set_references,
)


__all__ = ["calibrate"]


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
    fast_decode: FastDecode = False,
    product_name: ProductName = None,
    references: References = None,
    reference_weight: ReferenceWeight = None,
    reference_copies: ReferenceCopies = None,
    max_reference_patches: MaxReferencePatches = None,
    image_size: ImageSize = None,
    resize_mode: Resize = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: DType = WeightType.auto,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write OUTPUT-report/report.html: histogram, false-alarm rates, highest-scoring normal images.",
        ),
    ] = False,
) -> None:
    """
    Set the thresholds of a checkpoint, from normal images for a target false-alarm rate, or with defects too.

    With --references, the checkpoint keeps these images as its memory, and the thresholds hold for it. The references
    can be the normal images themselves: each is then scored against the others. If only some of the normal images are
    references, such as 4 that are drawn with `--references k=4`, the others set the thresholds.

    A rate needs at least 1 / rate - 1 normal images: 19 for 0.05, 99 for 0.01. Images that cannot be read are left
    out, and listed (exit status 1).
    """
    from ..calibration import describe_calibration
    from ..calibration_record import CalibrationRecord
    from ..checkpoint_folder import CheckpointParts, save_calibration
    from ..input_images import find_inputs

    if output is None:
        if model == EMBEDDED_CHECKPOINT or not Path(model).is_dir():
            raise typer.BadParameter(f"give --output: {model} is not a folder that can be changed")
        output = Path(model)
    record_in = _folder_of_report(output) if report else None
    pipe = make_pipeline(model, device, dtype, image_size, resize_mode)
    normal, abnormal = find_inputs(images), find_inputs(defects or ())
    if not normal.images:
        raise FileNotFoundError(normal.describe_problems())
    references = _drawn(references, [image.path for image in normal.images])
    problems = set_references(pipe, references, reference_weight, reference_copies, max_reference_patches)
    paths = [image.path for image in (*normal.images, *abnormal.images)]
    labels = [0] * len(normal.images) + [1] * len(abnormal.images)
    record = CalibrationRecord([*normal.images, *abnormal.images], labels)
    calibration = pipe.calibrate(
        paths,
        labels if defects else None,
        false_alarm_rate,
        pixel_false_alarm_rate,
        progress=True,
        batch_size=batch_size,
        on_error="return",
        on_result=record if report else None,
        **({} if score_mode is None else {"score_mode": score_mode.value}),
        **({"fast_decode": True} if fast_decode else {}),
        **({} if product_name is None else {"product_name": product_name}),
    )
    save_calibration(output, CheckpointParts(pipe.model, pipe.image_processor, pipe.tokenizer, pipe.references))
    for line in describe_calibration(pipe.image_processor.calibration):
        typer.echo(line)
    typer.echo(f"saved in {output}")
    list_left_out([*normal.left_out, *abnormal.left_out])
    problems += [*normal.problems, *abnormal.problems]
    if record_in is not None:
        from ..reports.report import REPORT_FILE, write_report

        record.write(record_in, pipe.image_processor.calibration, output, problems)
        typer.echo(printable(f"wrote {write_report([record_in], record_in / REPORT_FILE, progress=True)}"))
    for path, error in problems:
        typer.echo(f"failed: {printable(path)}: {printable(error)}", err=True)
    # the pipeline warns of each image that it cannot read
    if problems or calibration.num_images + (calibration.num_left_out or 0) < len(paths):
        raise typer.Exit(1)


def _folder_of_report(output: Path) -> Path:
    """Return the folder for the report, or raise before the calibration if it cannot be written."""
    from ..calibration_record import record_folder
    from ..reports.extra import require_extra

    require_extra()
    return record_folder(output)


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
