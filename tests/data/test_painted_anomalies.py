"""Anomalies painted on normal images, one at a time and as a dataset; the kinds have tests of their own."""

import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.data.painted_pictures import HEIGHT, WIDTH, foreground, picture
from vcp_clip_hf.data.painted_anomalies import ANOMALY_KINDS, PaintedAnomalies, add_anomaly


def test_one_of_several_kinds_is_drawn():
    kinds = [add_anomaly(picture(), seed, ("dent", "stain"))[2] for seed in range(12)]
    assert set(kinds) == {"dent", "stain"}
    assert {add_anomaly(picture(), seed)[2] for seed in range(60)} == set(ANOMALY_KINDS), "by default all"


def test_attempts_limit_the_search_and_do_not_change_what_it_finds():
    """On a surface that is nearly flat, most blurred regions are invisible: further attempts find visible ones."""
    surface = picture()
    surface.paste((90, 90, 90), (0, 0, WIDTH - 8, HEIGHT))
    found = {1: {}, 24: {}}
    for attempts, results in found.items():
        for seed in range(12):
            try:
                image, mask, _ = add_anomaly(surface, seed, "blur", attempts=attempts)
            except ValueError as error:
                assert f"after {attempts} attempts" in str(error)
            else:
                results[seed] = image.tobytes() + mask.tobytes()
    assert 0 < len(found[1]) < len(found[24])
    assert all(found[24][seed] == result for seed, result in found[1].items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "crak"}, "crak"),
        ({"kind": ()}, "Unknown kinds"),
        ({"foreground": np.zeros((HEIGHT, WIDTH), np.uint8)}, "foreground is empty"),
        ({"foreground": np.ones((5, 6), np.uint8)}, r"6 x 5 pixels, the image 110 x 70"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_anomaly(picture(), 0, **arguments)


def test_a_foreground_that_is_too_small_is_an_error():
    dot = np.zeros((400, 400), np.uint8)
    dot[200, 200] = 1
    with pytest.raises(ValueError, match="1 foreground pixels"):
        add_anomaly(Image.new("RGB", (400, 400), (90, 90, 90)), 0, "cut_paste", dot)


def test_a_flat_image_still_gets_visible_anomalies():
    after, mask, _ = add_anomaly(Image.new("RGB", (64, 64), (3, 3, 3)), 0, "line")
    assert np.abs(np.asarray(after, int) - 3)[np.asarray(mask) > 0].mean() > 4


def keep_bytes(item):
    return item["image"].tobytes(), item["label"], item["defect"], item["image_id"]


def test_dataset_does_not_depend_on_workers_and_changes_with_the_epoch():
    dataset = PaintedAnomalies([picture(seed=seed) for seed in range(6)], seed=1, transform=keep_bytes)
    direct = [dataset[index] for index in range(6)]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(list(map(tuple, loader)))
    assert epochs[0] == epochs[2] == direct and epochs[1] != direct
    assert len(pickle.loads(pickle.dumps(dataset))) == 6


def test_dataset_fraction_and_rows():
    rows = [
        {"image": picture(seed=seed), "product": "bolt", "image_id": f"a/{seed}", "label": 0} for seed in range(40)
    ]
    none = PaintedAnomalies(rows, anomaly_fraction=0.0)[3]
    assert none["mask"] is None and none["label"] == 0 and none["defect"] == "good"
    assert (
        none["image"].tobytes() == picture(seed=3).tobytes()
        and none["product"] == "bolt"
        and none["image_id"] == "a/3"
    )
    half = [PaintedAnomalies(rows, anomaly_fraction=0.5, kinds=("line", "scar"))[index] for index in range(40)]
    assert 10 < sum(item["label"] for item in half) < 30
    assert {item["defect"] for item in half} == {"good", "line", "scar"}
    assert all((item["mask"] is not None) == bool(item["label"]) for item in half)


def test_dataset_foregrounds():
    images = [picture(seed=seed) for seed in range(3)]
    given = PaintedAnomalies(images, anomaly_fraction=1.0, foregrounds=[foreground(), None, foreground()])
    for index in (0, 2):
        assert not np.asarray(given[index]["mask"])[foreground() == 0].any()
    found = PaintedAnomalies(images, anomaly_fraction=1.0, foregrounds=lambda image: np.asarray(image)[..., 0] > 120)
    assert not np.asarray(found[1]["mask"])[np.asarray(images[1])[..., 0] <= 120].any()
    with pytest.raises(ValueError, match="1 foregrounds for 3 images"):
        PaintedAnomalies(images, foregrounds=[foreground()])


def test_dataset_refuses_bad_arguments():
    with pytest.raises(ValueError, match="at least one"):
        PaintedAnomalies([])
    with pytest.raises(ValueError, match="labeled anomalous"):
        PaintedAnomalies([{"image": picture(), "label": 1}])[0]
    with pytest.raises(ValueError, match="anomaly_fraction=2"):
        PaintedAnomalies([picture()], anomaly_fraction=2)
    with pytest.raises(ValueError, match="scratchy"):
        PaintedAnomalies([picture()], kinds=["scratchy"])
