"""Export a checkpoint to ONNX, OpenVINO or a torch program, and look at one image with the result.

    python examples/export.py --model vcp-clip-visa --format onnx --output_dir exported --images my_images

The folder runs without torch: `python exported/exported_segmenter.py part.png`.
"""

import argparse
from pathlib import Path

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.export import FORMATS, export_model
from vcp_clip_hf.exported_segmenter import open_segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--format", default="onnx", choices=FORMATS)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write")
    parser.add_argument("--images", help="folder of images to compare on (default: generated ones)")
    parser.add_argument("--tolerance", type=float, help="largest difference allowed (default: 1e-4)")
    parser.add_argument("--int8", action="store_true", help="quantise to 8 bits (onnx only); needs --tolerance")
    parser.add_argument("--calibration_images", help="folder of images for --int8")
    parser.add_argument("--image_size", type=int, help="other side of the square input")
    parser.add_argument("--try_on", help="an image to segment with the export")
    options = parser.parse_args()

    report = export_model(
        VCPCLIPModel.from_pretrained(options.model, dtype="float32"),
        VCPCLIPImageProcessor.from_pretrained(options.model),
        options.output_dir,
        options.format,
        options.images,
        options.tolerance,
        options.int8,
        options.calibration_images,
        options.image_size,
    )
    print(report.describe())
    if options.try_on and options.format != "torch":
        result = open_segmenter(options.output_dir)(options.try_on)
        print(f"{options.try_on}: score {result['score']:.4f}, label {result['label']}")


if __name__ == "__main__":
    main()
