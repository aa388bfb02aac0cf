"""WinCLIP and WinCLIP+ against the tensors of anomalib's implementation; see `golden`."""

import torch
from torch import nn

from tests.methods.golden import ATTENTION, GoldenFolder, Quantity, RecordedTokenizer
from vcp_clip_hf.methods import WinCLIPModel
from vcp_clip_hf.methods.method import DEFAULT_PRODUCT
from vcp_clip_hf.methods.windows import window_index


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    tokenizer = RecordedTokenizer(folder.clip.config.text_config.vocab_size)
    model = make_model(folder, tokenizer)
    with torch.no_grad():
        quantities = _text(folder, model, tokenizer)
        quantities |= _embeddings(folder, model)
        quantities |= _zero_shot(folder, model)
        if "reference_pixel_values" in folder.expected:
            quantities |= _few_shot(folder, model)
    return quantities


def make_model(folder: GoldenFolder, tokenizer: RecordedTokenizer) -> WinCLIPModel:
    """Return the method with the folder's settings and weights."""
    return WinCLIPModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        tokenizer=tokenizer,
        image_size=folder.image_size,
        **folder.fields(
            scales="scales",
            temperature="temperature",
            normal_states="normal_states",
            abnormal_states="anomalous_states",
            templates="templates",
        ),
    )


def _text(folder: GoldenFolder, model: WinCLIPModel, tokenizer: RecordedTokenizer) -> dict[str, Quantity]:
    product = folder.config.get("class_name", DEFAULT_PRODUCT)
    normal, abnormal = model.config.prompt_ensemble().sentences(product)
    ids = tokenizer.record([*normal, *abnormal], folder.expected["input_ids"])
    embeds = [model.encode_sentences(each) for each in (normal, abnormal)]
    means = torch.stack([each.mean(dim=0) for each in embeds])
    unit = nn.functional.normalize(folder.expected["text_embeds"], dim=-1)
    return {
        "input_ids": ids,
        "prompt_embeds": Quantity(folder.expected["prompt_embeds"], torch.cat(embeds)),
        # anomalib keeps the means, and normalizes them when it compares
        "text_embeds": Quantity(folder.expected["text_embeds"], means),
        "text_embeds, unit": Quantity(unit, model.text_embeds([product])[0]),
    }


def _embeddings(folder: GoldenFolder, model: WinCLIPModel) -> dict[str, Quantity]:
    features = model.image_features(folder.input("pixel_values"))
    embeddings = model.embed_windows(features)
    found = {"image_embeds": embeddings.image, "patch_embeds": embeddings.patches}
    for scale, each in embeddings.windows.items():
        found[f"window_embeds_{scale}"] = each
        found[f"window_index_{scale}"] = window_index(features.grid, scale)
    return folder.quantities(found)


def _zero_shot(folder: GoldenFolder, model: WinCLIPModel) -> dict[str, Quantity]:
    pixel_values, product = folder.input("pixel_values"), folder.config.get("class_name", DEFAULT_PRODUCT)
    embeddings = model.embed_windows(model.image_features(pixel_values))
    scores = model.compare_with_text(embeddings, model.text_embeds([product] * len(pixel_values)))
    outputs = model(pixel_values, product)
    found = {"grid_map": scores.grid_map, "anomaly_map": outputs.anomaly_map, "image_score": outputs.image_scores}
    for scale in model.config.scales:
        found[f"window_scores_{scale}"], found[f"harmonic_{scale}"] = scores.windows[scale], scores.scales[scale]
    return folder.quantities({f"zero_shot.{name}": each for name, each in found.items()})


def _few_shot(folder: GoldenFolder, model: WinCLIPModel) -> dict[str, Quantity]:
    tokens = model.reference_tokens(folder.input("reference_pixel_values"))
    names = {"patch": "reference_patch_embeds"}
    names |= {f"window_{scale}": f"reference_window_embeds_{scale}" for scale in model.config.scales}
    quantities = folder.quantities({names[bank]: each for bank, each in tokens.items()})

    banks = {bank: nn.functional.normalize(each.flatten(0, 1), dim=-1) for bank, each in tokens.items()}
    pixel_values = folder.input("pixel_values")
    scores = model.compare_with_references(model.embed_windows(model.image_features(pixel_values)), banks)
    outputs = model(pixel_values, folder.config.get("class_name", DEFAULT_PRODUCT), references=banks)
    found = {
        "patch_scores": scores.patches,
        "association_map": scores.grid_map,
        "anomaly_map": outputs.anomaly_map,
        "image_score": outputs.image_scores,
    }
    for scale in model.config.scales:
        found[f"window_scores_{scale}"], found[f"harmonic_{scale}"] = scores.windows[scale], scores.scales[scale]
    quantities |= folder.quantities({f"few_shot.{name}": each for name, each in found.items()})
    return quantities
