"""Segment frames of a video: records, maps, masks and overlays as for image files, and annotated videos; resumable.

A file is read from its beginning, and frames that an earlier run with the same settings has recorded are kept. A live
source is recorded in segments; a new one begins with each run, with each connection, and every ten minutes.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ..input_images import InputImage, is_url, safe_name
from ..interruption import stop_on_signal
from ..json_lines import end_last_line
from ..picture_writer import PictureWriter, write_in_order
from ..pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from ..prediction import COCO_FILE, CSV_FILE, process_state, refuse_other_settings, remove_results
from ..prediction_records import RECORDS, file_state, read_predictions, write_csv, write_records
from ..run_settings import RunSettings
from .annotated_segments import AnnotatedSegments, annotated_path, annotated_videos, remove_annotated, write_missing
from .frames import FrameChoice, VideoFrame
from .live import LiveReader
from .readers import FileReader, FrameReader
from .sources import VideoError, VideoSource, import_av
from .summary import VideoReading, VideoSummary


__all__ = ["predict_video"]

_INTERRUPTED = "Interrupted. The finished frames are recorded: run the same command again to segment the rest."
_STOPPING = "Stopping. The finished frames are recorded; a second Ctrl-C ends at once."


def predict_video(
    pipe: AnomalySegmentationPipeline,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    reading: VideoReading | None = None,
    save_maps: str | None = "png",
    save_masks: bool = True,
    save_overlays: bool = True,
    annotated: bool | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> VideoSummary:
    """
    Segment frames of a video file, a network stream or a capture device.

    Reading a live source ends after `reading.duration` or `reading.max_frames`, on Ctrl-C or SIGTERM, or when no frame
    has arrived for `reading.give_up` seconds.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): the pipeline to run.
        source (`str` or `os.PathLike`): a video source, see [`is_video_source`].
        output_dir (`str` or `os.PathLike`):
            Folder to write: `predictions.jsonl`, `predictions.csv`, `run.json`, `maps/`, `masks/`, `overlays/`, and
            `annotated.mp4` or, for live sources, `annotated-0001.mp4`, ...
        reading ([`VideoReading`], *optional*): which frames are analyzed; default: all.
        save_maps, save_masks, save_overlays: see [`predict_files`].
        annotated (`bool`, *optional*):
            Whether to write annotated videos, which are made from the overlays; default: if overlays are written.
        batch_size (`int`): frames of a file per forward pass. Those of a live source are segmented one by one.
        overwrite (`bool`): whether to remove records, files and annotated videos of earlier runs first.
        progress (`bool`): whether to show a progress bar.
        options: further arguments of the pipeline's call.

    Returns:
        [`VideoSummary`]. In addition to the fields of image files, each record has

        - `video`: path or URL without credentials; `image` is this and the frame's number;
        - `frame`: number of the frame, from 0;
        - `time_seconds`: since the first frame of the file, or since the start of the run;

        and, for live sources,

        - `segment`: number of the segment, from 1;
        - `time`: when the frame was decoded, ISO 8601 in UTC;
        - `latency_seconds`: time from decoding until the results were written;
        - `dropped`: frames that were dropped before this one.

    Raises:
        ImportError: PyAV is not installed.
        OSError, VideoError: the source cannot be opened, or has no frame.
        ValueError: a value is out of range, the folder has results of another video or other settings, or the first
            frame cannot be segmented with these options.
        KeyboardInterrupt: the run on a file was interrupted; the finished frames are recorded.
    """
    if save_maps not in ("png", "npy", None):
        raise ValueError(f"save_maps={save_maps!r} must be 'png', 'npy' or None.")
    reading = reading or VideoReading()
    writer = PictureWriter(Path(output_dir), save_maps, save_masks, save_overlays)
    run = _Run(source, reading, writer)
    annotated = run.can_annotate(annotated)
    run.compare_settings(pipe, options, overwrite)
    live = run.video.is_live
    reader = run.make_reader(batch_size)
    run.prepare_folder(overwrite)
    summary = VideoSummary(skipped=len(run.done), records=run.output_dir / RECORDS)
    segments = AnnotatedSegments(run.output_dir, reading.segment_seconds) if live and annotated else None
    bar = tqdm(total=reader.expected, initial=summary.skipped, disable=not progress, unit="frame")
    started = time.monotonic()
    with bar, stop_on_signal(_STOPPING if live else _INTERRUPTED, raise_at_once=not live) as signals:
        ended = partial(_is_over, signals, started + reading.duration if live and reading.duration else math.inf)
        with reader, segments or nullcontext():
            for record in run.records(pipe, reader, batch_size, options, ended):
                _count(record, summary)
                if segments is not None and "overlay" in record:
                    segments.add(record)
                bar.set_postfix({"dropped": reader.dropped} if live else {}, refresh=False)
                bar.update()
        summary.seconds = time.monotonic() - started
        summary.dropped, summary.reconnects = reader.dropped, reader.reconnects
        records = run.sorted_records(reader, summary, interrupted=bool(signals))
        summary.videos += [] if segments is None else segments.written
        summary.videos += write_missing(run.output_dir, records, progress) if annotated else []
    return summary


def _folder_name(video: VideoSource) -> str:
    """Return the name of the folder of a video's maps, masks and overlays, from the file name or the URL."""
    if video.kind in ("file", "device"):
        return Path(video.location).stem
    address = urlsplit(video.name)
    return f"{address.netloc.removeprefix('***@')}{address.path}".rstrip("/").replace("/", "_").replace(":", "_")


