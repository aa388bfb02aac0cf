"""Set a threshold from normal images alone, and count the false alarms on normal images that were held out.

    python examples/calibrate.py normal calibrated

`normal` is a file, a folder or a pattern; `calibrated` becomes a checkpoint with the threshold. `vcp-clip calibrate`
does the same with all images.
"""

import sys

from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.prediction import list_inputs


MODEL = EMBEDDED_CHECKPOINT  # a folder or a Hub repository
FALSE_ALARM_RATE = 0.2  # target part of normal images that are flagged
HELD_OUT = 4  # every fourth image only checks the threshold


def main(images: str = "normal", output_dir: str = "calibrated") -> None:
    paths = [image.path for image in list_inputs([images])]
    held_out = paths[HELD_OUT - 1 :: HELD_OUT]
    pipe = pipeline("anomaly-segmentation", model=MODEL)
    calibration = pipe.calibrate([path for path in paths if path not in held_out], false_alarm_rate=FALSE_ALARM_RATE)
    print(calibration.describe())
    alarms = sum(result["label"] == "anomalous" for result in pipe(held_out))
    print(f"Of {len(held_out)} further normal images, {alarms} are flagged.")
    pipe.save_pretrained(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
