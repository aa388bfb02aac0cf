"""The common base of the methods on a frozen CLIP: product names as text, and one forward pass for all methods.

Shapes: B images of H x W pixels, N = (H / patch) * (W / patch) patches, K layers, d the joint width, d_v the image
width, d_t the text width. The two states are always ordered normal, abnormal.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase
from transformers.utils import can_return_tuple

from ..autocast import no_autocast
from ..backbone_loading import HUB_ARGUMENTS, backbone_location, read_backbone_config
from ..checkpoint_errors import read_config_values
from ..modeling_frozen_clip import FrozenCLIPPreTrainedModel, check_labels, requested_states, state_outputs
from ..prompts import check_tokenizer
from ..weight_snapshot import WeightSnapshot
from .configuration import AnomalyMethodConfig, PromptEnsembleConfig
from .method import AnomalyMethod, AnomalyMethodOutput
from .prompt_ensemble import ensemble_mean


__all__ = [
    "AnomalyMethodModel",
    "AnomalyMethodOutput",
    "ImageFeatures",
    "ProductText",
    "PromptEnsembleModel",
    "scaled_over_product",
]

# Numbers of sentences that are embedded at once, and of products whose embeddings are kept
_BLOCK = 64
_MAX_PRODUCTS = 32


@dataclass
class ImageFeatures:
    """
    Result of CLIP's image tower for a batch.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): the images.
        states (`dict[int | str, torch.Tensor]`): residual stream `(B, 1 + N, d_v)` after the method's layers, and the
            features `(B, N, d_s)` of a convolutional stem, if they were requested.
        pooled (`torch.Tensor` of shape `(B, d_v)`): class token after the last block and `post_layernorm`.
        grid (`tuple[int, int]`): patches in a column and in a row.
    """

    pixel_values: torch.Tensor
    states: dict[int | str, torch.Tensor]
    pooled: torch.Tensor
    grid: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the images in pixels."""
        return tuple(self.pixel_values.shape[-2:])


@dataclass
class ProductText:
    """
    The text embeddings of one product.

    Args:
        text_embeds (`torch.Tensor` of shape `(2, projection_dim)`): L2-normalized, normal first.
        prompt_embeds (`tuple[torch.Tensor, torch.Tensor]`, *optional*): embeddings of the sentences of both states,
            `(num_prompts, projection_dim)`, not normalized, for methods that read them.
    """

    text_embeds: torch.Tensor
    prompt_embeds: tuple[torch.Tensor, torch.Tensor] | None = None


