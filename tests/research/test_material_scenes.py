"""Pictures of photographed materials: splits, crops, scenes, and exact masks."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from examples.research.material_scenes import (
    MATERIALS,
    SPLITS,
    MaterialScene,
    MaterialScenes,
    checksum_of_photographs,
    damage,
)
from vcp_clip_hf.data.painted_anomalies import ANOMALY_KINDS
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


def test_the_checksum_changes_with_the_photographs(tmp_path):
    checksums = [checksum_of_photographs(tmp_path)]
    for name, size in (("a_1.jpg", 8), ("a_1.jpg", 64), ("a_2.jpg", 8), ("SOURCE.txt", 8)):
        Image.new("RGB", (size, size)).save(tmp_path / name, "JPEG")
        checksums.append(checksum_of_photographs(tmp_path))
    assert len(set(checksums[:4])) == 4 and checksums[4] == checksums[3]
    assert checksum_of_photographs() == checksum_of_photographs(MATERIALS) and len(checksum_of_photographs()) == 8


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
    pixels, _ = splits["train"].texture(Dice(0), 2 * SIZE)
    solid = np.zeros(pixels.shape[:2], bool)
    solid[:1, :1] = True  # one pixel is too small for an anomaly
    with pytest.raises(ValueError, match="No anomaly is visible on the"):
        damage(MaterialScene(pixels, solid, "the test"), Dice(1), splits["train"])
