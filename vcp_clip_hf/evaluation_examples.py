"""Records of a dataset as inputs of an evaluation."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .batch_shapes import stacked
from .evaluation_details import small_picture
from .evaluation_report import EvaluationProtocol
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .references import ReferenceMemory, picture_digest


__all__ = ["EvaluationExamples", "as_judged", "collate"]

# Sized, with dictionaries for items: `datasets.Dataset`, or a list of records
Records = Sequence[dict[str, Any]]


class EvaluationExamples(Dataset):
    """
    Some records of a dataset, prepared for the model.

    Args:
        dataset (sequence of records): the dataset.
        indices (`Sequence[int]`): indices of the records.
        image_processor ([`VCPCLIPImageProcessor`]): image processor of the model.
        protocol ([`EvaluationProtocol`]): protocol, which decides on the size of the masks.
        shown (`set[int]`): indices of the records that are kept whole, for sheets.
        references ([`ReferenceMemory`], *optional*): references, which are recognized among the records.
        detailed (`bool`, *optional*, defaults to `False`): whether each example has a small picture, for a report.
    """

    def __init__(
        self,
        dataset: Records,
        indices: Sequence[int],
        image_processor: VCPCLIPImageProcessor,
        protocol: EvaluationProtocol,
        shown: set[int],
        references: ReferenceMemory | None = None,
        detailed: bool = False,
    ):
        self.dataset, self.image_processor, self.protocol, self.shown = dataset, image_processor, protocol, shown
        self.indices, self.detailed = indices, detailed
        self.known = frozenset() if references is None else frozenset(references.pictures)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[position]
        record = self.dataset[index]
        image, mask, label = record["image"].convert("RGB"), record["mask"], record["label"]
        if label not in (0, 1):
            raise ValueError(
                f"{record['image_id']} has no label; an evaluation needs 0 (normal) or 1 (anomalous) for every image."
            )
        inputs = self.image_processor(image, None if mask is None else [mask], return_tensors="np")
        truth = None
        if mask is not None:
            truth = np.asarray(mask) > 0 if self.protocol.native_size else inputs["labels"][0] > 0
        return {
            "pixel_values": torch.from_numpy(inputs["pixel_values"]),
            "size": (image.height, image.width),
            "mask": truth,
            "label": label,
            "is_reference": bool(self.known) and picture_digest(image) in self.known,
            "product": record["product"],
            # unique within a product, as the metrics require
            "image_id": f"{record['image_id']}#{index}",
            "index": index,
            "small": small_picture(image, mask) if self.detailed else None,
            "defect": record.get("defect"),
            "record": {**record, "image": image, "index": index} if index in self.shown else None,
        }


def as_judged(example: dict[str, Any]) -> dict[str, Any]:
    """Return an example in the form of the inputs that [`MutualJudge`] reads."""
    height, width = example["size"]
    image = SimpleNamespace(height=height, width=width)
    return {"image": image, "roi_mask": None, "error": None, "pixel_values": example["pixel_values"]}


def collate(examples: list[dict]) -> dict[str, Any]:
    """Return a batch: a list for each entry, and one tensor of the inputs if they have one shape."""
    batch = {name: [example[name] for example in examples] for name in examples[0]}
    batch["pixel_values"] = stacked(batch["pixel_values"])
    return batch
