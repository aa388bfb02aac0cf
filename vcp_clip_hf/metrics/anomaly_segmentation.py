"""Anomaly segmentation metrics as an `evaluate.Metric`."""

from collections.abc import Sequence
from typing import Any

import datasets

from .evaluator import AnomalySegmentationEvaluator
from .inputs import Image, Images, Values


try:
    import evaluate
except ImportError as error:
    raise ImportError(
        'AnomalySegmentationMetric needs the library evaluate: pip install "vcp-clip-hf[evaluate]".'
        " AnomalySegmentationEvaluator computes the same without it."
    ) from error


__all__ = ["AnomalySegmentationMetric"]


_DESCRIPTION = """\
Anomaly segmentation and detection: pixel AUROC, average precision, F1-max, IoU and per-region overlap (PRO), image
AUROC, average precision and F1-max; per product, and their mean over products.
"""

_INPUTS_DESCRIPTION = """
Inputs:
    predictions: anomaly maps, an array or tensor of shape (batch_size, height, width) or a list of 2-D ones; higher is
        more abnormal.
    references: masks of the same shapes, booleans or 0/1, 1 where abnormal; `None` in a list where there is none.
    products, image_scores, labels, image_ids: see `AnomalySegmentationEvaluator.add`.

Returns:
    dict, see `AnomalySegmentationEvaluator.compute`: "mean", "per_product", "counts", "reasons", "settings", and
    "bounds" in streaming mode.
"""

_CITATION = """\
@inproceedings{qu2024vcpclip,
  title = {{VCP-CLIP}: A visual context prompting model for zero-shot anomaly segmentation},
  author = {Qu, Zhen and Tao, Xian and Prasad, Mukesh and Shen, Fei and Zhang, Zhengtao and Gong, Xinyi and
            Ding, Guiguang},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2024}
}
"""


class AnomalySegmentationMetric(evaluate.Metric):
    """
    [`AnomalySegmentationEvaluator`] with the interface of the `evaluate` library.

    Each batch is reduced when it is added. `evaluate`'s Arrow files are not used, since they would return every map
    as nested Python lists (13 MB for 518 x 518 pixels), and nothing is written to its cache folder.

    Args:
        metrics, mode, fpr_limit, score_range, mantissa_bits, skip_undefined: see [`AnomalySegmentationEvaluator`].
        kwargs: arguments of `evaluate.Metric`. Those about files (`cache_dir`, `keep_in_memory`, ...) have no effect.

    Raises:
        ValueError: `num_process` is not 1. `evaluate` joins its processes through locked files, which hangs as soon as
            one of them has no samples. Use one metric in each process and merge their states instead, as the example
            shows.

    ```python
    >>> metric = AnomalySegmentationMetric(mode="streaming")
    >>> metric.add_batch(predictions=maps, references=masks, products=["bottle"] * len(maps))
    >>> metric.compute()["mean"]["pixel_auroc"]
    ```

    In several processes:

    ```python
    >>> for state in gather_object([metric.evaluator.state_dict()]):  # of accelerate.utils
    ...     total.merge(AnomalySegmentationEvaluator.from_state_dict(state))  # total: a new evaluator, same settings
    ```
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        mode: str = "exact",
        fpr_limit: float = 0.3,
        score_range: tuple[float, float] = (0.0, 1.0),
        mantissa_bits: int = 11,
        skip_undefined: bool = False,
        **kwargs: Any,
    ):
        if kwargs.get("num_process", 1) != 1:
            raise ValueError(
                f"num_process={kwargs['num_process']} is not supported. Use one metric in each process, gather their"
                " `metric.evaluator.state_dict()` and merge the states."
            )
        super().__init__(**kwargs)
        self.evaluator = AnomalySegmentationEvaluator(
            metrics=metrics,
            mode=mode,
            fpr_limit=fpr_limit,
            score_range=score_range,
            mantissa_bits=mantissa_bits,
            skip_undefined=skip_undefined,
        )

    def __len__(self) -> int:
        """Return the number of images added since the last `compute`."""
        return self.evaluator.num_images

    def add_batch(
        self,
        *,
        predictions: Images,
        references: Images | Sequence[Any] | None = None,
        products: str | Sequence[str] = "all",
        image_scores: Values | None = None,
        labels: Values | None = None,
        image_ids: Sequence[str] | None = None,
    ) -> None:
        """Add a batch of anomaly maps and masks, and reduce it at once."""
        self.evaluator.add(
            maps=predictions,
            masks=references,
            products=products,
            image_scores=image_scores,
            labels=labels,
            image_ids=image_ids,
        )

    def add(
        self,
        *,
        prediction: Image,
        reference: Image | None = None,
        product: str = "all",
        image_score: float | None = None,
        label: int | None = None,
        image_id: str | None = None,
    ) -> None:
        """Add one anomaly map and its mask, and reduce it at once."""
        self.evaluator.add(
            maps=[prediction],
            masks=[reference],
            products=[product],
            image_scores=None if image_score is None else [image_score],
            labels=None if label is None else [label],
            image_ids=None if image_id is None else [image_id],
        )

    def compute(
        self, *, predictions: Images | None = None, references: Images | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add these inputs, compute the metrics of all images added, and forget the images."""
        inputs = {"references": references, **kwargs}
        given = [name for name, values in inputs.items() if values is not None]
        if predictions is not None:
            self.add_batch(predictions=predictions, **inputs)
        elif given:
            raise ValueError(f"{', '.join(given)} came without predictions; pass both.")
        result = self.evaluator.compute()
        self.evaluator.reset()
        return result

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        mask = datasets.Sequence(datasets.Sequence(datasets.Value("bool")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": image, "references": mask}),
            reference_urls=["https://arxiv.org/abs/2407.12276"],
        )

    def _build_data_dir(self) -> str:
        # The base class would create the folder, which fails if the home folder is read-only
        return self._data_dir_root
