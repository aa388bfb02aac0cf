"""Push a checkpoint to the Hub in one commit: weights, image processor, tokenizer, card and code.

    hf auth login
    python examples/push_to_hub.py someone/vcp-clip-visa runs/visa/best

`vcp-clip push` takes options such as `--adapter-only` and `--tag`; `vcp-clip push-dataset` pushes a dataset.
"""

import sys

from vcp_clip_hf import push_checkpoint


def main(repo_id: str, model: str) -> None:
    commit = push_checkpoint(model, repo_id, commit_message="Upload a checkpoint of VCP-CLIP")
    print(commit.commit_url)


if __name__ == "__main__":
    main(*sys.argv[1:])
