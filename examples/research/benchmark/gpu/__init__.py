"""Everything that is measured on a GPU, in one run of less than three minutes.

    python -m examples.research.benchmark --what gpu --output_dir runs/gpu            # 170 s at most
    python -m examples.research.benchmark --what gpu --quick --output_dir runs/gpu    # 55 s at most

Nothing needs the network, and the packages are few: torch, transformers, accelerate, safetensors, tokenizers,
huggingface_hub, numpy, pillow, pyyaml and tqdm; pytest for the checks of equality, torchao for 8-bit floating point.
Without a GPU, the same command measures a tiny model on the CPU, and says what it left out.

`sections.py` lists the sections in order of importance, each with a limit of time. They run in a process of their own
(`supervisor.py`), so that an error of CUDA, which no later call of a process survives, or a call that never returns
costs one section. Each row is printed and written when it is there: `benchmark.jsonl` has one row per line,
`benchmark.json` and `benchmark.md` have the tables so far. `goals.py` has the targets.
"""
