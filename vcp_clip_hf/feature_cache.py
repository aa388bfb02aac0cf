"""Image features on disk: without augmentation, the frozen tower sees every image once instead of once per epoch."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers.utils import logging

from .configuration_vcp_clip import VCPCLIPConfig
from .convolutional_stem import STEM_CELLS, STEM_LAYER, layer_width
from .modeling_vcp_clip import VCPCLIPModel


__all__ = ["CachedFeatures", "cache_image_features", "feature_cache_size"]

logger = logging.get_logger(__name__)

_FACTS = "features.json"


def feature_cache_size(num_images: int, config: VCPCLIPConfig) -> int:
    """Return the bytes on disk that the features and masks of `num_images` images take."""
    return num_images * sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in _arrays(config).values()
    )


def _arrays(config: VCPCLIPConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return name -> (shape, dtype) of the arrays that are stored for an image."""
    height, width = config.input_size
    patches = (height // config.vision_config.patch_size) * (width // config.vision_config.patch_size)
    arrays = {
        "patch_tokens": ((len(config.feature_layers), patches, config.vision_config.hidden_size), np.float16),
        "image_embeds": ((config.projection_dim,), np.float32),
        "labels": ((height, width), np.uint8),
        "has_mask": ((), np.bool_),
    }
    # models without these parts do not read them, and their folders of earlier versions do not have them
    if config.use_stem_branch:
        for name, layer in (("stem_features", STEM_LAYER), ("stem_cells", STEM_CELLS)):
            arrays[name] = ((patches, layer_width(layer, config.vision_config)), np.float16)
    if config.use_image_head:
        arrays["is_anomalous"] = ((), np.bool_)
    return arrays


class CachedFeatures(Dataset):
    """
    Training examples that [`cache_image_features`] wrote.

    Args:
        folder (`str`): folder of the features.

    Items are dicts: `patch_tokens` (K, N, d_v) float16, `image_embeds` (d,) float32, `labels` (H, W) uint8, `has_mask`
    and, for a model with an image head, `is_anomalous`; for one with a stem branch, `stem_features` (N, d_s) and
    `stem_cells` (N, 224), float16.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.length = json.loads((self.folder / _FACTS).read_text(encoding="utf-8"))["images"]
        self._opened: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self._opened is None:  # each DataLoader worker opens the files itself
            self._opened = {
                path.stem: np.lib.format.open_memmap(path, mode="r") for path in sorted(self.folder.glob("*.npy"))
            }
        return {name: torch.from_numpy(np.array(array[index])) for name, array in self._opened.items()}

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": None}


def cache_image_features(
    model: VCPCLIPModel,
    examples: Dataset,
    folder: str | os.PathLike,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
    data_fingerprint: str,
) -> CachedFeatures:
    """
    Run the image tower once over all examples, divided among the processes, and keep its features.

    Features that `folder` already holds are used if the same tower computed them from the same data; otherwise they
    are replaced.

    Args:
        model ([`VCPCLIPModel`]): model whose image tower computes the features.
        examples (`Dataset`): items with `pixel_values`, `labels` and `has_mask`, the same ones each time; for a
            model with an image head also `is_anomalous`.
        folder (`str`): folder to write.
        batch_size, num_workers (`int`): batch size and DataLoader workers of each process.
        accelerator (`Accelerator`): accelerator of the processes that share the work.
        data_fingerprint (`str`): string that differs for other examples.

    Raises:
        OSError: the disk does not have enough room; the message states how much is needed.
    """
    folder = Path(folder)
    facts = {"images": len(examples), "tower": _tower_fingerprint(model), "data": data_fingerprint}
    if model.config.use_image_head:
        facts["is_anomalous"] = True
    if model.config.use_stem_branch:
        facts["stem_cells"] = True
    # One process reads, and all use its result, because they must reach the same barriers
    found = broadcast_object_list([_read_facts(folder) == facts])[0]
    if found:
        logger.info(f"Image features are taken from {folder}.")
        return CachedFeatures(folder)

    arrays = _arrays(model.config)
    if accelerator.is_main_process:
        _create_files(folder, len(examples), model.config)
    accelerator.wait_for_everyone()
    files = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in arrays}
    _fill(files, model, examples, batch_size, num_workers, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # written last: a folder without this file counts as unfinished
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    accelerator.wait_for_everyone()
    return CachedFeatures(folder)


def _read_facts(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _create_files(folder: Path, num_images: int, config: VCPCLIPConfig) -> None:
    """Replace the folder by empty arrays, after checking that the disk has room for them."""
    size = feature_cache_size(num_images, config)
    logger.warning(f"Image features of {num_images} images take {size / 2**30:.2f} GiB in {folder}.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"The image features of {num_images} images take {size / 2**30:.2f} GiB, and {folder} has"
            f" {free / 2**30:.2f} GiB left. Use an image_feature_dir on another disk, or none."
        )
    for name, (shape, dtype) in _arrays(config).items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_images, *shape)).flush()


def _fill(
    files: dict[str, np.ndarray],
    model: VCPCLIPModel,
    examples: Dataset,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
) -> None:
    """Compute this process's share of the features and write them to the files."""
    mine = range(accelerator.process_index, len(examples), accelerator.num_processes)
    loader = DataLoader(Subset(examples, mine), batch_size, num_workers=num_workers)
    done = 0
    with tqdm(total=len(mine), desc="image features", disable=not accelerator.is_local_main_process) as bar:
        for batch in loader:
            with torch.no_grad(), accelerator.autocast():
                outputs = model.encode_image_with_states(batch["pixel_values"].to(accelerator.device))
                patch_tokens, image_embeds, of_stem, _ = outputs
            values = {
                "patch_tokens": torch.stack(patch_tokens, dim=1).half(),
                "image_embeds": image_embeds.float(),
                "labels": batch["labels"],
                "has_mask": batch["has_mask"],
                "is_anomalous": batch.get("is_anomalous"),
            }
            if of_stem is not None:
                values |= zip(("stem_features", "stem_cells"), (each.half() for each in of_stem), strict=True)
            indices = list(mine[done : done + len(image_embeds)])
            for name, file in files.items():
                file[indices] = values[name].cpu().numpy()
            done += len(indices)
            bar.update(len(indices))
    for array in files.values():
        array.flush()


def _tower_fingerprint(model: VCPCLIPModel) -> str:
    """Return a hash of the image tower's weights, its input size, and the layers that are read."""
    digest = hashlib.sha256(repr((model.config.input_size, tuple(model.config.feature_layers))).encode())
    for module in (model.clip.vision_model, model.clip.visual_projection):
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
