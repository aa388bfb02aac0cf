"""Scenes of photographed materials: splits, exact masks, captions, and the table that trainings read."""

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from examples.research import material_scenes
from examples.research.material_scenes import (
    DEFECT_WORDS,
    MATERIALS,
    SPLITS,
    MaterialScenes,
    damage,
    describe,
    material_table,
)
from vcp_clip_hf.data.painted_anomalies import ANOMALY_KINDS
from vcp_clip_hf.data.records import FEATURES
from vcp_clip_hf.generator.captions import ABNORMAL_STATES, NORMAL_STATES
from vcp_clip_hf.generator.fields import Dice


SIZE = 64


@pytest.fixture(scope="module")
def splits() -> dict[str, MaterialScenes]:
    return {split: MaterialScenes(split) for split in SPLITS}


def test_the_splits_share_no_photograph(splits):
    digests = {split: [hashlib.sha256(photo.tobytes()).digest() for photo in splits[split].photos] for split in SPLITS}
    assert not set(digests["train"]) & set(digests["test"])
    files = list(MATERIALS.rglob("*.jpg"))
    assert sum(map(len, digests.values())) == len(files)
    assert len(files) / 20 < len(digests["test"]) < len(files) / 8


def test_new_photographs_do_not_move_others_to_another_split(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "rubber_01.jpg")
    files = sorted(MATERIALS.rglob("*.jpg"))[::20]
    (tmp_path / "below").mkdir()
    for path in files:
        (tmp_path / "below" / path.name).symlink_to(path)
    tests = MaterialScenes("test"), MaterialScenes("test", tmp_path)
    whole, part = ({photo.tobytes() for photo in scenes.photos} for scenes in tests)
    kept = {np.asarray(Image.open(path).convert("RGB")).tobytes() for path in files}
    assert part == whole & kept and part


def test_the_photographs_have_a_source_and_no_other_files():
    source = (MATERIALS / "SOURCE.txt").read_text(encoding="utf-8")
    assert "CC0 1.0" in source
    others = {path for path in MATERIALS.rglob("*") if path.is_file() and path.suffix != ".jpg"}
    assert others == {MATERIALS / "SOURCE.txt"}
    counts = {folder.name: len(list(folder.glob("*.jpg"))) for folder in MATERIALS.iterdir() if folder.is_dir()}
    large = len(list((MATERIALS / "ambientcg").glob("*_large.jpg")))
    assert f"ambientcg/*.jpg ({counts['ambientcg'] - large:,} files" in source
    assert f"_large.jpg ({large} files)" in source and f"polyhaven/*.jpg ({counts['polyhaven']} files)" in source
    assert counts.keys() == {"ambientcg", "polyhaven"}


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no photographs \(\*\.jpg\) of materials for the split 'test'"):
        MaterialScenes("test", tmp_path)
    with pytest.raises(ValueError, match="split='validation' must be one of train, test"):
        MaterialScenes("validation")
    with pytest.raises(ValueError, match="split='all' must be one of train, test"):
        material_table("all", 2, 32, 0)
    with pytest.raises(ValueError, match=r"anomaly_fraction=1\.5 lie in 0\.\.1"):
        material_table("test", 2, 32, 0, 1.5)


def test_names_are_words_of_the_file_names(splits):
    names = {name for scenes in splits.values() for name in scenes.names}
    assert {"bricks", "brick wall", "wood", "metal", "fabric"} <= names
    assert all(word.isalpha() and word.islower() for name in names for word in name.split())


@pytest.mark.parametrize("split", SPLITS)
def test_textures_and_scenes(splits, split):
    scenes = splits[split]
    pictures, surfaces, names = set(), 0, set()
    for seed in range(30):
        texture, _ = scenes.texture(Dice(seed), SIZE)
        assert texture.shape == (SIZE, SIZE, 3) and texture.dtype == np.uint8
        scene = scenes.scene(Dice(seed), SIZE)
        assert scene.pixels.shape == (SIZE, SIZE, 3) and scene.pixels.dtype == np.uint8
        assert scene.solid.shape == (SIZE, SIZE) and scene.solid.dtype == bool and scene.solid.any()
        assert np.array_equal(scene.pixels, scenes.scene(Dice(seed), SIZE).pixels), "same dice, same scene"
        pictures.add(scene.pixels.tobytes())
        surfaces += scene.solid.all()
        names.add(scene.name)
    assert len(pictures) == 30 and len(names) > 8 and names <= set(scenes.names)
    assert 12 < surfaces < 27, "about 65 % surfaces, the others objects"


@pytest.mark.parametrize("large", [False, True])
def test_crops_show_one_material_at_several_places(splits, large):
    scenes = splits["train"]
    number = next(index for index, photo in enumerate(scenes.photos) if (min(photo.shape[:2]) >= 200) == large)
    pictures = scenes.crops(number, 5, SIZE, Dice(0))
    assert {picture.shape for picture in pictures} == {(SIZE, SIZE, 3)} and pictures[0].dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 5
    colors = np.stack([picture.mean(axis=(0, 1)) for picture in pictures])
    assert np.abs(colors - scenes.photos[number].mean(axis=(0, 1))).max() < 40, "the colors stay"
    again = scenes.crops(number, 5, SIZE, Dice(0))
    assert all(map(np.array_equal, pictures, again))


def test_objects_show_their_material_and_the_ground(splits):
    objects = [splits["train"].scene(Dice(seed), SIZE) for seed in range(60)]
    objects = [scene for scene in objects if not scene.solid.all()]
    shares = [scene.solid.mean() for scene in objects]
    assert min(shares) > 0.01 and max(shares) < 0.9
    # most objects differ from their ground by more than their own deviation
    differences = [
        np.abs(scene.pixels[scene.solid].mean(axis=0) - scene.pixels[~scene.solid].mean(axis=0)).max()
        for scene in objects
    ]
    assert np.median(differences) > 25


