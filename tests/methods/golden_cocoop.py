"""CoCoOp for segmentation against tensors of CoOp's and VCP-CLIP's code; see `golden`."""

import torch

from tests.methods.golden import ATTENTION, EOS, PLACEHOLDER, GoldenFolder, Quantity, RecordedTokenizer, adam_steps
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.losses import dice_loss, focal_loss
from vcp_clip_hf.methods import CoCoOpModel
from vcp_clip_hf.methods.method import DEFAULT_PRODUCT


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    model = make_model(folder)
    with torch.no_grad():
        quantities = _text(folder, model) | _image_side(folder, model) | _maps(folder, model)
        if "masks" in folder:
            quantities |= _losses(folder, model)
    return quantities | (_training(folder, model) if "masks" in folder else {})


def make_model(folder: GoldenFolder) -> CoCoOpModel:
    """Return the method with the folder's settings and weights."""
    learned, states = folder.tensors("learned.safetensors"), folder.config.get("state_words")
    words = folder.config.get("ctx_init") or None
    num_context = len(learned["prompt_learner.ctx"])
    ids = folder.expected["input_ids"]
    model = CoCoOpModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        image_size=folder.image_size,
        num_context_tokens=num_context,
        context_init=words,
        **({"context_init_ids": ids[0, 1 : 1 + num_context].tolist()} if words else {}),
        **folder.fields(feature_layers="feature_layers", meta_net_reduction="meta_net_reduction"),
        **({"normal_state": states[0], "abnormal_state": states[1]} if states else {}),
    )
    # The stored ids have the initial words in the place of the context
    tokenizer = RecordedTokenizer(folder.clip.config.text_config.vocab_size)
    product = _product(folder).replace("_", " ")
    rows = torch.cat([ids[:, :1], ids[:, 1 + num_context :]], dim=1)
    states = model.config.normal_state, model.config.abnormal_state
    tokenizer.record([f"{state} {product}." for state in states], rows)
    model.tokenizer = tokenizer
    for name, parameter in parameters(model).items():
        parameter.data.copy_(learned[name])
    return model


def _product(folder: GoldenFolder) -> str:
    return folder.config.get("product", DEFAULT_PRODUCT)


def parameters(model: CoCoOpModel) -> dict[str, torch.nn.Parameter]:
    """Return the learned parameters by the names of the authors' code."""
    result = {"prompt_learner.ctx": model.prompts.context, "prompt_temp": model.map_logit_scale}
    for number, layer in ((1, model.prompts.meta_net[0]), (2, model.prompts.meta_net[2])):
        for name, parameter in layer.named_parameters():
            result[f"prompt_learner.meta_net.linear{number}.{name}"] = parameter
    return result | {f"linear.{name}": parameter for name, parameter in model.adapters.named_parameters()}


def _text(folder: GoldenFolder, model: CoCoOpModel) -> dict[str, Quantity]:
    num_context = model.config.num_context_tokens
    ids = torch.zeros_like(folder.expected["input_ids"])
    for row, own in zip(ids, model.prompt_ids(_product(folder)), strict=True):
        own = [own[0], *(model.config.context_init_ids or [PLACEHOLDER] * num_context), *own[1:]]
        row[: len(own)] = torch.tensor(own)
    outputs = model(folder.input("pixel_values"), _product(folder))
    context = model.prompts(outputs.image_embeds)
    length = 1 + max(row.index(EOS) for row in ids.tolist())
    embeds = model.get_input_embeddings()(ids[:, :length]).repeat(len(context), 1, 1, 1)
    embeds[:, :, 1 : 1 + num_context] = context.unsqueeze(1)
    got = {
        "input_ids": ids,
        "image_embeds": outputs.image_embeds,
        "meta_token": context[:, 0] - model.prompts.context[0],
        "context": context,
        "prompt_embeds": embeds,
        "text_features": outputs.text_embeds,
        "official_class_logits": model.class_logits(outputs.image_embeds, outputs.text_embeds),
    }
    return folder.quantities(got)


def _image_side(folder: GoldenFolder, model: CoCoOpModel) -> dict[str, Quantity]:
    features = model.image_features(folder.input("pixel_values"))
    layers = model.config.feature_layers
    projected = model.adapters([features.states[layer][:, 1:] for layer in layers])
    got = {f"patch_tokens_{layer}": features.states[layer] for layer in layers}
    return folder.quantities(got | {f"projected_{layer}": each for layer, each in zip(layers, projected, strict=True)})


def _maps(folder: GoldenFolder, model: CoCoOpModel) -> dict[str, Quantity]:
    pixel_values, product = folder.input("pixel_values"), _product(folder)
    outputs = model(pixel_values, product, output_layer_maps=True)
    got = {
        "layer_maps": outputs.layer_maps.transpose(0, 1),
        "anomaly_map": outputs.anomaly_map,
        "anomaly_map_smooth_sigma8": gaussian_smooth(outputs.anomaly_map, 8),
        "image_score_max": outputs.image_scores,
    }
    model.config.image_score = "top_pixels"
    got["image_score_top2000"] = model(pixel_values, product).image_scores
    model.config.image_score = "max"
    return folder.quantities(got)


def _losses(folder: GoldenFolder, model: CoCoOpModel) -> dict[str, Quantity]:
    masks = folder.input("masks")
    outputs = model(folder.input("pixel_values"), _product(folder), labels=masks, output_layer_maps=True)
    got = {"loss": outputs.loss}
    for name, loss in (("focal_per_layer", focal_loss), ("dice_per_layer", dice_loss)):
        got[name] = torch.stack([loss(maps, masks) for maps in outputs.layer_maps.unbind(dim=1)])
    return folder.quantities(got)


def _training(folder: GoldenFolder, model: CoCoOpModel) -> dict[str, Quantity]:
    pixel_values, masks, product = folder.input("pixel_values"), folder.input("masks"), _product(folder)
    model.train()
    return adam_steps(folder, parameters(model), lambda: model(pixel_values, product, labels=masks).loss)
