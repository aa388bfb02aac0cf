"""`vcp-clip watch`, with the embedded checkpoint where a model is needed."""

import json
import os
import signal
import time

import pytest

from tests.watch_run import records, run_command, save_image, start_process, watch_once
from tests.webhook_receiver import Receiver
from vcp_clip_hf.cli import main
from vcp_clip_hf.webhook import Webhook


@pytest.fixture
def folder(tmp_path):
    return save_image(tmp_path / "in" / "a.png").parent


def run(*arguments: str) -> int:
    """Return the exit status of `vcp-clip`."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


def test_one_run_over_what_is_there(folder, tmp_path, capsys):
    (folder / "bad.png").write_text("bad")
    secret = tmp_path / "secret"
    secret.write_text("a secret of some length")
    output = tmp_path / "out"
    quick = ["--settle-seconds", "0.1", "--give-up-seconds", "0.2", "--once"]
    with Receiver() as receiver:
        options = ["--webhook", receiver.url, "--webhook-secret-file", str(secret), "--webhook-overlay"]
        options += ["--maps", "none", "--regions", "--threshold", "0.2", "--when-done", "move"]
        assert run("watch", str(folder), "-o", str(output), *quick, *options) == 1  # one image failed
        good, bad = receiver.bodies()
        assert "webhook-signature" in receiver.taken[0][0]
    out, err = capsys.readouterr()
    assert f"1 segmented, 1 failed, 0 waiting, 2 posted; records in {output / 'predictions.jsonl'}" in out
    assert f"watching {folder}" in err
    assert good["threshold"] == 0.2 and "regions" in good and "map" not in good and good["overlay_base64"]
    assert "error" in bad and (output / "done" / "a.png").is_file() and (output / "failed" / "bad.png").is_file()
    assert run("watch", str(folder), "-o", str(output), *quick, "--threshold", "0.3") == 1
    assert "threshold: 0.2 -> 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--webhook-overlay"], "need --webhook"),
        (["--resend-dead-letters"], "need --webhook"),
        (["--webhook", "http://host", "--webhook-overlay", "--no-overlays"], "needs --overlays"),
        (["--move-to", "x"], "needs --when-done move"),
        (["--webhook", "ftp://host"], "must be an address such as https://"),
        (["--when-done", "shred"], "shred"),
    ],
)
def test_options_without_a_meaning(folder, tmp_path, capsys, options, problem):
    assert run("watch", str(folder), "-o", str(tmp_path / "out"), *options) != 0
    assert problem in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_dead_letters_are_posted_again(folder, tmp_path, capsys):
    with Receiver(lambda number: 400 if number < 1 else 200) as receiver:
        watch_once(folder, tmp_path / "out", webhook=Webhook(receiver.url))
        resend = [
            "watch",
            str(folder),
            "-o",
            str(tmp_path / "out"),
            "--webhook",
            receiver.url,
            "--resend-dead-letters",
        ]
        with pytest.raises(SystemExit) as caught:
            main(resend)
        assert caught.value.code == 0 and "1 dead letter delivered, 0 left" in capsys.readouterr().out
        assert receiver.bodies()[0]["image"] == str(folder / "a.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watch_after_the_batch(folder, tmp_path, number):
    output, said = tmp_path / "out", tmp_path / "said.txt"
    process = start_process(run_command, ["watch", str(folder), "-o", str(output)], said)
    end = time.monotonic() + 60
    while not records(output):
        assert time.monotonic() < end and process.is_alive(), said.read_text()
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(30)
    text = said.read_text()
    assert process.exitcode == 0 and "Traceback" not in text
    assert text.count("Stopping after the current batch. Run the same command again to continue.") == 1
    assert "1 segmented, 0 failed, 0 waiting; records in" in text.splitlines()[-1]


def test_records_are_those_of_predict(folder, tmp_path):
    assert run("predict", str(folder), "-o", str(tmp_path / "predicted"), "--num-workers", "0") == 0
    assert run("watch", str(folder), "-o", str(tmp_path / "out"), "--once", "--settle-seconds", "0.1") == 0
    expected = json.loads((tmp_path / "predicted" / "predictions.jsonl").read_text())
    (record,) = records(tmp_path / "out")
    assert {name: record[name] for name in expected} == expected
    assert os.listdir(tmp_path / "out" / "overlays") == ["a.jpg"]
