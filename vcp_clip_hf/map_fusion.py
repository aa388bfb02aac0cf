"""Which maps of a model are fused, and their fusion by logits."""

import torch


__all__ = ["BRANCH_MAPS", "fused_by_logits"]

# Fields of a model's outputs with the maps that are fused
BRANCH_MAPS = ("base_map", "vcp_map", "stem_map")


def fused_by_logits(probabilities: torch.Tensor, logits: torch.Tensor, weight: float, eps: float) -> torch.Tensor:
    """
    Fuse probabilities with the logits of others: the sigmoid of the weighted mean of both logits (a logarithmic
    opinion pool). In a mean of probabilities, a map whose values are all small would have little effect.

    Args:
        probabilities (`torch.FloatTensor` of any shape): in [0, 1].
        logits (`torch.FloatTensor` of the same shape): logits of the other probabilities.
        weight (`float`): weight of the logits, in [0, 1]; 0 gives `probabilities`, limited to [eps, 1 - eps].
        eps (`float`): distance from 0 and 1 that probabilities keep, because the logits there are infinite.

    Returns:
        `torch.FloatTensor` of that shape, dtype of `logits`: fused probabilities, in [0, 1].
    """
    return torch.lerp(torch.logit(probabilities, eps=eps), logits, weight).sigmoid()
