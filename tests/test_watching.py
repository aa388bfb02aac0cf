"""Watched folders: each complete image once, whatever happens to the files, the disk and the process."""

import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.watch_run import (
    QUICK,
    QUICK_RETRIES,
    names,
    records,
    save_image,
    start_process,
    tiny_pipe,
    watch_and_post,
    watch_as_nobody,
    watch_once,
    watch_until,
)
from tests.webhook_receiver import Receiver
from vcp_clip_hf.prediction import predict_files
from vcp_clip_hf.watching import WatchTiming, watch_folder
from vcp_clip_hf.webhook import Webhook


PATIENT = WatchTiming(settle_seconds=60, give_up_seconds=60, poll_seconds=60)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def later(action, seconds=0.3):
    """Call a function in a thread, while the test watches."""
    thread = threading.Timer(seconds, action)
    thread.start()
    return thread


# Images that exist at the start


def test_images_are_taken_in_the_order_of_their_change(folder, output):
    for index, name in enumerate(["z.png", "sub/b.png", "a.png", "same_2.png", "same_1.png"]):
        path = save_image(folder / name, index)
        os.utime(path, ns=(0, min(index, 3) * 10**9))
    save_image(folder / ".hidden.png")
    (folder / "notes.txt").write_text("not an image")
    summary = watch_once(folder, output, batch_size=2)
    assert names(output) == ["z.png", "b.png", "a.png", "same_1.png", "same_2.png"]
    assert [record["sequence"] for record in records(output)] == [1, 2, 3, 4, 5]
    assert summary.segmented == 5 and "5 segmented, 0 failed, 0 waiting" in summary.describe()
    for record in records(output):
        state = os.stat(record["image"])
        assert (record["bytes"], record["mtime_ns"]) == (state.st_size, state.st_mtime_ns)
        assert record["time"].startswith("20") and record["time"].endswith("+00:00")
        for kind in ("map", "mask", "overlay"):
            Image.open(output / record[kind]).load()
    assert watch_once(folder, output).segmented == 0 and len(records(output)) == 5


def test_results_equal_those_of_predict(folder, output, tmp_path):
    for index in range(3):
        save_image(folder / f"{index}.png", index)
    watch_once(folder, output, regions=True, min_area=2)
    predict_files(tiny_pipe(), [folder], tmp_path / "same", progress=False, regions=True, min_area=2)
    lines = (tmp_path / "same" / "predictions.jsonl").read_text().splitlines()
    for record, line in zip(records(output), lines, strict=True):
        expected = json.loads(line)
        assert {name: record[name] for name in expected} == expected
        for kind in ("map", "mask", "overlay"):
            assert (output / record[kind]).read_bytes() == (tmp_path / "same" / record[kind]).read_bytes()


def test_a_replaced_image_is_another_one(folder, output):
    save_image(folder / "a.png", 0)
    watch_once(folder, output)
    save_image(folder / "a.png", 1)
    watch_once(folder, output)
    first, second = records(output)
    assert first["image"] == second["image"] and (first["name"], second["name"]) == ("a", "a-2")
    assert (output / "maps" / "a.png").read_bytes() != (output / "maps" / "a-2.png").read_bytes()


def test_links_and_the_output_folder_inside_are_handled_as_by_predict(folder, tmp_path):
    save_image(tmp_path / "elsewhere" / "far.png")
    save_image(folder / "near.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    output = folder / "out"
    for _ in range(2):
        watch_once(folder, output)
        assert sorted(names(output)) == ["far.png", "link.png", "near.png"]
    watch_once(folder, folder / "other")
    assert len(names(folder / "other")) > 3  # the first output folder is an ordinary folder for it


def test_files_that_are_not_images_are_recorded_as_errors(folder, output):
    (folder / "text.png").write_text("text")
    (folder / "empty.png").write_bytes(b"")
    whole = save_image(folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:300])
    (folder / "broken.png").symlink_to(folder / "nowhere")
    summary = watch_once(folder, output)
    assert summary.segmented == 1 and summary.failed == 4
    errors = {Path(record["image"]).name: record.get("error") for record in records(output)}
    assert errors.pop("whole.png") is None
    assert all(len(error) > 20 for error in errors.values())
    assert "truncated" in errors["cut.png"] and "0 bytes" in errors["empty.png"]
    assert watch_once(folder, output).failed == 0  # recorded once


def test_a_file_that_may_not_be_read_is_an_error():
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        os.chmod(place, 0o777)
        folder, output = Path(place, "in"), Path(place, "out")
        save_image(folder / "a.png").chmod(0)
        save_image(folder / "b.png")
        process = start_process(watch_as_nobody, folder, output)
        process.join(60)
        assert process.exitcode == 0
        # both files may have one time of change, so that their order is open
        bad, good = sorted(records(output), key=lambda record: record["name"])
        assert "error" not in good and "a.png: the file may not be read (Permission denied)" in bad["error"]


