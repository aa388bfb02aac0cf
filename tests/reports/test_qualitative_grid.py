"""The qualitative grid: rows that all runs have, pictures at their place, print sizes, and errors with a way out."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from tests.evaluation_run import run as evaluate_records
from tests.reports.conftest import predict
from vcp_clip_hf.cli import main
from vcp_clip_hf.reports.charts import chart_style
from vcp_clip_hf.reports.grid_sources import find_rows, grid_source
from vcp_clip_hf.reports.qualitative_grid import GRID_NAME, draw_grid, write_grid
from vcp_clip_hf.reports.read_run import find_run
from vcp_clip_hf.reports.report import write_report


@pytest.fixture(scope="module")
def other(images, tmp_path_factory):
    """A second run of predict on the same images, without masks."""
    return predict(images, tmp_path_factory.mktemp("other"), {"smoothing_sigma": 1.0})


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Two evaluations of the same images, with pictures."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder, method in zip(folders, (None, None), strict=True):
        evaluate_records(method, details_dir=folder / "details").save(folder)
    return folders


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_methods_stand_side_by_side_with_their_scores(run, other):
    sources = [grid_source(find_run(each)) for each in (run, other)]
    names = find_rows(sources, ["part 1", "right/bolt"], 6)
    assert names == ["left/part 1", "right/bolt"]
    figure = draw_grid(sources, ["ours", "theirs"], names, "two")
    drawn = texts(figure)
    assert drawn[:3] == ["Image", "ours", "theirs"] and "Ground truth" not in drawn
    assert len(figure.axes) == 6 and figure.dpi == 300
    views = [[source.views(name, 400) for source in sources] for name in names]
    for row in views:
        for each in row:
            assert f"{each.score:.3f}" in drawn and each.truth is None
            assert each.overlay.size == each.image.size == (80, 64)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    for place, expected in enumerate(
        picture for row in views for picture in (row[0].image, *(e.overlay for e in row))
    ):
        np.testing.assert_array_equal(shown[place], np.asarray(expected))


def test_evaluations_have_ground_truth_and_kinds(evaluations):
    sources = [grid_source(find_run(folder)) for folder in evaluations]
    anomalous = next(name for name in sources[0].names if sources[0].images[name]["label"])
    normal = next(name for name in sources[0].names if not sources[0].images[name]["label"])
    figure = draw_grid(sources, ["a", "b"], [anomalous, normal], "two")
    drawn = texts(figure)
    assert drawn[:4] == ["Image", "Ground truth", "a", "b"] and len(figure.axes) == 4 + 3
    assert "square" in drawn and "normal" in drawn and "no defect" in drawn
    truth = sources[0].views(anomalous, 500).truth
    assert (np.asarray(truth)[..., 1] > np.asarray(truth)[..., 0] + 60).any(), "a green outline"


@pytest.mark.parametrize(("width", "millimeters"), [("one", 85), ("two", 175)])
def test_a_grid_fits_on_a_page_and_its_pictures_do_not_overlap(run, width, millimeters):
    source = grid_source(find_run(run))
    names = [*source.names, *source.names[:2]]
    figure = draw_grid([source], ["ours"], names, width)
    assert figure.get_figwidth() * 25.4 == pytest.approx(millimeters) and figure.get_figheight() * 25.4 < 247
    boxes = [axes.get_position() for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
        shape = box.height * figure.get_figheight() / (box.width * figure.get_figwidth())
        assert shape == pytest.approx(64 / 80, abs=0.01), "pictures keep their ratio"
        for following in boxes[number + 1 :]:
            assert not box.overlaps(following)
    with chart_style():
        figure.draw_without_rendering()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= figure.bbox.x0 - 1 and box.x1 <= figure.bbox.x1 + 1


def test_the_files_are_the_same_every_time_with_pictures_at_300_dpi_and_fonts(run, other, tmp_path):
    runs = [find_run(each) for each in (run, other)]
    first, second = (write_grid(runs, tmp_path / name, ["part 0"]) for name in "ab")
    assert [file.name for file in first] == [f"{GRID_NAME}-{mm}mm.{end}" for mm in (85, 175) for end in ("svg", "pdf")]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    content = first[3].read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content
    width = max(map(int, re.findall(rb"/Width (\d+)", content)))
    assert width == pytest.approx((175 - 4 - 2) / 3 / 25.4 * 300, abs=3)
    ET.parse(first[2])


def test_report_writes_the_grid_among_the_figures(run, other, tmp_path, capsys):
    arguments = ["report", str(run), str(other), "-o", str(tmp_path / "r.html"), "--figures", str(tmp_path / "f")]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--rows", "part 2", "--rows", "nut"])
    assert (tmp_path / "f" / f"{GRID_NAME}-175mm.pdf").is_file()
    with pytest.raises(SystemExit):
        main([*arguments, "--rows", "nothing"])
    assert "--rows 'nothing' is not among the images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:-2], "--rows", "nut"])
    assert "give --figures too" in capsys.readouterr().err


def test_a_run_without_maps_has_no_grid(images, tmp_path):
    run = predict(images, tmp_path / "run", save_maps=None)
    write_report([run], tmp_path / "r.html", tmp_path / "figures")
    assert not list((tmp_path / "figures").glob(f"{GRID_NAME}*"))
    with pytest.raises(ValueError, match="has no maps"):
        write_report([run], tmp_path / "r.html", tmp_path / "figures", rows=["nut"])


def test_rows_are_found_by_the_end_of_their_name_or_refused():
    class Source:
        names = ["left/a.png", "right/a.png", "right/b", "c.d/e"]

    sources = [Source(), Source()]
    assert find_rows(sources, [], 2) == ["left/a.png", "right/a.png"]
    assert find_rows(sources, ["right/a", "b", "left/a.png", "e"], 2) == [
        "right/a.png",
        "right/b",
        "left/a.png",
        "c.d/e",
    ]
    assert find_rows(sources, ["b.png"], 2) == ["right/b"], "names of predict have no file extension"
    with pytest.raises(ValueError, match=r"'b\.png\.png' is not among"):
        find_rows(sources, ["b.png.png"], 2)
    with pytest.raises(ValueError, match=r"'a' is not one image: left/a.png, right/a.png\."):
        find_rows(sources, ["a"], 2)
    with pytest.raises(ValueError, match="'x' is not among the images"):
        find_rows(sources, ["x"], 2)
    other = Source()
    other.names = ["y"]
    with pytest.raises(ValueError, match="no stored image in common"):
        find_rows([Source(), other], [], 2)


def test_a_picture_that_is_gone_or_outside_of_the_run_is_refused(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    folder = predict(tmp_path / "images", tmp_path / "run")
    Image.new("I;16", (80, 64)).save(tmp_path / "secret.png")
    file = folder / "predictions.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["name"].endswith("nut"):
            record["map"] = "../secret.png"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match=r"'right/nut' cannot be drawn: outside of the run's folder.*--rows"):
        write_grid([find_run(folder)], tmp_path / "f", ["nut"])
    (tmp_path / "images" / "right" / "bolt.png").unlink()
    with pytest.raises(ValueError, match=r"'right/bolt' cannot be drawn: file not found"):
        write_grid([find_run(folder)], tmp_path / "f", ["bolt"])
