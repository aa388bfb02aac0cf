"""Train VCP-CLIP: `accelerate launch examples/train.py --config hub_configs/<name>/train.yaml --data_dir ...`.

Every setting of the file can be given on the command line too; `--help` lists them. Ctrl-C saves a checkpoint, and
`--resume latest` goes on from the newest one.
"""

import sys

from vcp_clip_hf.training import train
from vcp_clip_hf.training_config import TrainingConfig


def main() -> int:
    config = TrainingConfig.from_arguments(description=__doc__)
    result = train(config)
    print(f"step {result.state.step}, loss {result.loss:.4f}, {result.images_per_second:.1f} images/s")
    if result.peak_memory is not None:
        print(f"peak memory {result.peak_memory / 2**30:.2f} GiB")
    for name, folder in (("last", result.last), ("best on held-out products", result.best)):
        if folder is not None:
            print(f"{name}: {folder}")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
