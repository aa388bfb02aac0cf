"""Batches whose images have several shapes at the model's input."""

import torch

from vcp_clip_hf.batch_shapes import of_one_shape, stacked


def inputs(*widths):
    return [torch.full((1, 3, 2, width), float(position)) for position, width in enumerate(widths)]


def test_one_shape_is_one_tensor_and_one_part():
    values = stacked(inputs(4, 4, 4))
    assert values.shape == (3, 3, 2, 4) and values[:, 0, 0, 0].tolist() == [0, 1, 2]
    batch = {"name": ["a", "b", "c"], "pixel_values": values}
    ((positions, part),) = of_one_shape(batch)
    assert positions == [0, 1, 2] and part is batch


def test_several_shapes_are_parts_in_the_order_of_the_batch():
    values = stacked(inputs(4, 6, 4, 6, 2))
    assert isinstance(values, list)
    parts = of_one_shape({"name": list("abcde"), "pixel_values": values})
    assert [positions for positions, _ in parts] == [[0, 2], [1, 3], [4]]
    assert [part["name"] for _, part in parts] == [["a", "c"], ["b", "d"], ["e"]]
    assert [tuple(part["pixel_values"].shape) for _, part in parts] == [(2, 3, 2, 4), (2, 3, 2, 6), (1, 3, 2, 2)]
    assert parts[1][1]["pixel_values"][:, 0, 0, 0].tolist() == [1, 3]
