"""Training loss of a batch in which some masks may be unknown."""

import torch

from .host_copy import to_device
from .losses import segmentation_loss, stem_branch_loss
from .modeling_vcp_clip import VCPCLIPOutput


__all__ = ["image_level_loss", "training_loss"]

# Fraction of the pixels that represents an anomalous image whose mask is unknown
_IMAGE_LEVEL_FRACTION = 0.01


def training_loss(outputs: VCPCLIPOutput, labels: torch.Tensor, has_mask: torch.Tensor) -> torch.Tensor:
    """
    Return the loss of a batch, weighted by numbers of images: equation 10 and the loss of a stem branch for images
    with a mask, the image-level loss for anomalous images without one.

    Args:
        outputs ([`VCPCLIPOutput`]): outputs with `output_layer_maps=True`.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): 0 or 1; ignored where there is no mask.
        has_mask (`torch.BoolTensor` of shape `(batch_size,)`):
            Which images have a known mask; that of a normal image is known to be empty. On the CPU, so that nothing
            waits for the device.
    """
    masked = has_mask.float().mean()
    if masked == 1:
        return _pixel_loss(outputs, labels, slice(None))
    branches = [maps for maps in (outputs.base_layer_maps, outputs.vcp_layer_maps) if maps is not None]
    if outputs.stem_map is not None:
        branches.append(outputs.stem_map.unsqueeze(1))
    # Indexing with a mask that lies on the CPU would wait for a GPU
    known, unknown = (to_device(chosen.nonzero().squeeze(1), labels.device) for chosen in (has_mask, ~has_mask))
    loss = (1 - masked) * sum(image_level_loss(maps[unknown]) for maps in branches)
    return loss + masked * _pixel_loss(outputs, labels, known) if masked > 0 else loss


def _pixel_loss(outputs: VCPCLIPOutput, labels: torch.Tensor, chosen: torch.Tensor | slice) -> torch.Tensor:
    """Return the loss of the chosen images, whose masks are known."""
    branches = [maps for maps in (outputs.base_layer_maps, outputs.vcp_layer_maps) if maps is not None]
    loss = sum(segmentation_loss(maps[chosen], labels[chosen]) for maps in branches)
    if outputs.stem_head_logits is None:
        return loss
    return loss + stem_branch_loss(outputs.stem_head_logits[chosen], labels[chosen])


def image_level_loss(layer_maps: torch.Tensor) -> torch.Tensor:
    """
    Return the image-level loss of anomalous images without a mask: -log of the mean of the top 1 % of each map,
    averaged over the images and summed over the layers, as the pixel loss is.

    Args:
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`):
            Probabilities, in [0, 1].
    """
    values = layer_maps.flatten(2)
    top = values.topk(max(1, round(_IMAGE_LEVEL_FRACTION * values.shape[-1])), dim=-1).values.mean(dim=-1)
    return -top.clamp_min(1e-5).log().mean(dim=0).sum()
