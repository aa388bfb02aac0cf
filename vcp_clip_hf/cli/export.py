"""`vcp-clip export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..version import EMBEDDED_CHECKPOINT
from .common import ExportFormat, ImageSize, Model, announce_embedded


__all__ = ["export"]


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
    image_size: ImageSize = None,
    references: Annotated[
        bool,
        typer.Option("--references/--no-references", help="Build the checkpoint's references into the graph."),
    ] = True,
) -> None:
    """Export to ONNX, OpenVINO or a torch program; nothing is written unless its results equal the model's."""
    from ..checkpoint_folder import load_parts
    from ..export import export_model

    announce_embedded(model)
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
