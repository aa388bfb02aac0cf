"""Runs over videos: records, what a second run does, what is refused, live segments, and interruptions."""

import csv
import json
import signal
import time
from datetime import datetime, timezone

import av
import numpy as np
import pytest
from PIL import Image

from tests.processes import Program
from tests.video.clips import make_pipe, write_clip
from tests.video.test_live import camera, free_port
from vcp_clip_hf.prediction import predict_files, read_predictions
from vcp_clip_hf.video import VideoError, VideoReading, predict_video


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")


@pytest.fixture
def predict(pipe, tmp_path):
    def run(source, output="out", with_pipe=pipe, pictures=None, **settings):
        options = {key: settings.pop(key) for key in list(settings) if key not in VideoReading.__dataclass_fields__}
        reading = VideoReading(**settings)
        return predict_video(
            with_pipe, source, tmp_path / output, reading, progress=False, **(pictures or {}), **options
        )

    return run


def frames_of(output):
    return [record["frame"] for record in read_predictions(output)]


def length(path):
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def test_records_pictures_table_and_annotated_video(predict, clip, pipe, tmp_path):
    summary = predict(clip, every=6, regions=True, min_area=2)
    out = tmp_path / "out"
    records = read_predictions(out)
    assert (summary.analyzed, summary.skipped, summary.dropped, summary.errors) == (4, 0, 0, [])
    assert summary.anomalous == sum(record["label"] == "anomalous" for record in records)
    assert [record["frame"] for record in records] == [0, 6, 12, 18]
    assert [record["time_seconds"] for record in records] == [0, 0.6, 1.2, 1.8]
    for record in records:
        assert record["video"] == str(clip) and record["image"] == f"{clip}#frame={record['frame']}"
        assert record["name"] == f"clip/{record['frame']:08d}"
        assert {"score", "label", "regions", "height", "width"} <= set(record) and "segment" not in record
        for kind in ("map", "mask", "overlay"):
            assert (out / record[kind]).is_file()
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["time_seconds"] for row in rows] == ["0.0", "0.6", "1.2", "1.8"]
    assert summary.videos == [out / "annotated.mp4"] and length(out / "annotated.mp4") == 4

    # the same as for the frame as a picture
    with av.open(clip) as container:
        picture = next(frame for number, frame in enumerate(container.decode(video=0)) if number == 6).to_image()
    expected = pipe(picture)
    stored = np.asarray(Image.open(out / records[1]["map"]), np.float32) / 65535
    assert np.abs(stored - expected["anomaly_map"]).max() < 1e-5 + 1 / 65535
    assert records[1]["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_turned_videos_and_times_that_vary(predict, tmp_path):
    turned = write_clip(tmp_path / "turned.mp4", rotation=90, milliseconds=[0, 40, 700, 720, 2000])
    predict(turned, fps=2)
    records = read_predictions(tmp_path / "out")
    assert [(record["frame"], record["time_seconds"]) for record in records] == [(0, 0.0), (2, 0.7), (4, 2.0)]
    assert {(record["width"], record["height"]) for record in records} == {(48, 64)}
    with av.open(tmp_path / "out" / "annotated.mp4") as container:
        assert [float(frame.time) for frame in container.decode(video=0)] == pytest.approx([0, 0.7, 2.0], abs=2e-3)


@pytest.mark.parametrize(
    "name", ["a <script>alert(1)</script>.mp4".replace("/", "_"), "=1+1.mp4", "ü 漢.mkv", "udp:1.avi"]
)
def test_names_of_videos(predict, tmp_path, name, monkeypatch):
    write_clip(tmp_path / name, frames=2, codec="mpeg4")
    monkeypatch.chdir(tmp_path)
    assert predict(name).analyzed == 2
    for record in read_predictions(tmp_path / "out"):
        assert "<" not in record["name"] and (tmp_path / "out" / record["overlay"]).is_file()
        assert record["video"] == str(tmp_path / name)


def test_a_second_run_does_what_is_missing(predict, clip, tmp_path):
    assert predict(clip, every=4, max_frames=2).analyzed == 2
    assert length(tmp_path / "out" / "annotated.mp4") == 2
    (tmp_path / "out" / "maps" / "clip" / "00000000.png").unlink()
    second = predict(clip, every=4)
    assert (second.analyzed, second.skipped) == (4, 1)
    assert frames_of(tmp_path / "out") == [0, 4, 8, 12, 16]
    assert length(tmp_path / "out" / "annotated.mp4") == 5
    before = (tmp_path / "out" / "annotated.mp4").stat().st_mtime_ns
    third = predict(clip, every=4)
    assert (third.analyzed, third.skipped, third.videos) == (0, 5, [])
    assert (tmp_path / "out" / "annotated.mp4").stat().st_mtime_ns == before
    assert predict(clip, every=4, regions=True).analyzed == 5


def test_another_video_or_other_settings_are_refused(predict, clip, pipe, tmp_path):
    predict(clip, every=4)
    for settings, message in (({"every": 5}, "video: every: 4 -> 5"), ({"fps": 2.0}, "video: fps: not set -> 2.0")):
        with pytest.raises(ValueError, match=message):
            predict(clip, **settings)
    with pytest.raises(ValueError, match=r"threshold: 0\.5 -> 0\.25"):
        predict(clip, every=4, threshold=0.25)
    with pytest.raises(ValueError, match=r"video: source: .*clip\.mp4 -> .*other\.mp4"):
        predict(write_clip(tmp_path / "other.mp4"), every=4)
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"video: source: .*clip\.mp4 -> not set"):
        predict_files(pipe, [tmp_path / "a.png"], tmp_path / "out", progress=False)
    write_clip(clip, frames=9)  # another video under the same name
    with pytest.raises(ValueError, match="video: bytes: "):
        predict(clip, every=4)
    assert predict(clip, every=4, overwrite=True).analyzed == 3
    assert frames_of(tmp_path / "out") == [0, 4, 8]
    assert sorted(path.name for path in (tmp_path / "out" / "maps" / "clip").iterdir()) == [
        "00000000.png",
        "00000004.png",
        "00000008.png",
    ]


