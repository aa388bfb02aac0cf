"""Video files and cameras: [`predict_video`] segments frames of a file, a network stream or a capture device."""

from .prediction import predict_video
from .sources import VideoError, is_video_source, without_secrets
from .summary import VideoReading, VideoSummary


__all__ = ["VideoError", "VideoReading", "VideoSummary", "is_video_source", "predict_video", "without_secrets"]