# Images that arrive while the folder is watched


def test_two_hundred_images_at_once(folder, output, tmp_path):
    def deliver():
        for index in range(200):
            save_image(tmp_path / "ready" / f"{index % 4}" / f"{index:03d}.png", index)
        os.rename(tmp_path / "ready", folder / "new")

    later(deliver)
    summary = watch_until(lambda counts: counts.segmented == 200, folder, output, batch_size=64)
    assert summary.waiting == 0 and len(set(names(output))) == 200
    assert all(len(os.listdir(output / kind / "new" / "0")) == 50 for kind in ("maps", "masks", "overlays"))


def test_an_image_that_is_written_in_pieces_is_read_when_it_is_whole(folder, output):
    content = save_image(folder.parent / "whole.png").read_bytes()

    def write_slowly():
        with open(folder / "slow.png", "wb", buffering=0) as file:
            for start in range(0, len(content), 300):
                file.write(content[start : start + 300])
                time.sleep(0.15)  # longer than the settle time

    later(write_slowly)
    timing = WatchTiming(settle_seconds=0.05, give_up_seconds=5, poll_seconds=0.2)
    watch_until(lambda counts: counts.segmented + counts.failed == 1, folder, output, timing=timing)
    (record,) = records(output)
    assert "error" not in record and record["bytes"] == len(content)


def test_a_renamed_file_is_taken_at_once(folder, output):
    def deliver():
        for index in range(5):
            save_image(folder / f".{index}.tmp.png", index)
            os.rename(folder / f".{index}.tmp.png", folder / f"{index}.png")
            time.sleep(0.05)

    later(deliver, 1.0)
    started = time.monotonic()
    watch_until(lambda counts: counts.segmented == 5, folder, output, timing=PATIENT)
    assert time.monotonic() - started < 20 and names(output) == [f"{index}.png" for index in range(5)]


def test_a_file_that_is_written_directly_waits_for_the_settle_time(folder, output):
    later(lambda: save_image(folder / "a.png"), 0.5)
    seen = []

    def has_waited(counts):
        seen.append(counts.lag_seconds)
        return counts.lag_seconds > 1

    summary = watch_until(has_waited, folder, output, timing=PATIENT)
    assert (summary.segmented, summary.waiting) == (0, 1) and "1 waiting (lag 1." in summary.describe()


def test_changes_without_notifications_are_found_by_searching(folder, output, monkeypatch):
    monkeypatch.setattr(
        "vcp_clip_hf.folder_events.FolderEvents.wait", lambda events, seconds: time.sleep(seconds) or {}
    )
    later(lambda: save_image(folder / "new" / "a.png"))
    watch_until(lambda counts: counts.segmented == 1, folder, output)


def test_polling_can_be_forced(folder, output):
    later(lambda: save_image(folder / "new" / "a.png"))
    timing = WatchTiming(settle_seconds=0.1, give_up_seconds=5, poll_seconds=60)
    watch_until(lambda counts: counts.segmented == 1, folder, output, timing=timing, force_polling=True)


def test_a_file_that_is_gone_before_it_is_read_is_named(folder, output, caplog):
    save_image(folder / "a.png")
    path = save_image(folder / "b.png")

    def remove(counts):
        path.unlink(missing_ok=True)  # after the first search, before the batch
        return counts.segmented == 1 and not counts.waiting

    timing = WatchTiming(settle_seconds=0.5, give_up_seconds=1, poll_seconds=0.2)
    watch_until(remove, folder, output, timing=timing)
    assert names(output) == ["a.png"]


def test_a_file_that_waits_for_its_turn_and_goes_is_warned_of(folder, output, monkeypatch):
    said = []
    monkeypatch.setattr("vcp_clip_hf.complete_files.logger.warning", lambda text, *words: said.append(text % words))
    for index in range(3):
        os.utime(save_image(folder / f"{index}.png"), ns=(0, index))

    def remove(counts):
        if counts.segmented == 1:
            (folder / "2.png").unlink(missing_ok=True)
        return counts.segmented == 2 and not counts.waiting

    summary = watch_until(remove, folder, output, batch_size=1)
    assert names(output) == ["0.png", "1.png"] and summary.vanished == 1
    assert len(said) == 1 and "2.png: removed before it was read" in said[0]
    assert "1 removed before they were read" in summary.describe()


