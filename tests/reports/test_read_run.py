"""Kinds of runs, and sentences for everything else."""

import json

import pytest

from vcp_clip_hf.reports.read_run import find_run


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("predictions.jsonl", "", "predict"),
        ("predictions-003.jsonl", "", "predict"),
        ("results.json", "{}", "evaluate"),
        ("methods.json", "{}", "methods"),
        ("log.jsonl", "", "train"),
        ("calibration.json", "{}", "calibrate"),
        ("preprocessor_config.json", json.dumps({"calibration": {"image": {"threshold": 0.5}}}), "calibrate"),
    ],
)
def test_a_run_is_known_by_its_files(file, content, kind, tmp_path):
    (tmp_path / file).write_text(content)
    run = find_run(tmp_path)
    assert (run.kind, run.folder) == (kind, tmp_path)


def test_a_file_stands_for_its_folder_and_chooses_among_runs(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("")
    (tmp_path / "results.json").write_text("{}")
    assert find_run(tmp_path).kind == "predict"
    assert find_run(tmp_path / "results.json").kind == "evaluate"


def test_the_results_in_a_checkpoint_are_not_an_evaluation(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"calibration": {"image": {"threshold": 0.5}}}))
    (tmp_path / "results.json").write_text("[]")
    assert find_run(tmp_path).kind == "calibrate"


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"calibration": null}', '{"calibration": {}}'])
def test_other_folders_are_refused_with_what_was_expected(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(content)
    (tmp_path / "picture.png").write_text("")
    for path in (tmp_path, tmp_path / "picture.png"):
        with pytest.raises(ValueError, match=r"is not the folder of a run .*vcp-clip predict.*predictions\.jsonl"):
            find_run(path)
    with pytest.raises(FileNotFoundError, match=r"No such folder: .*missing"):
        find_run(tmp_path / "missing")
