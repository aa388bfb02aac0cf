"""AnoVL against the authors' tensors; see `golden`. Random numbers are those of the folder."""

import torch
from torch import nn

from tests.methods.golden import ATTENTION, GoldenFolder, Quantity, RecordedTokenizer
from vcp_clip_hf.methods import AnoVLModel
from vcp_clip_hf.methods.image_views import augmented_views
from vcp_clip_hf.methods.test_time_adaptation import AdaptationNumbers


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    tokenizer = RecordedTokenizer(folder.clip.config.text_config.vocab_size)
    model = make_model(folder, tokenizer)
    quantities = {}
    with torch.no_grad():
        for product in folder.config["classes"]:
            quantities |= _text(folder, model, tokenizer, product)
        quantities |= folder.quantities({"text_embeds": model.text_embeds(folder.config["classes"])})
        quantities |= _image_side(folder, model)
        if "adapter_init.0.weight" in folder:
            quantities |= _adaptation(folder, model)
    return quantities


def make_model(folder: GoldenFolder, tokenizer: RecordedTokenizer) -> AnoVLModel:
    """Return the method with the folder's settings and weights, and the authors' way with optimizers."""
    config = folder.config
    templates = {}
    if "inds_temp" in config:
        templates["object_templates"] = [*config["inds_temp"], *config["img_temp"], *config["mnf_temp"]]
        templates["texture_templates"] = [*config["inds_temp"], *config["text_temp"], *config["surf_temp"]]
    return AnoVLModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        tokenizer=tokenizer,
        image_size=folder.image_size,
        **templates,
        **folder.fields(
            feature_layers="feature_layers",
            normal_states="state_normal",
            abnormal_states="state_anomaly",
            textures="texture_list",
            prompt_names="class_mapping",
            adaptation_steps="tta_steps",
            adaptation_learning_rate="tta_lr",
        ),
        reset_optimizer=False,
    )


def _text(folder: GoldenFolder, model: AnoVLModel, tokenizer: RecordedTokenizer, product: str) -> dict[str, Quantity]:
    config = model.config
    ensemble = config.prompt_ensemble(product in config.textures)
    normal, abnormal = ensemble.sentences(config.prompt_names.get(product, product))
    ids = tokenizer.record([*normal, *abnormal], folder.expected[f"input_ids.{product}"])
    embeds = torch.cat(model.product_texts([product])[product].prompt_embeds)
    found = {
        f"prompt_embeds.{product}": embeds,
        f"adapter_prompt_bank.{product}": nn.functional.normalize(embeds, dim=-1),
    }
    return {f"input_ids.{product}": ids} | folder.quantities(found)


def _image_side(folder: GoldenFolder, model: AnoVLModel) -> dict[str, Quantity]:
    pixel_values, products = folder.input("pixel_values"), folder.config["image_classes"]
    features = model.image_features(pixel_values)
    tokens = model.value_tokens(features)
    projected = model.project_tokens(tokens[:, 1:])
    text_embeds = model.text_embeds(products)
    maps = model.pixel_maps(projected.unflatten(1, features.grid), text_embeds, features.size)
    view_embeds = model.view_embeds(features)
    model.config.adapt = False
    outputs = model(pixel_values, products)
    model.config.adapt = True
    found = {
        "last_tokens": features.states[model.config.vision_config.num_hidden_layers],
        "vv_tokens": tokens,
        "vv_projected": projected,
        "no_tta.anomaly_map": outputs.anomaly_map,
        "image_score": outputs.image_scores,
        "image_embeds": outputs.image_embeds,
        "augmented_0": augmented_views(pixel_values[:1])[0],
        "augmented_0.class_embeds": view_embeds[0],
    }
    return folder.quantities(found) | {
        "no_tta.anomaly_map, parts": Quantity(folder.expected["no_tta.anomaly_map"], maps)
    }


def _adaptation(folder: GoldenFolder, model: AnoVLModel) -> dict[str, Quantity]:
    """Adapt image by image, in the order of the folder: the optimizer of a product goes on."""
    pixel_values, products = folder.input("pixel_values"), folder.config["image_classes"]
    features = model.image_features(pixel_values)
    tokens = model.project_tokens(model.value_tokens(features)[:, 1:]).unflatten(1, features.grid)
    found, adapted = {}, []
    for index, product in enumerate(products):
        numbers = AdaptationNumbers(
            folder.input(f"adapter_init.{index}.weight")[None],
            folder.input(f"adapter_init.{index}.bias")[None],
            folder.input(f"noise.{index}")[None],
        )
        result = model.adapted_tokens(tokens[[index]], product, numbers)
        adapted.append(result.tokens)
        found |= {
            f"loss.{index}": result.losses[0],
            f"adapted_tokens.{index}": result.tokens[0],
            f"adapter_final.{index}.weight": result.weight[0],
            f"adapter_final.{index}.bias": result.bias[0],
        }
    maps = model.pixel_maps(torch.cat(adapted), model.text_embeds(products), features.size)
    found["tta.anomaly_map"] = maps
    return folder.quantities(found)
