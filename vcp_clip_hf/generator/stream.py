"""A `torch` dataset of synthetic pictures without end, each rendered when it is requested."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .captions import caption
from .catalog import SEEN_DEFECTS, select_products
from .fields import Dice
from .render import render_sample


__all__ = ["SyntheticDefectsStream"]

# numbers of random streams, different from those of the renderer
_CHOICE_STREAM, _CAPTION_STREAM = 100, 101


class SyntheticDefectsStream(Dataset):
    """
    Synthetic pictures, rendered on the fly for training.

    Item `i` of epoch `e` is always the same picture, in any order and in any worker process, and no two epochs share a
    picture.

    Args:
        products (`str` or sequence of `str`, *optional*, defaults to `"seen"`): products, see [`select_products`].
        length (`int`, *optional*, defaults to 10,000): number of items per epoch.
        size (`int`, *optional*, defaults to 256): pixels per side.
        seed (`int`, *optional*, defaults to 0): seed; another seed gives other pictures.
        anomaly_fraction (`float`, *optional*, defaults to 0.5): share of anomalous items, 0..1.
        defects (sequence of `str`, *optional*, defaults to `SEEN_DEFECTS`): defects that may occur; None for all.
        pair (`bool`, *optional*, defaults to `False`):
            Whether to add the same picture without its defect under the key "normal" (normal items: the item's own
            image).
        transform (callable, *optional*): function applied to every item, a dict.

    Items are dicts with `image` (PIL, RGB), `mask` (PIL, L, 0 or 255; None if normal), `label` (0 or 1), `product`,
    `defect`, `image_id` and `caption`.

    ```python
    >>> stream = SyntheticDefectsStream(length=1000, size=224, transform=to_tensors)
    >>> loader = DataLoader(stream, batch_size=64, num_workers=4, persistent_workers=True)
    >>> for epoch in range(10):
    ...     stream.set_epoch(epoch)  # also reaches workers that are already running
    ...     for batch in loader: ...
    ```
    """

    def __init__(
        self,
        products: str | Sequence[str] = "seen",
        length: int = 10_000,
        size: int = 256,
        seed: int = 0,
        anomaly_fraction: float = 0.5,
        defects: Sequence[str] | None = SEEN_DEFECTS,
        pair: bool = False,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ):
        if length < 1 or not 0 <= anomaly_fraction <= 1:
            raise ValueError(
                f"length={length} must be at least 1 and anomaly_fraction={anomaly_fraction} within 0..1."
            )
        self.products = select_products(products)
        self.length, self.size, self.seed = length, size, seed
        self.anomaly_fraction, self.defects, self.pair, self.transform = anomaly_fraction, defects, pair, transform
        # shared memory, so that set_epoch also reaches the copies of this object in persistent workers
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Select the pictures of an epoch; call it before iterating."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative.")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not -self.length <= index < self.length:
            raise IndexError(f"Index {index} is out of range for a stream of {self.length} items.")
        number = int(self._epoch) * self.length + index % self.length
        dice = Dice((self.seed, number), _CHOICE_STREAM)
        product = dice.pick(self.products)
        anomalous = dice.chance(self.anomaly_fraction)
        sample = render_sample(
            product, self.seed, number, self.size, "auto" if anomalous else None, self.defects, self.pair
        )
        caption_rng = np.random.default_rng(np.random.SeedSequence((self.seed, number), spawn_key=(_CAPTION_STREAM,)))
        item = {
            "image": sample.image,
            "mask": sample.mask,
            "label": sample.label,
            "product": sample.product,
            "defect": sample.defect,
            "image_id": sample.image_id,
            "caption": caption(sample, caption_rng),
        }
        if self.pair:
            item["normal"] = sample.normal or sample.image
        return item if self.transform is None else self.transform(item)
