"""AnoVL (Deng et al. 2023, arXiv 2308.15939; github.com/hq-deng/AnoVL, MIT), as its script for MVTec-AD runs it.

The script for VisA differs: it cuts wide images into two square crops and adapts with a plain linear layer. That
variant is not part of this file.

Shapes: B images, a grid of g_h x g_w patches, N = g_h * g_w, D the image width, E the joint one.
"""

from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from ..autocast import no_autocast
from .base import AnomalyMethodModel, AnomalyMethodOutput, ImageFeatures, ProductText
from .configuration import VIT_B_16_PLUS_240_TEXT, VIT_B_16_PLUS_240_VISION, AnomalyMethodConfig
from .image_views import augmented_views
from .patch_adapters import abnormal_probability, upsample
from .prompt_ensemble import PromptEnsemble, ensemble_mean, read_prompts
from .test_time_adaptation import AdaptationNumbers, AdaptationResult, TokenAdapter, adapt_tokens, draw_numbers
from .vv_attention import value_stream


__all__ = ["AnoVLConfig", "AnoVLModel"]

# Number of images in one pass over the views
_PASS_IMAGES = 64


@strict
class AnoVLConfig(AnomalyMethodConfig):
    r"""
    Configuration of an [`AnoVLModel`]. The default towers are open_clip's ViT-B-16-plus-240.

    Args:
        normal_states, abnormal_states (`list[str]`, *optional*, defaults to the authors' 7 and 7):
            Phrases with one `{}`, the product.
        object_templates, texture_templates (`list[str]`, *optional*, defaults to the authors' 66 and 66):
            Sentences with one `{}`, the state phrase. The authors' code assigns the list for textures twice; the
            second list ("surface picture") is the one in effect.
        textures (`list[str]`, *optional*, defaults to the authors' 5 of MVTec-AD):
            Products whose sentences are `texture_templates`.
        prompt_names (`dict[str, str]`, *optional*, defaults to the authors' for VisA's macaroni):
            Product -> its name in the sentences, where it differs.
        augment_image_score (`bool`, *optional*, defaults to `True`):
            Whether the image score is the mean over 22 views of the image (22 passes of the image tower); `False`: the
            score of the image alone.
        adapt (`bool`, *optional*, defaults to `True`):
            Whether the patch tokens of each image are adapted at test time.
        adaptation_steps (`int`, *optional*, defaults to 5):
            Steps of the optimizer for each image.
        adaptation_learning_rate (`float`, *optional*, defaults to 1e-3):
            Learning rate of AdamW.
        reset_optimizer (`bool`, *optional*, defaults to `True`):
            Whether each image starts with a new optimizer. In the authors' code only the weights are new, and the
            optimizer of a product keeps its moments and step count, so that results depend on the order of the images.
            `False` reproduces this; `forget_optimizers` resets the optimizers.
        adaptation_seed (`int`, *optional*, defaults to 111):
            Seed of the initial weights and of the noise. With `reset_optimizer`, each image gets the same numbers, and
            its result does not depend on others.
        kwargs: fields of [`AnomalyMethodConfig`]. `feature_layers` has no effect: the map comes from the last block.
    """

    model_type = "anovl"
    title = "AnoVL"
    source = (
        "Deng et al. 2023, [arXiv 2308.15939](https://arxiv.org/abs/2308.15939); code: "
        "[AnoVL](https://github.com/hq-deng/AnoVL) (MIT)"
    )
    default_text_config = VIT_B_16_PLUS_240_TEXT
    default_vision_config = VIT_B_16_PLUS_240_VISION
    # Torchvision's default resampling; 2 is PIL's bilinear
    image_processing = {**AnomalyMethodConfig.image_processing, "resample": 2}

    projection_dim: int = 640
    image_size: int | list[int] | tuple[int, ...] = 240
    normal_states: list[str] | tuple[str, ...] | None = None
    abnormal_states: list[str] | tuple[str, ...] | None = None
    object_templates: list[str] | tuple[str, ...] | None = None
    texture_templates: list[str] | tuple[str, ...] | None = None
    textures: list[str] | tuple[str, ...] | None = None
    prompt_names: dict[str, str] | None = None
    augment_image_score: bool = True
    adapt: bool = True
    adaptation_steps: int = 5
    adaptation_learning_rate: float | int = 1e-3
    reset_optimizer: bool = True
    adaptation_seed: int = 111

    def _fill_defaults(self) -> None:
        super()._fill_defaults()
        prompts = read_prompts(self.model_type)
        names = ("normal_states", "abnormal_states", "object_templates", "texture_templates", "textures")
        for name in names:
            given = getattr(self, name)
            setattr(self, name, prompts[name] if given is None else list(given))
        if self.prompt_names is None:
            self.prompt_names = prompts["prompt_names"]

    def check_consistency(self) -> None:
        """Check the fields against each other."""
        super().check_consistency()
        for texture in (False, True):
            self.prompt_ensemble(texture)
        if self.adaptation_steps < 0:
            raise ValueError(f"adaptation_steps={self.adaptation_steps} must be 0 or more.")
        if self.adaptation_learning_rate <= 0:
            raise ValueError(f"adaptation_learning_rate={self.adaptation_learning_rate} must be above 0.")
        height, width = self.input_size
        if self.augment_image_score and height != width:
            raise ValueError(
                f"image_size={self.image_size} is not square, but augment_image_score=True turns images by quarters."
                " Set a square size, or augment_image_score=False."
            )

    def prompt_ensemble(self, texture: bool) -> PromptEnsemble:
        """
        Return the state phrases and templates.

        Args:
            texture (`bool`): whether the product is a texture or an object.
        """
        templates = self.texture_templates if texture else self.object_templates
        states = tuple(self.normal_states), tuple(self.abnormal_states)
        return PromptEnsemble(*states, tuple(templates), templates_outer=True)


