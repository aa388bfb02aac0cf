"""The command `vcp-clip`: predict, calibrate, evaluate, train, push, ... Thin: the work is done elsewhere."""

import json
import platform
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from transformers import pipeline
from transformers.utils import logging

from .version import EMBEDDED_CHECKPOINT, __version__


__all__ = ["app", "main"]

app = typer.Typer(
    name="vcp-clip",
    help="Find and outline defects on products that no one has labelled (VCP-CLIP, zero-shot).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class MapFormat(str, Enum):
    """How maps are written."""

    png = "png"
    npy = "npy"
    none = "none"


class ExportFormat(str, Enum):
    """What a model can be exported to."""

    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"


class RecordFormat(str, Enum):
    """Tables beside the records."""

    jsonl = "jsonl"
    csv = "csv"
    coco = "coco"


Model = Annotated[str, typer.Option("--model", "-m", help="Checkpoint: a folder or a Hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the first accelerator.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one forward pass.")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Processes that read images ahead.")]


def _tell_if_embedded(model: str) -> None:
    if model == EMBEDDED_CHECKPOINT:
        typer.echo(
            "No --model given: using the embedded vcp-clip-tiny, for demonstrations; it was trained on generated"
            " images only.",
            err=True,
        )


def _make_pipeline(model: str, device: str | None, dtype: str):
    _tell_if_embedded(model)
    try:
        return pipeline("anomaly-segmentation", model=model, device=device, dtype=dtype)
    except OSError as error:
        raise OSError(f"{model!r} could not be loaded. {error}") from error


@app.command()
def predict(
    sources: Annotated[list[str], typer.Argument(help="Images, folders, patterns (in quotes) or URLs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    model: Model = EMBEDDED_CHECKPOINT,
    threshold: Annotated[float | None, typer.Option(help="Pixels at or above it are abnormal.")] = None,
    image_threshold: Annotated[float | None, typer.Option(help="Images at or above it are anomalous.")] = None,
    maps: Annotated[
        MapFormat, typer.Option(help="16-bit PNG (value x 65535), float32 .npy, or none.")
    ] = MapFormat.png,
    masks: Annotated[bool, typer.Option(help="Write masks, where a threshold is known.")] = True,
    overlays: Annotated[bool, typer.Option(help="Write the images under their maps.")] = True,
    record_format: Annotated[
        RecordFormat, typer.Option("--format", help="csv is always written; coco adds regions as annotations.")
    ] = RecordFormat.jsonl,
    regions: Annotated[bool, typer.Option(help="Add regions (box, polygon, area, score) to the records.")] = False,
    min_area: Annotated[int, typer.Option(min=0, help="Drop regions of fewer pixels.")] = 0,
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Look at large images in tiles of so many pixels.")
    ] = None,
    tile_overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that tiles share (default: a quarter).")
    ] = None,
    roi_mask: Annotated[Path | None, typer.Option(help="Picture of the images' size, non-zero where to look.")] = None,
    normal: Annotated[list[str] | None, typer.Option(help="Other state word or template, e.g. 'flawless'.")] = None,
    abnormal: Annotated[list[str] | None, typer.Option(help="Its counterpart, e.g. 'scratched'.")] = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = 2,
    device: Device = None,
    dtype: DType = "auto",
    overwrite: Annotated[bool, typer.Option(help="Segment again what is recorded already.")] = False,
) -> None:
    """
    Segment images: maps, masks, overlays, and one record for each image.

    Finished images are skipped when the command is run again. Images that cannot be read are listed at the end, with
    exit status 1; the others are done. `accelerate launch -m vcp_clip_hf.cli predict ...` shares the work.
    """
    from .prediction import predict_files, read_predictions, write_coco

    options = {"min_area": min_area}
    for name, value in (
        ("threshold", threshold),
        ("image_threshold", image_threshold),
        ("tile_overlap", tile_overlap),
    ):
        if value is not None:
            options[name] = value
    if tile_size is not None:
        options["tile_size"] = tile_size
    if roi_mask is not None:
        options["roi_mask"] = str(roi_mask)
    if normal or abnormal:
        options["prompts"] = {"normal": normal or [], "abnormal": abnormal or []}
    pipe = _make_pipeline(model, device, dtype)
    if record_format is RecordFormat.coco or regions:
        options["regions"] = True
        if threshold is None and pipe.image_processor.threshold is None:
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
        **options,
    )
    if not _is_main_process():
        return
    if record_format is RecordFormat.coco:
        write_coco(read_predictions(output), output / "predictions.coco.json")
    typer.echo(
        f"{summary.predicted} images segmented ({summary.images_per_second:.2f} images/s a process),"
        f" {summary.skipped} done before, {len(summary.errors)} failed; records in {summary.records}"
    )
    for path, error in summary.errors:
        typer.echo(f"failed: {path}: {error}", err=True)
    if summary.errors:
        raise typer.Exit(1)


@app.command()
def calibrate(
    images: Annotated[list[str], typer.Argument(help="Normal images (files, folders, patterns), like those to come.")],
    model: Model = EMBEDDED_CHECKPOINT,
    defects: Annotated[
        list[str] | None, typer.Option(help="Images with defects too: then the threshold with the best F1 is taken.")
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Wished rate of normal images flagged.")] = 0.01,
    pixel_false_alarm_rate: Annotated[
        float | None, typer.Option(help="Wished part of normal pixels flagged, for masks.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save; default: into the checkpoint's folder.")
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: DType = "auto",
) -> None:
    """Set the thresholds of a checkpoint from normal images alone, with a stated false-alarm rate."""
    from .checkpoint_folder import CheckpointParts, save_calibration
    from .prediction import list_inputs

    if output is None:
        if model == EMBEDDED_CHECKPOINT or not Path(model).is_dir():
            raise typer.BadParameter(f"give --output: {model} is not a folder of yours to change")
        output = Path(model)
    pipe = _make_pipeline(model, device, dtype)
    normal = [image.path for image in list_inputs(images)]
    labels = None
    if defects:
        broken = [image.path for image in list_inputs(defects)]
        labels = [0] * len(normal) + [1] * len(broken)
        normal += broken
    calibration = pipe.calibrate(normal, labels, false_alarm_rate, pixel_false_alarm_rate, batch_size=batch_size)
    save_calibration(output, CheckpointParts(pipe.model, pipe.image_processor, pipe.tokenizer))
    typer.echo(calibration.describe())
    typer.echo(f"saved in {output}")


@app.command()
def evaluate(
    dataset: Annotated[list[str], typer.Argument(help="NAME or NAME=FOLDER; names: `vcp-clip info --datasets`.")],
    model: Model = EMBEDDED_CHECKPOINT,
    split: Annotated[str, typer.Option(help="Part of the dataset.")] = "test",
    products: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    protocol: Annotated[str, typer.Option(help="default, authors or native.")] = "default",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="For tables and sheets of pictures.")] = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = 2,
    dtype: DType = "auto",
) -> None:
    """Measure a checkpoint on annotated datasets: per-product table, beside the paper's numbers."""
    from accelerate import Accelerator
    from transformers import AutoImageProcessor, AutoModel

    from .data import load_anomaly_dataset
    from .evaluation import evaluate as run
    from .evaluation_report import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"protocol {protocol!r} must be one of {', '.join(PROTOCOLS)}")
    accelerator = Accelerator()
    datasets = {}
    for entry in dataset:
        name, _, folder = entry.partition("=")
        with accelerator.main_process_first():
            datasets[name] = load_anomaly_dataset(name, data_dir=folder or None, split=split, products=products)
    report = run(
        AutoModel.from_pretrained(model, dtype=dtype),
        AutoImageProcessor.from_pretrained(model),
        datasets,
        protocol,
        batch_size,
        num_workers,
        accelerator,
        sheets_dir=None if output is None else output / "sheets",
    )
    if accelerator.is_main_process:
        typer.echo(report.to_text())
        if output is not None:
            report.save(output)
            typer.echo(f"results and sheets in {output}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Train a checkpoint: `--config FILE` and `--name value` for every setting; see `vcp-clip train --help`."""
    from .training import train as run
    from .training_config import TrainingConfig

    config = TrainingConfig.from_arguments(context.args, prog="vcp-clip train", description=TrainingConfig.__doc__)
    result = run(config)
    if _is_main_process():
        typer.echo(f"step {result.state.step}, loss {result.loss:.4f}, {result.images_per_second:.1f} images/s")
        for folder in (result.last, result.best):
            if folder is not None:
                typer.echo(str(folder))
    if result.interrupted:
        raise typer.Exit(130)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def convert(context: typer.Context) -> None:
    """Convert the authors' .pth checkpoint into a folder for from_pretrained; see `vcp-clip convert --help`."""
    from .convert_vcp_clip_to_hf import main as run

    run(context.args)


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "--output_dir", "-o", help="Folder to write.")],
    format: Annotated[ExportFormat, typer.Option(help="What to write.")] = ExportFormat.onnx,
    model: Model = EMBEDDED_CHECKPOINT,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to compare model and export on (default: generated ones).")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference allowed (default: 1e-4; with --int8, give one).")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to 8 bits (onnx only).")] = False,
    calibration_images: Annotated[
        Path | None, typer.Option("--calibration-images", "--calibration_images", help="Folder of images for --int8.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", "--image_size", min=1, help="Other side of the square input.")
    ] = None,
) -> None:
    """Export to ONNX, OpenVINO or a torch program; nothing is written unless it answers as the model does."""
    from .export import export_model
    from .image_processing_vcp_clip import VCPCLIPImageProcessor
    from .modeling_vcp_clip import VCPCLIPModel

    _tell_if_embedded(model)
    report = export_model(
        VCPCLIPModel.from_pretrained(model, dtype="float32"),
        VCPCLIPImageProcessor.from_pretrained(model),
        output,
        format.value,
        images,
        tolerance,
        int8,
        calibration_images,
        image_size,
    )
    typer.echo(report.describe())


