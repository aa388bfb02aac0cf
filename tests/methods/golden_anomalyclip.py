"""AnomalyCLIP against the authors' tensors; see `golden`."""

import torch

from tests.methods.golden import ATTENTION, EOS, PLACEHOLDER, GoldenFolder, Quantity, adam_steps
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.losses import dice_loss, focal_loss
from vcp_clip_hf.methods import AnomalyCLIPModel


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    model = make_model(folder)
    with torch.no_grad():
        quantities = _text(folder, model) | _image_side(folder, model) | _maps(folder, model)
        if "masks" in folder:
            quantities |= _losses(folder, model)
    return quantities | (_training(folder, model) if "masks" in folder else {})


def make_model(folder: GoldenFolder) -> AnomalyCLIPModel:
    """Return the method with the folder's settings and weights."""
    learned = folder.tensors("learned.safetensors")
    deep = [learned[f"compound_prompts_text.{index}"] for index in range(_num_deep(learned))]
    num_context = learned["ctx_pos"].shape[-2]
    rows = [row[: row.index(EOS) + 1] for row in folder.expected["input_ids"].tolist()]
    model = AnomalyCLIPModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        image_size=folder.image_size,
        num_context_tokens=num_context,
        deep_prompt_depth=len(deep) + 1,
        **({"num_deep_prompt_tokens": len(deep[0])} if deep else {}),
        **folder.fields(
            feature_layers="feature_layers",
            dpam_layer="dpam_layer",
            temperature="temperature",
            local_loss_weight="lam",
        ),
        normal_prompt_ids=[rows[0][0], *rows[0][1 + num_context :]],
        abnormal_prompt_ids=[rows[1][0], *rows[1][1 + num_context :]],
    )
    for name, parameter in parameters(model).items():
        parameter.data.copy_(learned[name].view_as(parameter))
    return model


def parameters(model: AnomalyCLIPModel) -> dict[str, torch.nn.Parameter]:
    """Return the learned parameters by the authors' names."""
    deep = {f"compound_prompts_text.{index}": each for index, each in enumerate(model.prompts.deep_prompts)}
    return {"ctx_pos": model.prompts.normal_context, "ctx_neg": model.prompts.abnormal_context, **deep}


def _num_deep(learned: dict[str, torch.Tensor]) -> int:
    return sum(name.startswith("compound_prompts_text.") for name in learned)


def _text(folder: GoldenFolder, model: AnomalyCLIPModel) -> dict[str, Quantity]:
    num_context, words = model.config.num_context_tokens, model.clip.text_model.embeddings.token_embedding
    ids = torch.zeros_like(folder.expected["input_ids"])
    for row, own in zip(ids, model.prompt_ids(), strict=True):
        own = [own[0], *[PLACEHOLDER] * num_context, *own[1:]]
        row[: len(own)] = torch.tensor(own)
    embeds = words(ids)
    embeds[:, 1 : 1 + num_context] = model.prompts()[0][0]
    texts = model.text_embeds(["object"])[0]
    return folder.quantities({"input_ids": ids, "prompts_embeds": embeds, "text_features": texts})


def _image_side(folder: GoldenFolder, model: AnomalyCLIPModel) -> dict[str, Quantity]:
    last = model.config.vision_config.num_hidden_layers
    features = model.image_features(folder.input("pixel_values"), [last])
    got = {"original_stream_last": features.states[last]}
    for layer, states in features.value_states.items():
        got |= {f"stream_{layer}": states, f"patch_embeds_{layer}": model.project(states)}
    return folder.quantities(got)


def _maps(folder: GoldenFolder, model: AnomalyCLIPModel) -> dict[str, Quantity]:
    outputs = model(folder.input("pixel_values"), output_layer_maps=True)
    num_layers = len(model.config.feature_layers)
    got = {
        "image_embeds": outputs.image_embeds,
        "image_score": outputs.image_scores,
        "layer_maps": outputs.layer_maps.transpose(0, 1),
    }
    # The published map is a sum
    sums = {
        "anomaly_map": outputs.anomaly_map * num_layers,
        "anomaly_map_smooth": gaussian_smooth(outputs.anomaly_map, folder.config.get("gaussian_sigma", 4))
        * num_layers,
    }
    return folder.quantities(got) | folder.quantities(sums, summed=num_layers)


def _losses(folder: GoldenFolder, model: AnomalyCLIPModel) -> dict[str, Quantity]:
    masks, labels = folder.input("masks"), folder.input("labels")
    outputs = model(folder.input("pixel_values"), labels=masks, is_anomalous=labels, output_layer_maps=True)
    maps = outputs.layer_maps.unbind(dim=1)
    parts = {
        "focal_per_layer": torch.stack([focal_loss(each, masks) for each in maps]),
        "dice_abnormal_per_layer": torch.stack([dice_loss(each, masks) for each in maps]),
        "dice_normal_per_layer": torch.stack([dice_loss(1 - each, 1 - masks) for each in maps]),
    }
    whole = torch.nn.functional.cross_entropy(outputs.image_logits, labels.long())
    local = dict.fromkeys(folder.keys(r"(loss_local_times_.*)"), outputs.loss - whole)
    # The sum over the layers, with a weight of 4
    sums = folder.quantities({"loss": outputs.loss, **local}, summed=len(maps))
    return folder.quantities({"loss_global": whole, **parts}) | sums


def _training(folder: GoldenFolder, model: AnomalyCLIPModel) -> dict[str, Quantity]:
    pixel_values, masks, labels = (folder.input(name) for name in ("pixel_values", "masks", "labels"))
    model.train()
    quantities = adam_steps(
        folder, parameters(model), lambda: model(pixel_values, labels=masks, is_anomalous=labels).loss
    )
    for quantity in quantities.values():  # the authors' context vectors have two more axes of length 1
        quantity.got = quantity.got.view_as(quantity.expected)
    return quantities
