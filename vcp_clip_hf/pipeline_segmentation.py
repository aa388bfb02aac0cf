"""The part of the pipeline that segments the images of a batch, as a whole or in tiles."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import ModelOutput

from .acceleration_settings import Acceleration, computes_in_float8, precision_name
from .anomaly_scoring import TOP_K_MAPS, AnomalyScoring
from .batch_shapes import of_one_shape
from .defect_names import DefectNames, name_logits
from .finished_maps import of_group
from .image_loading import ImageLike
from .launched_batch import LaunchedBatch
from .map_fusion import BRANCH_MAPS
from .pipeline_inputs import CallText
from .pipeline_references import NEAREST, ReferencedPipeline
from .prompts import prompt_rows
from .reference_pictures import image_conditions
from .references import ReferenceMemory
from .requested_maps import RequestedMaps
from .tiling import Tiling, segment_tiles


__all__ = ["SegmentingPipeline"]


class SegmentingPipeline(ReferencedPipeline):
    """Base class of [`AnomalySegmentationPipeline`]: a pipeline that computes scores and maps of prepared images."""

    def _forward(self, inputs: dict[str, Any], **forward_params: Any) -> dict[str, list[dict[str, Any]]]:
        return {"results": self._begin(inputs, **forward_params)()}

    def _begin(
        self,
        inputs: dict[str, Any],
        prompt_input_ids: torch.LongTensor | None = None,
        product_name: str | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tile_batch_size: int = 4,
        global_weight: float = 0.0,
        output_branch_maps: bool = False,
        output_layer_maps: bool = False,
        output_uncertainty: bool = False,
        defect_names: DefectNames | None = None,
        input_range: tuple[float, float] | None = None,
        roi_mask: ImageLike | None = None,
        reference_weight: float | None = None,
        output_maps: bool = True,
        fast_decode: bool = False,
        **settings: float | str | None,
    ) -> Callable[[], list[dict[str, Any]]]:
        """Start the computation of a batch; return a function that waits for its results."""
        tiling = Tiling.of(tile_size, tile_overlap, tile_batch_size, global_weight)
        references = self.active_references(reference_weight)
        text = CallText(prompt_input_ids, product_name)
        conditions = self.conditions(text, tiling, input_range, roi_mask, references, fast_decode)
        # inputs of a batch are lists, those of a single image are not
        is_batch = isinstance(inputs["image"], list)
        batch = {name: value if is_batch or name == "pixel_values" else [value] for name, value in inputs.items()}
        if tiling is None:
            requested = RequestedMaps(
                output_maps, output_branch_maps, output_layer_maps, output_uncertainty, defect_names
            )
            parts = [
                (positions, self._whole(part, references, text, {**settings, "conditions": conditions}, requested))
                for positions, part in of_one_shape(batch)
            ]
            collect = parts[0][1] if len(parts) == 1 else partial(_in_order, parts)
        else:
            if output_layer_maps or output_uncertainty:
                raise ValueError("Layer maps and uncertainty are not kept for tiles; leave tile_size out.")
            if defect_names is not None:
                raise ValueError("Regions are not named in tiles; leave defect_names or tile_size out.")
            scoring = self.image_processor.scoring(conditions, **settings)
            tiled = [
                self._tiled(image, inside, tiling, references, text, scoring, output_branch_maps)
                for image, inside in zip(batch["image"], batch["roi_mask"], strict=True)
            ]
            collect = partial(list, tiled)

        def results() -> list[dict[str, Any]]:
            found = collect()
            facts = zip(batch["image"], batch["size"], batch["roi_mask"], batch["error"], strict=True)
            for result, (image, size, inside, error) in zip(found, facts, strict=True):
                # some versions of PyTorch make lists of the tuples in pinned batches
                result.update(image=image, size=tuple(size), inside=inside, error=error)
            return found

        return results

    def conditions(
        self,
        text: CallText,
        tiling: Tiling | None,
        input_range: tuple[float, float] | None,
        roi_mask: ImageLike | None,
        references: ReferenceMemory | None,
        fast_decode: bool = False,
    ) -> dict[str, Any]:
        """Return the settings of a call that the image processor does not know, as a calibration records them."""
        input_range = input_range or self.image_processor.input_range
        if fast_decode and (tiling is not None or references is not None):
            what = "tiles show all pixels" if references is None else "references were read in full"
            raise ValueError(f"fast_decode=True is not possible here: {what}. Leave it out.")
        if tiling is not None:
            tiling.check_input(self.image_processor.size.height, self.image_processor.size.width)
        if references is not None:
            references.check_conditions(image_conditions(self.image_processor, tiling, input_range))
        self._check_text(None, text.product_name)
        if self._reads_names:
            (name,) = self.model.names_of_images(text.product_name, 1)
            words = {"product_name": self.model.prompt_name(name)}
        else:
            words = {"prompts": prompt_rows(self.model.config, text.prompt_input_ids)}
        config, acceleration = self.model.config, Acceleration.of(self.accelerate)
        # other methods have no branches
        fusion = config.fusion_settings(references is not None) if hasattr(config, "fusion_settings") else {}
        return {
            **words,
            **fusion,
            "tiling": None if tiling is None else tiling.settings(),
            "fast_decode": bool(fast_decode),
            "float8": computes_in_float8(acceleration),
            "dtype": precision_name(self.model.dtype, acceleration),
            "region_of_interest": roi_mask is not None,
            "input_range": None if input_range is None else list(input_range),
            "references": None if references is None else references.identity(),
        }

    def _whole(
        self,
        batch: dict[str, Any],
        references: ReferenceMemory | None,
        text: CallText,
        settings: dict[str, Any],
        requested: RequestedMaps,
    ) -> Callable[[], list[dict[str, Any]]]:
        """Segment a batch of images of one shape, each as a whole; return a function that waits for the results."""
        if references is not None and self._references_as_new:
            count = len(batch["image"])
            if count > 1:  # one by one, because each has a memory of its own
                singles = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(count)]
                parts = [self._whole(single, references, text, settings, requested) for single in singles]
                return lambda: [result for collect in parts for result in collect()]
            references = references.for_new_picture(batch["image"][0])
        pixel_values, config = batch["pixel_values"], self.model.config
        if pixel_values.dtype == torch.uint8:
            pixel_values = self.image_processor.to_values(pixel_values)
        network = self._network_with(references, text.product_name)
        states = {} if requested.defect_names is None else {"output_hidden_states": config.feature_layers}
        with_layers = requested.layer_maps or requested.uncertainty
        outputs = network(
            pixel_values, prompt_input_ids=text.prompt_input_ids, output_layer_maps=with_layers, **states
        )
        sizes, roi_masks = batch["size"], batch["roi_mask"]
        finished = self.image_processor.finish_maps(
            outputs, sizes, None if all(mask is None for mask in roi_masks) else roi_masks, **settings
        )
        stacks = {"score": finished.scores}
        if requested.maps:
            stacks["anomaly_map"] = finished.maps
        for group in finished.groups:
            for name, stack in requested.stacks(self.image_processor, outputs, group, sizes[group[0]]).items():
                stacks.setdefault(name, []).append(stack)
        if requested.defect_names is not None:
            logits = self._name_logits(outputs, pixel_values.shape[-2:], requested.defect_names)
            cut = self.image_processor.without_padding
            stacks["name_logits"] = [cut(of_group(logits, group), sizes[group[0]]) for group in finished.groups]
        near = references is not None and not self._references_as_new and outputs.get("reference_map") is not None
        if near:
            highest = outputs.reference_map.flatten(1).amax(dim=1)
            stacks[NEAREST] = [of_group(highest, group) for group in finished.groups]
        thresholds = finished.scoring.thresholds
        fields = {"threshold": thresholds.pixel, "image_threshold": thresholds.image}
        if requested.defect_names is not None:
            fields["defect_names"] = requested.defect_names.names
        launched = LaunchedBatch(finished.groups, stacks, [fields] * len(sizes))
        return partial(self._without_distance, launched, batch["image"], references) if near else launched.results

    def _name_logits(self, outputs: ModelOutput, size: tuple[int, int], names: DefectNames) -> torch.Tensor:
        """Return the logits of every name, for naming regions: (B, names, h, w), at the model's size."""
        patch_size = self.model.config.vision_config.patch_size
        logits = name_logits(self._network, outputs, names, (size[0] // patch_size, size[1] // patch_size))
        return torch.nn.functional.interpolate(logits, size=tuple(size), mode="nearest")

    def _tiled(
        self,
        image: Image.Image,
        roi_mask: np.ndarray | None,
        tiling: Tiling,
        references: ReferenceMemory | None,
        text: CallText,
        scoring: AnomalyScoring,
        output_branch_maps: bool,
    ) -> dict[str, Any]:
        """Segment one image in tiles."""
        scoring.check_region(roi_mask is not None)
        if references is not None and scoring.score_mode == "image_head" and not tiling.global_weight:
            raise ValueError(
                "score_mode='image_head' scores the whole image, and these references have patches of tiles only."
                " Use score_mode='max' or 'top_k', or set the references and call with a global_weight above 0."
            )
        if references is not None and self._references_as_new:
            references = references.for_new_picture(image)
        elif references is not None:
            self._warn_of_references([image], references)
        maps = segment_tiles(
            self._network_with(references, text.product_name),
            self.image_processor,
            image,
            tiling,
            text.prompt_input_ids,
            scoring.smoothing_sigma,
            with_branches=output_branch_maps or scoring.score_mode == "top_k",
        )
        anomaly_map = torch.from_numpy(maps.anomaly_map)
        read = [getattr(maps, name) for name in TOP_K_MAPS]
        branches = [torch.from_numpy(each) for each in read if each is not None]
        inside = None if roi_mask is None else torch.from_numpy(roi_mask)
        if inside is not None:
            anomaly_map, branches = anomaly_map * inside, [branch * inside for branch in branches]
        (score,) = scoring.score_tensor(
            anomaly_map[None], [branch[None] for branch in branches], maps.image_scores
        ).tolist()
        result = scoring.result(anomaly_map, score, inside)
        if output_branch_maps:
            for name in (*BRANCH_MAPS, "reference_map"):
                found = getattr(maps, name)
                if found is not None:
                    found = torch.from_numpy(found)
                    result[name] = found if inside is None else found * inside
        return result


def _in_order(parts: list[tuple[list[int], Callable[[], list[dict[str, Any]]]]]) -> list[dict[str, Any]]:
    """Wait for the results of parts of a batch; return them in the order of the batch."""
    results = {}
    for positions, collect in parts:
        results.update(zip(positions, collect(), strict=True))
    return [results[position] for position in sorted(results)]
