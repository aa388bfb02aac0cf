"""Recipes on disk: versions, files, faults of the disk and of the process."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.export_run import exported, picture
from tests.server.engines import exported_engine, pipeline_engine, png
from vcp_clip_hf.server import recipes
from vcp_clip_hf.server.recipe import Recipe
from vcp_clip_hf.server.recipes import RecipeStore, UnknownRecipe, VersionConflict


def inside(height=60, width=80) -> bytes:
    values = np.zeros((height, width), np.uint8)
    values[10:50, 20:70] = 255
    return png(Image.fromarray(values))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "recipes of the line"


@pytest.fixture
def store(folder):
    store = RecipeStore(folder, pipeline_engine())
    yield store
    store.close()


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reopened(store, folder, engine=None):
    store.close()
    return RecipeStore(folder, engine or pipeline_engine())


# --- versions ---


def test_default_always_exists(store, folder):
    assert store.names() == ["default"] and store.get() == Recipe("default")
    assert store.history("default") == [Recipe("default")] == [store.get("default", 0)]
    assert store.put("default", {"threshold": 0.5}) == Recipe("default", 1, threshold=0.5) == store.get()
    assert [each.version for each in store.history("default")] == [0, 1]
    with pytest.raises(ValueError, match=r"'default' cannot be deleted; to go back .* set its fields to null"):
        store.delete("default")
    assert store.put("default", {"threshold": None}) == Recipe("default", 2)


def test_every_change_is_a_version_that_stays_known(store, folder):
    first = store.put("part-7", {"threshold": 0.5, "min_area": 4})
    second = store.put("part-7", {"fill_holes": True, "threshold": 0.6})
    assert first == Recipe("part-7", 1, threshold=0.5, min_area=4)
    assert second == Recipe("part-7", 2, threshold=0.6, min_area=4, fill_holes=True)
    other = reopened(store, folder)
    assert other.names() == ["default", "part-7"] and other.get("part-7") == second
    assert other.history("part-7") == [first, second] and other.get("part-7", 1) == first
    assert json.loads((folder / "recipes" / "part-7" / "000002.json").read_text()) == second.as_json()
    with pytest.raises(UnknownRecipe, match=r"'part-7' has no version 3"):
        other.get("part-7", 3)
    for call in (other.get, other.history):
        with pytest.raises(UnknownRecipe, match=r"no recipe '../part'; known are default, part-7"):
            call("../part")
    other.close()


def test_a_deleted_recipe_keeps_its_history_and_its_numbers(store, folder):
    first = store.put("part", {"threshold": 0.5})
    store.delete("part")
    assert store.names() == ["default"] and store.history("part") == [first]
    with pytest.raises(UnknownRecipe):
        store.delete("part")
    other = reopened(store, folder)
    assert other.names() == ["default"]
    assert other.put("part", {}, expected_version=0) == Recipe("part", 3)
    assert [each.version for each in other.history("part")] == [1, 3]
    other.close()


def test_two_people_do_not_overwrite_each_other(store):
    store.put("part", {"threshold": 0.5}, expected_version=0)
    store.put("part", {"threshold": 0.6}, expected_version=1)
    for change in (
        lambda: store.put("part", {"threshold": 0.7}, expected_version=1),
        lambda: store.set_roi("part", inside(), expected_version=1),
        lambda: store.delete("part", expected_version=1),
    ):
        with pytest.raises(VersionConflict, match=r"'part' has version 2 now, not 1. Read it again"):
            change()
    assert store.get("part").threshold == 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"treshold": 0.5}, "did you mean 'threshold'"),
        ({"threshold": 7}, "threshold=7 must be a number"),
        ({"score_mode": "image_head"}, "the model has no image head"),
        ({"reference_weight": 0.5}, "needs references"),
        ({"version": 9}, "version is not a setting and cannot be changed"),
        ({"name": "other"}, "name is not a setting"),
        ({"roi": "0" * 64}, "no stored file '0000.*upload the picture first"),
        ({"references": ["0" * 64]}, "no stored file '0000.*upload the picture first"),
    ],
)
def test_a_refused_change_changes_nothing(store, folder, changes, message):
    store.put("part", {"min_area": 3})
    before = files_of(folder)
    with pytest.raises((ValueError, TypeError), match=message):
        store.put("part", changes)
    assert store.get("part") == Recipe("part", 1, min_area=3) and files_of(folder) == before
    with pytest.raises(ValueError, match=r"cannot be the name of a recipe"):
        store.put("../part", {})


def test_many_threads_change_and_read(store):
    versions, failed = [], []

    def change():
        for _ in range(5):
            versions.append(store.put("part", {"min_area": len(versions)}).version)

    def read():
        while len(versions) < 40:
            seen = store.request(picture(20, 20), "part").recipe.version, store.names()
            failed.extend([seen] if not seen[0] or "part" not in seen[1] else [])

    versions.append(store.put("part", {}).version)
    threads = [threading.Thread(target=target) for target in [change] * 8 + [read] * 4]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(versions) == list(range(1, 42)) and not failed
    assert [each.version for each in store.history("part")] == list(range(1, 42))


# --- regions of interest and references ---


def test_a_region_of_interest(store, folder):
    recipe = store.set_roi("part", inside())
    assert recipe.version == 1 and store.file(recipe.roi).read_bytes() == inside()
    request = reopened(store, folder).request(picture(60, 80), "part")
    assert request.roi.read_bytes() == inside() and request.recipe == recipe
    (result,) = pipeline_engine().segment([request])
    assert not result["anomaly_map"][:10].any() and result["anomaly_map"][10:50, 20:70].all()
    for content, message in ((b"no image", "not an image file"), (png(Image.new("L", (9, 9))), "nothing to inspect")):
        with pytest.raises(ValueError, match=message):
            store.set_roi("part", content)
    assert store.get("part") == recipe and len(list((folder / "files").iterdir())) == 1
    assert store.set_roi("part", None).roi is None and store.get("part", 1).roi == recipe.roi
    for key in ("0" * 64, "../.lock"):
        with pytest.raises(UnknownRecipe, match=r"no stored file"):
            store.file(key)


def test_references(store, folder):
    normal = [png(picture(50, 60, seed)) for seed in (1, 2, 1)]
    recipe = store.set_references("part", normal)
    assert len(recipe.references) == 2  # the third is a copy of the first
    assert [store.file(key).read_bytes() for key in recipe.references] == normal[:2]
    with pytest.raises(ValueError, match=r"Reference 2 of 2: the image bytes: not an image file that Pillow can read"):
        store.set_references("part", [normal[0], b"no image"])
    assert store.put("part", {"reference_weight": 0.25}).references == recipe.references
    (fused,) = pipeline_engine().segment([store.request(picture(60, 80), "part")])
    (zero_shot,) = pipeline_engine().segment([store.request(picture(60, 80))])
    assert (fused["anomaly_map"] != zero_shot["anomaly_map"]).any()
    other = store.put("other", {"references": list(recipe.references)})
    assert other.references == recipe.references
    with pytest.raises(ValueError, match=r"reference_weight=0.25 needs references"):
        store.set_references("part", [])
    assert store.set_references("other", []).references == ()


def test_an_exported_engine_takes_no_references_and_nothing_is_stored(folder):
    store = RecipeStore(folder, exported_engine())
    with pytest.raises(ValueError, match=r"references cannot be changed"):
        store.set_references("part", [png(picture(50, 60))])
    assert not list((folder / "files").iterdir()) and store.names() == ["default"]
    store.set_roi("part", inside())
    (result,) = exported_engine().segment([store.request(picture(60, 80), "part")])
    assert not result["anomaly_map"][:10].any()
    store.close()


# --- the folder ---


def test_a_folder_has_one_user_at_a_time(store, folder):
    with pytest.raises(ValueError, match=r"Another process uses the recipes in .*recipes of the line"):
        RecipeStore(folder, pipeline_engine())
    other = reopened(store, folder)
    other.close()


def test_a_damaged_recipe_is_named_at_the_start(store, folder):
    store.put("part", {"threshold": 0.5})
    latest = folder / "recipes" / "part" / "000002.json"
    for content in ("", "{", "[]", '{"name": "part", "version": 7}', '{"name": "part", "version": 2, "color": 1}'):
        latest.write_text(content)
        with pytest.raises(ValueError, match=r"part/000002.json is damaged .*delete it to go back"):
            reopened(store, folder)
    latest.unlink()
    assert reopened(store, folder).get("part").version == 1


def test_recipes_of_another_model_are_named_at_the_start(store, folder):
    store.put("part", {"score_mode": "top_k"})
    with pytest.raises(ValueError, match=r"part/000001.json cannot be used: .* built into the exported graph"):
        reopened(store, folder, exported_engine())
    other = RecipeStore(folder, pipeline_engine())  # the failed start has left the folder free
    key = other.set_roi("part", inside()).roi
    (folder / "files" / key).unlink()
    with pytest.raises(ValueError, match=f"part/000002.json cannot be used: There is no stored file '{key}'"):
        reopened(other, folder)


# --- faults of the disk and of the process ---


@pytest.mark.parametrize("step", ["file", "recipe"])
def test_an_error_of_the_disk_leaves_the_recipe_in_force(store, folder, monkeypatch, step):
    store.put("part", {"threshold": 0.5})
    before, synced = files_of(folder), []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == (1 if step == "file" else 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recipes.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device"):
        store.set_roi("part", inside())
    monkeypatch.undo()
    assert files_of(folder) == before and store.get("part") == Recipe("part", 1, threshold=0.5)
    assert store.set_roi("part", inside()).version == 2


# A server's process without torch; the arguments are the exported folder and the folder of recipes
PROGRAM = """
import resource, sys
from vcp_clip_hf.server.engine import open_engine
from vcp_clip_hf.server.recipes import RecipeStore

