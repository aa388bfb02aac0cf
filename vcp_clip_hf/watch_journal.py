"""The journal of a watched folder: `predictions.jsonl`, to which one record per image is appended.

Records are complete or absent: a killed process leaves at most an incomplete last line, which is ignored. Every record
has a `sequence`, starting at 1, and the `time` at which it was written. An image is identified by its path, size and
modification time.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .input_images import OutputNames, image_key
from .json_lines import end_last_line
from .prediction_records import RECORDS, iterate_records, recorded_state


__all__ = ["WatchJournal"]


class WatchJournal:
    """
    The records of a watched folder. Only one process at a time may have the journal open.

    Args:
        output_dir (`Path`): folder of the results; it must exist.

    Attributes:
        last (`int`): sequence number of the last record; 0 without records.
        size (`int`): size of the file in bytes, up to the last record that is synchronized to the disk.
        names ([`OutputNames`]): names of output files.
    """

    def __init__(self, output_dir: Path):
        self.path = output_dir / RECORDS
        self.last, self.names = 0, OutputNames()
        self._recorded: set[bytes] = set()
        end_last_line(self.path)
        # O_BINARY exists only on Windows, where line ends would be changed without it
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o666)
        for _, record in self.records():
            self.last = max(self.last, record["sequence"])
            self.names.take(record["name"])
            self._recorded.add(_identity(record["image"], recorded_state(record)))
        self.size = self._written = os.fstat(self._file).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Read the records in order; yield the position of each in the file, in bytes, and the record."""
        return ((position, record) for position, record in iterate_records(self.path) if "sequence" in record)

    def has(self, path: str, state: Mapping[str, int]) -> bool:
        """Return whether a file, with this size and modification time, has a record."""
        return _identity(path, state) in self._recorded

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """
        Add a record; call [`sync`] to synchronize it to the disk.

        Args:
            record (`Mapping`): record with `image`, `name`, and the state of the file: `bytes` and `mtime_ns`.

        Returns:
            `dict`: the record with its `sequence` and `time`.

        Raises:
            OSError: the record could not be written, and is not in the file.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {**record, "sequence": self.last + 1, "time": now}
        line = (json.dumps(record) + "\n").encode()
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._written)
            raise
        self._written += len(line)
        self.last += 1
        self._recorded.add(_identity(record["image"], recorded_state(record)))
        return record

    def sync(self) -> None:
        """
        Synchronize the appended records to the disk, so that they survive a power failure.

        Raises:
            FileNotFoundError: the file was removed or replaced, so the records would be lost.
            OSError: the disk failed.
        """
        os.fsync(self._file)
        try:
            same = os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            raise FileNotFoundError(f"{self.path} was removed or replaced while images were recorded. Start again.")
        self.size = self._written


def _identity(path: str, state: Mapping[str, int]) -> bytes:
    # 16 bytes instead of a path, because a journal may have millions of records
    text = f"{image_key(path)}\0{state.get('bytes')}\0{state.get('mtime_ns')}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
