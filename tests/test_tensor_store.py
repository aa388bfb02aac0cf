"""Rows in memory and in a file are the same, whatever the data type."""

import errno

import pytest
import torch

from vcp_clip_hf.tensor_store import TensorStore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limit", [0, 10**6])
def test_rows_come_back(dtype, limit):
    store, rows = TensorStore((6, 3, 5), dtype, limit), torch.randn(6, 3, 5).to(dtype)
    assert store.in_memory == (limit > 0) and len(store) == 6
    store.write(4, rows[4:])
    store.write(0, rows[:4])
    assert torch.equal(store.read(0, 6), rows) and torch.equal(store.read(2, 5), rows[2:5])
    store.write(1, torch.zeros(2, 3, 5))
    assert torch.equal(store.read(0, 4), torch.stack([rows[0], rows[1] * 0, rows[2] * 0, rows[3]]))


def test_the_limit_is_reached_exactly():
    assert TensorStore((2, 4), torch.float32, 32).in_memory
    assert not TensorStore((2, 4), torch.float32, 31).in_memory


def test_rows_may_be_slices_of_other_tensors():
    store, rows = TensorStore((2, 3, 4), torch.float32, 0), torch.randn(2, 5, 4)
    store.write(0, rows[:, 1:4])
    assert torch.equal(store.read(0, 2), rows[:, 1:4])


def test_rows_that_were_never_written_are_not_made_up():
    store = TensorStore((4, 3), torch.float32, 0)
    store.write(0, torch.randn(2, 3))
    with pytest.raises(EOFError, match="rows 1 to 4 of a store of 4"):
        store.read(1, 4)


def test_a_full_disk_is_said():
    store = TensorStore((2, 4), torch.float32, 0)
    store._file.close()
    with open("/dev/full", "wb", buffering=0) as full:
        store._file = full
        full.seek = lambda offset: None if offset == 0 else offset
        with pytest.raises(OSError, match="No space") as caught:
            store.write(0, torch.randn(2, 4))
    assert caught.value.errno == errno.ENOSPC
