"""Train VCP-CLIP as the paper does, with Accelerate: on one process or many, interrupted and resumed at will."""

import dataclasses
import datetime
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from .atomic_write import atomic_folder
from .checkpoint_folder import CheckpointParts, load_parts, save_parts
from .evaluation import evaluate
from .evaluation_report import EvaluationProtocol
from .feature_cache import cache_image_features
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .losses import segmentation_loss
from .modeling_vcp_clip import VCPCLIPModel
from .training_checkpoints import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from .training_config import TrainingConfig
from .training_data import EpochSampler, check_training_data, load_training_data, training_examples
from .version import versions


__all__ = ["TrainingResult", "image_level_loss", "train", "training_loss"]

logger = logging.get_logger(__name__)

_CHECKPOINTS = "checkpoints"
_VALIDATION = EvaluationProtocol(
    metrics=("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc"), mode="streaming", skip_undefined=True
)
# The order of the data, the random numbers and the arithmetic depend on these: a resumed run must have them unchanged
_FIXED = (
    "dataset",
    "dataset_options",
    "split",
    "products",
    "validation_products",
    "augmentation",
    "mosaic_probability",
    "synthetic_anomaly_probability",
    "learning_rate",
    "temperature_learning_rate",
    "adam_beta1",
    "adam_beta2",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)
_MODEL_INPUTS = ("pixel_values", "patch_tokens", "image_embeds")
# What a model card says of a run
_HYPER_PARAMETERS = (
    "learning_rate",
    "temperature_learning_rate",
    "adam_beta1",
    "adam_beta2",
    "num_train_epochs",
    "max_train_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "augmentation",
    "mosaic_probability",
    "synthetic_anomaly_probability",
    "seed",
)
# Part of the pixels that stand for an image whose mask is unknown
_IMAGE_LEVEL_FRACTION = 0.01


@dataclass
class TrainingResult:
    """
    What a run came to.

    Args:
        last (`Path`, *optional*), best (`Path`, *optional*):
            Hub-ready folders with the weights after the last step, and with those that were best on the held-out
            products; `None` if interrupted before, or without held-out products.
        state (`TrainingState`): where it stands.
        interrupted (`bool`): stopped by a signal; `resume="latest"` goes on.
        loss (`float`): mean over the last steps.
        images_per_second (`float`): over all processes, without validation.
        peak_memory (`int`): bytes, of the process (CPU) or the device (GPU).
    """

    last: Path | None
    best: Path | None
    state: TrainingState
    interrupted: bool
    loss: float
    images_per_second: float
    peak_memory: int


