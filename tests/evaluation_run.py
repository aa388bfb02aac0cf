"""An evaluation for the tests, also as a program for several processes.

python -m tests.evaluation_run OUTPUT [METHOD]
"""

import sys

import torch
from accelerate import Accelerator

from tests.common import tiny_model
from tests.methods.common import tiny_method
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationReport


def run(
    method: str | None = None, accelerator: Accelerator | None = None, protocol: str = "default", **options
) -> EvaluationReport:
    """Evaluate a tiny model with random weights, VCP-CLIP or another method, on generated records."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny_model() if method is None else tiny_method(method)
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    records = make_records(13 if method is None else 18)
    return evaluate(model, processor, {"squares": records}, protocol, 3, 0, accelerator, **options)


if __name__ == "__main__":
    accelerator = Accelerator()
    folders = {"sheets_dir": f"{sys.argv[1]}/sheets", "details_dir": f"{sys.argv[1]}/details"}
    report = run(*sys.argv[2:], accelerator=accelerator, **folders)
    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes")
        report.save(sys.argv[1])
