"""Speed and memory of VCP-CLIP on this machine, compared with what the machine can do.

    python -m examples.research.benchmark                       # ViT-L/14 at 518: inference, float32 and bfloat16
    python -m examples.research.benchmark --what training       # a training step, with and without accumulation
    python -m examples.research.benchmark --what predict        # files to results on disk, beside the model alone
    python -m examples.research.benchmark --what gpu            # everything on a GPU in less than three minutes
    python -m examples.research.benchmark --devices cuda --batch_sizes 1 16 32 --compile

Without --model, the true configuration is filled with random weights: the time does not depend on their values.
Machines are noisy, so the ways of one setting take turns, round after round; the reported numbers are medians, and
ratios within the same run. There are two yardsticks: the floor (the image encoder's FLOPs at the rate of a large
matrix product of the same dtype) and `tests/reference_forward.py` (the equations as written: eager attention, a loop
over images, all 77 text tokens, keys and values of every patch).

`inference.py`, `training.py` and `predict.py` each return rows for `reports.py`. To measure another way, add an entry
to the `ways` of the file that measures it. `gpu/` runs them with measurements of its own.
"""