@app.command()
def card(
    model: Annotated[
        Path, typer.Option("--model", "-m", exists=True, file_okay=False, help="Folder of the checkpoint.")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="results.json of `vcp-clip evaluate --output`, made with this checkpoint."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    description: Annotated[str | None, typer.Option(help="A sentence or two below it.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights: apache-2.0, other, ...")] = None,
    license_note: Annotated[str | None, typer.Option(help="What else there is to say on it.")] = None,
    backbone_note: Annotated[str | None, typer.Option(help="Where CLIP comes from, if not from the Hub.")] = None,
    repository: Annotated[str | None, typer.Option(help="Address of the code.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="The Hub repository that the card is for.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: README.md in the folder.")] = None,
) -> None:
    """
    Write the model card of a checkpoint's folder from its facts, after keeping new ones beside it.

    A README that a person wrote or edited stays as it is.
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
        add_results(model, json.loads(path.read_text(encoding="utf-8")))
    written = write_model_card(model, output, repo_id)
    if written is None:
        raise typer.Exit(1)
    typer.echo(f"wrote {written}")


RepoId = Annotated[str, typer.Argument(help="Hub repository: owner/name. Made if missing.")]
Revision = Annotated[str | None, typer.Option(help="Branch to push to; made if missing.")]
Tag = Annotated[str | None, typer.Option(help="To name the commit with, v1.0 say.")]
Private = Annotated[bool | None, typer.Option("--private/--public", help="For a repository that is made.")]
Message = Annotated[str | None, typer.Option("--message", help="Of the commit.")]


@app.command()
def push(
    repo_id: RepoId,
    model: Model = EMBEDDED_CHECKPOINT,
    adapter_only: Annotated[
        bool | None,
        typer.Option("--adapter-only/--full", help="Only the learned part, or CLIP too; default: as it is stored."),
    ] = None,
    code: Annotated[bool, typer.Option("--code/--no-code", help="Push the code too, for trust_remote_code.")] = True,
    backbone: Annotated[str | None, typer.Option(help="Hub repository of CLIP, with --adapter-only.")] = None,
    backbone_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of that.")] = None,
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


@app.command()
def push_dataset(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME=FOLDER; names: `vcp-clip info --datasets`.")],
    repo_id: RepoId,
    split: Annotated[str | None, typer.Option(help="Only this part.")] = None,
    products: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    revision: Revision = None,
    tag: Tag = None,
    private: Private = None,
    message: Message = None,
) -> None:
    """
    Push a dataset to the Hub as parquet with a card, for plain `datasets.load_dataset`.

    Mind its licence: to be allowed to use images is not to be allowed to publish them.
    """
    from .data import load_anomaly_dataset
    from .hub import push_dataset as run

    name, _, folder = dataset.partition("=")
    records = load_anomaly_dataset(name, data_dir=folder or None, split=split, products=products)
    commit = run(records, repo_id, revision=revision, tag=tag, private=private, commit_message=message)
    typer.echo(commit.commit_url)


@app.command()
def info(
    model: Model = EMBEDDED_CHECKPOINT,
    datasets: Annotated[bool, typer.Option("--datasets", help="List the datasets that can be read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Versions, device and the facts of a checkpoint, for bug reports."""
    if datasets:
        from .data import list_datasets

        for summary in list_datasets():
            paper = " (paper)" if summary.in_paper else ""
            typer.echo(f"{summary.name:<16}{summary.title}{paper}; {summary.license}")
        return
    facts = _facts(model)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<22}{value}")


def _facts(model: str) -> dict[str, object]:
    import accelerate
    import huggingface_hub
    import numpy
    import PIL
    import torch
    import transformers

    from .configuration_vcp_clip import VCPCLIPConfig
    from .image_processing_vcp_clip import VCPCLIPImageProcessor

    config = VCPCLIPConfig.from_pretrained(model)
    processor = VCPCLIPImageProcessor.from_pretrained(model)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "vcp_clip_hf": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "huggingface_hub": huggingface_hub.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "device": str(accelerator) if accelerator is not None else f"cpu, {torch.get_num_threads()} threads",
        "checkpoint": model,
        "backbone": f"{config.backbone_name_or_path} ({'included' if config.backbone_included else 'not included'})",
        "image size": list(config.input_size),
        "feature layers": config.feature_layers,
        "prompts": [*config.normal_prompts, *config.abnormal_prompts],
        "fusion weight": config.fusion_weight,
        "smoothing sigma": processor.smoothing_sigma,
        "score mode": processor.score_mode,
        "threshold": processor.threshold,
        "image threshold": processor.image_threshold,
        "calibration": processor.calibration,
    }


def _is_main_process() -> bool:
    from .prediction import process_state

    return process_state().is_main_process


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what is loaded and from where.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()
    if not verbose:
        logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes of the user end in one line, not in a traceback (with `--verbose` they do)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(arguments)
    except (ValueError, OSError, TypeError, ImportError) as error:  # of imports: a missing extra
        if "--verbose" in arguments:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
