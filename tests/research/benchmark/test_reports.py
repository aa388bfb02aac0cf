"""Lines, and where they go."""

import pytest
import torch

from examples.research.benchmark.reports import line_of, machine, milliseconds, report, reported_to, to_markdown


ROW = {
    "device": "D",
    "dtype": "bfloat16",
    "batch_size": 8,
    "way": "w",
    "ms_per_image": 2.345,
    "images_per_second": 426,
}


def test_a_row_is_printed_or_handed_over(capsys):
    rows = []
    with reported_to(rows.append):
        report(ROW)
    assert rows == [ROW] and capsys.readouterr().out == ""
    report(ROW)
    assert (
        capsys.readouterr().out
        == f"{line_of(ROW)}\n"
        == "D | bfloat16 | batch 8 | w: 2.35 ms per image, 426.00 images/s\n"
    )


def test_steps_are_in_the_line_and_below_the_table():
    row = {**ROW, "stages_ms_per_image": {"workers": {"read": 1.0, "resize": 2.5}, "device": {"model": 3.0}}}
    assert line_of(row).splitlines()[1:] == ["    workers: read 1.00, resize 2.50 ms", "    device: model 3.00 ms"]
    assert to_markdown([row, ROW]).splitlines()[4:] == [
        "",
        "One image, step by step:",
        "",
        "- workers: read 1.00, resize 2.50 ms",
        "- device: model 3.00 ms",
    ]


def test_after_an_error_rows_are_printed_again(capsys):
    with pytest.raises(KeyError), reported_to(lambda row: None):
        raise KeyError
    report(ROW)
    assert capsys.readouterr().out


def test_milliseconds_of_a_gpu_and_of_a_cpu():
    assert [milliseconds(each) for each in (2.345, 25.64, 3420.0)] == ["2.35", "25.6", "3420.0"]


def test_facts_of_the_machine():
    facts = machine()
    assert {"gpu", "driver", "cuda", "torch", "transformers", "vcp_clip_hf", "cores"} <= facts.keys()
    assert facts["torch"] == torch.__version__