def test_a_folder_that_is_away_for_a_while(folder, output):
    save_image(folder / "a.png")
    away, seen = folder.with_name("away"), []

    def unmount(counts):
        if counts.segmented == 1 and not seen:
            os.rename(folder, away)
            seen.append("away")
        if "folder cannot be reached" in counts.problem and len(seen) == 1:
            save_image(away / "b.png", 1)
            os.rename(away, folder)
            seen.append("back")
        return counts.segmented == 2

    summary = watch_until(unmount, folder, output)
    assert seen == ["away", "back"] and names(output) == ["a.png", "b.png"] and not summary.problem


# A full disk


def test_a_full_disk_makes_images_wait(folder, output):
    for name in ("a", "b", "c"):
        save_image(folder / f"{name}.png")
    full = output / "maps" / "b.png"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        watch_once(folder, output)
    assert names(output) == ["a.png"]
    seen = []

    def free(counts):
        if "No space left" in counts.problem:
            seen.append(counts.waiting)
            full.unlink(missing_ok=True)
        return counts.segmented == 2

    summary = watch_until(free, folder, output)
    assert seen and names(output) == ["a.png", "b.png", "c.png"] and not summary.problem
    Image.open(full).load()


def test_outputs_that_cannot_be_written_are_errors_of_their_image(folder, output):
    save_image(folder / "a.png")
    (output / "maps" / "a.png").mkdir(parents=True)
    assert watch_once(folder, output).failed == 1
    assert "could not be written" in records(output)[0]["error"]


# What is refused


def test_a_folder_never_mixes_settings(folder, output, tmp_path):
    save_image(folder / "a.png")
    watch_once(folder, output)
    with pytest.raises(ValueError, match=r"other settings.*threshold: 0\.5 -> 0\.7.*another output folder"):
        watch_once(folder, output, threshold=0.7)
    with pytest.raises(ValueError, match=r"kind of run: watch -> not set"):
        predict_files(tiny_pipe(), [folder], output, progress=False)
    predict_files(tiny_pipe(), [folder], tmp_path / "predicted", progress=False)
    with pytest.raises(ValueError, match=r"kind of run: not set -> watch"):
        watch_once(folder, tmp_path / "predicted")


