"""CLIP-AD (SDP and SDP+) against the authors' tensors; see `golden`."""

import re

import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from tests.methods.golden import ATTENTION, GoldenFolder, Quantity, RecordedTokenizer
from vcp_clip_hf.methods import ClipADModel
from vcp_clip_hf.methods.method import DEFAULT_PRODUCT
from vcp_clip_hf.methods.representative_vectors import dbscan_labels, representative_vector


# Settings of the authors' script for each dataset
DBSCAN = {"mvtec": (0.5, 15), "visa": (1.5, 25)}


def check(folder: GoldenFolder) -> dict[str, Quantity]:
    """Return every stored quantity with ours."""
    tokenizer = RecordedTokenizer(folder.clip.config.text_config.vocab_size)
    with torch.no_grad():
        model = make_model(folder, tokenizer, use_adapters=False)
        quantities = _text(folder, model, tokenizer)
        quantities |= _features(folder, model)
        quantities |= _maps(folder, model, "sdp")
        if _adapters(folder):
            quantities |= _maps(folder, make_model(folder, tokenizer, use_adapters=True), "sdp_plus")
    return quantities


def make_model(folder: GoldenFolder, tokenizer: RecordedTokenizer, use_adapters: bool) -> ClipADModel:
    """Return the method with the folder's settings and weights."""
    eps, min_samples = DBSCAN[_dataset(folder)]
    model = ClipADModel.from_clip(
        folder.clip,
        attn_implementation=ATTENTION,
        tokenizer=tokenizer,
        image_size=folder.image_size,
        **folder.fields(
            feature_layers="feature_layers",
            normal_states="normal_states",
            abnormal_states="abnormal_states",
            templates="templates",
            representative="rep_vec",
        ),
        dbscan_eps=eps,
        dbscan_min_samples=min_samples,
        use_adapters=use_adapters,
    )
    if use_adapters:
        model.adapters.load_state_dict(_adapters(folder))
    return model


def _dataset(folder: GoldenFolder) -> str:
    """Return the dataset whose settings hold: "visa" or "mvtec", in any spelling."""
    return "visa" if "visa" in folder.config.get("dataset", "").lower() else "mvtec"


def _adapters(folder: GoldenFolder) -> dict[str, torch.Tensor]:
    return folder.tensors("linear.safetensors") or folder.tensors("learned.safetensors")


def _product(folder: GoldenFolder) -> str:
    return folder.config.get("class_name", DEFAULT_PRODUCT)


def _text(folder: GoldenFolder, model: ClipADModel, tokenizer: RecordedTokenizer) -> dict[str, Quantity]:
    product, expected = _product(folder), folder.expected
    quantities, unit = {}, {}
    for state, sentences in zip(
        ("normal", "abnormal"), model.config.prompt_ensemble().sentences(product), strict=True
    ):
        quantities[f"input_ids_{state}"] = tokenizer.record(sentences, expected[f"input_ids_{state}"])
        embeds = model.encode_sentences(sentences)
        quantities |= folder.quantities({f"prompt_embeds_{state}": embeds})
        unit[state] = nn.functional.normalize(embeds, dim=-1)
    for name in folder.keys(r"dbscan_labels_(.+)"):
        dataset, state = re.fullmatch(r"dbscan_labels_(.+)_(normal|abnormal)", name).groups()
        quantities[name] = Quantity(expected[name], dbscan_labels(unit[state], *DBSCAN[dataset]))
    for name, kind in folder.keys(r"text_embeds\.(.+)").items():
        kind, _, dataset = kind.partition("_") if kind.startswith("dbscan_") else (kind, "", "mvtec")
        vectors = [representative_vector(each, kind, *DBSCAN[dataset]) for each in unit.values()]
        quantities[name] = Quantity(expected[name], torch.stack(vectors))
    kind = model.config.representative
    name = f"text_embeds.{kind}_{_dataset(folder)}" if kind == "dbscan" else f"text_embeds.{kind}"
    if name in folder:
        quantities[f"{name}, model"] = Quantity(expected[name], model.text_embeds([product])[0])
    return quantities


def _features(folder: GoldenFolder, model: ClipADModel) -> dict[str, Quantity]:
    pixel_values = folder.input("pixel_values")
    paths = model.two_paths(model.image_features(pixel_values))
    found = {"similarity": _similarity(folder, model).sum(dim=1)}
    for layer, original, surgery in zip(model.config.feature_layers, paths.original, paths.surgery, strict=True):
        found[f"ori_{layer}"], found[f"surgery_{layer}"] = original, surgery
    return folder.quantities(found)


def _similarity(folder: GoldenFolder, model: ClipADModel) -> torch.Tensor:
    pixel_values = folder.input("pixel_values")
    text_embeds = model.text_embeds([_product(folder)] * len(pixel_values))
    return model.similarity(model.two_paths(model.image_features(pixel_values)).surgery, text_embeds)


def _maps(folder: GoldenFolder, model: ClipADModel, mode: str) -> dict[str, Quantity]:
    outputs = model(folder.input("pixel_values"), _product(folder))
    # The published map is a sum over layers; ours is moved to [0, 1]
    parts, num_layers = (2 if mode == "sdp" else 3), len(model.config.feature_layers)
    maps = num_layers * (parts * outputs.anomaly_map - 1)
    sigma = folder.config.get(f"smoothing_{mode}", 2 if (mode, _dataset(folder)) == ("sdp_plus", "visa") else 8)
    smoothed = torch.stack([torch.from_numpy(gaussian_filter(each.numpy(), sigma)) for each in maps])
    maxima = smoothed.flatten(1).amax(dim=1)
    found = {
        "map_before_smoothing": maps,
        "anomaly_map": smoothed,
        "map_max": maxima,
        "text_score": outputs.text_scores,
        "image_score": model.scores_of_product(outputs.text_scores, maxima),
    }
    return folder.quantities({f"{mode}.{name}": each for name, each in found.items()})