class AnomalyMethodModel(AnomalyMethod, FrozenCLIPPreTrainedModel):
    r"""
    A published method on a frozen CLIP: computes anomaly maps and image scores of images with product names.

    A method defines `config: ItsConfig`, `encode_product` and `segment`; a trained one defines `compute_loss` too. Its
    `__init__` calls that of this class first, then adds the learned modules, and ends with `self.post_init()`.

    Args:
        config ([`AnomalyMethodConfig`]): the method's configuration.
    """

    config: AnomalyMethodConfig

    _learned_modules = ("adapters", "prompts")

    def __init__(self, config: AnomalyMethodConfig):
        super().__init__(config)
        self.clip = self._make_clip()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._forget_texts()

    def _make_clip(self) -> CLIPModel:
        clip = super()._make_clip()
        clip.vision_model.embeddings.position_interpolation = self.config.position_interpolation
        return clip

    @classmethod
    def from_clip(cls, backbone, config=None, tokenizer=None, **kwargs):
        """Build a model on a pretrained CLIP, as in [`FrozenCLIPPreTrainedModel.from_clip`]."""
        model = super().from_clip(backbone, config, tokenizer, **kwargs)
        if tokenizer is not None:
            model.tokenizer = tokenizer
        return model

    @classmethod
    def fitted_to(cls, backbone: str | os.PathLike | CLIPModel, **kwargs) -> "AnomalyMethodModel":
        """
        Build the method on any CLIP: fields of its configuration that do not fit the CLIP are changed.

        Args:
            backbone (`str`, `os.PathLike` or `CLIPModel`): as in `from_clip`. The input size is that of the backbone
                if it is a checkpoint of this package; otherwise the method's own, rounded to a multiple of the patch
                size.
            kwargs: as in `from_clip`; given fields are not changed.

        Returns:
            [`AnomalyMethodModel`] in evaluation mode.
        """
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        clip_config, _ = read_backbone_config(backbone, hub_arguments)
        fields = cls.config_class.fitted_fields(clip_config)
        if not isinstance(backbone, CLIPModel):
            values = read_config_values(backbone, **hub_arguments)
            fields.update({name: values[name] for name in ("image_size",) if name in values})
        return cls.from_clip(backbone, **{**fields, **kwargs})

    # --- the tokenizer ----------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """
        Return the tokenizer, loaded on first use from the checkpoint or its backbone.

        Raises:
            ValueError: there is none.
        """
        if self._tokenizer is None:
            self._tokenizer, errors = self._load_tokenizer()
            if self._tokenizer is None:
                raise ValueError(
                    f"This {type(self).__name__} has no tokenizer, which turns product names into tokens. Set"
                    f" `model.tokenizer` to the tokenizer of its CLIP backbone.{errors}"
                )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer(tokenizer, self.config.text_config.vocab_size)
        self._tokenizer = tokenizer
        self._forget_texts()

    def _load_tokenizer(self) -> tuple[PreTrainedTokenizerBase | None, str]:
        """Return the first tokenizer that fits, or `None`, and the errors of those tried before it."""
        config, errors = self.config, ""
        sources = [(self.name_or_path, {})] if self.name_or_path else []
        if config.backbone_name_or_path:
            revision = {} if config.backbone_revision is None else {"revision": config.backbone_revision}
            sources.append((backbone_location(config.backbone_name_or_path, self.name_or_path), revision))
        for source, arguments in sources:
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
                check_tokenizer(tokenizer, config.text_config.vocab_size)
                return tokenizer, ""
            except (OSError, ValueError, TypeError) as error:
                errors += f" {source}: {error}"
        return None, errors

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs):
        """
        Save configuration, weights and, if there is one, the tokenizer.

        Args are those of [`FrozenCLIPPreTrainedModel.save_pretrained`].
        """
        tokenizer = self._tokenizer or self._load_tokenizer()[0]
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if tokenizer is not None and is_main_process:
            tokenizer.save_pretrained(save_directory)

    # --- product names and their text embeddings --------------------------------------------------------------------

    def encode_product(self, product: str) -> ProductText:
        """
        Embed the prompts of one product.

        Args:
            product (`str`): result of `prompt_name`.

        Returns:
            [`ProductText`]
        """
        raise NotImplementedError(f"{type(self).__name__} must define encode_product.")

    def text_modules(self) -> list[nn.Module]:
        """Return the modules that text embeddings are computed from; learned prompts must be among them."""
        return [self.clip.text_model, self.clip.text_projection]

    def product_texts(self, product_names: Iterable[str]) -> dict[str, ProductText]:
        """
        Return the text embeddings of products.

        They are computed once for each product and kept until weights, prompts or tokenizer change. While they can
        receive gradients, or a module of the text part is in training mode, they are computed anew in each call.

        Args:
            product_names (`Iterable[str]`): names; repetitions cost nothing.

        Returns:
            `dict[str, ProductText]`: name -> embeddings.
        """
        names = {name: self.prompt_name(name) for name in product_names}
        if not self._texts_are_constant():
            made = {prompt: self.encode_product(prompt) for prompt in dict.fromkeys(names.values())}
        else:
            made = self._kept_texts(list(dict.fromkeys(names.values())))
        return {name: made[prompt] for name, prompt in names.items()}

    def text_embeds(self, product_names: Sequence[str]) -> torch.Tensor:
        """
        Return the text embeddings of a batch.

        Args:
            product_names (`Sequence[str]`): one name for each image.

        Returns:
            `torch.Tensor` of shape `(batch_size, 2, projection_dim)`: L2-normalized, normal first.
        """
        texts = self.product_texts(product_names)
        return torch.stack([texts[name].text_embeds for name in product_names])

    def _texts_are_constant(self) -> bool:
        modules = self.text_modules()
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if not parameters or any(module.training for part in modules for module in part.modules()):
            return False  # replicas on several GPUs have no parameters
        return not torch.is_grad_enabled() or not any(parameter.requires_grad for parameter in parameters)

    def _kept_texts(self, prompts: list[str]) -> dict[str, ProductText]:
        modules = self.text_modules()
        settings = repr([getattr(self.config, name) for name in self.config.own_fields()])
        snapshot = self._text_snapshot
        if snapshot is None or settings != self._text_settings or not snapshot.holds(modules):
            self._texts, self._text_settings = {}, settings
            self._text_snapshot = WeightSnapshot(modules, modules)
        texts = dict(self._texts)
        # The embeddings are also used by later calls with or without autocast, in inference mode or in training
        with torch.inference_mode(False), torch.no_grad(), no_autocast(self.device):
            for prompt in prompts:
                if prompt not in texts:
                    texts[prompt] = self.encode_product(prompt)
        # Replaced as a whole: another thread may read the dictionary meanwhile
        self._texts = dict(list(texts.items())[-_MAX_PRODUCTS:])
        return texts

    def _forget_texts(self) -> None:
        self._texts: dict[str, ProductText] = {}
        self._text_snapshot: WeightSnapshot | None = None
        self._text_settings = ""

    def _apply(self, *args, **kwargs):
        # `to`, `half` and similar methods change the tensors that the embeddings were computed from
        self._forget_texts()
        return super()._apply(*args, **kwargs)

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """
        Tokenize sentences.

        Args:
            sentences (`Sequence[str]`): text without special tokens.

        Returns:
            `list[list[int]]`: start token, words, end token of each, without padding.

        Raises:
            ValueError: a sentence is too long for the text tower, or has a word that the vocabulary cannot spell.
        """
        tokenizer, limit = self.tokenizer, self.config.text_config.max_position_embeddings
        rows = tokenizer(list(sentences), add_special_tokens=False).input_ids
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        for sentence, row in zip(sentences, rows, strict=True):
            if special & set(row):
                raise ValueError(f"The prompt {sentence!r} has a word that the tokenizer's vocabulary cannot spell.")
            if len(row) + 2 > limit:
                raise ValueError(
                    f"The prompt {sentence!r} has {len(row) + 2} tokens, more than max_position_embeddings={limit}."
                    " Use a shorter product name."
                )
        return [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]

    def encode_prompt_ids(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """
        Embed tokenized prompts, a block at a time, so that memory does not grow with their number.

        Args:
            rows (`Sequence[Sequence[int]]`): ids of each prompt, ending with its end token, without padding.

        Returns:
            `torch.Tensor` of shape `(num_prompts, projection_dim)`: projected, not normalized.
        """
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        return torch.cat([self._encode_block(block) for block in blocks])

    def _encode_block(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        # Nothing after the end token reaches it: the attention is causal
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows], device=self.device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        states = self.clip.text_model(input_ids=ids).last_hidden_state
        return self.clip.text_projection(states[torch.arange(len(rows), device=self.device), ends])

    def encode_sentences(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embed sentences: `tokenize`, then `encode_prompt_ids`."""
        return self.encode_prompt_ids(self.tokenize(sentences))

    # --- images -----------------------------------------------------------------------------------------------------

    def required_layers(self) -> Iterable[int]:
        """Return the blocks, counted from 1 (0: the input of the first), whose residual stream `segment` reads."""
        return self.config.feature_layers

    def image_features(self, pixel_values: torch.FloatTensor, layers: Iterable[int | str] | None = None, **kwargs):
        """
        Run CLIP's image tower.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normalized images.
            layers (`Iterable[int | str]`, *optional*, defaults to `required_layers()`): blocks to return, or `"stem"`.
            kwargs: arguments of transformers' attention functions.

        Returns:
            [`ImageFeatures`]
        """
        states, pooled = self.run_image_tower(
            pixel_values, self.required_layers() if layers is None else layers, **kwargs
        )
        patch_size = self.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        return ImageFeatures(pixel_values, states, pooled, (height // patch_size, width // patch_size))

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """
        Compute maps and scores: the method itself.

        Args:
            features ([`ImageFeatures`]): result of the image tower, with the `required_layers`.
            product_names (`list[str]`): one name for each image.
            references (`Mapping[str, torch.Tensor]`, *optional*):
                Banks of a reference memory, name -> L2-normalized rows `(rows, width)`, as `reference_tokens` names
                them; only if `supports_references`.

        Returns:
            [`AnomalyMethodOutput`] without `loss` and `hidden_states`, with `layer_maps` if there are any.
        """
        raise NotImplementedError(f"{type(self).__name__} must define segment.")

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """
        Return the training loss.

        Args:
            outputs ([`AnomalyMethodOutput`]): result of `segment`.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`): 1 where abnormal, else 0.
            is_anomalous (`torch.LongTensor` of shape `(batch_size,)`): 1 for images with a defect.

        Raises:
            ValueError: the method is not trained.
        """
        raise ValueError(f"{type(self).__name__} has no learned part, so labels give no loss. Leave them out.")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        product_names: Sequence[str] | str | None = None,
        labels: torch.Tensor | None = None,
        references: Mapping[str, torch.Tensor] | None = None,
        is_anomalous: torch.Tensor | None = None,
        output_layer_maps: bool = False,
        output_hidden_states: bool | int | Sequence[int | str] | None = None,
        **kwargs,
    ) -> AnomalyMethodOutput:
        r"""
        Compute anomaly maps and image scores, and the loss if labels are given.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Images from the image processor; sides are multiples of the patch size.
            product_names (`Sequence[str]` or `str`, *optional*, defaults to `"object"`):
                One name for each image, or one for all.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Ground truth, 1 where abnormal, else 0. Gives `loss`.
            references (`Mapping[str, torch.Tensor]`, *optional*):
                Banks of a reference memory for the few-shot mode, name -> L2-normalized rows `(rows, width)`.
            is_anomalous (`torch.Tensor` of shape `(batch_size,)`, *optional*, defaults to whether `labels` have a
                defect): 1 for images with a defect, else 0.
            output_layer_maps (`bool`, *optional*, defaults to `False`): whether to return the maps of each layer.
            output_hidden_states (`bool`, `int` or `Sequence[int | str]`, *optional*, defaults to
                `config.output_hidden_states`): also return the image tower's hidden states, or those of the given
                indices only, with `None` in the place of the others, and with `"stem"` among them `stem_features`.
            return_dict (`bool`, *optional*): `False` for a plain tuple.
            kwargs: arguments of transformers' attention functions, for the image tower.

        Returns:
            [`AnomalyMethodOutput`]

        Raises:
            ValueError: a wrong shape, labels outside 0 and 1, references for a method without a few-shot mode.
            TypeError: an unknown keyword argument.
        """
        self._refuse_unknown(kwargs)
        if references is not None:
            self._check_references(references)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        num_states = len(self.clip.vision_model.encoder.layers) + 1
        requested = requested_states(output_hidden_states, num_states)
        features = self.image_features(pixel_values, {*self.required_layers(), *requested}, **kwargs)
        names = self.names_of_images(product_names, len(pixel_values))

        outputs = self.segment(features, names, references)
        if labels is not None:
            check_labels(labels, (len(pixel_values), *features.size))
            labels = labels.to(outputs.anomaly_map.device)
            if is_anomalous is None:
                is_anomalous = labels.flatten(1).amax(dim=1) > 0
            is_anomalous = is_anomalous.to(outputs.anomaly_map.device, torch.long)
            outputs["loss"] = self.compute_loss(outputs, labels, is_anomalous)
        if not output_layer_maps:
            outputs["layer_maps"] = None
        for name, value in state_outputs(features.states, requested, num_states).items():
            outputs[name] = value
        return AnomalyMethodOutput(**{name: getattr(outputs, name) for name in AnomalyMethodOutput.__annotations__})

    def _check_references(self, references: Mapping[str, torch.Tensor]) -> None:
        missing = [name for name in self.reference_banks() if name not in references]
        if missing:
            raise ValueError(
                f"references has the banks {sorted(references)}, and {', '.join(missing)} is missing. Compute them"
                " with this model's `reference_tokens`, or set the references of the pipeline again."
            )


def scaled_over_product(values: torch.Tensor) -> torch.Tensor:
    """
    Scale values to [0, 1]: their minimum becomes 0 and their maximum 1, as in evaluations over a whole product.

    Args:
        values (`torch.FloatTensor` of shape `(num_images,)`): one value for each image.

    Returns:
        `torch.FloatTensor` of that shape: not a number if all values are equal.
    """
    return (values - values.min()) / (values.max() - values.min())


class PromptEnsembleModel(AnomalyMethodModel):
    """A method whose text is a prompt ensemble: the mean embedding of each state's sentences."""

    config: PromptEnsembleConfig

    # Whether the sentences' embeddings are L2-normalized before the mean
    normalize_prompts = True

    def encode_product(self, product: str) -> ProductText:
        """Embed both states of a product: the mean over the ensemble, L2-normalized."""
        embeds = [self.encode_sentences(each) for each in self.config.prompt_ensemble().sentences(product)]
        return ProductText(torch.stack([ensemble_mean(each, self.normalize_prompts) for each in embeds]))