def _is_over(signals: Sequence[int], deadline: float) -> bool:
    return bool(signals) or time.monotonic() >= deadline


def _count(record: Mapping[str, Any], summary: VideoSummary) -> None:
    if "error" in record:
        summary.errors.append((record["image"], record["error"]))
    else:
        summary.analyzed += 1
        summary.anomalous += record["label"] == "anomalous"


class _Run:
    """
    A run on a video: its output folder, the finished frames, and the steps from frames to records.

    Args:
        source (`str` or `os.PathLike`): the video.
        reading ([`VideoReading`]): which frames are analyzed.
        writer ([`PictureWriter`]): writes maps, masks and overlays.
    """

    def __init__(self, source: str | os.PathLike, reading: VideoReading, writer: PictureWriter):
        if process_state().num_processes > 1:
            raise ValueError("A video is read in one process. Start `vcp-clip predict` without `accelerate launch`.")
        import_av()
        self.video, self.choice = VideoSource.of(source), FrameChoice(reading.every, reading.fps)
        self.output_dir, self.reading, self.writer = writer.output_dir, reading, writer
        self.done: set[int] = set()
        self._segment, self._connection, self._segment_began = 0, -1, 0.0
        self._folder = _folder_name(self.video)
        self._keep_source()

    def _keep_source(self) -> None:
        """Refuse a file in the output folder that would be taken for an earlier annotated video, and removed."""
        if self.video.kind != "file" or not os.path.isfile(self.video.location):
            return
        if any(path.samefile(self.video.location) for path in annotated_videos(self.output_dir)):
            raise ValueError(
                f"{self.video.name!r} is in the output folder, under the name of an annotated video, and would be"
                " replaced. Use another output folder."
            )

    def can_annotate(self, annotated: bool | None) -> bool:
        """Return whether annotated videos are written."""
        if annotated and not self.writer.save_overlays:
            raise ValueError("Annotated videos are made from the overlays: leave out --no-overlays.")
        return self.writer.save_overlays if annotated is None else annotated

    def compare_settings(self, pipe: AnomalySegmentationPipeline, options: Mapping[str, Any], overwrite: bool) -> None:
        """Refuse settings that differ from those of the folder's results; find the finished frames."""
        state = file_state(self.video.location) if self.video.kind == "file" else {}
        chosen = {"every": self.reading.every, "fps": self.reading.fps}
        video = {"source": self.video.identity, **state, **{key: value for key, value in chosen.items() if value}}
        self.settings = RunSettings.of(pipe, options).of_video(video)
        pipe.check_call(**options)
        earlier = [] if overwrite else read_predictions(self.output_dir)
        refuse_other_settings(self.settings, self.output_dir, earlier)
        if self.video.is_live:
            self._segment = max((record.get("segment", 0) for record in earlier), default=0)
            return
        with_regions = bool(options.get("regions"))
        self.done = {record["frame"] for record in earlier if self._holds(record, with_regions)}

    def _holds(self, record: Mapping[str, Any], with_regions: bool) -> bool:
        return "error" not in record and not self.writer.lacks(record) and ("regions" in record or not with_regions)

    def make_reader(self, batch_size: int) -> FrameReader:
        """Return the reader that decodes the frames; it has opened the file."""
        options = self.reading.input_options
        if self.video.is_live:
            return LiveReader(self.video, self.choice, self.reading.waiting_frames, options, self.reading.give_up)
        return FileReader(self.video, self.choice, batch_size, options, self.done, self.reading.duration)

    def prepare_folder(self, overwrite: bool) -> None:
        """Make the folder, and store the settings."""
        if overwrite:
            remove_results(self.output_dir, read_predictions(self.output_dir))
            remove_annotated(self.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.settings.write(self.output_dir)

    def records(
        self,
        pipe: AnomalySegmentationPipeline,
        reader: FrameReader,
        batch_size: int,
        options: Mapping[str, Any],
        is_over: Callable[[], bool],
    ) -> Iterator[dict[str, Any]]:
        """Segment frames and write their results; yield each record after it is in the file."""
        with_image = self.writer.save_overlays or is_url(self.video.name)
        options = {**options, "output_image": with_image, "on_error": "return"}
        pairs = self._results(pipe, reader, batch_size, options, is_over)
        path, works = self.output_dir / RECORDS, bool(self.done)
        end_last_line(path)
        # Results of a live source are written before the next frame is taken
        ahead = 1 if self.video.is_live else 4 * batch_size
        with open(path, "a", encoding="utf-8") as file:
            for number, record in enumerate(write_in_order(self._write, pairs, ahead)):
                if "error" in record and not works:
                    raise ValueError(f"{record['image']}: {record['error']}")
                works = True
                if not number:
                    self._remove_outdated()
                file.write(json.dumps(record) + "\n")
                file.flush()
                yield record

    def _results(
        self,
        pipe: AnomalySegmentationPipeline,
        reader: FrameReader,
        batch_size: int,
        options: Mapping[str, Any],
        is_over: Callable[[], bool],
    ) -> Iterator[tuple[tuple[VideoFrame, int | None], dict[str, Any]]]:
        """Run the model; yield frames with the numbers of their segments, and results."""
        # Frames are segmented one by one, so that no frame waits for the results of another
        size = 1 if self.video.is_live else batch_size
        for frames in reader.batches(size, self.reading.max_frames, is_over):
            results = pipe([frame.picture for frame in frames], batch_size=len(frames), **options)
            yield from zip(((frame, self._segment_of(frame)) for frame in frames), results, strict=True)

    def _segment_of(self, frame: VideoFrame) -> int | None:
        """Return the number of a live frame's segment; call it for each frame, in order."""
        if not self.video.is_live:
            return None
        is_full = frame.seconds - self._segment_began >= self.reading.segment_seconds
        if frame.connection != self._connection or is_full:
            self._segment, self._connection, self._segment_began = self._segment + 1, frame.connection, frame.seconds
        return self._segment

    def _write(self, numbered: tuple[VideoFrame, int | None], result: dict[str, Any]) -> dict[str, Any]:
        """Write the pictures of a frame, and return its record."""
        frame, segment = numbered
        within = "" if segment is None else f"segment={segment}&"
        file = f"{frame.index:08d}" if segment is None else f"{segment:04d}-{frame.index:08d}"
        image = InputImage(f"{self.video.identity}#{within}frame={frame.index}", safe_name(f"{self._folder}/{file}"))
        record = self.writer(image, result)
        record |= {"video": self.video.identity, "frame": frame.index, "time_seconds": round(frame.seconds, 6)}
        if segment is not None:
            record |= {
                "segment": segment,
                "time": frame.arrived.isoformat(timespec="milliseconds"),
                "latency_seconds": round(time.monotonic() - frame.arrived_clock, 3),
                "dropped": frame.dropped,
            }
        return record

    def _remove_outdated(self) -> None:
        """Remove outputs that the first new record makes outdated, so that they are complete or absent."""
        for path in (self.output_dir / CSV_FILE, self.output_dir / COCO_FILE, annotated_path(self.output_dir, None)):
            path.unlink(missing_ok=True)

    def sorted_records(self, reader: FrameReader, summary: VideoSummary, interrupted: bool) -> list[dict[str, Any]]:
        """
        Write records in order, and the table.

        Raises:
            Exception: reading ended without any frame, or for a reason other than the video.
        """
        error = reader.error
        if error is not None and not isinstance(error, (VideoError, OSError)):
            raise error
        if not (summary.analyzed or summary.skipped or interrupted):
            raise error or VideoError(
                f"{self.video.name!r} has no frame that could be decoded. {reader.problem}".rstrip()
            )
        if error is not None:
            summary.errors.append((self.video.name, str(error)))
        records = sorted(read_predictions(self.output_dir), key=lambda each: (each.get("segment", 0), each["frame"]))
        write_records(records, self.output_dir / RECORDS)
        write_csv(records, self.output_dir / CSV_FILE)
        return records