@pytest.mark.parametrize("name", ["annotated.mp4", "annotated-0002.mp4"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_video_is_not_replaced_by_its_annotated_video(predict, tmp_path, name, overwrite):
    (tmp_path / "out").mkdir()
    content = write_clip(tmp_path / "out" / name, frames=2).read_bytes()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "out" / name)
    for source in (tmp_path / "out" / name, tmp_path / "link.mp4"):
        with pytest.raises(ValueError, match="Use another output folder"):
            predict(source, pictures={"overwrite": overwrite})
    assert (tmp_path / "out" / name).read_bytes() == content and len(list((tmp_path / "out").iterdir())) == 1


def test_pictures_that_are_not_wanted(predict, clip, tmp_path):
    summary = predict(clip, every=10, pictures={"save_maps": None, "save_masks": False, "save_overlays": False})
    assert summary.videos == [] and summary.analyzed == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.csv",
        "predictions.jsonl",
        "run.json",
    ]
    with pytest.raises(ValueError, match="made from the overlays: leave out --no-overlays"):
        predict(clip, "other", pictures={"save_overlays": False}, annotated=True)
    with pytest.raises(ValueError, match="save_maps='jpg' must be"):
        predict(clip, "other", pictures={"save_maps": "jpg"})
    with pytest.raises(ValueError, match="tile_overlap=8 needs tile_size"):
        predict(clip, "other", tile_overlap=8)
    assert not (tmp_path / "other").exists()
    assert predict(clip, "third", max_frames=1, annotated=False).videos == []
    assert not (tmp_path / "third" / "annotated.mp4").exists()


