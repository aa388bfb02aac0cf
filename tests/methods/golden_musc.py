"""Mutual scoring against the tensors of MuSc's code; see `golden`."""

import torch
from torch import nn

from tests.methods.golden import ATTENTION, GoldenFolder, Quantity
from vcp_clip_hf.methods import MuScModel
from vcp_clip_hf.mutual_scoring import lnamd, patch_scores, raise_to_image, rscin


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours, each computed from our own earlier ones."""
    config, pixel_values = folder.config, folder.input("pixel_values")
    model = MuScModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        image_size=folder.image_size,
        **folder.fields(
            feature_layers="feature_layers", degrees="r_list", interval="interval", rescore_neighbors="rscin_k"
        ),
    )
    layers, degrees, neighbors = (
        getattr(model.config, name) for name in ("feature_layers", "degrees", "rescore_neighbors")
    )
    scoring = model.config.mutual_scoring()
    with torch.no_grad():
        features = model.image_features(pixel_values)
        image_embeds = model(pixel_values, output_hidden_states=layers).image_embeds
    class_tokens = nn.functional.normalize(image_embeds, dim=-1)
    tokens = {layer: features.states[layer][:, 1:] for layer in layers}
    got = {"image_embeds": image_embeds, "class_tokens": class_tokens}
    got |= {f"patch_tokens_{layer}": features.states[layer] for layer in layers}

    # Subsets are scored separately; the last one has what is left over
    num_subsets = config.get("divide_num", 1)
    length = len(pixel_values) // num_subsets
    sizes = [*[length] * (num_subsets - 1), len(pixel_values) - length * (num_subsets - 1)]
    parts = zip(*(each.split(sizes) for each in tokens.values()), strict=True)
    subsets = [dict(zip(layers, part, strict=True)) for part in parts]
    for degree in degrees:
        got |= {f"lnamd_r{degree}_layer{layer}": lnamd(subsets[0][layer], features.grid, degree) for layer in layers}
    scores = torch.cat([patch_scores(subset, features.grid, scoring) for subset in subsets], dim=2)
    scores = scores.unflatten(-1, features.grid)
    maps = raise_to_image(scores.mean(dim=(0, 1)), features.size)
    raw = maps.flatten(1).amax(dim=1)
    got |= {"msm_scores": scores, "anomaly_map": maps, "image_score_raw": raw}
    got |= {f"rscin_k{k}": rscin(raw, class_tokens, [k]) for k in neighbors}
    got["image_score"] = rscin(raw, class_tokens, neighbors)
    return folder.quantities(got)
