"""Which files of a folder are images, and what is told about the others."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from vcp_clip_hf.data import AnomalyFolder, DatasetLayoutError
from vcp_clip_hf.image_files import IMAGE_SUFFIXES, find_images, lies_in, suffix_of
from vcp_clip_hf.input_images import list_inputs
from vcp_clip_hf.prediction import predict_files


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def paths_of(root: Path, sources, **options) -> list[str]:
    return [Path(image.path).relative_to(root).as_posix() for image in list_inputs(sources, **options)]


# The list of endings


def test_pillow_opens_every_listed_ending():
    Image.init()
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert set(IMAGE_SUFFIXES) <= readable
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif", ".pgm", ".jp2", ".tga", ".avif"])
def test_an_image_of_every_usual_format_is_found_and_read(tmp_path, suffix):
    Image.new("L", (8, 6), 90).save(tmp_path / f"a{suffix}")
    assert find_images(tmp_path)[0] == [f"a{suffix}"]
    builder = AnomalyFolder(data_dir=tmp_path, cache_dir=tmp_path / "cache", layout="flat")
    assert [row["image"].size for row in builder.as_streaming_dataset("test")] == [(8, 6)]


def test_suffix_of():
    assert [suffix_of(name) for name in ("a/b.c.JPG", "a.b/c", "a.")] == [".jpg", "", "."]


# What a folder holds


def test_images_are_found_at_any_depth_and_sorted(tmp_path):
    touch(tmp_path, "b.PNG", "a/z.jpg", "a/b/c.tiff", "a.png", "C.gif")
    images, left_out = find_images(tmp_path)
    assert images == ["C.gif", "a/b/c.tiff", "a/z.jpg", "a.png", "b.PNG"]
    assert not left_out and str(left_out) == ""


def test_hidden_and_other_files_are_counted_by_reason(tmp_path):
    touch(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "Thumbs.db", "__MACOSX/._a.png")
    touch(tmp_path, "notes.txt", "b/more.txt", "table.csv", "README")
    images, left_out = find_images(tmp_path)
    assert images == ["a.png"]
    assert str(left_out) == "left out: 4 hidden, 4 with other endings (.txt 2, none 1, .csv 1)"
    assert left_out.pictures == 3  # the two hidden files are pictures or hold one; Thumbs.db is not


def test_pictures_that_are_not_read_are_pictures_left_out(tmp_path):
    touch(tmp_path, "a.heic", "b.txt")
    assert find_images(tmp_path)[1].pictures == 1
    touch(tmp_path, "many.a", "many.b", "many.c", "many.d")
    assert str(find_images(tmp_path)[1]).endswith(", ...)")


def test_linked_folders_are_read_once(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "a/1.png")
    touch(outside, "2.png", "deep/3.png")
    (root / "link").symlink_to(outside)
    (root / "link_again").symlink_to(outside / "deep")
    (root / "own").symlink_to(root / "a")
    (root / "up").symlink_to(tmp_path)
    (outside / "back").symlink_to(root)
    images, left_out = find_images(root)
    assert images == ["a/1.png", "link/2.png", "link/deep/3.png"]
    assert str(left_out) == "left out: 4 links to folders that are read elsewhere"
    assert find_images(root / "link")[0] == ["2.png", "back/a/1.png", "deep/3.png"]


def test_linked_files_are_images_and_broken_links_are_left_to_the_reader(tmp_path):
    touch(tmp_path, "outside/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1.png").symlink_to(tmp_path / "outside" / "1.png")
    (tmp_path / "root" / "2.png").symlink_to(tmp_path / "gone.png")
    assert find_images(tmp_path / "root")[0] == ["1.png", "2.png"]
    (tmp_path / "root" / "3.png").symlink_to("3.png")  # to itself, where the system says "too many links"
    images, left_out = find_images(tmp_path / "root")
    assert images == ["1.png", "2.png", "3.png"] and not left_out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_an_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert find_images(tmp_path)[0] == []


def test_excluded_folders_are_not_read(tmp_path):
    touch(tmp_path, "a.png", "results/maps/a.png", "results/overlays/a.jpg", "other/b.png")
    images, left_out = find_images(tmp_path, [tmp_path / "results", tmp_path / "missing"])
    assert images == ["a.png", "other/b.png"]
    assert str(left_out) == "left out: 1 folder of results" and not left_out.has_pictures
    # the searched folder itself is read, and so is a folder inside an excluded one
    assert find_images(tmp_path, [tmp_path])[0] == find_images(tmp_path)[0]
    assert find_images(tmp_path / "results" / "maps", [tmp_path / "results"])[0] == ["a.png"]
    assert lies_in(tmp_path / "results" / "maps" / "a.png", [tmp_path / "results"], tmp_path)
    assert not lies_in(tmp_path / "results2" / "a.png", [tmp_path / "results"], tmp_path)


# Inputs of predict, calibrate and the others


def test_list_inputs_follows_the_rule(tmp_path):
    touch(tmp_path, "b/1.avif", "a.png", "._a.png", ".git/b.png", "notes.txt", "results/maps/a.png")
    assert paths_of(tmp_path, [tmp_path], exclude=[tmp_path / "results"]) == ["a.png", "b/1.avif"]
    # a file is taken as it is
    assert paths_of(tmp_path, [tmp_path / "notes.txt"]) == ["notes.txt"]
    # a folder that is a source itself is read
    assert paths_of(tmp_path, [tmp_path / "results"], exclude=[tmp_path / "results"]) == ["results/maps/a.png"]


def test_patterns_do_not_reach_into_excluded_folders(tmp_path):
    touch(tmp_path, "a.png", "results/a.png", "results/maps/a.png")
    pattern = str(tmp_path / "**" / "*.png")
    assert paths_of(tmp_path, [pattern], exclude=[tmp_path / "results"]) == ["a.png"]
    assert len(paths_of(tmp_path, [pattern])) == 3


@pytest.mark.parametrize(
    "names, level, sentence",
    [
        (["._a.png"], logging.WARNING, "left out: 1 hidden."),
        (["b.heic"], logging.WARNING, "left out: 1 with other endings (.heic 1)."),
        (["notes.txt", ".hidden"], logging.INFO, "left out: 1 hidden, 1 with other endings (.txt 1)."),
    ],
)
def test_what_is_left_out_is_logged(tmp_path, caplog, names, level, sentence):
    touch(tmp_path, "a.png", *names)
    with caplog.at_level(logging.INFO, logger="vcp_clip_hf.input_images"):
        list_inputs([tmp_path])
    (record,) = caplog.records
    assert record.levelno == level and record.getMessage() == f"{tmp_path}: {sentence}"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    touch(tmp_path, "a.heic")
    with pytest.raises(FileNotFoundError, match=r"has no image \(left out: 1 with other endings \(\.heic 1\)\)"):
        list_inputs([tmp_path])
    with pytest.raises(FileNotFoundError, match="neither a file, a folder, nor a pattern"):
        list_inputs([tmp_path / "nowhere"])


# Folders of the user's own images


def test_own_folders_tell_what_is_left_out(tmp_path, caplog):
    for name in ("good/1.png", "bad/1.png"):
        save_image(tmp_path / "data" / name)
    touch(tmp_path / "data", "bad/2.heic", "bad/._1.png")
    AnomalyFolder(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", layout="kinds")
    assert "left out: 1 hidden, 1 with other endings (.heic 1)" in caplog.text
    touch(tmp_path / "phone", "good/1.heic")
    with pytest.raises(DatasetLayoutError, match=r"no layout fits: 0 images.*left out: 1 with other endings"):
        AnomalyFolder(data_dir=tmp_path / "phone", cache_dir=tmp_path / "cache")


def test_a_table_that_was_read_is_not_left_out(tmp_path, caplog):
    save_image(tmp_path / "data" / "1.png")
    touch(tmp_path / "data", "2.heic")
    (tmp_path / "data" / "metadata.csv").write_text("image\n1.png\n")
    AnomalyFolder(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    assert "left out: 1 with other endings (.heic 1)" in caplog.text


# Results inside the input folder


@pytest.mark.parametrize("output", ["results", "."])
def test_predict_does_not_read_its_own_results(tmp_path, output):
    save_image(tmp_path / "a.png")
    pipe = pipeline("anomaly-segmentation", device="cpu")
    first = predict_files(pipe, [tmp_path], tmp_path / output, progress=False)
    assert len(list((tmp_path / output / "overlays").iterdir())) == 1
    again = predict_files(pipe, [tmp_path], tmp_path / output, progress=False)
    assert (first.predicted, again.predicted, again.skipped) == (1, 0, 1)


def test_the_guide_names_every_ending():
    guide = (Path(__file__).parent.parent / "docs" / "own_data.md").read_text(encoding="utf-8")
    listed = guide.split("Files with these endings are images: ")[1].split(".")[0]
    assert {f".{ending.strip()}" for ending in listed.split(",")} == set(IMAGE_SUFFIXES)
