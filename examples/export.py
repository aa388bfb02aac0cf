"""Export a checkpoint to ONNX, and segment an image with the export.

    python examples/export.py part.png exported

The exported folder runs without torch: `python exported/exported_segmenter.py part.png`. `vcp-clip export` takes more
options, such as 8 bits and OpenVINO.
"""

import sys

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel, export_model, open_segmenter


MODEL = EMBEDDED_CHECKPOINT  # a folder or a Hub repository


def main(image: str = "part.png", output_dir: str = "exported") -> None:
    model = VCPCLIPModel.from_pretrained(MODEL, dtype="float32")
    report = export_model(model, VCPCLIPImageProcessor.from_pretrained(MODEL), output_dir, "onnx")
    print(report.describe())
    result = open_segmenter(output_dir)(image)
    print(f"{image}: score {result['score']:.4f}, label {result['label']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
