"""How the batches of an optimizer step go through the model: one by one, or several of them in one pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from .training_config import TrainingConfig


__all__ = ["TrainingPasses", "accumulating", "training_passes"]

# Images in one pass on a GPU by default: enough that it computes instead of waiting for calls
_IMAGES_ON_GPU = 8


@dataclass(frozen=True)
class TrainingPasses:
    """
    Division of the images of an optimizer step and process into passes, forward and backward, of equal size.

    Args:
        batch_size (`int`): images in a batch, whose mean loss has the same weight as that of every other batch.
        batches (`int`): batches in a pass.
        per_step (`int`): passes in an optimizer step.
    """

    batch_size: int
    batches: int
    per_step: int

    @property
    def images(self) -> int:
        """Return the images in a pass."""
        return self.batch_size * self.batches

    def share(self, num_images: int) -> float:
        """
        Return the factor of a pass's mean loss: the share of its batches that have images. At the end of the data,
        some may have none.

        Args:
            num_images (`int`): images that the pass has.
        """
        return -(-num_images // self.batch_size) / self.batches


def training_passes(config: TrainingConfig, device: torch.device) -> TrainingPasses:
    """
    Divide the batches of an optimizer step into passes of at most `config.images_per_pass` images.

    Args:
        config ([`TrainingConfig`]): settings of the run.
        device (`torch.device`): device that trains; it decides if `images_per_pass` is not set.
    """
    batch_size, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    limit = config.images_per_pass
    if limit is None:
        limit = _IMAGES_ON_GPU if device.type == "cuda" else batch_size
    fitting = max(1, limit // batch_size)
    batches = max(number for number in range(1, min(fitting, steps) + 1) if steps % number == 0)
    return TrainingPasses(batch_size, batches, steps // batches)


@contextmanager
def accumulating(accelerator: Accelerator, steps: int) -> Iterator[None]:
    """Let an accelerator accumulate the gradients of another number of passes for a while."""
    former = accelerator.gradient_accumulation_steps
    accelerator.gradient_accumulation_steps = steps
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps = former
