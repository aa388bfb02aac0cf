"""Finished evaluations of a tiny model, to report and to compare."""

from pathlib import Path

import torch

from tests.common import tiny_model
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationReport


def evaluation(
    folder: Path, seed: int = 0, records=None, dataset: str = "squares", details: bool = True, **options
) -> EvaluationReport:
    """Evaluate a model with random weights, and write results and details."""
    torch.manual_seed(seed)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    records = make_records(24) if records is None else records
    where = folder / "details" if details else None
    report = evaluate(model, processor, {dataset: records}, batch_size=6, progress=False, details_dir=where, **options)
    report.save(folder)
    return report
