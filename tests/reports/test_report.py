"""The verb `report` and the option `--report`: what they write, and what they refuse."""

import shutil
import subprocess
import sys

import pytest

from tests.common import tiny_model, tiny_tokenizer
from tests.reports.conftest import Page, save_image
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("checkpoint"), tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, threshold=0.5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def call(*arguments) -> None:
    main([str(each) for each in arguments])


def test_a_finished_run_is_reported(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        call("report", run, "-o", tmp_path / "a" / "page.html", "--figures", tmp_path / "figures")
    assert f"wrote {tmp_path / 'a' / 'page.html'}" in capsys.readouterr().out
    assert "Inspection report" in Page(tmp_path / "a" / "page.html").text
    assert any((tmp_path / "figures").glob("*.pdf"))


def test_predict_writes_a_report_also_if_images_failed(checkpoint, tmp_path, capsys):
    save_image(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    with pytest.raises(SystemExit, match="1"):
        call("predict", tmp_path / "in", "-o", tmp_path / "out", "-m", checkpoint, "--report", "--num-workers", 0)
    assert "wrote" in capsys.readouterr().out
    page = Page(tmp_path / "out" / "report.html")
    assert "1 image could not be judged" in page.text and "the file is empty" in page.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("missing",), "error: No such folder: 'missing'"), ((".",), "is not the folder of a run that can be reported")],
)
def test_what_is_not_a_run_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        call("report", *arguments)
    message = capsys.readouterr().err
    assert sentence in message and "vcp-clip predict" in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["report", "predict"])
def test_without_the_extra_nothing_is_done(verb, run, images, tmp_path, monkeypatch, capsys):
    """The error is raised before the work, and not after an hour of it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = (run, "-o", tmp_path / "x.html") if verb == "report" else (images, "-o", tmp_path / "x", "--report")
    with pytest.raises(SystemExit, match="1"):
        call(verb, *arguments)
    assert capsys.readouterr().err.endswith('error: Reports need matplotlib: pip install "vcp-clip-hf[report]"\n')
    assert not list(tmp_path.iterdir())


def test_reports_are_imported_by_nothing_else():
    """Without the extra, nothing else changes: the other verbs import neither reports nor what they need."""
    script = (
        "import sys, vcp_clip_hf.cli, vcp_clip_hf.cli.predict, vcp_clip_hf.prediction, vcp_clip_hf.cli.report;"
        "assert not [name for name in sys.modules if name.startswith(('vcp_clip_hf.reports', 'matplotlib'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_report_never_replaces_a_file_of_a_run(run, tmp_path, capsys):
    copied = shutil.copytree(run, tmp_path / "copied")
    before = (copied / "predictions.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="1"):
        call("report", str(copied), "-o", str(copied / "predictions.jsonl"))
    assert "Choose one that ends in .html" in capsys.readouterr().err
    assert (copied / "predictions.jsonl").read_bytes() == before