def test_wrong_arguments_are_named(folder, output, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        watch_once(tmp_path / "gone", output)
    with pytest.raises(ValueError, match="save_maps='jpg'"):
        watch_once(folder, output, save_maps="jpg")
    with pytest.raises(ValueError, match="when_done='shred'"):
        watch_once(folder, output, when_done="shred")
    with pytest.raises(ValueError, match="lies in the watched folder"):
        watch_once(folder, output, when_done="move", move_to=folder / "done")
    with pytest.raises(ValueError, match="tile_overlap=8 needs tile_size"):
        watch_once(folder, output, tile_overlap=8)
    assert not output.exists()


def test_one_watch_at_a_time(folder, output):
    def second(counts):
        with pytest.raises(ValueError, match=r"Another .* writes to"):
            watch_once(folder, output)
        return True

    watch_until(second, folder, output)
    watch_once(folder, output)


# After the record


def test_marks_and_moves(folder, output, tmp_path):
    save_image(folder / "sub" / "a.png")
    (folder / "bad.png").write_text("bad")
    watch_once(folder, output, when_done="mark")
    mark = json.loads((folder / "sub" / "a.png.vcp-clip.json").read_text())
    assert mark == records(output)[0] and "error" in json.loads((folder / "bad.png.vcp-clip.json").read_text())
    # a later run with another --when-done applies it to the existing images
    watch_once(folder, output, when_done="move", move_to=tmp_path / "archive")
    assert (tmp_path / "archive" / "done" / "sub" / "a.png").is_file()
    assert (tmp_path / "archive" / "failed" / "bad.png").read_text() == "bad"
    assert len(records(output)) == 2 and not list(folder.rglob("*.png"))


def test_one_name_for_all_images_is_moved_without_loss(folder, output):
    contents = []

    def next_image(counts):
        if not (folder / "current.png").exists():
            if len(contents) == 5:
                return True
            contents.append(save_image(folder / "current.png", len(contents)).read_bytes())
        return False

    watch_until(next_image, folder, output, when_done="move")
    moved = [output / "done" / f"{record['name']}.png" for record in records(output)]
    assert [path.read_bytes() for path in moved] == contents and moved[4].name == "current-5.png"


# Kills


def wait_until(done, seconds=60.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)


def deliver_until(folder: Path, stop: threading.Event, delivered: list[str]) -> None:
    """Write images as cameras do: directly, renamed, and with one name in two folders."""
    staging = folder.parent / "staging"
    for index in range(100_000):
        if stop.is_set():
            return
        name = f"{index % 3}/{index:04d}.png"
        if index % 2:
            save_image(folder / name, index)
        else:
            save_image(staging / f"{index}.png", index)
            (folder / name).parent.mkdir(exist_ok=True)
            os.rename(staging / f"{index}.png", folder / name)
        delivered.append(str(folder / name))
        time.sleep(0.02)


def check_kills(folder: Path, output: Path, kills: int) -> None:
    chance, stop, delivered, said = random.Random(0), threading.Event(), [], output.parent / "said.txt"
    camera = threading.Thread(target=deliver_until, args=(folder, stop, delivered))
    camera.start()
    with Receiver(lambda number: 503 if number % 7 == 3 else 200) as receiver:
        try:
            for _ in range(kills):
                count = len(records(output)) + chance.randrange(1, 20)
                process = start_process(watch_and_post, folder, output, receiver.url, said)
                wait_until(lambda count=count: len(records(output)) >= count)
                time.sleep(chance.random() / 10)
                process.kill()
                process.join()
        finally:
            stop.set()
            camera.join()
        process = start_process(watch_and_post, folder, output, receiver.url, said)
        wait_until(lambda: len(set(receiver.received_keys())) == len(delivered))
        process.terminate()
        process.join(30)
    assert process.exitcode == 0 and "Traceback" not in said.read_text()

    lines = records(output)
    assert sorted(line["image"] for line in lines) == sorted(delivered)
    assert [line["sequence"] for line in lines] == list(range(1, len(delivered) + 1))
    assert not any("error" in line for line in lines)
    posted = dict(
        zip(receiver.received_keys(), receiver.bodies(), strict=True)
    )  # the receiver keeps one result for each key
    assert sorted(body["image"] for body in posted.values()) == sorted(delivered)
    assert {body["sequence"]: body for body in posted.values()} == {line["sequence"]: line for line in lines}
    moved = sorted(path for path in (output / "done").rglob("*.png"))
    assert len(moved) == len(delivered) and not list(folder.rglob("*.png")) and not list(folder.rglob(".*"))
    for path in moved:
        Image.open(path).load()
    for line in lines:
        Image.open(output / line["map"]).load()
        assert (output / "done" / f"{line['name']}.png").is_file()


def test_every_image_is_recorded_and_posted_once_after_three_kills(folder, output):
    check_kills(folder, output, 3)


@pytest.mark.slow
def test_every_image_is_recorded_and_posted_once_after_ten_kills(folder, output):
    check_kills(folder, output, 10)


# Posts


def test_results_are_posted_in_order_with_their_overlays(folder, output):
    with Receiver() as receiver:
        webhook = Webhook(receiver.url, with_overlay=True, **QUICK_RETRIES)
        save_image(folder / "old.png")
        watch_once(folder, output)  # before there was a webhook
        for index in range(3):
            os.utime(save_image(folder / f"{index}.png"), ns=(0, index))
        (folder / "bad.png").write_text("bad")
        summary = watch_once(folder, output, webhook=webhook)
        assert (summary.posted, summary.unposted, summary.dead_letters) == (4, 0, 0)
        assert "4 posted" in summary.describe()
        bodies = receiver.bodies()
        assert [Path(body["image"]).name for body in bodies] == ["0.png", "1.png", "2.png", "bad.png"]
        assert all(body["overlay_base64"].startswith("/9j/") for body in bodies[:3])
        assert bodies[3]["overlay_base64"] is None and "error" in bodies[3]
        assert watch_once(folder, output, webhook=webhook).posted == 0


def test_the_line_goes_on_while_the_receiver_is_down(folder, output):
    for index in range(6):
        save_image(folder / f"{index}.png", index)
    down = threading.Event()
    with Receiver(lambda number: 200 if down.is_set() else 503) as receiver:
        webhook, seen = Webhook(receiver.url, **QUICK_RETRIES), []

        def repaired(counts):
            if counts.segmented == 6 and not down.is_set():
                seen.append(counts)
                if len(receiver.requests) > 3:
                    down.set()
            return counts.posted == 6

        summary = watch_until(repaired, folder, output, webhook=webhook, batch_size=2)
    assert seen[-1].unposted == 6 and "503" in seen[-1].problem and "6 to post" in seen[-1].describe()
    assert [body["sequence"] for body in receiver.bodies()] == [1, 2, 3, 4, 5, 6] and not summary.problem


def test_settings_of_a_watch_have_defaults(folder, output):
    save_image(folder / "a.png")
    summary = watch_folder(tiny_pipe(), folder, output, once=True)
    assert summary.segmented == 1 and WatchTiming().settle_seconds > QUICK.settle_seconds
