"""Run a model over datasets: metrics per product and their mean, and sheets of example pictures."""

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .accelerated_inference import accelerated_or_plain
from .acceleration_settings import Acceleration, precision_name
from .batch_shapes import of_one_shape
from .device_clock import DeviceClock
from .evaluation_details import EvaluationDetails, write_details
from .evaluation_examples import EvaluationExamples, as_judged, collate
from .evaluation_measurement import JudgedBatch, Measured, measure_batches, new_evaluator
from .evaluation_references import DrawnReferences, ReferenceDraw, draw_references, over_draws
from .evaluation_report import PROTOCOLS, EvaluationProtocol, EvaluationReport
from .evaluation_sheets import choose_examples, column_of, write_sheets
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .methods import AnomalyMethod
from .methods.named_product import NamedProductModel
from .metrics import AnomalySegmentationEvaluator
from .modeling_vcp_clip import VCPCLIPOutput
from .mutual_scoring import FEWEST_PICTURES
from .reference_pictures import build_memory, image_conditions
from .referenced_model import ReferencedModel
from .references import ReferenceMemory
from .version import versions


__all__ = ["evaluate"]

# Sized, with dictionaries for items: `datasets.Dataset`, or a list of records
Records = Sequence[dict[str, Any]]


def evaluate(
    model: PreTrainedModel,
    image_processor: VCPCLIPImageProcessor,
    datasets: Mapping[str, Records],
    protocol: EvaluationProtocol | str = "default",
    batch_size: int = 8,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    sheets_dir: str | os.PathLike | None = None,
    images_per_sheet: int = 4,
    progress: bool = True,
    accelerate: bool | Acceleration = True,
    references: ReferenceDraw | ReferenceMemory | None = None,
    reference_pools: Mapping[str, Records] | None = None,
    details_dir: str | os.PathLike | None = None,
) -> EvaluationReport:
    """
    Evaluate a model on annotated datasets, on as many processes as `accelerator` has.

    Args:
        model ([`VCPCLIPModel`] or a model with the same outputs, or another method):
            Model, moved to the accelerator's device. The product of each record is the product name for other methods
            than VCP-CLIP; MuSc compares all images of a product with each other.
        image_processor ([`VCPCLIPImageProcessor`]): image processor that makes its inputs and scores its outputs.
        datasets (`Mapping[str, Dataset]`):
            Name -> records as `load_anomaly_dataset` returns them (`image`, `mask`, `label`, `product`, `image_id`).
        protocol (`EvaluationProtocol` or `str`, *optional*, defaults to `"default"`):
            Protocol, or its name in `PROTOCOLS`.
        batch_size (`int`, *optional*, defaults to 8): number of images per process and forward pass.
        num_workers (`int`, *optional*, defaults to 0): number of processes that read images ahead.
        accelerator (`Accelerator`, *optional*): accelerator for several processes or another device.
        sheets_dir (`str` or `os.PathLike`, *optional*):
            Folder for sheets of pictures, one per product: image, ground truth, map and mask of normal images and of
            every kind of defect, as far as there are rows. The threshold of the masks is the one with the product's
            best F1.
        images_per_sheet (`int`, *optional*, defaults to 4): number of rows of a sheet.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        accelerate (`bool` or [`Acceleration`], *optional*, defaults to `True`):
            Whether to compute with a fast copy of the model, or with which settings, see [`accelerate_inference`]. The
            results are the same, except with `float8`.
        references ([`ReferenceDraw`] or [`ReferenceMemory`], *optional*):
            Normal images to compare with: a draw for each product and seed, for which the report has means and
            standard deviations over the seeds, or one memory for all images. Images that equal one of their references
            pixel by pixel are left out of the evaluation, and counted. Default: none, zero-shot.
        reference_pools (`Mapping[str, Dataset]`, *optional*):
            Name of a dataset -> training records that references are drawn from. For products without normal records
            in them, references are drawn from `datasets` and left out of the evaluation.
        details_dir (`str` or `os.PathLike`, *optional*):
            Folder for the data that a report shows in addition to the tables: curves, scores, and the worst images,
            see `evaluation_details.py`; an existing folder is replaced. With several draws of references, the details
            are those of the first draw.

    Returns:
        [`EvaluationReport`]: the same report on every process.

    Raises:
        ValueError: the protocol is unknown, a dataset is empty, images have no label, a product has fewer normal
            images than references, or all images of a dataset are references.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(f"Unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}.")
        protocol = PROTOCOLS[protocol]
    accelerator = accelerator or Accelerator()
    model = accelerator.unwrap_model(model)
    was_training = model.training
    model.to(accelerator.device).eval()
    acceleration = Acceleration.of(accelerate)
    run = _Evaluation(
        model=model,
        network=model if acceleration is None else accelerated_or_plain(model, settings=acceleration),
        image_processor=image_processor.without_thresholds(),  # the metrics need scores and maps only
        protocol=protocol,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=progress,
        detailed=details_dir is not None,
    )
    if isinstance(references, ReferenceMemory):
        references.check_tower(model)
        references.check_conditions(image_conditions(image_processor, None))
    results, seconds, num_images, known, details = {}, 0.0, 0, {}, {}
    try:
        for name, dataset in datasets.items():
            if not len(dataset):
                raise ValueError(f"The dataset {name!r} is empty.")
            shown = set() if sheets_dir is None else choose_examples(dataset, images_per_sheet)
            if isinstance(references, ReferenceDraw):
                measured = run.with_draws(name, dataset, (reference_pools or {}).get(name), references, shown)
                results[name] = over_draws([each.result for each in measured])
            else:
                measured = [run.gathered(run.measure(name, dataset, range(len(dataset)), references, shown))]
                results[name] = measured[0].result
            known[name] = max(each.num_references for each in measured)
            seconds += sum(each.seconds for each in measured)
            num_images += sum(each.num_images for each in measured)
            if sheets_dir is not None and accelerator.is_main_process:
                # the masks of sheets have the threshold of the draw that they show
                write_sheets(Path(sheets_dir) / name, measured[0].gallery, measured[0].result)
            if measured[0].details is not None:
                details[name] = measured[0].details
                details[name].leave_out_files(dataset)
    finally:
        model.train(was_training)
    if details_dir is not None and accelerator.is_main_process:
        write_details(details_dir, details)
    settings = _settings(model, image_processor, accelerator, acceleration)
    settings["seconds_per_image"] = seconds / num_images
    if references is not None:
        settings["references"] = {
            **_reference_settings(references, datasets, reference_pools),
            "left_out": {name: count for name, count in known.items() if count},
        }
    settings["splits"] = {name: str(dataset.split) for name, dataset in datasets.items() if _has_split(dataset)}
    return EvaluationReport(results, protocol, settings)


def _has_split(dataset: Records) -> bool:
    return getattr(dataset, "split", None) is not None


def _reference_settings(
    references: ReferenceDraw | ReferenceMemory, datasets: Mapping[str, Records], pools: Mapping[str, Records] | None
) -> dict[str, Any]:
    """Return the facts about references for the report."""
    if isinstance(references, ReferenceMemory):
        return {"description": references.describe(), **references.identity()}
    held_out = {
        name: [
            product
            for product, drawn in draw_references(dataset, (pools or {}).get(name), references.count, 0).items()
            if drawn.held_out
        ]
        for name, dataset in datasets.items()
    }
    return {
        "per_product": references.count,
        "seeds": list(references.seeds),
        **references.settings,
        "drawn_from_test_images": {name: products for name, products in held_out.items() if products},
    }


@dataclass
class _Evaluation:
    """The parts of a run that all datasets share; [`evaluate`] documents the fields."""

    model: PreTrainedModel
    network: PreTrainedModel
    image_processor: VCPCLIPImageProcessor
    protocol: EvaluationProtocol
    batch_size: int
    num_workers: int
    accelerator: Accelerator
    progress: bool
    detailed: bool = False

    def measure(
        self,
        title: str,
        dataset: Records,
        indices: Sequence[int],
        references: ReferenceMemory | None,
        shown: set[int],
        detailed: bool | None = None,
    ) -> Measured:
        """Measure this process's share of the records with the given indices."""
        detailed = self.detailed if detailed is None else detailed
        if getattr(self.model, "judges_products", False):
            if references is not None:
                raise ValueError(f"{type(self.model).__name__} has no few-shot mode, so it cannot use references.")
            results = self._judged_together(title, dataset, indices, shown, detailed)
        else:
            share = self._share(indices)
            examples = EvaluationExamples(
                dataset, share, self.image_processor, self.protocol, shown, references, detailed
            )
            results = self._judged_alone(self._network_with(references), self._batches(examples, title))
        details = EvaluationDetails() if detailed else None
        ahead = 0 if self.accelerator.device.type == "cpu" else 1
        measured = measure_batches(results, self.image_processor, self.protocol, details, ahead)
        measured.num_images, measured.with_references = len(indices), references is not None
        return measured

    def _share(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the items that this process works on."""
        return items[self.accelerator.process_index :: self.accelerator.num_processes]

    @property
    def _shows_progress(self) -> bool:
        return self.progress and self.accelerator.is_main_process

    def _batches(self, examples: EvaluationExamples, title: str) -> Iterable[dict[str, Any]]:
        loader = DataLoader(
            examples,
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        bar = tqdm(loader, desc=title, disable=not self._shows_progress, leave=False)
        return (part for batch in bar for _, part in of_one_shape(batch))

    def _judged_alone(self, network: torch.nn.Module, batches: Iterable[dict[str, Any]]) -> Iterator[JudgedBatch]:
        """Yield each batch with the model's outputs, and how to get the seconds that they took."""
        device = self.accelerator.device
        for batch in batches:
            names = {"product_names": batch["product"]} if isinstance(network, NamedProductModel) else {}
            pixel_values = batch["pixel_values"].to(device, non_blocking=True)
            clock = DeviceClock(device)
            with self.accelerator.autocast():
                outputs = network(pixel_values, **names)
            yield batch, outputs, clock.stop()

    def _judged_together(
        self, title: str, dataset: Records, indices: Sequence[int], shown: set[int], detailed: bool
    ) -> Iterator[JudgedBatch]:
        """Compare all images of each product; then yield as `_judged_alone`. Each process has products of its own."""
        products = column_of(dataset, "product")
        for product in self._share(sorted({products[index] for index in indices})):
            of_product = [index for index in indices if products[index] == product]
            if len(of_product) < FEWEST_PICTURES:
                raise ValueError(
                    f"{title}: {product} has {len(of_product)} images; {self.model.config.title} compares all images"
                    f" of a product with each other and needs at least {FEWEST_PICTURES}. Leave the product out."
                )
            examples = EvaluationExamples(
                dataset, of_product, self.image_processor, self.protocol, shown, detailed=detailed
            )
            judge = self.model.judge(
                self.image_processor, as_judged, self.batch_size, self.num_workers, self._shows_progress
            )
            results, passed = judge.outputs(examples), 0.0
            for batch in self._batches(examples, f"{title}, {product}"):
                with self.accelerator.autocast():  # the first one compares all images
                    singles = [next(results) for _ in batch["product"]]
                outputs = VCPCLIPOutput(**{name: torch.cat([each[name] for each in singles]) for name in singles[0]})
                yield batch, outputs, partial(float, judge.seconds - passed)
                passed = judge.seconds

    def _network_with(self, references: ReferenceMemory | None) -> torch.nn.Module:
        if isinstance(self.model, AnomalyMethod):
            return self.model.for_product(references=None if references is None else references.banks)
        return self.network if references is None else ReferencedModel(self.network, references)

    def with_draws(
        self, title: str, dataset: Records, pool: Records | None, draw: ReferenceDraw, shown: set[int]
    ) -> list[Measured]:
        """Measure a dataset once for each seed, product by product with the product's own references."""
        # all draws before any measurement, so that a product with too few images is an error at once
        draws = {seed: draw_references(dataset, pool, draw.count, seed) for seed in draw.seeds}
        measured = []
        for number, (seed, products) in enumerate(draws.items()):
            detailed = self.detailed and number == 0
            total = Measured(new_evaluator(self.protocol), details=EvaluationDetails() if detailed else None)
            for product, drawn in products.items():
                total.add(
                    self.measure(
                        f"{title}, {product}, seed {seed}",
                        dataset,
                        drawn.tested,
                        self._memory_of(drawn, draw.settings),
                        shown if number == 0 else set(),
                        detailed,
                    )
                )
            if detailed:
                self._note_draw(total.details, dataset, products, draw, seed)
            measured.append(self.gathered(total))
        return measured

    def _note_draw(
        self,
        details: EvaluationDetails,
        dataset: Records,
        products: Mapping[str, DrawnReferences],
        draw: ReferenceDraw,
        seed: int,
    ) -> None:
        """Note which images are references, and that details show one of several draws."""
        if not self.accelerator.is_main_process:
            return
        if len(draw.seeds) > 1:
            details.note = (
                f"Curves, scores and images are those of the references drawn with seed {seed}, the first of"
                f" {len(draw.seeds)} draws; the table has means over all draws."
            )
        image_ids = column_of(dataset, "image_id")
        for product, drawn in products.items():
            for index in drawn.indices if drawn.held_out else ():
                details.leave_out(product, image_ids[index], "drawn as a reference of its product")

    def _memory_of(self, drawn: DrawnReferences, settings: Mapping[str, Any]) -> ReferenceMemory:
        network = self.model if isinstance(self.model, AnomalyMethod) else self.network
        return build_memory(
            network, self.image_processor, drawn.images(), **{"batch_size": self.batch_size, **settings}
        )

    def gathered(self, measured: Measured) -> Measured:
        """Return the measurements of all processes, with their result."""
        measured.num_references = sum(gather_object([measured.num_references]))
        if measured.num_references == measured.num_images:
            raise ValueError(
                "All images to evaluate are references, whose distance from the memory is not that of a new image."
                " Evaluate other images."
            )
        evaluator = _gathered(measured.evaluator, self.accelerator)
        _score_by_product(evaluator, self.model, measured, self.accelerator)
        measured.evaluator, measured.result = evaluator, evaluator.compute()
        if measured.details is not None:
            measured.details = self._gathered_details(measured.details, evaluator, measured.result)
        measured.gallery = sorted(gather_object(measured.gallery), key=lambda example: example["index"])
        measured.seconds = sum(gather_object([measured.seconds]))
        return measured

    def _gathered_details(
        self, details: EvaluationDetails, evaluator: AnomalySegmentationEvaluator, result: dict[str, Any]
    ) -> EvaluationDetails:
        """Return the details of all processes, in the order in which the evaluators were merged."""
        total, *others = gather_object([details]) if self.accelerator.num_processes > 1 else [details]
        for other in others:
            total.merge(other)
        total.replace_scores(evaluator.image_scores)
        total.result = result
        if self.accelerator.is_main_process:
            total.curves = evaluator.curves()
        return total


def _score_by_product(
    evaluator: AnomalySegmentationEvaluator, model: PreTrainedModel, measured: Measured, accelerator: Accelerator
) -> None:
    """Replace image scores by the published ones where these depend on all images of a product."""
    name = "few_shot_scores_depend_on_product" if measured.with_references else "scores_depend_on_product"
    if not getattr(model, name, False):
        return
    # In the order of the processes, in which the evaluators were merged
    parts: dict[str, list[tuple[float, float]]] = {}
    for each in gather_object([measured.parts]):
        for product, rows in each.items():
            parts.setdefault(product, []).extend(rows)
    for product, rows in parts.items():
        text_scores, maxima = torch.tensor(rows).unbind(dim=1)
        scores = model.scores_of_product(text_scores, maxima)
        if not scores.isnan().any():  # the published formula has no value for a single image, or for equal ones
            evaluator.replace_image_scores(product, scores.tolist())


def _gathered(evaluator: AnomalySegmentationEvaluator, accelerator: Accelerator) -> AnomalySegmentationEvaluator:
    """Return an evaluator with the results of all processes."""
    if accelerator.num_processes == 1:
        return evaluator
    states = gather_object([evaluator.state_dict()])
    total = AnomalySegmentationEvaluator.from_state_dict(states[0])
    for state in states[1:]:
        total.merge(AnomalySegmentationEvaluator.from_state_dict(state))
    return total


def _settings(
    model: PreTrainedModel,
    image_processor: VCPCLIPImageProcessor,
    accelerator: Accelerator,
    acceleration: Acceleration | None,
) -> dict[str, Any]:
    """Return the settings for the report."""
    return {
        "model": str(model.name_or_path or type(model).__name__),
        "dtype": precision_name(model.dtype, acceleration),
        "mixed_precision": accelerator.mixed_precision,
        "image_size": [image_processor.size.height, image_processor.size.width],
        "resize_mode": image_processor.resize_mode,
        "smoothing_sigma": image_processor.smoothing_sigma,
        "score_mode": image_processor.score_mode,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "versions": versions("transformers", "torch", "python"),
        "date": datetime.date.today().isoformat(),
    }
