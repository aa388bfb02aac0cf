"""The optional image head of VCP-CLIP, which scores whether a whole image is anomalous. The paper has none.

The maximum of a map is a weak score of an image: one noisy pixel decides, and its level differs between products. The
head has parameters of its own and compares these inputs with the normal and the abnormal text embedding:

- the global image token;
- the patch tokens of each feature layer: their contrast in the base branch (equation 3), plus a low-rank correction;
- the patch tokens of each feature layer as the Post-VCP branch sees them (equation 9);
- with a stem branch, its logits, which are compared with the text already, as the mean of the cells of each patch.

Of the contrasts of the patches, it reads the standard deviation and the prominence. The latter, the log-mean-exp minus
the mean, says by how much the most abnormal patches stand out from the rest of their own image. For an unknown
product, both say more than the level.

An untrained head adds the prominences and the global contrast, and its corrections are zero, so that a training starts
from a useful score, even with few images. No gradient leaves the head, so that the rest of the model trains exactly as
it does without it.

Shapes: B images, N patches, K feature layers, d the width of CLIP's joint space, d_v the image width, M the number of
evidence maps: 2 * K with Post-VCP, else K; one more with a stem branch.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .configuration_vcp_clip import VCPCLIPConfig
from .visual_context_prompting import inverse_norm


__all__ = ["VCPCLIPContrastCorrection", "VCPCLIPImageHead", "image_head_loss"]

# Rank of the corrections: the head of a ViT-L/14 has 0.14 million parameters
_RANK = 16
# Factor from differences of cosines to the scale of logits, and of the bias: prominences are never negative, and the
# bias must quickly follow their sum
_SCALE = 10.0
# Sharpness of the log-mean-exp on that scale in an untrained head
_INITIAL_SHARPNESS = 3.0
# Weight of every prominence and of the global contrast in an untrained head
_INITIAL_WEIGHT = 0.1


class VCPCLIPContrastCorrection(nn.Module):
    """
    A learned correction of the contrast between tokens and text, `(E x / |x|) . (D t)`: of low rank, on the scale of
    logits, and zero before training.

    Args:
        token_width (`int`): width of the tokens x.
        text_width (`int`): width of t, the difference of abnormal and normal text embedding.
    """

    def __init__(self, token_width: int, text_width: int):
        super().__init__()
        self.token_projection = nn.Linear(token_width, _RANK, bias=False)
        self.text_projection = nn.Linear(text_width, _RANK, bias=False)

    def forward(self, tokens: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
        """
        Compute the correction.

        Args:
            tokens (`torch.Tensor` of shape `(B, N, token_width)`): tokens, not normalized.
            difference (`torch.Tensor` of shape `(B, text_width)`): abnormal minus normal text embedding.

        Returns:
            `torch.FloatTensor` of shape `(B, N)`, float32 whatever the dtype of the arguments.
        """
        direction = self.text_projection(difference.to(tokens)).float().unsqueeze(1)
        projected = self.token_projection(tokens).float()
        # Not a matrix product, which autocast would compute in half precision
        return (projected * direction).sum(dim=-1) * inverse_norm(tokens)


class VCPCLIPImageHead(nn.Module):
    """
    Score whole images: the optional image head of [`VCPCLIPModel`].

    Args:
        config ([`VCPCLIPConfig`]): architecture of the model.
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        num_layers = len(config.feature_layers)
        num_maps = num_layers * (2 if config.use_post_vcp else 1) + config.use_stem_branch
        width = config.projection_dim
        self.global_correction = VCPCLIPContrastCorrection(width, width)
        self.patch_corrections = nn.ModuleList(
            VCPCLIPContrastCorrection(config.vision_config.hidden_size, width) for _ in range(num_layers)
        )
        # Its logarithm, so that the sharpness stays positive
        self.log_sharpness = nn.Parameter(torch.empty(num_maps))
        self.prominence_weights = nn.Parameter(torch.empty(num_maps))
        self.spread_weights = nn.Parameter(torch.empty(num_maps))
        self.global_weight = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the initial values; the token projections keep PyTorch's default for linear layers."""
        for correction in (self.global_correction, *self.patch_corrections):
            init.zeros_(correction.text_projection.weight)
        init.constant_(self.log_sharpness, math.log(_INITIAL_SHARPNESS))
        for weight in (self.prominence_weights, self.global_weight):
            init.constant_(weight, _INITIAL_WEIGHT)
        for weight in (self.spread_weights, self.bias):
            init.zeros_(weight)

    def forward(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        patch_tokens: Sequence[torch.Tensor],
        base_contrast: torch.Tensor,
        vcp_contrast: torch.Tensor | None,
        stem_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Compute the logits of images. All arguments are used without their gradients.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, d)`): global features of the images, not normalized.
            text_embeds (`torch.Tensor` of shape `(B, 2, d)`): normal, abnormal; L2-normalized.
            patch_tokens (sequence of K `torch.Tensor` of shape `(B, N, d_v)`): not normalized.
            base_contrast (`torch.FloatTensor` of shape `(B, K, N)`): abnormal minus normal cosine of every patch in
                the base branch.
            vcp_contrast (`torch.FloatTensor` of shape `(B, K, N)`, *optional*): the same in the Post-VCP branch.
            stem_logits (`torch.FloatTensor` of shape `(B, N)`, *optional*): logits of the stem branch, means over its
                heads and over the cells of each patch.

        Returns:
            `torch.FloatTensor` of shape `(B,)`, float32: positive for anomalous images.
        """
        difference = (text_embeds[:, 1] - text_embeds[:, 0]).detach()
        maps = self._maps(patch_tokens, difference, base_contrast, vcp_contrast, stem_logits)
        of_image = self._global_evidence(image_embeds.detach(), difference)

        means = maps.mean(dim=-1)
        sharpness = self.log_sharpness.float().exp()
        log_means = (maps * sharpness[:, None]).logsumexp(dim=-1) - math.log(maps.shape[-1])
        prominence = log_means / sharpness - means
        # The small term keeps the gradient of a flat map finite
        spread = ((maps - means[..., None]).square().mean(dim=-1) + 1e-6).sqrt()
        return (
            (prominence * self.prominence_weights.float()).sum(dim=1)
            + (spread * self.spread_weights.float()).sum(dim=1)
            + of_image * self.global_weight.float()
            + _SCALE * self.bias.float()
        )

    def _maps(
        self,
        patch_tokens: Sequence[torch.Tensor],
        difference: torch.Tensor,
        base_contrast: torch.Tensor,
        vcp_contrast: torch.Tensor | None,
        stem_logits: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return all evidence maps, `(B, M, N)`: the corrected base branch, the Post-VCP branch, the stem branch."""
        corrections = [
            correction(tokens.detach(), difference).to(base_contrast.device)
            for correction, tokens in zip(self.patch_corrections, patch_tokens, strict=True)
        ]
        maps = [_SCALE * base_contrast.detach() + torch.stack(corrections, dim=1)]
        if vcp_contrast is not None:
            maps.append(_SCALE * vcp_contrast.detach())
        if stem_logits is not None:
            maps.append(stem_logits.detach().unsqueeze(1).to(base_contrast.device))
        return torch.cat(maps, dim=1)

    def _global_evidence(self, image_embeds: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
        """Return the contrast of the global image token, `(B,)`, corrected."""
        cosines = (image_embeds.float() * difference.float()).sum(dim=-1) * inverse_norm(image_embeds)
        return _SCALE * cosines + self.global_correction(image_embeds.unsqueeze(1), difference).squeeze(1)


def image_head_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Return the binary cross-entropy of an image head: the mean over the images.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size,)`): result of [`VCPCLIPImageHead`].
        labels (`torch.Tensor` of shape `(batch_size,)`): 1 for anomalous images, else 0.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