class AnoVLModel(AnomalyMethodModel):
    """
    AnoVL: patch tokens of a value-value stream are compared with prompts, after a short adaptation to each image.
    Nothing is trained beforehand, and the adapted weights of an image are not kept (but see `reset_optimizer`).

    All probabilities come from a softmax of two cosines without temperature, as in the authors' code, so that maps lie
    near 0.5.

    Args:
        config ([`AnoVLConfig`]): the configuration.
    """

    config: AnoVLConfig

    def __init__(self, config: AnoVLConfig):
        super().__init__(config)
        self.forget_optimizers()
        self.post_init()

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_product(self, product: str) -> ProductText:
        """Embed both states of a product: the L2-normalized mean of the raw embeddings, and each embedding."""
        config = self.config
        ensemble = config.prompt_ensemble(product in config.textures)
        sentences = ensemble.sentences(config.prompt_names.get(product, product))
        normal, abnormal = (self.encode_sentences(each) for each in sentences)
        means = [ensemble_mean(each, normalize_first=False) for each in (normal, abnormal)]
        return ProductText(torch.stack(means), (normal, abnormal))

    # --- images -----------------------------------------------------------------------------------------------------

    def required_layers(self) -> range:
        """Return all blocks: each gives the input of the next one's value-value attention."""
        return range(self.config.vision_config.num_hidden_layers + 1)

    def value_tokens(self, features: ImageFeatures) -> torch.Tensor:
        """
        Return the value-value stream after the last block, with the class token of the original path.

        Args:
            features ([`ImageFeatures`]): result of the image tower.

        Returns:
            `torch.Tensor` of shape `(B, 1 + N, D)`.
        """
        depth = self.config.vision_config.num_hidden_layers
        blocks = self.clip.vision_model.encoder.layers
        stream = value_stream(blocks, features.states, [depth])[depth]
        return torch.cat([features.states[depth][:, :1], stream[:, 1:]], dim=1)

    def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens `(..., D)` to the joint space, `(..., E)`; not normalized."""
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(tokens))

    # --- adaptation -------------------------------------------------------------------------------------------------

    def forget_optimizers(self) -> None:
        """Reset the optimizers and random numbers that `reset_optimizer=False` keeps between images."""
        self._adapters: dict[str, TokenAdapter] = {}
        self._generator = self._new_generator()

    def adapted_tokens(
        self, tokens: torch.Tensor, product: str, numbers: AdaptationNumbers | None = None
    ) -> AdaptationResult:
        """
        Adapt the tokens of images of one product, each by itself.

        Args:
            tokens (`torch.Tensor` of shape `(B, g_h, g_w, E)`): projected patch tokens, not normalized.
            product (`str`): name of the product.
            numbers ([`AdaptationNumbers`], *optional*): random numbers of each image, instead of drawn ones.

        Returns:
            [`AdaptationResult`]
        """
        text = self.product_texts([product])[product]
        # The adaptation is a small training in float32, also where the caller uses inference mode or autocast
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(tokens.device):
            tokens, embeds, normal, abnormal = (
                each.detach().float().clone() for each in (tokens, text.text_embeds, *text.prompt_embeds)
            )
            bank = nn.functional.normalize(torch.cat([normal, abnormal]), dim=-1)
            if self.config.reset_optimizer:
                adapter = TokenAdapter(len(tokens), bank, self.config.adaptation_learning_rate)
                numbers = numbers or self._draw(bank, tokens, self._new_generator())
                return adapt_tokens(tokens, embeds, adapter, numbers)
            adapter = self._kept_adapter(product, bank)
            results = [
                adapt_tokens(
                    tokens[[index]],
                    embeds,
                    adapter,
                    self._draw(bank, tokens, self._generator) if numbers is None else numbers.of_image(index),
                )
                for index in range(len(tokens))
            ]
            return AdaptationResult.joined(results)

    def _new_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.adaptation_seed)

    def _draw(self, bank: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator) -> AdaptationNumbers:
        grid = tuple(tokens.shape[1:3])
        return draw_numbers(*bank.shape, grid, self.config.adaptation_steps, generator).to(tokens.device)

    def _kept_adapter(self, product: str, bank: torch.Tensor) -> TokenAdapter:
        """Return the adapter of a product, with the optimizer that earlier images have used."""
        kept = self._adapters.get(product)
        if kept is None or kept.bank.device != bank.device or not kept.bank.equal(bank):
            kept = self._adapters[product] = TokenAdapter(1, bank, self.config.adaptation_learning_rate)
        return kept

    # --- maps and scores --------------------------------------------------------------------------------------------

    def view_embeds(self, features: ImageFeatures) -> torch.Tensor:
        """
        Run the image tower over all views of the images.

        Args:
            features ([`ImageFeatures`]): result of the image tower for the images themselves.

        Returns:
            `torch.Tensor` of shape `(B, 22, E)`, or `(B, 1, E)` without `augment_image_score`: class tokens,
            projected, not normalized; the image itself first.
        """
        pooled = features.pooled[:, None]
        if self.config.augment_image_score:
            views = augmented_views(features.pixel_values)[:, 1:]
            others = [self.run_image_tower(each, ())[1] for each in views.flatten(0, 1).split(_PASS_IMAGES)]
            pooled = torch.cat([pooled, torch.cat(others).unflatten(0, views.shape[:2])], dim=1)
        return self.clip.visual_projection(pooled)

    def pixel_maps(self, tokens: torch.Tensor, text_embeds: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """
        Compare patch tokens with the text: abnormal probability, mean over 3 x 3 patches, upsampled.

        Args:
            tokens (`torch.Tensor` of shape `(B, g_h, g_w, E)`): projected patch tokens, not normalized.
            text_embeds (`torch.Tensor` of shape `(B, 2, E)`): L2-normalized, normal first.
            size (`tuple[int, int]`): height and width of the maps.

        Returns:
            `torch.FloatTensor` of shape `(B, *size)`.
        """
        grid = tuple(tokens.shape[1:3])
        probabilities = abnormal_probability(tokens.flatten(1, 2), text_embeds).unflatten(1, grid)
        padded = nn.functional.pad(probabilities[:, None], (1, 1, 1, 1), mode="replicate")
        means = nn.functional.avg_pool2d(padded, 3, stride=1)
        return upsample(means.flatten(2), grid, size, align_corners=True)[:, 0]

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        text_embeds = self.text_embeds(product_names)
        tokens = self.project_tokens(self.value_tokens(features)[:, 1:]).unflatten(1, features.grid)
        if self.config.adapt:
            tokens = self._adapt_all(tokens, product_names)
        view_embeds = self.view_embeds(features)
        scores = abnormal_probability(view_embeds, text_embeds).mean(dim=1)
        return AnomalyMethodOutput(
            anomaly_map=self.pixel_maps(tokens, text_embeds, features.size),
            image_scores=scores,
            text_scores=scores,
            text_embeds=text_embeds,
            image_embeds=view_embeds[:, 0],
        )

    def _adapt_all(self, tokens: torch.Tensor, product_names: Sequence[str]) -> torch.Tensor:
        adapted = torch.empty(tokens.shape, dtype=torch.float32, device=tokens.device)
        for product in dict.fromkeys(product_names):
            indices = [index for index, name in enumerate(product_names) if name == product]
            adapted[indices] = self.adapted_tokens(tokens[indices], product).tokens
        return adapted
