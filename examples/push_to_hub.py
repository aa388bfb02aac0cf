"""Push a checkpoint, or a dataset, to the Hub: each in one commit.

hf auth login
python examples/push_to_hub.py someone/vcp-clip-visa --model runs/visa/best --tag v1.0
python examples/push_to_hub.py someone/vcp-clip-visa-adapter --model runs/visa/best --adapter_only
python examples/push_to_hub.py someone/my-parts --dataset folder=my_images --private
"""

import argparse

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.hub import push_checkpoint, push_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", help="owner/name; made if missing")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--dataset", metavar="NAME[=FOLDER]", help="push this dataset instead")
    parser.add_argument("--adapter_only", action="store_true", help="the learned part without CLIP")
    parser.add_argument("--no_code", action="store_true", help="without the code for trust_remote_code")
    parser.add_argument("--backbone", help="Hub repository of CLIP, if the checkpoint does not name it")
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument("--tag", help="to name the commit with")
    parser.add_argument("--private", action="store_true", help="for a repository that is made")
    options = parser.parse_args()

    place = {"revision": options.revision, "tag": options.tag, "private": options.private or None}
    if options.dataset is not None:
        name, _, folder = options.dataset.partition("=")
        commit = push_dataset(load_anomaly_dataset(name, data_dir=folder or None), options.repo_id, **place)
    else:
        commit = push_checkpoint(
            options.model,
            options.repo_id,
            adapter_only=options.adapter_only or None,
            include_code=not options.no_code,
            backbone=options.backbone,
            **place,
        )
    print(commit.commit_url)


if __name__ == "__main__":
    main()
