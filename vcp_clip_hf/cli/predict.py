"""`vcp-clip predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..version import EMBEDDED_CHECKPOINT
from .common import (
    AbnormalWords,
    BatchSize,
    DefectName,
    Device,
    DType,
    FastDecode,
    ImageSize,
    ImageThreshold,
    MakeReport,
    MapFormat,
    Maps,
    Masks,
    MaxPixels,
    MaxReferencePatches,
    MinArea,
    Model,
    NormalWords,
    Output,
    Overlays,
    ProductName,
    RecordFormat,
    ReferenceCopies,
    References,
    ReferenceWeight,
    Regions,
    Resize,
    RoiMask,
    ScoreOption,
    Threshold,
    TileOverlap,
    TileSize,
    WeightType,
    call_options,
    check_regions,
    is_main_process,
    list_left_out,
    make_pipeline,
    printable,
    reading_options,
    set_references,
)


__all__ = ["predict"]


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(help="Images, folders, patterns (in quotes), URLs; or one video or camera."),
    ],
    output: Output,
    model: Model = EMBEDDED_CHECKPOINT,
    threshold: Threshold = None,
    image_threshold: ImageThreshold = None,
    score_mode: ScoreOption = None,
    maps: Maps = MapFormat.png,
    masks: Masks = True,
    overlays: Overlays = True,
    record_format: Annotated[
        RecordFormat,
        typer.Option(
            "--format",
            help="Format of the records; jsonl and csv are always written. coco, labelme and yolo also write a folder"
            " with the regions, to correct them in an annotation tool; coco also writes one file.",
        ),
    ] = RecordFormat.jsonl,
    polygon_tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --format labelme or yolo: leave out corners within this distance, in pixels.",
            show_default="1",
        ),
    ] = None,
    regions: Regions = False,
    min_area: MinArea = 0,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    roi_mask: RoiMask = None,
    max_pixels: MaxPixels = None,
    fast_decode: FastDecode = False,
    normal: NormalWords = None,
    abnormal: AbnormalWords = None,
    defect_name: DefectName = None,
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
    every: Annotated[int | None, typer.Option(min=1, help="Video: analyze every n-th frame.")] = None,
    fps: Annotated[float | None, typer.Option(help="Video: frames to analyze per second.", show_default="all")] = None,
    duration: Annotated[
        float | None, typer.Option(help="Video: seconds to analyze, of a file from its beginning.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Video: frames to analyze in this run.")] = None,
    annotated_video: Annotated[
        bool | None,
        typer.Option(help="Video: write an annotated video with overlays and scores.", show_default="if overlays are"),
    ] = None,
    give_up: Annotated[
        float | None,
        typer.Option(help="Stream or camera: seconds without a frame after which to end.", show_default="30"),
    ] = None,
    input_option: Annotated[
        list[str] | None,
        typer.Option(help="Video: NAME=VALUE for FFmpeg, e.g. rtsp_transport=udp; repeat for several."),
    ] = None,
    image_size: ImageSize = None,
    resize_mode: Resize = None,
    batch_size: BatchSize = 8,
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read images ahead of the model.",
            show_default="2; with an accelerator, up to 8",
        ),
    ] = None,
    device: Device = None,
    dtype: DType = WeightType.auto,
    report: MakeReport = False,
    overwrite: Annotated[bool, typer.Option(help="Remove the results of earlier runs first.")] = False,
) -> None:
    """
    Segment images: maps, masks, overlays, and one record per image.

    When the command is run again, it segments what is new, changed, failed or incomplete. With another model or other
    settings it is refused, unless --overwrite removes the earlier results. Images and sources that cannot be read are
    skipped, and listed at the end (exit status 1). `accelerate launch -m vcp_clip_hf.cli predict ...` divides the work
    among processes.

    With --references, each image is compared with normal images of the same product as well. Thresholds then need a
    calibration with the same references (`vcp-clip calibrate --references`), which the checkpoint keeps.

    With --together, results depend on the whole set of images, and the checkpoint's thresholds do not apply: give
    --threshold and --image-threshold for masks and labels. A run with another set of images is refused. The cost,
    which grows with the square of the number of images, is printed first.

    A video file, a network stream (rtsp://...) or a camera (/dev/video0) must be the only source. If the model is too
    slow for a stream or camera, frames are dropped and counted; Ctrl-C ends the run.
    """
    from ..mutual_scoring import MutualScoring
    from ..prediction import predict_files

    options = call_options(
        score_mode=score_mode,
        roi_mask=roi_mask,
        normal=normal,
        abnormal=abnormal,
        defect_name=defect_name,
        regions=regions or record_format not in (RecordFormat.jsonl, RecordFormat.csv),
        min_area=min_area,
        threshold=threshold,
        image_threshold=image_threshold,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        max_pixels=max_pixels,
        fast_decode=fast_decode or None,
        product_name=product_name,
    )
    of_together = _given(subset_size=subset_size, zero_shot_weight=zero_shot_weight)
    if of_together and not together:
        raise typer.BadParameter("--subset-size and --zero-shot-weight need --together")
    of_video = _given(
        every=every,
        fps=fps,
        duration=duration,
        max_frames=max_frames,
        give_up=give_up,
        input_options=_input_options(input_option),
        annotated=annotated_video,
    )
    is_video = _is_video(sources, list(of_video))
    if together:
        if is_video:
            raise typer.BadParameter("--together cannot be used with a video")
        for option in _given(
            tile_size=tile_size,
            fast_decode=fast_decode or None,
            references=references or None,
            reference_weight=reference_weight,
        ):
            raise typer.BadParameter(f"--{option.replace('_', '-')} cannot be used with --together")
    if fast_decode:
        if is_video:
            raise typer.BadParameter("--fast-decode is for JPEG files, not for a video")
        for option in _given(tile_size=tile_size, references=references or None):
            raise typer.BadParameter(f"--{option.replace('_', '-')} cannot be used with --fast-decode")
    if is_video and record_format in (RecordFormat.labelme, RecordFormat.yolo):
        raise typer.BadParameter(f"--format {record_format.value} needs image files, not a video; save frames first")
    if report:
        from ..reports.extra import require_extra

        require_extra()
    pipe = make_pipeline(model, device, dtype, image_size, resize_mode)
    problems = set_references(
        pipe,
        references,
        reference_weight,
        reference_copies,
        max_reference_patches,
        **reading_options(options),
    )
    check_regions(pipe, options, together)
    pictures = {
        "save_maps": None if maps is MapFormat.none else maps.value,
        "save_masks": masks,
        "save_overlays": overlays,
    }
    if is_video:
        from ..video import VideoReading, predict_video

        annotated = of_video.pop("annotated", None)
        summary = predict_video(
            pipe,
            sources[0],
            output,
            VideoReading(**of_video),
            **pictures,
            annotated=annotated,
            batch_size=batch_size,
            overwrite=overwrite,
            **options,
        )
    else:
        summary = predict_files(
            pipe,
            sources,
            output,
            **pictures,
            batch_size=batch_size,
            num_workers=num_workers,
            overwrite=overwrite,
            together=MutualScoring(**{**_own_mutual_scoring(pipe.model), **of_together}) if together else None,
            **options,
        )
    if not is_main_process():
        return
    typer.echo(printable(summary.describe()))
    problems += _write_annotations(record_format, output, polygon_tolerance, is_video)
    if report:
        from ..reports.report import REPORT_FILE, write_report

        typer.echo(printable(f"wrote {write_report([output], output / REPORT_FILE, progress=True)}"))
    if not is_video:
        list_left_out(summary.left_out)
    for path, error in (*problems, *summary.errors):
        typer.echo(f"failed: {printable(path)}: {printable(error)}", err=True)
    if problems or summary.errors:
        raise typer.Exit(1)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _write_annotations(
    record_format: RecordFormat, output: Path, tolerance: float | None, is_video: bool
) -> list[tuple[str, str]]:
    """Write the regions for annotation tools; return images that could not be written, with the reasons."""
    from ..coco_folder import write_coco_folder
    from ..coco_format import write_coco
    from ..labelme_format import write_labelme
    from ..prediction import COCO_FILE, read_predictions
    from ..region_polygons import POLYGON_TOLERANCE
    from ..yolo_format import write_yolo

    if record_format in (RecordFormat.jsonl, RecordFormat.csv):
        return []
    records, folder = read_predictions(output), output / record_format.value
    tolerance = POLYGON_TOLERANCE if tolerance is None else tolerance
    if record_format is RecordFormat.coco:
        write_coco(records, output / COCO_FILE)
        if is_video:  # its frames are not files, which the folder would link
            return []
        written = write_coco_folder(records, folder)
    elif record_format is RecordFormat.labelme:
        written = write_labelme(records, folder, tolerance)
    else:
        written = write_yolo(records, folder, tolerance)
    typer.echo(printable(written.describe()))
    if record_format is not RecordFormat.coco:
        return written.problems
    for path, reason in written.problems:  # they are in the COCO file, so that the run has not failed
        typer.echo(f"not in {printable(str(folder))}: {printable(path)}: {reason}", err=True)
    return []


def _is_video(sources: Sequence[str], given: Sequence[str]) -> bool:
    """
    Return whether the only source is a video.

    Args:
        sources (`Sequence[str]`): sources of the command line.
        given (`Sequence[str]`): names of the settings of videos that were given.
    """
    from ..video import is_video_source, without_secrets

    videos = [source for source in sources if is_video_source(source)]
    if not videos:
        if given:
            raise typer.BadParameter(
                "--every, --fps, --duration, --max-frames, --annotated-video, --give-up and --input-option need"
                " a video or a camera"
            )
        return False
    if len(sources) > 1:
        raise typer.BadParameter(
            f"a video must be the only source of a call, with its own output folder; got {len(sources)} sources with"
            f" {without_secrets(videos[0])}"
        )
    return True


def _input_options(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """Return options of FFmpeg by name."""
    if pairs is None:
        return None
    options = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(name and value for name, value in options.items()):
        raise typer.BadParameter(f"--input-option needs NAME=VALUE, such as rtsp_transport=udp; got {pairs}")
    return options


def _own_mutual_scoring(model: Any) -> dict[str, Any]:
    """Return the comparison settings of a model such as MuSc; an empty dictionary for other models."""
    return model.config.mutual_scoring().settings() if getattr(model, "judges_products", False) else {}
