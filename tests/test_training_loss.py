"""The loss of batches with and without masks, computed without waiting for the device."""

import torch

from tests.common import pixels, tiny_model
from vcp_clip_hf import VCPCLIPOutput, segmentation_loss
from vcp_clip_hf.training_loss import image_level_loss, training_loss


def test_a_mixed_batch_weights_both_losses_by_their_numbers_of_images():
    model, images = tiny_model(), pixels(4)
    outputs = model(images, output_layer_maps=True)
    labels = torch.zeros(4, 48, 48, dtype=torch.uint8)
    labels[0, :9] = 1
    all_masked = training_loss(outputs, labels, torch.tensor([True] * 4))
    torch.testing.assert_close(all_masked, model(images, labels=labels).loss)
    known = torch.tensor([True, False, True, True])
    mixed = training_loss(outputs, labels, known)
    branches = (outputs.base_layer_maps, outputs.vcp_layer_maps)
    pixel = sum(segmentation_loss(maps[known], labels[known]) for maps in branches)
    image = sum(image_level_loss(maps[~known]) for maps in branches)
    torch.testing.assert_close(mixed, 0.75 * pixel + 0.25 * image)
    without_masks = training_loss(outputs, labels, torch.tensor([False] * 4))
    torch.testing.assert_close(without_masks, sum(image_level_loss(maps) for maps in branches))


def test_the_image_level_loss_of_certain_maps():
    assert image_level_loss(torch.ones(2, 3, 10, 10)) == 0
    # The top 1 % of 100 pixels is one pixel
    maps = torch.zeros(1, 2, 10, 10)
    maps[0, :, 4, 4] = 0.5
    torch.testing.assert_close(image_level_loss(maps), 2 * torch.log(torch.tensor(2.0)))


def test_the_loss_reads_no_value_from_the_device():
    """Tensors on the meta device have no values: reading one, as for a decision in Python, would fail."""
    maps = torch.rand(4, 3, 10, 10, device="meta")
    labels = torch.zeros(4, 10, 10, dtype=torch.uint8, device="meta")
    outputs = VCPCLIPOutput(base_layer_maps=maps, vcp_layer_maps=maps)
    assert training_loss(outputs, labels, torch.tensor([True] * 4)).is_meta


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts():
    """Joining the batches of an optimizer step relies on it."""
    model, images, labels = tiny_model(), pixels(4), torch.zeros(4, 48, 48, dtype=torch.uint8)
    labels[0, :9] = labels[3, 5:30] = 1
    known = torch.tensor([True, False, False, True])
    outputs = [model(each, output_layer_maps=True) for each in (images, *images.split(2))]
    whole, *parts = map(training_loss, outputs, (labels, *labels.split(2)), (known, *known.split(2)))
    torch.testing.assert_close(whole, sum(parts) / 2)
