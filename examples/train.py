"""Train VCP-CLIP, on as many processes as `accelerate launch` starts.

    accelerate launch examples/train.py --config hub_configs/vcp-clip-baseline/train.yaml --data_dir datasets/visa
    accelerate launch examples/train.py --ablation heads-4 --data_dir datasets/visa

The command line overrides the settings of the file; `--help` lists them. Ctrl-C saves a checkpoint, and
`--resume latest` continues from the newest one.
"""

import sys

from accelerate import PartialState

from vcp_clip_hf import TrainingConfig, train


def main() -> int:
    result = train(TrainingConfig.from_arguments(description=__doc__))
    if PartialState().is_main_process:
        print(f"step {result.state.step}, loss {result.loss:.4f}, {result.images_per_second:.1f} images/s")
        for name, folder in (("last", result.last), ("best on held-out products", result.best)):
            if folder is not None:
                print(f"{name}: {folder}")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