def test_a_source_that_cannot_be_read_leaves_no_folder(predict, tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    for source, error in (
        (tmp_path / "text.mp4", VideoError),
        (tmp_path / "none.mp4", FileNotFoundError),
        ("x", ValueError),
    ):
        with pytest.raises(error):
            predict(source)
    assert not (tmp_path / "out").exists()


def test_options_that_no_frame_can_be_segmented_with_are_an_error(predict, clip, tmp_path):
    Image.new("L", (10, 10), 255).save(tmp_path / "roi.png")
    with pytest.raises(ValueError, match=r"clip\.mp4#frame=0: .*10"):
        predict(clip, roi_mask=str(tmp_path / "roi.png"))
    # nothing was recorded, so that corrected options are not refused
    Image.new("L", (64, 48), 255).save(tmp_path / "roi.png")
    assert predict(clip, roi_mask=str(tmp_path / "roi.png"), every=10).analyzed == 2


def test_a_damaged_video_is_analyzed_as_far_as_it_goes(predict, tmp_path):
    path = write_clip(tmp_path / "cut.mp4", container_options={"movflags": "faststart"}, options={"g": "1", "bf": "0"})
    path.write_bytes(path.read_bytes()[:-600])
    summary = predict(path)
    assert 5 < summary.analyzed < 20 and len(frames_of(tmp_path / "out")) == summary.analyzed
    assert [name for name, _ in summary.errors] == [str(path)] and "is damaged or incomplete" in summary.errors[0][1]
    assert length(tmp_path / "out" / "annotated.mp4") == summary.analyzed


def test_a_live_source_is_recorded_in_segments(predict, tmp_path):
    url, out = f"tcp://127.0.0.1:{free_port()}?token=s3cret", tmp_path / "out"
    settings = {"fps": 10, "input_options": {"listen": "1"}, "give_up": 8.0}
    began = datetime.now(timezone.utc)
    with camera(url, "mpegts", 20, 1, "pause", 2):
        summary = predict(url, max_frames=20, segment_seconds=0.6, waiting_frames=50, **settings)
    records = read_predictions(out)
    assert summary.analyzed == len(records) == 20 and summary.reconnects == 1
    segments = [record["segment"] for record in records]
    assert segments == sorted(segments) and segments[0] == 1 and max(segments) in (3, 4)
    times = [record["time_seconds"] for record in records]
    assert times == sorted(times)
    for record in records:
        assert "s3cret" not in json.dumps(record)
        assert record["image"] == f"{record['video']}#segment={record['segment']}&frame={record['frame']}"
        assert began < datetime.fromisoformat(record["time"]) < datetime.now(timezone.utc)
        assert 0 <= record["latency_seconds"] < 5 and record["dropped"] == 0
        assert record["name"].startswith("127.0.0.1_")
    assert [path.name for path in summary.videos] == [
        f"annotated-{segment:04d}.mp4" for segment in sorted(set(segments))
    ]
    assert sum(length(path) for path in summary.videos) == 20
    assert "s3cret" not in (out / "run.json").read_text() + (out / "predictions.csv").read_text()

    # the next run adds segments; a video that is missing is written again
    summary.videos[0].unlink()
    with camera(url, "mpegts", 20, 2):
        again = predict(url, max_frames=3, **settings)
    assert {record["segment"] for record in read_predictions(out)} == {*segments, max(segments) + 1}
    assert again.videos == [out / f"annotated-{max(segments) + 1:04d}.mp4", summary.videos[0]]


def test_a_live_source_that_ends_is_reported_with_what_was_recorded(predict, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    with camera(url, "mpegts", 20, 1):
        summary = predict(url, every=5, input_options={"listen": "1"}, give_up=1.5, waiting_frames=9)
    assert summary.analyzed == 4 and length(tmp_path / "out" / "annotated-0001.mp4") == 4
    ((name, message),) = summary.errors
    assert name == url and message.startswith("No frame arrived for 1.5 seconds.")
    with pytest.raises(VideoError, match=r"No frame arrived for 0\.5 seconds"):
        predict(url, "other", give_up=0.5)


def test_a_live_source_is_read_for_a_duration(predict, tmp_path):
    url = f"udp://127.0.0.1:{free_port()}"
    with camera(f"{url}?pkt_size=1316", "mpegts", 20, 20):
        began = time.monotonic()
        summary = predict(url, duration=3.0, pictures={"save_maps": None})
    assert 2.9 < time.monotonic() - began < 6 and summary.analyzed > 5 and not summary.errors


SLOW_RUN = """
import sys, time
from tests.video.clips import make_pipe
from vcp_clip_hf.video import VideoReading, predict_video
pipe = make_pipe()
forward = pipe.forward
pipe.forward = lambda *a, **k: (time.sleep(0.1), forward(*a, **k))[1]
reading = VideoReading(input_options={"listen": "1"} if "tcp" in sys.argv[1] else {})
predict_video(pipe, sys.argv[1], sys.argv[2], reading, progress=False, batch_size=1)
print("complete")
"""


def start(source, out):
    return Program("-c", SLOW_RUN, source, out)


def wait_for_records(out, count):
    deadline = time.monotonic() + 60
    while len(frames_of(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_over_a_file_goes_on(predict, clip, tmp_path, number):
    out = tmp_path / "out"
    process = start(clip, out)
    wait_for_records(out, 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "complete" not in output
    assert ("run the same command again" in errors) == (number != signal.SIGKILL)
    done = frames_of(out)
    assert 3 <= len(done) < 20 and done == list(range(len(done))) and not list(out.glob("*.mp4"))
    summary = predict(clip)
    assert (summary.skipped, summary.analyzed) == (len(done), 20 - len(done))
    assert frames_of(out) == list(range(20)) and length(out / "annotated.mp4") == 20


def test_a_signal_ends_a_live_run_in_order(tmp_path):
    url, out = f"tcp://127.0.0.1:{free_port()}", tmp_path / "out"
    process = start(url, out)
    with camera(url, "mpegts", 10, 60):
        wait_for_records(out, 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "complete" in output and "Stopping." in errors
    assert length(out / "annotated-0001.mp4") == len(frames_of(out)) >= 3
    assert not list(out.glob(".*"))
