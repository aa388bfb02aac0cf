"""Everything that is measured on a GPU, in one run of less than three minutes.

    python -m examples.research.benchmark --what gpu --output_dir runs/gpu            # less than three minutes
    python -m examples.research.benchmark --what gpu --quick --output_dir runs/gpu    # less than one minute

It runs from a checkout, without the network, and needs few packages:

    pip install torch "transformers>=5.23,<6" accelerate numpy pillow pyyaml tqdm pytest

Without a GPU, the same command measures a tiny model on the CPU, and names what it left out.

`sections.py` lists the sections in order of importance, each with a limit of time; `--sections` chooses some of them.
They run in a second process (`supervisor.py`): an error of CUDA that no later call of a process survives, or a call
that never returns, costs one section. Each row is printed and written as soon as it is measured: `benchmark.jsonl` has
one row on each line; `benchmark.json` and `benchmark.md` have all rows so far. `goals.py` has the targets.

To measure another way, add it to `ways.py`; to measure something else, add a section.
"""
