"""Train VCP-CLIP as the paper does, with Accelerate: in one process or several, resumable at any step."""

import dataclasses
import datetime
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    set_seed,
)
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from .ablations import load_ablation
from .acceleration_settings import Acceleration
from .atomic_write import atomic_folder
from .autocast import autocast_dtype
from .checkpoint_facts import read_training_facts
from .checkpoint_folder import CheckpointParts, load_config, load_parts, save_parts
from .configuration_vcp_clip import VCPCLIPConfig
from .evaluation import evaluate
from .evaluation_report import EvaluationProtocol
from .feature_cache import cache_image_features
from .frozen_casts import frozen_weights_cast
from .image_head import image_head_loss
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .interruption import stop_on_signal
from .methods import METHODS, AnomalyMethod
from .modeling_frozen_clip import FrozenCLIPPreTrainedModel
from .modeling_vcp_clip import VCPCLIPOutput
from .peak_memory import peak_memory
from .references import REFERENCES_FILE
from .reports.extra import require_extra
from .reports.training_report import write_training_report
from .training_checkpoints import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint
from .training_config import TrainingConfig
from .training_data import (
    EpochSampler,
    Records,
    check_training_data,
    collate_examples,
    load_training_data,
    training_examples,
)
from .training_log import VALIDATION_PREFIX, TrainingLog
from .training_loss import training_loss
from .training_passes import accumulating, training_passes
from .version import EMBEDDED_CHECKPOINT, versions


__all__ = ["TrainingResult", "make_accelerator", "train"]

logger = logging.get_logger(__name__)

_CHECKPOINTS = "checkpoints"
_INTERRUPTED = (
    "Interrupted: training stops after the current step and writes a checkpoint. To go on, run the same command with"
    ' --resume latest (in Python: resume="latest"). Ctrl-C again ends at once.'
)
_VALIDATION = EvaluationProtocol(
    metrics=("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc"), mode="streaming", skip_undefined=True
)


@dataclass
class TrainingResult:
    """
    Outcome of a training run.

    Args:
        last (`Path`, *optional*):
            Hub-ready folder with the weights after the last step; `None` if the run was interrupted.
        best (`Path`, *optional*):
            Hub-ready folder with the weights that were best on the held-out products; `None` if none were held out or
            the first validation has not been reached.
        state (`TrainingState`): position of the run.
        interrupted (`bool`): whether a signal stopped the run; `resume="latest"` continues it.
        loss (`float`): mean over the steps since the last logged one, NaN if no step was done.
        images_per_second (`float`): throughput of all processes together, without validation.
        peak_memory (`int`, *optional*):
            Bytes, of the process (CPU) or the device (GPU); `None` if the operating system does not report it.
    """

    last: Path | None
    best: Path | None
    state: TrainingState
    interrupted: bool
    loss: float
    images_per_second: float
    peak_memory: int | None


