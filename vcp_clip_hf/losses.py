"""Focal and dice loss, with which VCP-CLIP is trained (equation 10 of the paper), and the loss of a stem branch."""

import torch


__all__ = ["dice_loss", "focal_loss", "segmentation_loss", "stem_branch_loss"]


# Constants of the authors' implementation; the gamma of the focal loss is 2
_FOCAL_SMOOTH = 1e-5
_DICE_SMOOTH = 1.0
# Weight of abnormal pixels, which are few, in the loss of the stem branch
_ABNORMAL_WEIGHT = 4.0


def focal_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Compute the focal loss of a two-state segmentation, gamma 2, without class weights.

    Args:
        probabilities (`torch.FloatTensor` of shape `(..., height, width)`): probability of the abnormal state.
        target (`torch.Tensor`, broadcastable to `probabilities`): ground truth, 1 where abnormal, else 0.

    Returns:
        `torch.FloatTensor` of shape `()`: the mean over all pixels.
    """
    target = target.to(probabilities.dtype).clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH)
    return _FocalTerms.apply(probabilities, target).mean()


class _FocalTerms(torch.autograd.Function):
    """
    The focal loss of each pixel, `-(1 - p)^2 log p` with p the probability of the true state.

    Its gradient is computed from the probabilities, which the sigmoid keeps anyway: autograd would keep four further
    tensors of their size, more than half of the memory of a training step.
    """

    @staticmethod
    def forward(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p_target = _of_true_state(probabilities, target)
        return p_target.log().mul_((1 - p_target).square_()).neg_()

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        probabilities, target = ctx.saved_tensors
        p_target = _of_true_state(probabilities, target)
        rest = 1 - p_target
        # of -rest^2 log p: rest * (2 log p - rest / p)
        slope = p_target.log().mul_(2).sub_(rest / p_target).mul_(rest).mul_(2 * target - 1)
        return slope.mul_(gradient), None


def _of_true_state(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the probability of each pixel's true state, above zero."""
    return torch.lerp(1 - probabilities, probabilities, target).add_(_FOCAL_SMOOTH)


def dice_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Compute the dice loss of the abnormal state, smooth 1: per image, then the mean.

    Args:
        probabilities (`torch.FloatTensor` of shape `(..., height, width)`): probability of the abnormal state.
        target (`torch.Tensor`, broadcastable to `probabilities`): ground truth, 1 where abnormal, else 0.

    Returns:
        `torch.FloatTensor` of shape `()`: in [0, 1].
    """
    target = target.to(probabilities.dtype)
    overlap = (probabilities * target).sum(dim=(-2, -1))
    total = (probabilities + target).sum(dim=(-2, -1))
    return (1 - (2 * overlap + _DICE_SMOOTH) / (total + _DICE_SMOOTH)).mean()


def segmentation_loss(layer_maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Sum focal and dice loss over the feature layers: the part of equation 10 of one branch.

    Args:
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`):
            Probability of the abnormal state.
        target (`torch.Tensor` of shape `(batch_size, height, width)`): ground truth, 1 where abnormal, else 0.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    # All layers have the same number of pixels, so the sum of their means is the overall mean times their number
    target = target.unsqueeze(1)
    return layer_maps.shape[1] * (focal_loss(layer_maps, target) + dice_loss(layer_maps, target))


def stem_branch_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Compute the loss of a stem branch, which the paper does not have: the cross-entropy of every head, with a weight of
    4 for abnormal pixels; the mean over all pixels and heads.

    Focal and dice loss would soon give probabilities near 0 and 1, whose logits would outweigh those of the other
    branches in the fused map.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_heads, height, width)`): positive for abnormal pixels.
        target (`torch.Tensor` of shape `(batch_size, height, width)`): ground truth, 1 where abnormal, else 0.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    target = target.unsqueeze(1).expand_as(logits).to(logits)
    weights = torch.where(target > 0, _ABNORMAL_WEIGHT, 1.0)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weights)
