"""The components of VCP-CLIP: the paper's table 3 on the embedded checkpoint's backbone and generated images.

    python -m examples.research.ablation --output_dir runs/ablation

Every combination of deep text prompting (DTP), Pre-VCP and Post-VCP is trained on the seen families and evaluated on
the unseen ones, with several seeds; the table states mean and standard deviation. Image features are computed once for
all runs. Finished runs are kept in the output folder; started again, the program continues with the remaining ones.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from accelerate import Accelerator
from transformers.utils import logging

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import METRIC_TITLES, EvaluationProtocol
from vcp_clip_hf.training import train
from vcp_clip_hf.training_config import TrainingConfig


__all__ = ["METRICS", "PARTS", "main", "make_parser", "variants"]

ROOT = Path(__file__).parents[2]
PARTS = {
    "DTP": {"num_deep_prompt_tokens": 0},
    "Pre-VCP": {"use_pre_vcp": False},
    "Post-VCP": {"use_post_vcp": False},
}
METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap")
PROTOCOL = EvaluationProtocol(metrics=METRICS, mode="streaming", skip_undefined=True)


def variants() -> list[tuple[tuple[str, ...], dict]]:
    """Return (included components, configuration fields) for every combination, from none to all."""
    found = []
    for count in range(len(PARTS) + 1):
        for chosen in itertools.combinations(PARTS, count):
            left_out = [fields for part, fields in PARTS.items() if part not in chosen]
            found.append((chosen, {name: value for fields in left_out for name, value in fields.items()}))
    return found


def run_one(options: argparse.Namespace, folder: Path, fields: dict, seed: int, train_data, test_data) -> dict:
    """Train and evaluate one variant with one seed; return metric -> value in [0, 1], mean over unseen families."""
    results = folder / "results.json"
    if results.is_file():
        return json.loads(results.read_text())
    # a stem branch would be fused into the map of every variant
    fields = {"backbone_name_or_path": options.model, "use_stem_branch": False, **fields}
    config = VCPCLIPConfig.from_pretrained(options.model, **fields)
    config.save_pretrained(folder / "model")
    VCPCLIPImageProcessor.from_pretrained(options.model).save_pretrained(folder / "model")
    settings = TrainingConfig.from_file(options.config)
    settings.model, settings.backbone = str(folder / "model"), str(options.model)
    settings.output_dir, settings.resume, settings.seed = str(folder / "run"), "latest", seed
    settings.augmentation, settings.image_feature_dir = False, str(options.output_dir / "image_features")
    settings.num_train_epochs, settings.dataloader_num_workers = options.num_train_epochs, 0
    accelerator = Accelerator()
    result = train(settings, train_data, accelerator=accelerator)
    if result.interrupted:
        raise KeyboardInterrupt
    model = VCPCLIPModel.from_pretrained(result.last)
    processor = VCPCLIPImageProcessor.from_pretrained(result.last)
    report = evaluate(model, processor, {"synthetic": test_data}, PROTOCOL, batch_size=16, accelerator=accelerator)
    values = {metric: report.results["synthetic"]["mean"][metric] for metric in METRICS}
    results.write_text(json.dumps(values) + "\n")
    return values


def to_markdown(rows: list[tuple[tuple[str, ...], list[dict]]]) -> str:
    """Return a table of mean and standard deviation over seeds, in percent."""
    lines = ["| " + " | ".join([*PARTS, *(METRIC_TITLES[metric] for metric in METRICS)]) + " |"]
    lines.append("|" + ":-:|" * len(PARTS) + "---:|" * len(METRICS))
    for chosen, runs in rows:
        cells = ["x" if part in chosen else "" for part in PARTS]
        for metric in METRICS:
            values = [100 * run[metric] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint that gives backbone and settings")
    parser.add_argument("--config", type=Path, default=ROOT / "hub_configs" / "vcp-clip-tiny" / "train.yaml")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_images", type=int, default=2000, help="number of training images")
    parser.add_argument("--num_test_images", type=int, default=400, help="number of test images, of unseen families")
    parser.add_argument("--num_train_epochs", type=int, default=3)
    return parser


def main(arguments: list[str] | None = None) -> str:
    """Run all variants; return the table in Markdown."""
    options = make_parser().parse_args(arguments)

    logging.set_verbosity_error()
    settings = TrainingConfig.from_file(options.config)
    size = {"size": settings.dataset_options.get("size", 256)}
    train_data = load_anomaly_dataset(
        "synthetic",
        split="train",
        products=settings.products,
        num_images=options.num_images,
        num_test_images=0,
        **size,
    )
    test_data = load_anomaly_dataset(
        "synthetic", split="test", num_images=0, num_test_images=options.num_test_images, **size
    )
    rows = []
    for chosen, fields in variants():
        runs = []
        for seed in range(options.num_seeds):
            name = "-".join([*(part.lower() for part in chosen), f"seed-{seed}"])
            runs.append(run_one(options, options.output_dir / name, fields, seed, train_data, test_data))
        rows.append((chosen, runs))
        print(to_markdown(rows).splitlines()[-1], flush=True)
    products = len(set(test_data["product"]))
    text = to_markdown(rows) + (
        f"\nIn percent, mean over {products} unseen families ({len(test_data)} generated images), trained on"
        f" {len(train_data)} images of seen ones; mean and standard deviation over {options.num_seeds} seeds.\n"
    )
    (options.output_dir / "ablation.md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    main()
