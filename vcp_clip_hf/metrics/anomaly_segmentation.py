"""The metrics as an `evaluate.Metric`."""

from collections.abc import Sequence

import datasets

from .evaluator import AnomalySegmentationEvaluator


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
    [`AnomalySegmentationEvaluator`] behind the interface of the `evaluate` library.

    Each batch is reduced as it comes. Nothing goes through `evaluate`'s Arrow files, which would hand every map back
    as nested Python lists (13 MB for 518 x 518 pixels), and nothing is written to its cache folder.

    Args:
        metrics, mode, fpr_limit, score_range, mantissa_bits, skip_undefined: as of [`AnomalySegmentationEvaluator`].
        kwargs: as of `evaluate.Metric`. Those about files (`cache_dir`, `keep_in_memory`, ...) have no effect.

    Raises:
        ValueError: `num_process` is not 1. `evaluate` joins its processes through locked files, which hangs as soon as
            one of them has no samples. Let each process have a metric of its own and merge their states instead, as
            the example shows.

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
        **kwargs,
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
        """How many images have been added since the last `compute`."""
        return self.evaluator.num_images

    def add_batch(
        self, *, predictions, references=None, products="all", image_scores=None, labels=None, image_ids=None
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
        self, *, prediction, reference=None, product: str = "all", image_score=None, label=None, image_id=None
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

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict:
        """Compute everything over all that was added, these inputs included, and start anew."""
        inputs = {"references": references, **kwargs}
        given = [name for name, values in inputs.items() if values is not None]
        if predictions is not None:
            self.add_batch(predictions=predictions, **inputs)
        elif given:
            raise ValueError(f"{', '.join(given)} came without predictions.")
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
        # The base class would create it, also where the home folder cannot be written to
        return self._data_dir_root
