"""Settings and outcome of a run on a video."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


__all__ = ["VideoReading", "VideoSummary"]


@dataclass(frozen=True)
class VideoReading:
    """
    Which frames of a video are analyzed, and how long a live source is read.

    Args:
        every (`int`, *optional*): interval between analyzed frames: every n-th frame is analyzed.
        fps (`float`, *optional*): number of frames to analyze per second. Without `every` and `fps`: all frames.
        duration (`float`, *optional*): seconds of the video file, or of the run on a live source, after which to end.
        max_frames (`int`, *optional*): number of frames to analyze in this run.
        give_up (`float`): seconds without a frame after which to end a live source.
        waiting_frames (`int`): newest frames of a live source that wait for the model; older ones are dropped.
        segment_seconds (`float`): longest duration of a segment of a live source, which has its own annotated video.
        input_options (`Mapping[str, str]`): options of FFmpeg, see [`open_video`].

    Raises:
        ValueError: a value is out of range.
    """

    every: int | None = None
    fps: float | None = None
    duration: float | None = None
    max_frames: int | None = None
    give_up: float = 30.0
    waiting_frames: int = 2
    segment_seconds: float = 600.0
    input_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("duration", "give_up", "segment_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} must be a number of seconds above 0.")
        for name in ("max_frames", "waiting_frames"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of frames, 1 or more.")


@dataclass
class VideoSummary:
    """
    Outcome of a run of [`predict_video`].

    Args:
        analyzed (`int`): frames segmented by this run.
        anomalous (`int`): those of them that are labeled anomalous.
        skipped (`int`): frames kept from earlier runs.
        dropped (`int`): frames of a live source that were dropped, because newer ones had arrived.
        reconnects (`int`): connections to a live source after the first one.
        errors (`list[tuple[str, str]]`): frame or source, and what failed.
        seconds (`float`): duration of the run.
        records (`Path`): `predictions.jsonl`.
        videos (`list[Path]`): annotated videos written by this run.
    """

    analyzed: int = 0
    anomalous: int = 0
    skipped: int = 0
    dropped: int = 0
    reconnects: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    records: Path | None = None
    videos: list[Path] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        """Return the throughput of this run."""
        return self.analyzed / self.seconds if self.seconds else 0.0

    def describe(self) -> str:
        """Return the counts in one line."""
        frames = f"{self.analyzed} frame{'' if self.analyzed == 1 else 's'}"
        parts = [f"{frames} segmented ({self.frames_per_second:.2f} frames/s)", f"{self.anomalous} anomalous"]
        counts = {"done before": self.skipped, "dropped": self.dropped, "reconnected": self.reconnects}
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        text = f"{', '.join(parts)}; records in {self.records}"
        return text if not self.videos else f"{text}; annotated video: {', '.join(map(str, self.videos))}"