def train(
    config: TrainingConfig,
    train_dataset: Records | None = None,
    validation_dataset: Records | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """
    Train the learned part of a model.

    Args:
        config ([`TrainingConfig`]): settings of the run.
        train_dataset, validation_dataset (`datasets.Dataset` or sequence of dicts, *optional*):
            Records as `load_anomaly_dataset` returns them, instead of `config.dataset`.
        accelerator (`Accelerator`, *optional*): accelerator of the run; by default, that of [`make_accelerator`].

    Returns:
        [`TrainingResult`]. `output_dir` then has `last/` and, with held-out products, `best/`, both ready for
        `from_pretrained` and the Hub; `checkpoints/`; `log.jsonl` with losses and validation results;
        `training_config.yaml`; and `report.html` with `config.report`.

    Raises:
        ValueError: settings, data, accelerator or checkpoint do not fit together; the message names both.
        FloatingPointError: the loss or a weight is NaN or infinite; no checkpoint is written with such weights.
        OSError: a file could not be read or written, as on a full disk; the message says where the run can continue.
        DatasetLayoutError: the auxiliary dataset does not have the expected layout.
        ImportError: `config.report` without the extra `report`.
    """
    if config.report:
        require_extra()
    if validation_dataset is not None:
        config.check_selection()
    accelerator = accelerator or make_accelerator(config)
    if accelerator.gradient_accumulation_steps != config.gradient_accumulation_steps:
        raise ValueError(
            f"The accelerator has gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, the"
            f" configuration {config.gradient_accumulation_steps}. Use the same, or make_accelerator(config)."
        )
    set_seed(config.seed)
    parts = _load_parts(config)
    model, image_processor = parts.model, parts.image_processor
    is_method = isinstance(model, AnomalyMethod)
    if is_method:
        _check_method(model, config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if train_dataset is None:
        with accelerator.main_process_first():
            train_dataset, validation_dataset = load_training_data(config)
    check_training_data(train_dataset, config)
    examples = training_examples(train_dataset, image_processor, config, with_names=is_method)
    if config.image_feature_dir is not None:
        _check_size_of_features(model, image_processor)
        examples = cache_image_features(
            model.to(accelerator.device),
            examples,
            config.image_feature_dir,
            config.per_device_train_batch_size,
            config.dataloader_num_workers,
            accelerator,
            _features_fingerprint(train_dataset, image_processor),
        )

    labels = None if config.normal_fraction is None else np.array(train_dataset["label"])
    run = _Run(config, accelerator, parts, examples, validation_dataset, labels)
    run.data = _data_facts(config, train_dataset, validation_dataset)
    run.start()
    try:
        with (
            accumulating(accelerator, run.passes.per_step),
            stop_on_signal(_INTERRUPTED if accelerator.is_main_process else None, raise_at_once=False) as signals,
        ):
            while not run.is_over(signals):
                run.train_epoch(signals)
        result = run.finish()
    except OSError as error:
        raise OSError(f"{str(error).rstrip('.')}. {run.way_on()}") from error
    finally:
        run.bar.close()
    if config.report and accelerator.is_main_process:
        write_training_report(run.output_dir)
    return result


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """
    Return the accelerator that [`train`] makes for a configuration.

    A process has one mixed precision for all its accelerators. A program that evaluates before it trains therefore
    calls this first, and passes the accelerator to both.

    Raises:
        ValueError: the process already has an accelerator of another mixed precision.
    """
    if config.mixed_precision is not None and is_initialized():
        present = AcceleratorState().mixed_precision
        if present != config.mixed_precision:
            raise ValueError(
                f"This process already has an Accelerator with mixed_precision={present!r}, and the configuration asks"
                f" for {config.mixed_precision!r}. Call make_accelerator(config) before anything else that uses"
                " Accelerate (such as `evaluate`) and pass its result to both, or set mixed_precision=null to keep"
                f" {present!r}."
            )
    return Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=config.report_to or None,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=f"{config.output_dir}/logs"),
        # The next batch is copied to a GPU without waiting for the last step; Apple's GPUs wait, see `to_device`
        dataloader_config=DataLoaderConfiguration(non_blocking=not torch.backends.mps.is_available()),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


# --- the run ------------------------------------------------------------------------------------------------------


class _Run:
    """
    Run a training: hold model, data and progress, and do each step and the end of each epoch.

    Args:
        config, accelerator: see [`train`].
        parts ([`CheckpointParts`]): the checkpoint to train.
        examples (`Dataset`): training examples, see `training_examples`.
        validation_dataset (`datasets.Dataset` or sequence of dicts, *optional*): records of the held-out products.
        labels (`np.ndarray`, *optional*): labels of the examples, for `config.normal_fraction`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        parts: CheckpointParts,
        examples: Dataset,
        validation_dataset: Records | None,
        labels: np.ndarray | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.parts, self.validation_dataset = parts, validation_dataset
        model, self.image_processor = parts.model, parts.image_processor
        self.output_dir = Path(config.output_dir)
        self.checkpoints = self.output_dir / _CHECKPOINTS
        self.log_file = TrainingLog(self.output_dir)
        self.data: dict[str, Any] = {}
        self.source_facts = read_training_facts(model.name_or_path) if model.name_or_path else {}
        self.passes = training_passes(config, accelerator.device)
        # The order depends on seed and epoch alone, so that a resumed run continues it
        self.sampler = EpochSampler(
            len(examples),
            config.seed,
            self.passes.images,
            accelerator.num_processes,
            labels,
            config.normal_fraction,
        )
        loader = DataLoader(
            examples,
            self.passes.images,
            sampler=self.sampler,
            num_workers=config.dataloader_num_workers,
            collate_fn=collate_examples,
            pin_memory=accelerator.device.type == "cuda",
        )
        optimizer = _make_optimizer(model, config, fused=accelerator.device.type == "cuda")
        self.prepared_model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        self.model = accelerator.unwrap_model(self.prepared_model)
        self.has_image_head = getattr(self.model, "image_head", None) is not None
        self.steps_per_epoch = -(-self.sampler.num_batches // self.passes.per_step)
        self.total_steps = self.steps_per_epoch * config.num_train_epochs
        if config.max_train_steps is not None:
            self.total_steps = min(self.total_steps, config.max_train_steps)

        self.state = TrainingState()
        self.recent_losses: list[torch.Tensor] = []
        self.recent_image_losses: list[torch.Tensor] = []
        self.num_images, self.seconds, self.counted_until = 0, 0.0, 0.0

    # --- the loop

    def start(self) -> None:
        """Resume if requested, then write the settings and open trackers and progress bar."""
        settings = {**self.config.fixed_settings(), "num_processes": self.accelerator.num_processes}
        settings = json.loads(json.dumps(settings))
        self.state = self.resume(settings) or TrainingState(settings=settings)
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.config.save(self.output_dir / "training_config.yaml")
        self.log_event(
            "resumed" if self.state.step else "started",
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            processes=self.accelerator.num_processes,
            device=_device_name(self.accelerator.device),
        )
        if self.config.report_to:
            self.accelerator.init_trackers("vcp_clip", config=_flat(self.config))
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.state.step,
            desc="train",
            disable=not self.accelerator.is_local_main_process,
        )

    def is_over(self, signals: list[int]) -> bool:
        """Return whether all steps are done, or any process has received a signal to stop."""
        return self.state.step >= self.total_steps or self.stopped(signals)

    def stopped(self, signals: list[int]) -> bool:
        """Return whether any process has received a signal; the answer is the same in all of them."""
        if self.accelerator.num_processes == 1:
            return bool(signals)
        flag = torch.tensor(float(bool(signals)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def train_epoch(self, signals: list[int]) -> None:
        """Do the remaining steps of the current epoch, or those up to the end of the run; then save a checkpoint."""
        self.sampler.set_place(self.state.epoch, self.state.step_in_epoch * self.passes.per_step)
        # The prepared loader tells the examples their epoch; its own count would start from 0 after a resume
        self.loader.set_epoch(self.state.epoch)
        self.prepared_model.train()
        self.counted_until = time.perf_counter()
        with self.accelerator.autocast():
            dtype = autocast_dtype(self.accelerator.device)
        with frozen_weights_cast(self.model, dtype):
            for number, batch in enumerate(self.loader):
                if self.step(batch, number) and self.is_over(signals):
                    break
        self.count_time()
        if self.state.step_in_epoch == self.steps_per_epoch:
            self.end_of_epoch()
        self.checkpoint()

    def count_time(self) -> None:
        """Add the time since the last call, or since the beginning of the epoch's steps."""
        now = time.perf_counter()
        self.seconds += now - self.counted_until
        self.state.seconds += now - self.counted_until
        self.counted_until = now

    def step(self, batch: dict[str, Any], number: int) -> bool:
        """
        Train on the images of one pass.

        Args:
            batch (`dict`): model inputs, `labels`, `is_anomalous` and `has_mask`, see `collate_examples`.
            number (`int`): passes done before since the loader started.

        Returns:
            Whether the optimizer made a step: `False` while gradients are accumulated.
        """
        labels, has_mask = batch.pop("labels"), torch.tensor(batch.pop("has_mask"))
        is_anomalous = batch.pop("is_anomalous", None)  # features that were stored for another model do not have them
        with self.accelerator.accumulate(self.prepared_model):
            # Dropout is a function of the position in the run, so that no random state has to be saved
            torch.manual_seed(_step_seed(self.config.seed, self.state, number, self.accelerator))
            if isinstance(self.model, AnomalyMethod):
                loss = self.method_loss(batch, labels, has_mask, is_anomalous)
            else:
                outputs = self.prepared_model(**batch, output_layer_maps=True)
                loss = self.loss(outputs, labels, has_mask, is_anomalous)
            self.accelerator.backward(loss * self.passes.share(len(labels)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.recent_losses.append(loss.detach())
        self.num_images += len(labels) * self.accelerator.num_processes
        if not self.accelerator.sync_gradients:
            return False
        self.state.step += 1
        self.state.step_in_epoch += 1
        self.bar.update()
        self.count_time()
        if self.state.step % self.config.logging_steps == 0 or self.state.step == self.total_steps:
            self.log_loss()
        at_end = self.state.step_in_epoch == self.steps_per_epoch
        if self.state.step % self.config.checkpointing_steps == 0 and not at_end:
            self.checkpoint()
        return True

    def loss(
        self,
        outputs: VCPCLIPOutput,
        labels: torch.Tensor,
        has_mask: torch.Tensor,
        is_anomalous: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the loss of what is trained: segmentation, image head, or their sum."""
        if outputs.image_logits is None:
            return training_loss(outputs, labels, has_mask)
        image_loss = image_head_loss(outputs.image_logits, is_anomalous)
        self.recent_image_losses.append(image_loss.detach())
        if self.config.trainable == "image_head":
            return image_loss
        return training_loss(outputs, labels, has_mask) + image_loss

    def method_loss(
        self, batch: dict[str, Any], labels: torch.Tensor, has_mask: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of another method than VCP-CLIP, which it computes itself."""
        if not has_mask.all():
            raise ValueError(
                f"{type(self.model).__name__} is trained with masks, and some anomalous images have none. Leave them"
                " out of the dataset, or draw their masks."
            )
        # Labels of other types are checked, for which a GPU would have to finish its work
        return self.prepared_model(**batch, labels=labels.bool(), is_anomalous=is_anomalous).loss

    def end_of_epoch(self) -> None:
        """Move on to the next epoch, after validation if products are held out."""
        self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0
        if self.validation_dataset is not None:
            self.validate()

    def finish(self) -> TrainingResult:
        """Write the final checkpoint folder, unless the run was interrupted, and close everything."""
        interrupted, last = self.state.step < self.total_steps, None
        if interrupted:
            logger.warning(
                f"Interrupted after step {self.state.step} of {self.total_steps}; resume=latest continues from there."
            )
        else:
            last = self.save("last")
        self.log_event("interrupted" if interrupted else "finished")
        if self.config.report_to:
            self.accelerator.end_training()
        return TrainingResult(
            last=last,
            best=self.output_dir / "best" if self.state.best_step is not None else None,
            state=self.state,
            interrupted=interrupted,
            loss=float(torch.stack(self.recent_losses).mean()) if self.recent_losses else float("nan"),
            images_per_second=self.num_images / self.seconds if self.seconds else 0.0,
            peak_memory=peak_memory(self.accelerator.device),
        )

    def newest_checkpoint(self) -> str:
        """Return a sentence about the newest checkpoint, without its period."""
        newest = latest_checkpoint(self.checkpoints)
        return (
            f"No checkpoint was written in {self.output_dir}"
            if newest is None
            else f"The newest checkpoint is {newest}"
        )

    def way_on(self) -> str:
        """Return how to continue after a failure of the machine."""
        how = "start the run again" if latest_checkpoint(self.checkpoints) is None else "resume=latest continues there"
        return f"{self.newest_checkpoint()}; {how}."

    # --- checkpoints, logs, validation

    def resume(self, settings: dict[str, Any]) -> TrainingState | None:
        """Load the requested checkpoint into model and optimizer; return its state, or `None` for a new run."""
        if self.config.resume is None:
            if latest_checkpoint(self.checkpoints) is not None:
                raise ValueError(
                    f"{self.output_dir} holds the checkpoints of an earlier run. Continue it with resume=latest, or"
                    " use another output_dir."
                )
            return None
        if self.config.resume == "latest":
            checkpoint = latest_checkpoint(self.checkpoints)
            if checkpoint is None:
                logger.info(f"No checkpoint in {self.checkpoints} yet; starting a new run.")
                return None
        else:
            checkpoint = Path(self.config.resume)
        state = load_checkpoint(checkpoint, self.model, self.optimizer.optimizer, settings)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        logger.info(f"Resumed from {checkpoint}, step {state.step}.")
        return state

    def checkpoint(self) -> None:
        """Write a checkpoint and remove outdated ones; weights that are not finite would replace good ones."""
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        if not torch.stack([torch.isfinite(each).all() for each in parameters]).all():
            self.raise_diverged("A weight is NaN or infinite")
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            keep = self.config.checkpoints_total_limit
            save_checkpoint(self.checkpoints, self.model, self.optimizer.optimizer, self.state, keep)

    def raise_diverged(self, what: str) -> None:
        """Raise the error of a run whose numbers are not finite."""
        self.log_event("diverged", reason=what)
        raise FloatingPointError(
            f"{what} at step {self.state.step}. Lower learning_rate and temperature_learning_rate, or train without"
            f" mixed precision, in another output_dir. {self.newest_checkpoint()}."
        )

    def log(self, values: dict[str, float], **facts: float | None) -> None:
        """Send values to the trackers, and append values and facts to the log."""
        if self.config.report_to:
            self.accelerator.log(values, step=self.state.step)
        if self.accelerator.is_main_process:
            self.log_file.write(self.state.step, **values, **facts)

    def log_event(self, event: str, **facts: Any) -> None:
        """Append a start or an end of the run to the log."""
        if self.accelerator.is_main_process:
            self.log_file.write(self.state.step, event=event, **facts)

    def images_seen(self) -> int:
        """Return the number of training images since the start of the run, in all sessions and processes."""
        per_step = self.sampler.round_size * self.passes.per_step
        in_epoch = min(self.state.step_in_epoch * per_step, self.sampler.num_images)
        return self.state.epoch * self.sampler.num_images + in_epoch

    def log_loss(self) -> None:
        """Log the mean loss of the recent batches, over all processes, and forget all but the last batch's loss."""
        loss = self.accelerator.reduce(torch.stack(self.recent_losses).mean(), "mean").item()
        if not np.isfinite(loss):
            self.raise_diverged(f"The loss is {loss}")
        self.bar.set_postfix(loss=f"{loss:.3f}")
        values = {"loss": loss, "epoch": self.state.epoch}
        if self.recent_image_losses:
            image_loss = torch.stack(self.recent_image_losses).mean()
            values["image_loss"] = self.accelerator.reduce(image_loss, "mean").item()
        self.log(
            values,
            **{group["name"]: group["lr"] for group in self.optimizer.param_groups},
            images=self.images_seen(),
            seconds=round(self.state.seconds, 3),
            peak_memory_bytes=peak_memory(self.accelerator.device),
        )
        self.recent_losses, self.recent_image_losses = self.recent_losses[-1:], self.recent_image_losses[-1:]

    def validate(self) -> None:
        """Evaluate on the held-out products, and save the weights if they are the best so far."""
        started = time.perf_counter()
        report = evaluate(
            self.model,
            self.image_processor,
            {"validation": self.validation_dataset},
            replace(_VALIDATION, score_mode="image_head" if self.has_image_head else None),
            self.config.per_device_eval_batch_size,
            self.config.dataloader_num_workers,
            self.accelerator,
            # Each validation would record anew, in memory and beside threads that belong to the training
            accelerate=Acceleration(cuda_graphs=False),
        )
        mean = report.results["validation"]["mean"]
        values = {f"{VALIDATION_PREFIX}{name}": value for name, value in mean.items()}
        self.log(values, validation_seconds=round(time.perf_counter() - started, 3))
        metric = mean.get(self.config.metric_for_best_model)
        if metric is None:
            raise ValueError(
                f"metric_for_best_model={self.config.metric_for_best_model!r} must be one of {', '.join(mean)}."
            )
        if np.isfinite(metric) and (self.state.best_metric is None or metric > self.state.best_metric):
            self.state.best_metric, self.state.best_step = metric, self.state.step
            self.save("best")

    def save(self, name: str) -> Path:
        """Write the Hub-ready folder `output_dir/name`."""
        folder = self.output_dir / name
        if self.accelerator.is_main_process:
            parts = replace(self.parts, model=self.model)
            with atomic_folder(folder) as path:
                save_parts(path, parts, adapter_only=self.config.save_adapter_only, training_facts=self.facts(name))
        self.accelerator.wait_for_everyone()
        return folder

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the model card says about the run; paths of this machine are left out."""
        device = self.accelerator.device
        chosen = {"best": {"metric": self.config.metric_for_best_model, "value": self.state.best_metric}}
        run = {
            **self.data,
            "hyper_parameters": self.config.card_settings(self.has_image_head),
            "steps": self.state.step,
            "selection": chosen.get(name),
            "compute": {
                "device": _device_name(device),
                "processes": self.accelerator.num_processes,
                "mixed_precision": self.accelerator.mixed_precision,
                "seconds": round(self.state.seconds, 1),
                "peak_memory_bytes": peak_memory(device),
            },
            "versions": versions("transformers", "torch", "python"),
            "date": datetime.date.today().isoformat(),
        }
        # A head alone is trained on a checkpoint whose other parts keep the record of their own training
        return {**self.source_facts, "image_head": run} if self.config.trainable == "image_head" else run


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _make_optimizer(model: FrozenCLIPPreTrainedModel, config: TrainingConfig, fused: bool) -> torch.optim.Adam:
    """Make the optimizer; a fused one updates all parameters of a GPU in a few calls."""
    # Temperatures of all methods are named alike; CLIP's own is frozen
    temperatures = [value for name, value in model.named_parameters() if name.endswith("logit_scale")]
    image_head = getattr(model, "image_head", None)
    head = [] if image_head is None else list(image_head.parameters())
    ids = {id(parameter) for parameter in (*temperatures, *head)}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    rates = (
        (others, "learning_rate"),
        (temperatures, "temperature_learning_rate"),
        (head, "image_head_learning_rate"),
    )
    trained = [([each for each in parameters if each.requires_grad], name) for parameters, name in rates]
    return torch.optim.Adam(
        # The log names each rate after its setting
        [
            {"params": parameters, "lr": getattr(config, name), "name": name}
            for parameters, name in trained
            if parameters
        ],
        betas=(config.adam_beta1, config.adam_beta2),
        fused=fused or None,
    )


def _check_size_of_features(model: FrozenCLIPPreTrainedModel, image_processor: VCPCLIPImageProcessor) -> None:
    """Raise a ValueError if images have another size than the model's configuration, whose features are stored."""
    size, expected = (image_processor.size.height, image_processor.size.width), tuple(model.config.input_size)
    if size != expected:
        raise ValueError(
            f"image_feature_dir stores features of images of {expected[0]} x {expected[1]} pixels (image_size of"
            f" config.json), and the image processor gives {size[0]} x {size[1]}. Leave image_feature_dir out, or set"
            " `size` in preprocessor_config.json to the former."
        )


def _features_fingerprint(dataset: Records, image_processor: VCPCLIPImageProcessor) -> str:
    """Return a string that changes with the images and with their preprocessing."""
    fingerprint = getattr(dataset, "_fingerprint", None)
    if fingerprint is None:
        raise ValueError(
            "image_feature_dir needs a Hugging Face Dataset, whose fingerprint identifies its images; got"
            f" {type(dataset).__name__}."
        )
    return f"{fingerprint} {image_processor.to_json_string()}"


def _step_seed(seed: int, state: TrainingState, number: int, accelerator: Accelerator) -> int:
    position = (seed, state.epoch, state.step_in_epoch, number % accelerator.gradient_accumulation_steps)
    sequence = np.random.SeedSequence((*position, accelerator.process_index))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def _data_facts(config: TrainingConfig, dataset: Records, validation_dataset: Records | None) -> dict[str, Any]:
    """Return what the model card says about the training data and the held-out products."""

    def columns(records: Records | None) -> tuple[np.ndarray, list[str]]:
        if not hasattr(records, "column_names"):
            return np.empty(0, int), []
        return np.array(records["label"]), sorted(set(records["product"]))

    labels, products = columns(dataset)
    _, held_out = columns(validation_dataset)
    # Strings are paths of this machine
    options = {name: value for name, value in config.dataset_options.items() if not isinstance(value, str)}
    return {
        "dataset": config.dataset,
        "dataset_options": options,
        "split": config.split,
        "products": products,
        "held_out_products": held_out,
        "images": {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())},
    }


def _flat(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings as numbers and strings, which is all that trackers take."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
        for name, value in dataclasses.asdict(config).items()
    }


def _check_method(model: AnomalyMethod, config: TrainingConfig) -> None:
    """Raise a ValueError if a method has no learned part, or for settings that only VCP-CLIP has."""
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{name} has no learned part, so there is nothing to train.")
    if config.image_feature_dir is not None:
        raise ValueError(f"image_feature_dir keeps features for VCP-CLIP; leave it out for {name}.")
    if config.gradient_checkpointing:
        raise ValueError(f"gradient_checkpointing is for VCP-CLIP's text tower; leave it out for {name}.")


def _load_parts(config: TrainingConfig) -> CheckpointParts:
    """Load the checkpoint to train, with the fields of the ablation if one is named."""
    if config.model in METHODS and not os.path.isdir(config.model):
        return _new_method(config)
    ablation = None if config.ablation is None else load_ablation(config.ablation)
    fields = {} if ablation is None else dict(ablation.config_fields)
    if config.has_image_head:
        fields["use_image_head"] = True
    if "use_image_head" in fields and load_config(config.model).model_type != VCPCLIPConfig.model_type:
        raise ValueError("The image head is VCP-CLIP's; other methods have image scores of their own.")
    untrained = config.trainable == "all"  # a head alone is trained on a trained checkpoint
    parts = load_parts(config.model, config.backbone, dtype=torch.float32, untrained=untrained, **fields)
    if config.trainable == "image_head":
        parts.model.freeze_all_but_image_head()
    elif parts.image_processor.calibration is not None:
        # they belong to the maps of the weights before the training
        parts.image_processor = parts.image_processor.without_thresholds()
        logger.warning(
            f"The calibrated thresholds of {config.model} are left out: they do not hold for trained weights."
            " Calibrate the trained checkpoint."
        )
    if ablation is not None:
        parts.image_processor = ablation.image_processor(parts.image_processor)
        if parts.references is not None:
            # an ablation may change the size of images and the layers of references
            parts.references = None
            logger.warning(
                f"{REFERENCES_FILE} of {config.model} is left out of the ablation {config.ablation!r}. Add references"
                " to the trained checkpoint with `vcp-clip calibrate --references`."
            )
    return parts


def _new_method(config: TrainingConfig) -> CheckpointParts:
    """Build the method that `model` names on any CLIP, for a training from the beginning."""
    if config.backbone is None:
        raise ValueError(
            f"model={config.model!r} names a method, which needs a CLIP: set backbone to a repository, a folder, or"
            " 'embedded'. Or set model to the folder of a configuration, such as those of hub_configs/."
        )
    backbone = EMBEDDED_CHECKPOINT if config.backbone == "embedded" else config.backbone
    method = METHODS[config.model]
    model = method.fitted_to(backbone, dtype=torch.float32, **method.trained_fields)
    return CheckpointParts(model, VCPCLIPImageProcessor.for_model(model.config), model.tokenizer)
