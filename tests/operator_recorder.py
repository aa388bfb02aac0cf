"""Passes recorded on a CPU as a CUDA graph records them: the operators with their memory, without the Python code."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


__all__ = ["OperatorRecorder"]

# Operators that a GPU cannot record, because the host reads their result
_READ_BY_THE_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class _Operators(TorchDispatchMode):
    """Keep every operator with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in _READ_BY_THE_HOST:
            raise RuntimeError(f"{operator} is not permitted when a stream is capturing")
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self):
        """Call all operators again, and write their results to the former memory."""
        for operator, args, kwargs, former in self.calls:
            again = operator(*args, **kwargs)
            for old, new in zip(tree_leaves(former), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class OperatorRecorder:
    """
    Stands in for `CUDARecorder` on a CPU.

    Python code does not run again, and memory is read and written at fixed addresses: a value that the code
    computes anew at each call, or reads from other memory, is stale here as it would be on a GPU.
    """

    def __init__(self, fails=False, differs=False):
        self.fails, self.differs = fails, differs
        self.recorded = self.replayed = self.forgotten = 0

    def takes(self, tensor):
        return tensor.device.type == "cpu"

    def in_turn(self, device):
        return nullcontext()

    def forget(self):
        self.forgotten += 1

    def record(self, run):
        self.recorded += 1
        expected = run()
        with _Operators() as operators:
            if self.fails == "memory":
                raise torch.OutOfMemoryError("out of memory")
            if self.fails:
                torch.ones(()).item()
            outputs = run()
        if self.differs:
            expected.anomaly_map = expected.anomaly_map + 0.1

        def replay():
            self.replayed += 1
            operators.replay()

        return expected, replay, outputs, 2**20
