"""Train, evaluate, save, reload and segment, offline, in minutes on two cores.

    python examples/demo_train.py demo_train_output

Renders defects on seen product families, trains the learned part of VCP-CLIP anew on the embedded checkpoint's CLIP,
evaluates it before and after on families that were not trained on, saves a folder that is ready for the Hub, and
segments a picture with the reloaded checkpoint. Started again after an interruption, it continues from the last
checkpoint.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import pipeline

from vcp_clip_hf import (
    EMBEDDED_CHECKPOINT,
    TrainingConfig,
    VCPCLIPConfig,
    VCPCLIPImageProcessor,
    VCPCLIPModel,
    evaluate,
    load_anomaly_dataset,
    train,
)
from vcp_clip_hf.evaluation_report import EvaluationProtocol, EvaluationReport
from vcp_clip_hf.training import make_accelerator


SETTINGS = Path(__file__).parent.parent / "hub_configs" / "vcp-clip-tiny" / "train.yaml"
PROTOCOL = EvaluationProtocol(skip_undefined=True)


def main(
    output_dir: str = "demo_train_output", num_images: int = 1200, num_test_images: int = 120, size: int = 256,
    num_train_epochs: int = 2,
) -> EvaluationReport | None:  # fmt: skip
    started, folder = time.perf_counter(), Path(output_dir)
    unseen = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=num_test_images, size=size)
    data = {"unseen products": unseen}

    # 1. the model: CLIP of the embedded checkpoint, the learned part from scratch
    start = folder / "start"
    config = VCPCLIPConfig.from_pretrained(EMBEDDED_CHECKPOINT, backbone_name_or_path=EMBEDDED_CHECKPOINT)
    config.save_pretrained(start)
    processor = VCPCLIPImageProcessor.from_pretrained(EMBEDDED_CHECKPOINT)
    processor.save_pretrained(start)
    settings = TrainingConfig.from_file(
        SETTINGS, model=str(start), output_dir=str(folder), resume="latest", num_train_epochs=num_train_epochs,
        dataset_options={"num_images": num_images, "num_test_images": 0, "size": size},
        image_feature_dir=str(folder / "image_features"),
    )  # fmt: skip
    accelerator = make_accelerator(settings)  # one mixed precision for evaluation and training
    torch.manual_seed(settings.seed)
    untrained = VCPCLIPModel.from_clip(EMBEDDED_CHECKPOINT, config=config)
    before = evaluate(untrained, processor, data, PROTOCOL, accelerator=accelerator)

    # 2. training on the seen families
    result = train(settings, accelerator=accelerator)
    if result.interrupted:
        return None

    # 3. the saved checkpoint, loaded as any user would
    pipe = pipeline("anomaly-segmentation", model=str(result.last), device=-1)
    after = evaluate(
        pipe.model, pipe.image_processor, data, PROTOCOL, accelerator=accelerator, sheets_dir=folder / "sheets"
    )
    after.save(folder)
    print(after.to_text())
    first, last = (report.results["unseen products"]["mean"] for report in (before, after))
    print(f"\nMeasured on {len(unseen)} generated pictures of product families that were not trained on; percent.")
    print(f"Pixel AUROC {100 * first['pixel_auroc']:.1f} before training, {100 * last['pixel_auroc']:.1f} after.")

    # 4. one picture
    record = next(record for record in unseen if record["label"] == 1)
    found = pipe(record["image"], heatmap=True)
    found["heatmap"].save(folder / "overlay.png")
    print(f"A picture of {record['product']} with {record['defect']}: score {found['score']:.2f}, see overlay.png.")
    print(f"Trained at {result.images_per_second:.1f} images/s; {time.perf_counter() - started:.0f} s in all.")
    print(f"{result.last} is ready for the Hub.")
    return after


if __name__ == "__main__":
    main(*sys.argv[1:2])
