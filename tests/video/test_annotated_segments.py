"""Which annotated videos a folder gets: one for a file, one for each segment of a live source."""

import av
import pytest
from PIL import Image

from vcp_clip_hf.video.annotated_segments import AnnotatedSegments, remove_annotated, write_missing


def make_records(folder, segments):
    """Return a record for each segment number (`None`: a file), with an overlay on the disk."""
    records = []
    (folder / "overlays").mkdir()
    for number, segment in enumerate(segments):
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(folder / f"overlays/{number}.jpg")
        record = {"overlay": f"overlays/{number}.jpg", "time_seconds": number / 10, "score": 0.5, "label": None}
        record |= {"image_threshold": None, "frame": number}
        records.append(record if segment is None else {**record, "segment": segment})
    return records


def lengths(folder):
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        with av.open(path) as container:
            found[path.name] = sum(1 for _ in container.decode(video=0))
    return found


def test_the_video_of_a_file(tmp_path):
    records = [*make_records(tmp_path, [None] * 3), {"error": "broken", "frame": 9}]
    assert write_missing(tmp_path, records, progress=False) == [tmp_path / "annotated.mp4"]
    assert lengths(tmp_path) == {"annotated.mp4": 3}
    assert write_missing(tmp_path, records, progress=False) == []


def test_segments_are_written_as_they_come(tmp_path):
    records = make_records(tmp_path, [1, 1, 2, 2, 2])
    with AnnotatedSegments(tmp_path, 600.0) as segments:
        for number, record in enumerate(records):
            segments.add(record)
            assert (tmp_path / "annotated-0001.mp4").exists() == (number >= 2)
            assert not (tmp_path / "annotated-0002.mp4").exists()
    assert segments.written == [tmp_path / "annotated-0001.mp4", tmp_path / "annotated-0002.mp4"]
    assert lengths(tmp_path) == {"annotated-0001.mp4": 2, "annotated-0002.mp4": 3}


def test_a_segment_that_was_cut_off_is_written_later(tmp_path):
    records = make_records(tmp_path, [1, 1, 2])
    with pytest.raises(OSError, match="disk"), AnnotatedSegments(tmp_path, 600.0) as segments:
        for record in records:
            segments.add(record)
        raise OSError("the disk is full")
    assert segments.written == [tmp_path / "annotated-0001.mp4"]
    assert lengths(tmp_path) == {"annotated-0001.mp4": 2} and not list(tmp_path.glob(".*"))
    assert write_missing(tmp_path, records, progress=False) == [tmp_path / "annotated-0002.mp4"]
    assert lengths(tmp_path) == {"annotated-0001.mp4": 2, "annotated-0002.mp4": 1}
    (tmp_path / "own.mp4").touch()
    remove_annotated(tmp_path)
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["own.mp4"]


def test_without_frames_there_is_no_video(tmp_path):
    with AnnotatedSegments(tmp_path, 600.0) as segments:
        pass
    assert segments.written == write_missing(tmp_path, [], progress=False) == [] == list(tmp_path.iterdir())
