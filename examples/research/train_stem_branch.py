"""Train the stem branch of a model on pictures with defects; all other parts are frozen."""

import hashlib
import json
import math
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.losses import stem_branch_loss
from vcp_clip_hf.stem_branch import upsampled_cells


__all__ = ["fit_stem_branch", "store_stem_features"]

STEPS, BATCH_SIZE = 800, 16
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
WARMUP = 0.1  # share of the steps in which the learning rate rises; then it falls to zero

_PICTURES_AT_A_TIME = 16
_BATCHES_BETWEEN_RECORDS = 32  # after an interruption, less than this is done again
_FACTS = "features.json"
_OF_STEM = ("stem_features", "stem_cells")  # what the branch reads, as the model's outputs name it


def store_stem_features(
    model: VCPCLIPModel, image_processor: VCPCLIPImageProcessor, pictures: datasets.Dataset, folder: Path
) -> None:
    """
    Store what the stem branch reads of every picture. Started again after an interruption, the function continues.

    Args:
        model ([`VCPCLIPModel`]): model with a stem, in float32 and evaluation mode.
        image_processor ([`VCPCLIPImageProcessor`]): its image processor.
        pictures (`datasets.Dataset`): pictures with their masks.
        folder (`Path`): folder to write: `stem_features.npy` (pictures, N, d_s) and `stem_cells.npy`
            (pictures, N, 224) float16, `text_embeds.npy` (pictures, 2, d) float32, `labels.npy`
            (pictures, height, width) bool.
    """
    facts = {
        "pictures": pictures._fingerprint,
        "processor": image_processor.to_json_string(),
        "model": _fingerprint(model),
    }
    height, width = model.config.input_size
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, height, width), output_hidden_states=["stem"])
    shapes = {
        **{name: (tuple(outputs[name].shape[1:]), np.float16) for name in _OF_STEM},
        "text_embeds": ((2, model.config.projection_dim), np.float32),
        "labels": ((height, width), np.bool_),
    }
    done, record = 0, folder / _FACTS
    if record.is_file():
        stored = json.loads(record.read_text())
        position = stored.pop("done")
        done = position if stored == facts else 0
    if done == len(pictures):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not done:  # a record of other pictures is invalid
        record.unlink(missing_ok=True)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+")
        if done
        else np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (len(pictures), *shape))
        for name, (shape, dtype) in shapes.items()
    }
    rest = pictures.select(range(done, len(pictures)))
    loader = DataLoader(rest, _PICTURES_AT_A_TIME, collate_fn=lambda rows: _inputs(rows, image_processor))
    with tqdm(total=len(pictures), initial=done, desc="stem features") as bar:
        for pixel_values, labels in loader:
            with torch.no_grad():
                outputs = model(pixel_values, output_hidden_states=["stem"])
            place = slice(done, done + len(labels))
            for name in _OF_STEM:
                arrays[name][place] = outputs[name].half().numpy()
            arrays["text_embeds"][place] = outputs.text_embeds.numpy()
            arrays["labels"][place] = labels.numpy()
            done += len(labels)
            bar.update(len(labels))
            if done % (_BATCHES_BETWEEN_RECORDS * _PICTURES_AT_A_TIME) == 0 or done == len(pictures):
                for array in arrays.values():
                    array.flush()
                record.write_text(json.dumps({**facts, "done": done}))


def _fingerprint(model: VCPCLIPModel) -> str:
    """Return a hash of what the stored values depend on: the prompts, and all weights but those of the branch."""
    prompts = [model.config.normal_prompt_input_ids, model.config.abnormal_prompt_input_ids]
    digest = hashlib.sha256(repr(prompts).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("stem_branch."):
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _inputs(rows: list[dict], image_processor: VCPCLIPImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    masks = [row["mask"] or np.zeros(row["image"].size[::-1], np.uint8) for row in rows]
    inputs = image_processor([row["image"] for row in rows], masks, return_tensors="pt")
    return inputs.pixel_values, inputs.labels


def fit_stem_branch(model: VCPCLIPModel, features: Path, seed: int, steps: int = STEPS) -> float:
    """
    Train the stem branch on stored features. The same arguments give the same weights.

    Args:
        model ([`VCPCLIPModel`]): model with a stem branch, which is changed.
        features (`Path`): folder that `store_stem_features` wrote with this model.
        seed (`int`): seed of the order of the pictures.
        steps (`int`, *optional*, defaults to 800): number of batches of 16.

    Returns:
        `float`: mean loss of the last tenth of the steps.
    """
    arrays = [np.load(features / f"{name}.npy", mmap_mode="r") for name in (*_OF_STEM, "text_embeds", "labels")]
    order, size = np.random.default_rng(seed), model.config.input_size
    grid = tuple(side // model.config.vision_config.patch_size for side in size)
    branch = model.stem_branch
    optimizer = torch.optim.AdamW(branch.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    losses, waiting = [], np.empty(0, int)
    for _ in tqdm(range(steps), desc="stem branch"):
        if len(waiting) < BATCH_SIZE:
            waiting = order.permutation(len(arrays[0]))
        chosen, waiting = np.sort(waiting[:BATCH_SIZE]), waiting[BATCH_SIZE:]
        stem_features, stem_cells, text_embeds, labels = (torch.from_numpy(array[chosen]).float() for array in arrays)
        logits = branch(stem_features, stem_cells, grid, text_embeds)
        loss = stem_branch_loss(upsampled_cells(logits, size), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-math.ceil(steps / 10) :]))


def _rate(progress: float) -> float:
    """Return the factor of the learning rate at a share of the steps: a linear rise, then half a cosine."""
    if progress < WARMUP:
        return (progress + 0.01) / (WARMUP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
