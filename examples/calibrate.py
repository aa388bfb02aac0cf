"""Set a threshold from normal images alone, and see what the promise is worth on images that it has not seen.

python examples/calibrate.py normal_images --false_alarm_rate 0.05 --output_dir calibrated
"""

import argparse

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.prediction import list_inputs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="normal images: files, folders or patterns")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--false_alarm_rate", type=float, default=0.05, help="wished rate of normal images flagged")
    parser.add_argument("--held_out", type=float, default=0.25, help="part of the images that only checks")
    parser.add_argument("--output_dir", required=True, help="for the calibrated checkpoint")
    options = parser.parse_args(arguments)

    paths = [image.path for image in list_inputs(options.images)]
    step = max(2, round(1 / options.held_out)) if options.held_out > 0 else len(paths) + 1
    checking = paths[step - 1 :: step]
    calibrating = [path for path in paths if path not in set(checking)]

    inspect = pipeline("anomaly-segmentation", model=options.model)
    calibration = inspect.calibrate(calibrating, false_alarm_rate=options.false_alarm_rate)
    print(calibration.describe())
    if checking:
        alarms = sum(result["label"] == "anomalous" for result in inspect(checking))
        print(f"Of {len(checking)} further normal images, {alarms} are flagged.")
    inspect.save_pretrained(options.output_dir)
    print(f"saved in {options.output_dir}")


if __name__ == "__main__":
    main()
