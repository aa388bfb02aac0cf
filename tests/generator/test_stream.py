"""The endless stream of rendered pictures."""

import pickle

import pytest
from torch.utils.data import DataLoader

from vcp_clip_hf.generator import UNSEEN_PRODUCTS
from vcp_clip_hf.generator.stream import SyntheticDefectsStream


def keep_bytes(item: dict) -> tuple:
    """Return an item as values that can be compared."""
    return item["image_id"], item["caption"], item["image"].tobytes(), item["label"]


def test_items_depend_on_the_epoch_but_not_on_workers():
    stream = SyntheticDefectsStream(length=6, size=32, seed=2, transform=keep_bytes)
    direct = [stream[index] for index in (5, 0, 3, 1, 4, 2)]
    direct = [direct[position] for position in (1, 3, 5, 2, 4, 0)]
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append(list(map(tuple, loader)))
    assert epochs[0] == epochs[2] == direct
    assert not {item[0] for item in epochs[0]} & {item[0] for item in epochs[1]}
    assert stream[-1] == stream[5]
    with pytest.raises(IndexError):
        stream[6]


def test_products_defects_and_pairs_are_selected():
    stream = SyntheticDefectsStream("unseen", length=12, size=32, anomaly_fraction=1.0, defects=None, pair=True)
    items = [stream[index] for index in range(12)]
    assert {item["product"] for item in items} <= set(UNSEEN_PRODUCTS) and all(item["label"] for item in items)
    assert all(item["normal"].tobytes() != item["image"].tobytes() for item in items)
    normal = SyntheticDefectsStream("gear", length=2, size=32, anomaly_fraction=0.0, pair=True)[0]
    assert normal["mask"] is None and normal["normal"].tobytes() == normal["image"].tobytes()
    assert len(pickle.loads(pickle.dumps(stream))) == 12
    with pytest.raises(ValueError, match="geer"):
        SyntheticDefectsStream(["geer"])
