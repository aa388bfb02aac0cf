"""Train, evaluate, save, reload and segment, offline, in minutes on two cores.

    python examples/demo_train.py --output_dir demo_train_output

Renders defects on seen product families, trains the learned part of VCP-CLIP afresh on the embedded checkpoint's CLIP,
evaluates on families that were not trained on before and after, saves a folder that is ready for the Hub, and segments
a picture with what comes back from it. Interrupted, it goes on from the last checkpoint when started again.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationProtocol, EvaluationReport
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_config import TrainingConfig


ROOT = Path(__file__).parent.parent
PROTOCOL = EvaluationProtocol(skip_undefined=True)


def main(arguments: list[str] | None = None) -> EvaluationReport | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="whose CLIP and settings are used")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_train_output"))
    parser.add_argument("--num_images", type=int, default=1200, help="to train on")
    parser.add_argument("--num_test_images", type=int, default=120, help="of unseen families")
    parser.add_argument("--num_train_epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    options = parser.parse_args(arguments)
    started = time.perf_counter()

    # 1. data: seen families to train on, unseen ones to evaluate on
    config = TrainingConfig.from_file(ROOT / "hub_configs" / "vcp-clip-tiny" / "train.yaml")
    config.output_dir = str(options.output_dir)
    accelerator = make_accelerator(config)  # one mixed precision for evaluation and training
    unseen = load_anomaly_dataset(
        "synthetic", split="test", num_images=0, num_test_images=options.num_test_images, size=options.size
    )

    # 2. the model: CLIP of the checkpoint, the learned part from scratch
    start = options.output_dir / "start"
    VCPCLIPConfig.from_pretrained(options.model, backbone_name_or_path=str(options.model)).save_pretrained(start)
    processor = VCPCLIPImageProcessor.from_pretrained(options.model)
    processor.save_pretrained(start)
    torch.manual_seed(config.seed)
    untrained = VCPCLIPModel.from_clip(options.model, config=VCPCLIPConfig.from_pretrained(start))
    before = evaluate(untrained, processor, {"unseen products": unseen}, PROTOCOL, accelerator=accelerator)

    # 3. training
    config.model, config.resume = str(start), "latest"
    config.dataset_options = {"num_images": options.num_images, "num_test_images": 0, "size": options.size}
    config.num_train_epochs, config.validation_products = options.num_train_epochs, 0
    result = train(config, accelerator=accelerator)
    if result.interrupted:
        return None

    # 4. what was saved, loaded again as anybody would
    pipe = pipeline("anomaly-segmentation", model=str(result.last), device=-1)
    after = evaluate(
        pipe.model, pipe.image_processor, {"unseen products": unseen}, PROTOCOL, accelerator=accelerator,
        sheets_dir=options.output_dir / "sheets",
    )  # fmt: skip
    after.save(options.output_dir)
    print(after.to_text())
    first, last = (report.results["unseen products"]["mean"] for report in (before, after))
    print(f"\nMeasured on {len(unseen)} generated pictures of product families that were not trained on; percent.")
    print(f"Pixel AUROC {100 * first['pixel_auroc']:.1f} before training, {100 * last['pixel_auroc']:.1f} after.")

    # 5. one picture
    record = next(record for record in unseen if record["label"] == 1)
    found = pipe(record["image"], heatmap=True)
    found["heatmap"].save(options.output_dir / "overlay.png")
    print(f"A picture of {record['product']} with {record['defect']}: score {found['score']:.2f}, see overlay.png.")
    memory = "" if result.peak_memory is None else f", peak memory {result.peak_memory / 2**30:.2f} GiB"
    print(f"Trained at {result.images_per_second:.1f} images/s{memory};")
    print(f"{time.perf_counter() - started:.0f} s in all. {result.last} is ready for the Hub.")
    return after


if __name__ == "__main__":
    main()
