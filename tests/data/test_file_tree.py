"""Folders on disk: names in any case, sorted walks, fingerprints."""

import os

from vcp_clip_hf.data.file_tree import FileTree, candidate_roots, fingerprint, folder_and_file, stem_of


def touch(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_names_are_found_in_any_case_and_returned_as_written(tmp_path):
    touch(tmp_path / "Train" / "Good" / "A.JPG")
    tree = FileTree(tmp_path)
    assert tree.files("train/good") == ["Train/Good/A.JPG"]
    assert tree.find("TRAIN/good/a.jpg") == "Train/Good/A.JPG"
    assert tree.find("train\\good\\a.jpg") == "Train/Good/A.JPG"
    assert tree.find("train/good/b.jpg") is None and tree.find("nowhere/a.jpg") is None
    assert tree.has_folder("train/GOOD") and not tree.has_folder("train/a.jpg")
    assert os.path.isfile(tree.path("Train/Good/A.JPG"))


def test_names_are_found_however_their_accents_are_encoded(tmp_path):
    composed, decomposed = "\u00e9", "e\u0301"
    touch(tmp_path / f"{decomposed}.png")  # as macOS and its archives write it
    touch(tmp_path / composed / "a.png")
    tree = FileTree(tmp_path)
    assert tree.find(f"{composed}.png") == f"{decomposed}.png"
    assert tree.find(f"{decomposed}/a.png") == f"{composed}/a.png"


def test_names_that_differ_only_in_case_are_all_listed(tmp_path):
    for name in ("a.png", "A.png", "A.PNG"):
        touch(tmp_path / name)
    tree = FileTree(tmp_path)
    assert tree.files() == ["A.PNG", "A.png", "a.png"]
    assert [tree.find(name) for name in ("a.png", "A.png", "A.PNG")] == ["a.png", "A.png", "A.PNG"]


def test_hidden_files_and_those_of_operating_systems_are_left_out(tmp_path):
    for name in ("a.png", ".hidden.png", "._a.png", "Thumbs.db", "__MACOSX/a.png", ".git/b.png", "text.txt"):
        touch(tmp_path / name)
    tree = FileTree(tmp_path)
    assert tree.folders() == [] and tree.files() == ["a.png"]
    assert tree.files(suffixes=None) == ["a.png", "text.txt"]
    assert list(tree.walk()) == ["a.png"]


def test_walk_is_sorted_and_does_not_follow_links_that_lead_back(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/x/3.png", "0.png"):
        touch(tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list(FileTree(tmp_path).walk()) == ["0.png", "a/x/3.png", "b/1.png", "b/2.png"]
    assert list(FileTree(tmp_path).walk("a")) == ["a/x/3.png"]


def test_candidate_roots_go_down_two_levels(tmp_path):
    touch(tmp_path / "a" / "b" / "c" / "x.png")
    levels = list(candidate_roots(tmp_path))
    assert [[os.path.relpath(path, tmp_path) for path in level] for level in levels] == [["."], ["a"], ["a/b"]]


def test_a_fingerprint_changes_with_the_files_and_not_with_their_order(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths[:2]:
        touch(tmp_path / path)
    first = fingerprint(paths)
    assert first == fingerprint(paths[::-1]) == fingerprint([*paths, paths[0]])
    assert first != fingerprint(paths, salt="1") and first != fingerprint(paths[:2])
    touch(tmp_path / "c")
    assert fingerprint(paths) != first


def test_stems_and_folders_of_files(tmp_path):
    assert stem_of("a/b.c.JPG") == "b.c"
    touch(tmp_path / "t.csv")
    assert folder_and_file(tmp_path / "t.csv") == (str(tmp_path), "t.csv")
    assert folder_and_file(tmp_path) == (str(tmp_path), None)