store = RecipeStore(sys.argv[2], open_engine(sys.argv[1], num_threads=1))
"""

FULL_DISK = """
store.put("part", {"threshold": 0.5})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a recipe has more than 100 bytes
for change in (
    lambda: store.put("part", {"threshold": 0.6}),
    lambda: store.put("new", {}),
    lambda: store.set_roi("part", open(sys.argv[3], "rb").read()),
):
    try:
        change()
    except OSError as error:
        print(error.strerror)
assert store.get("part").threshold == 0.5 and store.names() == ["default", "part"]
"""

CHANGE_ALWAYS = """
print("started", flush=True)
threshold = 0
while True:
    threshold = (threshold + 1) % 1000
    recipe = store.put("part", {"threshold": threshold / 1000, "min_area": threshold})
    print(recipe.version, flush=True)
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program, str(exported().folder), *map(str, arguments)],
        env={**os.environ, "VCP_CLIP_IMPORT_ON_USE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_may_write_no_more_keeps_its_recipes(folder, tmp_path):
    (tmp_path / "roi").write_bytes(inside())
    output, errors = (process := start(FULL_DISK, folder, tmp_path / "roi")).communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.splitlines() == [os.strerror(errno.EFBIG)] * 3
    store = RecipeStore(folder, exported_engine())
    assert store.names() == ["default", "part"] and store.get("part") == Recipe("part", 1, threshold=0.5)
    assert not list((folder / "files").iterdir())
    store.close()


def test_a_killed_process_leaves_whole_recipes(folder):
    announced = 0
    for round_ in range(4):
        process = start(CHANGE_ALWAYS, folder)
        assert process.stdout.readline() == "started\n", process.stderr.read()
        time.sleep(0.03 + 0.017 * round_)
        with pytest.raises(ValueError, match=r"Another process uses"):
            RecipeStore(folder, exported_engine())
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        announced = max([announced, *map(int, output.split("\n")[:-1])])
        store = RecipeStore(folder, exported_engine())  # the lock has ended with the process
        recipe, history = store.get("part"), store.history("part")
        store.close()
        assert recipe.threshold == recipe.min_area / 1000
        # the last answer may not have been printed any more
        assert announced <= recipe.version <= announced + 1
        assert [each.version for each in history] == list(range(1, recipe.version + 1))
    assert announced > 20
