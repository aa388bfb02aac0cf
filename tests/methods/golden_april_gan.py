"""APRIL-GAN against the authors' tensors, zero-shot and few-shot; see `golden`.

Two formats: batches of several products with losses and gradients, and one product with the tokens of its references.
"""

import json

import torch
from torch import nn

from tests.methods.golden import ATTENTION, GoldenFolder, Quantity, RecordedTokenizer, adam_steps
from vcp_clip_hf.losses import dice_loss, focal_loss
from vcp_clip_hf.methods import AprilGANModel
from vcp_clip_hf.methods.method import DEFAULT_PRODUCT
from vcp_clip_hf.methods.patch_adapters import upsample


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    tokenizer = RecordedTokenizer(folder.clip.config.text_config.vocab_size)
    model = make_model(folder, tokenizer)
    num_images = len(folder.expected["pixel_values"])
    names = folder.config.get("product_of_image") or [folder.config.get("class_name", DEFAULT_PRODUCT)] * num_images
    quantities = {}
    for product in dict.fromkeys([*folder.config.get("products", []), *names]):
        quantities |= _text(folder, model, tokenizer, product)
    with torch.no_grad():
        quantities |= _image_side(folder, model)
        quantities |= _zero_shot(folder, model, names)
        quantities |= _few_shot(folder, model, names)
    if "masks" in folder.expected:
        quantities |= _training(folder, model, names)
    return quantities


def make_model(folder: GoldenFolder, tokenizer: RecordedTokenizer) -> AprilGANModel:
    """Return the method with the folder's settings and weights."""
    config, prompts = folder.config, folder.path / "prompts.json"
    fields = folder.fields(normal_states="normal_states", abnormal_states="abnormal_states", templates="templates")
    if prompts.is_file():
        words = json.loads(prompts.read_text(encoding="utf-8"))
        fields = {"normal_states": words["normal"], "abnormal_states": words["abnormal"]}
        fields["templates"] = words["templates"]
    model = AprilGANModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        tokenizer=tokenizer,
        image_size=folder.image_size,
        few_shot_layers=config.get("few_shot_features", config.get("memory_layers")),
        **folder.fields(feature_layers="feature_layers", logit_scale="logit_scale"),
        **fields,
    )
    model.adapters.load_state_dict(folder.tensors("learned.safetensors") or folder.tensors("linear.safetensors"))
    return model


def _text(
    folder: GoldenFolder, model: AprilGANModel, tokenizer: RecordedTokenizer, product: str
) -> dict[str, Quantity]:
    normal, abnormal = model.config.prompt_ensemble().sentences(product)
    groups = {f"_{product}": [*normal, *abnormal]}
    if f"input_ids_{product}" not in folder:
        groups = {"_normal": normal, "_abnormal": abnormal}
    quantities, got = {}, {}
    for suffix, sentences in groups.items():
        quantities[f"input_ids{suffix}"] = tokenizer.record(sentences, folder.expected[f"input_ids{suffix}"])
    with torch.no_grad():
        for suffix, sentences in groups.items():
            got[f"prompt_embeds{suffix}"] = model.encode_sentences(sentences)
        got["text_embeds"] = got[f"text_features_{product}"] = model.text_embeds([product])[0]
    return quantities | folder.quantities(got)


def _image_side(folder: GoldenFolder, model: AprilGANModel) -> dict[str, Quantity]:
    features = model.image_features(folder.input("pixel_values"))
    layers = model.config.feature_layers
    projected = model.adapters([features.states[layer][:, 1:] for layer in layers])
    got = {f"patch_tokens_{layer}": states for layer, states in features.states.items()}
    got |= {f"projected_{layer}": each for layer, each in zip(layers, projected, strict=True)}
    return folder.quantities(got)


def _zero_shot(folder: GoldenFolder, model: AprilGANModel, names: list[str]) -> dict[str, Quantity]:
    outputs = model(folder.input("pixel_values"), names, output_layer_maps=True)
    num_layers = len(model.config.feature_layers)
    prefix = "zero_shot." if "zero_shot.anomaly_map" in folder else ""
    got = {
        "image_embeds": outputs.image_embeds,
        f"{prefix}image_score": outputs.image_scores,
        "layer_maps": outputs.layer_maps.transpose(0, 1),
    }
    # The published map is a sum
    maps = {f"{prefix}anomaly_map": outputs.anomaly_map * num_layers}
    return folder.quantities(got) | folder.quantities(maps, summed=num_layers)


def _few_shot(folder: GoldenFolder, model: AprilGANModel, names: list[str]) -> dict[str, Quantity]:
    """Compute product by product: each has its own references."""
    if not folder.keys(r"(reference_pixel_values).*"):
        return {}
    pixel_values, layers = folder.input("pixel_values"), model.config.few_shot_layers
    num_layers = len(model.config.feature_layers) + 2 * len(layers)
    indices, maps, scores, distances, got = [], [], [], [], {}
    for product in dict.fromkeys(names):
        own = f"reference_pixel_values_{product}"
        references = folder.input(own if own in folder else "reference_pixel_values")
        tokens = {name: each.flatten(0, 1) for name, each in model.reference_tokens(references).items()}
        got |= {name.replace("layer", "memory"): each for name, each in tokens.items()}
        banks = {name: nn.functional.normalize(each, dim=-1) for name, each in tokens.items()}

        chosen = [index for index, name in enumerate(names) if name == product]
        indices += chosen
        outputs = model(pixel_values[chosen], product, references=banks)
        maps.append(outputs.anomaly_map * num_layers)  # the published map is a sum
        scores.append(model.scores_of_product(outputs.text_scores, outputs.anomaly_map.flatten(1).amax(dim=1)))
        distances.append(model.reference_distances(model.image_features(pixel_values[chosen]), banks))
    order = torch.tensor(indices).argsort()
    maps, scores, distances = (torch.cat(each)[order] for each in (maps, scores, distances))

    grid = tuple(side // model.config.vision_config.patch_size for side in pixel_values.shape[-2:])
    layer_maps = upsample(distances, grid, tuple(pixel_values.shape[-2:]), align_corners=True)
    got |= {f"few_shot.grid_{layer}": distances[:, index].unflatten(-1, grid) for index, layer in enumerate(layers)}
    got |= {"few_shot_layer_maps": layer_maps.transpose(0, 1)}
    got |= {"few_shot.image_score": scores, "few_shot_image_score": scores}
    sums = {"few_shot.anomaly_map": maps, "few_shot_anomaly_map": maps}
    summed = len(model.config.feature_layers) + len(layers)
    return folder.quantities(got) | folder.quantities(sums, summed=summed)


def _training(folder: GoldenFolder, model: AprilGANModel, names: list[str]) -> dict[str, Quantity]:
    pixel_values, masks = folder.input("pixel_values"), folder.input("masks")
    with torch.no_grad():
        outputs = model(pixel_values, names, labels=masks, output_layer_maps=True)
    got = {"loss": outputs.loss}
    for name, loss in (("focal_per_layer", focal_loss), ("dice_per_layer", dice_loss)):
        got[name] = torch.stack([loss(maps, masks) for maps in outputs.layer_maps.unbind(dim=1)])
    model.train()
    return folder.quantities(got) | adam_steps(
        folder, dict(model.adapters.named_parameters()), lambda: model(pixel_values, names, labels=masks).loss
    )