def train(
    config: TrainingConfig,
    train_dataset: Any = None,
    validation_dataset: Any = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """
    Train the learned part of a model.

    Args:
        config ([`TrainingConfig`]): everything a run needs.
        train_dataset, validation_dataset (*optional*):
            Records as `load_anomaly_dataset` gives them, instead of `config.dataset`.
        accelerator (`Accelerator`, *optional*): made from the configuration if absent.

    Returns:
        [`TrainingResult`]. `output_dir` then has `last/` and, with held-out products, `best/`, both ready for
        `from_pretrained` and the Hub; `checkpoints/`; `log.jsonl` with losses and validation results; and
        `training_config.yaml`.

    Raises:
        ValueError: settings, data or checkpoint do not fit together; the message names both.
        DatasetLayoutError: the auxiliary dataset is not what it should be.
    """
    accelerator = accelerator or _make_accelerator(config)
    set_seed(config.seed)
    output_dir = Path(config.output_dir)
    parts = load_parts(config.model, config.backbone, dtype=torch.float32, untrained=True)
    model, image_processor, tokenizer = parts.model, parts.image_processor, parts.tokenizer
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if train_dataset is None:
        with accelerator.main_process_first():
            train_dataset, validation_dataset = load_training_data(config)
    check_training_data(train_dataset, config)

    # 1. data in an order that depends on seed and epoch alone, so that a resumed run continues it
    examples = training_examples(train_dataset, image_processor, config)
    if config.image_feature_dir is not None:
        examples = cache_image_features(
            model.to(accelerator.device),
            examples,
            config.image_feature_dir,
            config.per_device_train_batch_size,
            config.dataloader_num_workers,
            accelerator,
            _features_fingerprint(train_dataset, image_processor),
        )
    sampler = EpochSampler(len(examples), config.seed, config.per_device_train_batch_size, accelerator.num_processes)
    loader = DataLoader(
        examples,
        config.per_device_train_batch_size,
        sampler=sampler,
        num_workers=config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    optimizer = _make_optimizer(model, config)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps_per_epoch = -(-sampler.num_batches // config.gradient_accumulation_steps)
    total_steps = steps_per_epoch * config.num_train_epochs
    if config.max_train_steps is not None:
        total_steps = min(total_steps, config.max_train_steps)

    # 2. where we stand
    settings = {**{name: getattr(config, name) for name in _FIXED}, "num_processes": accelerator.num_processes}
    settings = json.loads(json.dumps(settings))
    run = _Run(config, accelerator, accelerator.unwrap_model(model), optimizer, image_processor, tokenizer, output_dir)
    run.data = _data_facts(config, train_dataset, validation_dataset)
    state = run.resume(settings) or TrainingState(settings=settings)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        config.save(output_dir / "training_config.yaml")
    if config.report_to:
        accelerator.init_trackers("vcp_clip", config=_flat(config))

    # 3. the loop
    bar = tqdm(total=total_steps, initial=state.step, desc="train", disable=not accelerator.is_local_main_process)
    seconds, images, recent = 0.0, 0, []
    with _stop_on_signal() as stop:
        while state.step < total_steps and not run.stopped(stop):
            sampler.set_place(state.epoch, state.step_in_epoch * config.gradient_accumulation_steps)
            # through the loader, which else would tell the examples its own count of passes, from 0 after a resume
            loader.set_epoch(state.epoch)
            model.train()
            started = time.perf_counter()
            for micro_step, batch in enumerate(loader):
                with accelerator.accumulate(model):
                    # dropout as a function of the place in the run, so that no random state has to be kept
                    torch.manual_seed(_step_seed(config.seed, state, micro_step, accelerator))
                    inputs = {name: value for name, value in batch.items() if name in _MODEL_INPUTS}
                    outputs = model(**inputs, output_layer_maps=True)
                    loss = training_loss(outputs, batch["labels"], batch["has_mask"])
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                recent.append(loss.detach())
                images += len(batch["labels"]) * accelerator.num_processes
                if not accelerator.sync_gradients:
                    continue
                state.step += 1
                state.step_in_epoch += 1
                bar.update()
                if state.step % config.logging_steps == 0 or state.step == total_steps:
                    run.log_loss(recent, state, bar)
                    recent = recent[-1:]
                at_end = state.step_in_epoch == steps_per_epoch
                if state.step % config.checkpointing_steps == 0 and not at_end:
                    run.checkpoint(state)
                if state.step >= total_steps or run.stopped(stop):
                    break
            seconds += time.perf_counter() - started
            state.seconds += time.perf_counter() - started
            if state.step_in_epoch == steps_per_epoch:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                if validation_dataset is not None:
                    run.validate(validation_dataset, state)
            run.checkpoint(state)
        interrupted = run.stopped(stop) and state.step < total_steps
    bar.close()

    # 4. what is left behind
    mean_loss = float(torch.stack(recent).mean()) if recent else float("nan")
    last = None
    if interrupted:
        logger.warning(f"Interrupted after step {state.step} of {total_steps}; resume=latest goes on from there.")
    else:
        last = run.save("last", state)
    if config.report_to:
        accelerator.end_training()
    best = output_dir / "best"
    return TrainingResult(
        last=last,
        best=best if state.best_step is not None else None,
        state=state,
        interrupted=interrupted,
        loss=mean_loss,
        images_per_second=images / seconds if seconds else 0.0,
        peak_memory=_peak_memory(accelerator),
    )


def training_loss(outputs, labels: torch.Tensor, has_mask: torch.Tensor) -> torch.Tensor:
    """
    Equation 10, and for anomalous images whose mask is unknown the image-level loss; weighted by their numbers.

    Args:
        outputs ([`VCPCLIPOutput`]): with layer maps.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): 0 or 1; ignored where there is no mask.
        has_mask (`torch.BoolTensor` of shape `(batch_size,)`): normal images have one, which is empty.
    """
    branches = [maps for maps in (outputs.base_layer_maps, outputs.vcp_layer_maps) if maps is not None]
    masked = has_mask.float().mean()
    if masked == 1:
        return sum(segmentation_loss(maps, labels) for maps in branches)
    loss = (1 - masked) * sum(image_level_loss(maps[~has_mask]) for maps in branches)
    if masked > 0:
        loss = loss + masked * sum(segmentation_loss(maps[has_mask], labels[has_mask]) for maps in branches)
    return loss


def image_level_loss(layer_maps: torch.Tensor) -> torch.Tensor:
    """
    Of images known to be anomalous, but not where: minus the logarithm of the mean of the largest 1 % of each map.
    Summed over layers, as the pixel loss is.

    Args:
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`): in [0, 1].
    """
    values = layer_maps.flatten(2)
    top = values.topk(max(1, round(_IMAGE_LEVEL_FRACTION * values.shape[-1])), dim=-1).values.mean(dim=-1)
    return -top.clamp_min(1e-5).log().mean(dim=0).sum()


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What happens around the steps of a run: logs, checkpoints, validation, saving."""

    config: TrainingConfig
    accelerator: Accelerator
    model: VCPCLIPModel
    optimizer: Any
    image_processor: VCPCLIPImageProcessor
    tokenizer: Any
    output_dir: Path
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / _CHECKPOINTS

    def resume(self, settings: dict) -> TrainingState | None:
        """The state of the checkpoint that was asked for, now in model and optimiser."""
        if self.config.resume is None:
            if latest_checkpoint(self.checkpoints) is not None:
                raise ValueError(
                    f"{self.output_dir} holds the checkpoints of an earlier run. Continue it with resume=latest, or"
                    " take another output_dir."
                )
            return None
        if self.config.resume == "latest":
            checkpoint = latest_checkpoint(self.checkpoints)
            if checkpoint is None:
                logger.info(f"No checkpoint in {self.checkpoints} yet; starting afresh.")
                return None
        else:
            checkpoint = Path(self.config.resume)
        state = load_checkpoint(checkpoint, self.model, self.optimizer.optimizer, settings)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        logger.info(f"Resumed from {checkpoint}, step {state.step}.")
        return state

    def checkpoint(self, state: TrainingState) -> None:
        if self.accelerator.scaler is not None:
            state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            keep = self.config.checkpoints_total_limit
            save_checkpoint(self.checkpoints, self.model, self.optimizer.optimizer, state, keep)

    def stopped(self, stop: list) -> bool:
        """Whether any process has been told to stop; all of them come to the same answer."""
        if self.accelerator.num_processes == 1:
            return bool(stop)
        flag = torch.tensor(float(bool(stop)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.config.report_to:
            self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with open(self.output_dir / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def log_loss(self, recent: list[torch.Tensor], state: TrainingState, bar) -> None:
        loss = self.accelerator.reduce(torch.stack(recent).mean(), "mean").item()
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} at step {state.step}. Lower the learning rates, or train without mixed precision;"
                f" the last good checkpoint is in {self.checkpoints}."
            )
        bar.set_postfix(loss=f"{loss:.3f}")
        self.log({"loss": loss, "epoch": state.epoch}, state.step)

    def validate(self, dataset, state: TrainingState) -> None:
        """The held-out products; keeps the weights if they are the best so far."""
        report = evaluate(
            self.model,
            self.image_processor,
            {"validation": dataset},
            _VALIDATION,
            self.config.per_device_eval_batch_size,
            self.config.dataloader_num_workers,
            self.accelerator,
        )
        mean = report.results["validation"]["mean"]
        self.log({f"validation/{name}": value for name, value in mean.items()}, state.step)
        metric = mean.get(self.config.metric_for_best_model)
        if metric is None:
            raise ValueError(
                f"metric_for_best_model={self.config.metric_for_best_model!r} must be one of {', '.join(mean)}."
            )
        if np.isfinite(metric) and (state.best_metric is None or metric > state.best_metric):
            state.best_metric, state.best_step = metric, state.step
            self.save("best", state)

    def save(self, name: str, state: TrainingState) -> Path:
        """A Hub-ready folder `output_dir/name`."""
        folder = self.output_dir / name
        if self.accelerator.is_main_process:
            parts = CheckpointParts(self.model, self.image_processor, self.tokenizer)
            with atomic_folder(folder) as path:
                facts = self.facts(name, state)
                save_parts(path, parts, adapter_only=self.config.save_adapter_only, training_facts=facts)
        self.accelerator.wait_for_everyone()
        return folder

    def facts(self, name: str, state: TrainingState) -> dict[str, Any]:
        """What a model card says of the run; nothing of this machine's folders."""
        device = self.accelerator.device
        chosen = {"best": {"metric": self.config.metric_for_best_model, "value": state.best_metric}}
        return {
            **self.data,
            "hyper_parameters": {key: getattr(self.config, key) for key in _HYPER_PARAMETERS},
            "steps": state.step,
            "selection": chosen.get(name),
            "compute": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                "processes": self.accelerator.num_processes,
                "mixed_precision": self.accelerator.mixed_precision,
                "seconds": round(state.seconds, 1),
                "peak_memory_bytes": _peak_memory(self.accelerator),
            },
            "versions": versions("transformers", "torch", "python"),
            "date": datetime.date.today().isoformat(),
        }


@contextmanager
def _stop_on_signal() -> Iterator[list]:
    """A list that is no longer empty once Ctrl-C or a termination signal has come; a second Ctrl-C stops at once."""
    received: list = []

    def handle(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: nobody sends us signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    if config.mixed_precision is not None and AcceleratorState._shared_state:
        # evaluated before in this process: accelerate keeps the precision of then, and would refuse another
        AcceleratorState._reset_state()
    return Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=config.report_to or None,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=f"{config.output_dir}/logs"),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _make_optimizer(model: VCPCLIPModel, config: TrainingConfig) -> torch.optim.Adam:
    temperatures = [scale for scale in (model.base_logit_scale, model.vcp_logit_scale) if scale is not None]
    ids = {id(scale) for scale in temperatures}
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ids]
    return torch.optim.Adam(
        [
            {"params": others, "lr": config.learning_rate},
            {"params": temperatures, "lr": config.temperature_learning_rate},
        ],
        betas=(config.adam_beta1, config.adam_beta2),
    )


def _features_fingerprint(dataset, image_processor: VCPCLIPImageProcessor) -> str:
    """Stands for the images and for how they are prepared: features of others must not be taken for theirs."""
    fingerprint = getattr(dataset, "_fingerprint", None)
    if fingerprint is None:
        raise ValueError(
            f"image_feature_dir needs a Hugging Face Dataset, whose fingerprint says which images it holds; got"
            f" {type(dataset).__name__}."
        )
    return f"{fingerprint} {image_processor.to_json_string()}"


def _step_seed(seed: int, state: TrainingState, micro_step: int, accelerator: Accelerator) -> int:
    place = (seed, state.epoch, state.step_in_epoch, micro_step % accelerator.gradient_accumulation_steps)
    sequence = np.random.SeedSequence((*place, accelerator.process_index))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def _data_facts(config: TrainingConfig, dataset, validation_dataset) -> dict[str, Any]:
    """What was trained on, and what was held out."""

    def columns(records) -> tuple[np.ndarray, list[str]]:
        if not hasattr(records, "column_names"):
            return np.empty(0, int), []
        return np.array(records["label"]), sorted(set(records["product"]))

    labels, products = columns(dataset)
    _, held_out = columns(validation_dataset)
    # paths say nothing to others
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
    """The settings as trackers take them: numbers and strings."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
        for name, value in dataclasses.asdict(config).items()
    }


def _peak_memory(accelerator: Accelerator) -> int:
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    import resource  # not on Windows, where CPU training is the exception

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
