"""`vcp-clip watch`."""

import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..version import EMBEDDED_CHECKPOINT
from .common import (
    AbnormalWords,
    BatchSize,
    DefectName,
    Device,
    DType,
    ImageSize,
    ImageThreshold,
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
    make_pipeline,
    printable,
    reading_options,
    set_references,
)


if TYPE_CHECKING:
    from ..watching import WatchSummary

__all__ = ["watch"]

# Seconds between two lines of progress: on a terminal, where a line replaces the previous one, and in a log
_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 60.0


class WhenDone(str, Enum):
    """What happens to an image file after its record is written."""

    keep = "keep"
    mark = "mark"
    move = "move"


def watch(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to watch, with all folders inside.")],
    output: Output,
    model: Model = EMBEDDED_CHECKPOINT,
    threshold: Threshold = None,
    image_threshold: ImageThreshold = None,
    score_mode: ScoreOption = None,
    maps: Maps = MapFormat.png,
    masks: Masks = True,
    overlays: Overlays = True,
    regions: Regions = False,
    min_area: MinArea = 0,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    roi_mask: RoiMask = None,
    max_pixels: MaxPixels = None,
    normal: NormalWords = None,
    abnormal: AbnormalWords = None,
    defect_name: DefectName = None,
    product_name: ProductName = None,
    references: References = None,
    reference_weight: ReferenceWeight = None,
    reference_copies: ReferenceCopies = None,
    max_reference_patches: MaxReferencePatches = None,
    settle_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for which a file must be unchanged before it is read.")
    ] = 1.0,
    give_up_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for which an unreadable file must be unchanged to count as damaged.")
    ] = 30.0,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two searches of the folder, in addition to notifications.")
    ] = 5.0,
    force_polling: Annotated[
        bool, typer.Option("--force-polling", help="Compare the folder's content instead of using notifications.")
    ] = False,
    when_done: Annotated[
        WhenDone,
        typer.Option(
            help="After an image is recorded: keep it, mark it by a file with the record next to it, or move it."
        ),
    ] = WhenDone.keep,
    move_to: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of done/ and failed/, for --when-done move. Default: the output."),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Address (http or https) that each result is posted to, as JSON.")
    ] = None,
    webhook_secret_file: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File with the secret that posts are signed with.")
    ] = None,
    webhook_overlay: Annotated[
        bool, typer.Option("--webhook-overlay", help="Post the overlay too, as base64 of a JPEG file.")
    ] = False,
    webhook_timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest time without a response, in seconds.")
    ] = 10.0,
    webhook_give_up: Annotated[
        float, typer.Option(min=0, help="Age in hours at which a result that cannot be posted is a dead letter.")
    ] = 24.0,
    resend_dead_letters: Annotated[
        bool, typer.Option("--resend-dead-letters", help="Only post the dead letters of the output folder again.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End after the images that are in the folder at the start, for cron.")
    ] = False,
    image_size: ImageSize = None,
    resize_mode: Resize = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: DType = WeightType.auto,
) -> None:
    """
    Watch a folder: segment each image once when it is completely written, record it, and post the result.

    Images are segmented in the order of their modification time, with the outputs of `predict`. A signal (Ctrl-C,
    SIGTERM) ends the command after the current batch. Run the same command again to continue: no image is lost or
    segmented twice, also after a crash. A replaced file counts as a new image.

    Results that the webhook refuses, or that cannot be delivered for --webhook-give-up hours, are kept in
    dead_letters/ of the output folder; --resend-dead-letters posts them again. With --once, failed images give exit
    status 1.
    """
    from ..dead_letters import resend_dead_letters as resend
    from ..prediction_records import RECORDS
    from ..watching import WatchTiming, watch_folder
    from ..webhook import Webhook, read_secret

    receiver = None
    if webhook is not None:
        secret = None if webhook_secret_file is None else read_secret(webhook_secret_file)
        receiver = Webhook(webhook, secret, webhook_overlay, webhook_timeout, webhook_give_up)
    elif webhook_secret_file is not None or webhook_overlay or resend_dead_letters:
        raise typer.BadParameter(
            "--webhook-secret-file, --webhook-overlay and --resend-dead-letters need --webhook with the address"
        )
    if webhook_overlay and not overlays:
        raise typer.BadParameter("--webhook-overlay needs --overlays")
    if move_to is not None and when_done is not WhenDone.move:
        raise typer.BadParameter("--move-to needs --when-done move")
    if resend_dead_letters:
        delivered, left = resend(output, receiver, lambda line: typer.echo(printable(line), err=True))
        typer.echo(f"{delivered} dead letter{'' if delivered == 1 else 's'} delivered, {left} left")
        raise typer.Exit(1 if left else 0)
    options = call_options(
        score_mode=score_mode,
        roi_mask=roi_mask,
        normal=normal,
        abnormal=abnormal,
        defect_name=defect_name,
        regions=regions,
        min_area=min_area,
        threshold=threshold,
        image_threshold=image_threshold,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        max_pixels=max_pixels,
        product_name=product_name,
    )
    pipe = make_pipeline(model, device, dtype, image_size, resize_mode)
    problems = set_references(
        pipe,
        references,
        reference_weight,
        reference_copies,
        max_reference_patches,
        **reading_options(options),
    )
    for path, error in problems:
        typer.echo(f"failed: {printable(path)}: {printable(error)}", err=True)
    check_regions(pipe, options)
    typer.echo(f"watching {printable(str(folder))}", err=True)
    progress = _Progress()
    summary = watch_folder(
        pipe,
        folder,
        output,
        None if maps is MapFormat.none else maps.value,
        masks,
        overlays,
        batch_size,
        WatchTiming(settle_seconds, give_up_seconds, poll_seconds),
        when_done.value,
        move_to,
        receiver,
        once,
        force_polling,
        progress,
        **options,
    )
    progress.end()
    typer.echo(printable(f"{summary.describe()}; records in {output / RECORDS}"))
    if once and (problems or summary.failed):
        raise typer.Exit(1)


class _Progress:
    """Shows counts: on one line of a terminal, which is overwritten; in a log, as a new line if they have changed."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.shown, self.due = "", 0.0

    def __call__(self, summary: "WatchSummary") -> None:
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + (_TERMINAL_SECONDS if self.on_terminal else _LOG_SECONDS)
        text = printable(summary.describe())
        if text == self.shown:
            return
        if self.on_terminal:
            typer.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif self.shown:
            typer.echo(text, err=True)
        self.shown = text

    def end(self) -> None:
        """End the line that is overwritten."""
        if self.on_terminal and self.shown:
            typer.echo(err=True)
