"""Build the memory of given normal pictures, and find, load and save the memory's file in a checkpoint."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import cached_file, logging

from .configuration_frozen_clip import FrozenCLIPConfig
from .convolutional_stem import check_stem_layer, without_stem_layer
from .image_loading import ImageLike, load_image
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .memory_builder import MemoryBuilder
from .memory_settings import MemorySettings, turned_copies
from .patch_tokens import states_of
from .references import REFERENCES_FILE, ReferenceMemory, check_weight, picture_digest, tower_weights
from .tiling import Tiling, tiles_of


__all__ = [
    "build_memory",
    "find_references",
    "image_conditions",
    "load_references",
    "picture_digests",
    "save_references",
]

logger = logging.get_logger(__name__)

_PIPELINE_SETTINGS = ("input_range", "timeout", "max_pixels", "max_download_bytes")


def image_conditions(
    image_processor: VCPCLIPImageProcessor, tiling: Tiling | None, input_range: Sequence[float] | None = None
) -> dict[str, Any]:
    """
    Return the settings of images that the patches in a memory depend on, in types that JSON preserves.

    Args:
        image_processor ([`VCPCLIPImageProcessor`]): size and resize mode, and the default of `input_range`.
        tiling ([`Tiling`], *optional*): tiles of the images.
        input_range (`Sequence[float]`, *optional*): values of black and white, instead of the processor's.
    """
    input_range = input_range or image_processor.input_range
    return {
        "input_range": None if input_range is None else [float(value) for value in input_range],
        "size": [image_processor.size.height, image_processor.size.width],
        "resize_mode": image_processor.resize_mode,
        "tiling": None if tiling is None else tiling.settings(),
    }


@torch.no_grad()
def build_memory(
    model: PreTrainedModel,
    image_processor: VCPCLIPImageProcessor,
    images: Sequence[ImageLike],
    weight: float | None = None,
    layers: Sequence[int | str] | None = None,
    neighborhood: int | None = None,
    scale: float | None = None,
    copies: str = MemorySettings.copies,
    max_patches: int = MemorySettings.max_patches,
    source: str = "",
    progress: bool = False,
    batch_size: int = 8,
    on_error: str = "raise",
    tile_size: int | None = None,
    tile_overlap: int | None = None,
    tile_batch_size: int = 4,
    global_weight: float = 0.0,
    distance: str | None = None,
    **reading: Any,
) -> ReferenceMemory:
    """
    Compute the memory of normal pictures.

    Args:
        model ([`VCPCLIPModel`], plain or accelerated, or a method with a few-shot mode of its own): model.
        image_processor ([`VCPCLIPImageProcessor`]): image processor of the model.
        images (`Sequence[ImageLike]`): normal pictures; a second copy of the same picture is left out.
        weight (`float`, *optional*, defaults to `config.reference_weight`): weight of the memory's map.
        layers, neighborhood, scale (*optional*, default to the configuration's), copies, max_patches: see
            [`MemorySettings`].
        source (`str`, *optional*): where the pictures are from, for the model card.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
        batch_size (`int`, *optional*, defaults to 8): pictures, copies and tiles in one forward pass.
        on_error (`"raise"` or `"return"`, *optional*, defaults to `"raise"`): `"return"` leaves pictures out that
            cannot be read, with a warning.
        tile_size, tile_overlap, tile_batch_size, global_weight (*optional*): see [`Tiling`]. The memory then has the
            patches of tiles, and with a `global_weight` those of the whole picture too.
        distance (`str`, *optional*, defaults to `config.reference_distance`): see [`MemorySettings`].
        reading: arguments of [`load_image`].

    Returns:
        [`ReferenceMemory`] on the model's device.

    Raises:
        ValueError: no picture was given or could be read, or a value is out of range.
    """
    own_banks = getattr(model, "reference_banks", None)
    if own_banks is None:
        settings = _memory_settings(model.config, layers, neighborhood, scale, distance, max_patches, copies)
        weight = check_weight(model.config.reference_weight if weight is None else weight)
    else:
        chosen = {"weight": weight, "layers": layers, "neighborhood": neighborhood, "scale": scale}
        _refuse_settings(model, **chosen, distance=distance)
        weight, settings = 1.0, MemorySettings(tuple(own_banks()), max_patches, copies=copies)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number, 1 or more.")
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error={on_error!r} must be "raise" or "return".')
    tiling = Tiling.of(tile_size, tile_overlap, tile_batch_size, global_weight)
    if tiling is not None:
        tiling.check_input(image_processor.size.height, image_processor.size.width)
    builder = MemoryBuilder(settings)
    bar = tqdm(images, desc="references", unit="image", disable=not progress)
    unreadable: list[tuple[str, str]] = []
    views = _views(_readable(bar, image_processor, on_error, reading, unreadable), settings, tiling)
    # tiles are squashed to the model's size, as `segment_tiles` does
    resize_mode = image_processor.resize_mode if tiling is None else "squash"
    for batch in _batches(views, batch_size, resize_mode == "keep_ratio"):
        pixel_values = image_processor([view for _, view in batch], resize_mode=resize_mode, return_tensors="pt")
        pixel_values = pixel_values.pixel_values.to(model.device)
        if own_banks is not None:
            tokens = model.reference_tokens(pixel_values)
            for index, (digest, _) in enumerate(batch):
                builder.add_tokens(digest, {name: each[index] for name, each in tokens.items()})
            continue
        outputs = model(pixel_values, output_hidden_states=list(settings.layers))
        states = states_of(outputs, settings.layers)
        height, width = pixel_values.shape[-2:]
        patch_size = model.config.vision_config.patch_size
        for index, (digest, _) in enumerate(batch):
            own = {layer: each[index : index + 1] for layer, each in states.items()}
            builder.add(digest, own, (height // patch_size, width // patch_size))
    return builder.finish(
        weight=weight,
        source=source,
        conditions=image_conditions(image_processor, tiling, reading.get("input_range")),
        tower=tower_weights(model),
        unreadable=unreadable,
    )


def _memory_settings(
    config: FrozenCLIPConfig,
    layers: Sequence[int | str] | None,
    neighborhood: int | None,
    scale: float | None,
    distance: str | None,
    max_patches: int,
    copies: str,
) -> MemorySettings:
    """Return the settings of a memory of patch tokens; `None` stands for the configuration's value."""
    settings = MemorySettings(
        layers=tuple(config.memory_layers if layers is None else layers),
        max_patches=max_patches,
        neighborhood=config.reference_neighborhood if neighborhood is None else neighborhood,
        scale=config.reference_scale if scale is None else scale,
        distance=config.reference_distance if distance is None else distance,
        copies=copies,
    )
    check_stem_layer(settings.layers, config.vision_config)
    blocks, depth = without_stem_layer(settings.layers), config.vision_config.num_hidden_layers
    if not {*blocks} <= {*range(depth + 1)}:
        raise ValueError(f"layers={settings.layers} must lie in 0..{depth}: the image tower has {depth} blocks.")
    return settings


def _refuse_settings(model: PreTrainedModel, **settings: Any) -> None:
    """Raise for settings of the memory that a method's own few-shot mode does not have."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} has no meaning for {type(model).__name__}, which compares images with references"
                " in the published way. Leave it out."
            )


def _readable(
    images: Sequence[ImageLike],
    image_processor: VCPCLIPImageProcessor,
    on_error: str,
    reading: dict[str, Any],
    unreadable: list[tuple[str, str]],
) -> Iterator[tuple[str, Image.Image]]:
    """Yield digest and picture of every image that can be read, each picture once; add the others to `unreadable`."""
    seen, duplicates = set(), 0
    for image in images:
        try:
            picture = _load(image, image_processor, reading)
        except (ValueError, TypeError, OSError) as error:
            if on_error == "raise":
                raise
            unreadable.append((_named(image), str(error)))
            continue
        digest = picture_digest(picture)
        if digest in seen:
            duplicates += 1
            continue
        seen.add(digest)
        yield digest, picture
    messages = "; ".join(message for _, message in unreadable)
    if unreadable and not seen:
        raise ValueError(f"None of the references could be read: {messages}")
    if unreadable:
        logger.warning(f"References that could not be read and are left out: {len(unreadable)}: {messages}")
    if duplicates:
        logger.warning(f"References that are copies of others, pixel by pixel, and are left out: {duplicates}")


def _named(image: ImageLike) -> str:
    """Return the path of an image, or its kind."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else type(image).__name__


def _load(image: ImageLike, image_processor: VCPCLIPImageProcessor, reading: dict[str, Any]) -> Image.Image:
    options = {name: value for name, value in reading.items() if name in _PIPELINE_SETTINGS}
    input_range = options.pop("input_range", None) or image_processor.input_range
    return load_image(image, input_range, **options)


def _views(
    pictures: Iterator[tuple[str, Image.Image]], settings: MemorySettings, tiling: Tiling | None
) -> Iterator[tuple[str, Image.Image]]:
    """Yield digest and view of all that the memory keeps: each picture and its copies, as a whole or in tiles."""
    for digest, picture in pictures:
        for copy in turned_copies(picture, settings.copies):
            if tiling is None or tiling.global_weight:
                yield digest, copy
            if tiling is not None:
                for tile in tiles_of(copy, tiling):
                    yield digest, tile


def _batches(views: Iterator, size: int, by_shape: bool) -> Iterator[list]:
    """Yield lists of up to `size` views; with `by_shape`, one by one, since their shapes may differ."""
    batch = []
    for view in views:
        batch.append(view)
        if len(batch) == size or by_shape:
            yield batch
            batch = []
    if batch:
        yield batch


def picture_digests(
    images: Sequence[ImageLike], image_processor: VCPCLIPImageProcessor, **reading: Any
) -> list[str | None]:
    """
    Return `picture_digest` of each image, `None` for one that cannot be read.

    Args:
        images (`Sequence[ImageLike]`): images; each is read.
        image_processor ([`VCPCLIPImageProcessor`]): its `input_range` is the default.
        reading: arguments of [`load_image`].
    """
    digests: list[str | None] = []
    for image in images:
        try:
            digests.append(picture_digest(_load(image, image_processor, reading)))
        except (ValueError, TypeError, OSError):
            digests.append(None)
    return digests


def find_references(model: PreTrainedModel) -> ReferenceMemory | None:
    """
    Return the memory in the checkpoint that a model was loaded from, on the model's device, or `None`.

    Args:
        model ([`VCPCLIPModel`]): model with `name_or_path`, a folder or a Hub repository.

    Raises:
        ValueError: the file is damaged, or belongs to another image tower.
    """
    memory = load_references(model.name_or_path, **getattr(model, "hub_arguments", {}))
    if memory is None:
        return None
    memory.check_tower(model)
    return memory.to(model.device)


def load_references(source: str | os.PathLike, **hub_arguments: Any) -> ReferenceMemory | None:
    """
    Return the memory in a checkpoint, on the CPU, or `None`.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository.
        hub_arguments: arguments of `from_pretrained` such as `revision` and `subfolder`.

    Raises:
        ValueError: the file is damaged.
    """
    path = _references_file(str(source), **hub_arguments)
    return None if path is None else ReferenceMemory.load(path)


def _references_file(source: str, subfolder: str | None = None, **hub_arguments: Any) -> str | None:
    """Return the path of the file in a folder, or in a Hub repository at the revision of the model."""
    subfolder = subfolder or ""
    if not source or os.path.isdir(source):
        path = os.path.join(source, subfolder, REFERENCES_FILE)
        return path if source and os.path.isfile(path) else None
    try:
        # no request is sent if the cache of the Hub records that the file is missing
        return cached_file(
            source, REFERENCES_FILE, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **hub_arguments
        )
    except OSError as error:
        if not isinstance(error.__cause__, ValueError):  # not a repository's name: a folder that is gone
            logger.warning(
                f"References of {source} were not looked for, because the repository cannot be read: {error} For a"
                " private repository, log in with `hf auth login` or set HF_TOKEN."
            )
        return None


def save_references(memory: ReferenceMemory | None, folder: str | os.PathLike) -> None:
    """Write the memory into a checkpoint; without one, remove the file of an earlier checkpoint in the folder."""
    if memory is None:
        (Path(folder) / REFERENCES_FILE).unlink(missing_ok=True)
    else:
        memory.save(folder)