def test_damage_is_exact_and_stays_on_the_product(splits):
    kinds = []
    for seed in range(40):
        dice = Dice(seed)
        scene = splits["train"].scene(dice, SIZE)
        before = scene.pixels.copy()
        try:
            pixels, mask, kind = damage(scene, dice, splits["train"])
        except ValueError as error:
            assert scene.name in str(error)
            continue
        assert pixels.shape == before.shape and pixels.dtype == np.uint8 and mask.dtype == bool and mask.any()
        assert np.array_equal(pixels[~mask], before[~mask]) and not mask[~scene.solid].any()
        assert (np.abs(pixels.astype(int) - before)[mask].max(axis=1) > 0).mean() > 0.3
        assert np.array_equal(scene.pixels, before), "the whole scene is kept"
        kinds.append(kind)
    assert len(kinds) > 30 and len(set(kinds)) > 7 and set(kinds) <= set(ANOMALY_KINDS)
    assert kinds.count("line") == max(map(kinds.count, kinds)), "lines are drawn most often"


def test_damage_that_cannot_be_seen_is_an_error(splits):
    scene = splits["train"].scene(Dice(0), 2 * SIZE)
    solid = np.zeros_like(scene.solid)
    solid[:1, :1] = True  # one pixel is too small for an anomaly
    with pytest.raises(ValueError, match="No anomaly is visible on the"):
        damage(type(scene)(scene.pixels, solid, "the test"), Dice(1), splits["train"])


def test_captions_name_the_material_and_the_damage():
    rng = np.random.default_rng(0)
    assert DEFECT_WORDS.keys() == set(ANOMALY_KINDS)
    for kind, words in DEFECT_WORDS.items():
        captions = [describe("oak floor", kind, rng) for _ in range(40)]
        assert all("oak floor" in caption for caption in captions) and len(set(captions)) > 10
        named = [any(word in caption for word in (*words, *ABNORMAL_STATES)) for caption in captions]
        assert all(named)
    whole = [describe("oak floor", None, rng) for _ in range(40)]
    assert all(any(word in caption for word in (*NORMAL_STATES, "without")) for caption in whole)
    assert not any(word in caption for caption in whole for word in ("a hole", "a crack", "a stain"))


# --- the table -------------------------------------------------------------------------------------------------------


def contents(table: datasets.Dataset) -> list[tuple]:
    return [
        (
            row["image"].tobytes(),
            None if row["mask"] is None else row["mask"].tobytes(),
            *(row[name] for name in ("label", "product", "defect", "image_id")),
        )
        for row in table
    ]


def made_anew(folder: Path, monkeypatch, *arguments) -> list[tuple]:
    """Make a table in a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return contents(material_table(*arguments))


def test_same_seed_same_table(tmp_path, monkeypatch):
    first = made_anew(tmp_path / "a", monkeypatch, "train", 6, 48, 5)
    assert made_anew(tmp_path / "b", monkeypatch, "train", 6, 48, 5) == first
    pictures = [{row[0] for row in first}]
    for arguments in (("train", 6, 48, 6), ("test", 6, 48, 5)):
        pictures.append({row[0] for row in made_anew(tmp_path / "a", monkeypatch, *arguments)})
    assert all(len(each) == 6 for each in pictures) and len(set.union(*pictures)) == 18


def test_other_photographs_give_another_table(tmp_path, monkeypatch):
    """The cache holds the first table; with other photographs in the folder, it is not read."""
    folder = tmp_path / "materials"
    folder.mkdir()
    monkeypatch.setattr(material_scenes, "MATERIALS", folder)
    tables = []
    for level in (60, 61):
        for number in range(30):  # some are for training, some for tests
            noise = np.random.default_rng(level + number).integers(0, level, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"noise_{number}.jpg")
        tables.append(contents(material_table("test", 3, 32, 9)))
    assert {row[3] for row in tables[0]} == {"material noise"}
    assert not {row[0] for row in tables[0]} & {row[0] for row in tables[1]}


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 5), (0.5, 10), (0.65, 13), (1.0, 20)])
def test_the_share_of_anomalous_pictures_is_exact(fraction, count):
    table = material_table("test", 20, 32, 1, fraction)
    assert len(table) == 20 and sum(table["label"]) == count
    # evenly spread: every half has its share
    assert abs(sum(table["label"][:10]) - count / 2) <= 1


def test_masks_lie_where_the_damage_is():
    """Row by row, a table of whole pictures and one of damaged pictures show the same scenes in the same light."""
    whole, damaged = (material_table("test", 10, 48, 4, fraction) for fraction in (0.0, 1.0))
    for before, after in zip(whole, damaged, strict=True):
        assert before["product"] == after["product"]
        changed = np.abs(np.asarray(after["image"], int) - np.asarray(before["image"], int)).max(axis=2)
        mask = np.asarray(after["mask"]) > 0
        # blur and compression carry a little of the damage over its border
        assert changed[mask].mean() > 4 * changed[~mask].mean()


def test_rows_are_records_of_this_package():
    table = material_table("test", 16, 40, 2)
    assert table.features == FEATURES
    assert len(set(table["image_id"])) == 16
    for row in table:
        assert row["image"].size == (40, 40) and row["product"].startswith("material ")
        if row["label"] == 0:
            assert row["mask"] is None and row["defect"] == "good"
        else:
            marked = np.asarray(row["mask"])
            assert row["mask"].size == (40, 40) and set(np.unique(marked)) == {0, 255}
            assert row["defect"] in ANOMALY_KINDS
