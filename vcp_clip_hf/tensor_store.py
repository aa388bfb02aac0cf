"""A tensor that is filled and read row by row: in memory, or in a temporary file if it is large."""

import math
import tempfile
from collections.abc import Sequence

import torch


__all__ = ["TensorStore"]


class TensorStore:
    """
    Keep the rows of a tensor in memory, or on disk above a limit.

    The file is in the folder for temporary files (`TMPDIR`) and has no name, so that nothing remains of it however the
    process ends. It is read into buffers, not mapped into memory: the memory in use is that of the rows being read.

    Args:
        shape (`Sequence[int]`): shape of the tensor; its first axis counts the rows.
        dtype (`torch.dtype`): data type of the values.
        memory_limit (`int`): bytes up to which the tensor is kept in memory.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, memory_limit: int):
        self.shape, self.dtype = tuple(shape), dtype
        self._row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        self._tensor = self._file = None
        if self.shape[0] * self._row_bytes <= memory_limit:
            self._tensor = torch.empty(self.shape, dtype=dtype)
        else:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with the store)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """Return whether the tensor is kept in memory."""
        return self._tensor is not None

    def write(self, start: int, rows: torch.Tensor) -> None:
        """
        Write consecutive rows.

        Args:
            start (`int`): number of the first row.
            rows (`torch.Tensor` of shape `(n, ...)`): rows on any device; converted to the data type of the store.

        Raises:
            OSError: the disk is full.
        """
        rows = rows.detach().to("cpu", self.dtype).contiguous()
        if self._tensor is not None:
            self._tensor[start : start + len(rows)] = rows
            return
        remaining = memoryview(rows.view(-1).view(torch.uint8).numpy())
        self._file.seek(start * self._row_bytes)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """
        Read consecutive rows that were written.

        Args:
            start, stop (`int`): number of the first row, and of the row after the last one.

        Returns:
            `torch.Tensor` of shape `(stop - start, ...)` on the CPU: a view of the store if it is in memory.

        Raises:
            EOFError: a row was never written.
        """
        if self._tensor is not None:
            return self._tensor[start:stop]
        rows = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        remaining = memoryview(rows.view(-1).view(torch.uint8).numpy())
        self._file.seek(start * self._row_bytes)
        while remaining:
            count = self._file.readinto(remaining)
            if not count:
                raise EOFError(f"rows {start} to {stop} of a store of {len(self)} were not all written.")
            remaining = remaining[count:]
        return rows
