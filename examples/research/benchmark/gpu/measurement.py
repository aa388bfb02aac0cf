"""What a section of the GPU benchmark works with: model, device, time left, and where its rows go."""

import argparse
import contextlib
import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property

import torch

from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel

from ..floor import matrix_product
from ..setting import DTYPES, Setting, load
from .ways import LeftOut, Ways


__all__ = ["Measurement"]


class Measurement:
    """
    The state of one process that measures sections.

    Args:
        options (`argparse.Namespace`): command line; `devices` has one device.
        send (`Callable[[dict], None]`): receives rows and messages.
        end (`float`): time in seconds, as of `time.time()`, at which everything must be done.
    """

    def __init__(self, options: argparse.Namespace, send: Callable[[dict], None], end: float):
        self.options = options
        self.device = torch.device(options.devices[0])
        self.on_gpu = self.device.type == "cuda"
        self.quick: bool = options.quick
        self.end = end
        self._send = send
        self._section, self._deadline = "", end
        self._warned: set[str] = set()

    def begin(self, section: str, limit: float) -> None:
        """Start a section with a limit in seconds."""
        self._section, self._deadline = section, min(time.time() + limit, self.end)
        self._warned.clear()
        self._send({"begin": section})

    def finish(self) -> bool:
        """End the section and give its memory back; return whether the device still computes."""
        self._send({"end": self._section})
        gc.collect()
        if self.on_gpu:
            try:
                torch.ones(1, device=self.device).add(1).item()
                torch.cuda.empty_cache()
            except RuntimeError:  # after some errors, every later call of a process fails
                return False
        return True

    # --- what sections report -------------------------------------------------------------------------------------

    def row(self, table: str, row: dict) -> None:
        """Report one row of a table."""
        self._send({"table": table, **row})

    def leave_out(self, what: str, why: str | Exception) -> None:
        """Report something that was not measured, and the reason in one line."""
        if isinstance(why, Exception) and not isinstance(why, LeftOut):
            why = f"{type(why).__name__}: {why}"
        lines = str(why).strip().splitlines() or ["no reason was given"]
        self._send({"left_out": f"{self._section}: {what}", "why": lines[0]})

    def fail(self, error: Exception) -> None:
        """Report an error that ended the section."""
        lines = str(error).strip().splitlines() or [""]
        self._send({"failed": self._section, "why": f"{type(error).__name__}: {lines[0]}"})

    @contextlib.contextmanager
    def reported_warnings(self) -> Iterator[None]:
        """Report the package's warnings within the block, once per section: a fast way may have become a slow one."""
        handler = logging.Handler(logging.WARNING)
        handler.emit = self._warn
        logger = logging.getLogger("vcp_clip_hf")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def _warn(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._warned:
            self._warned.add(text)
            self._send({"warned": self._section, "why": text})

    def has_time(self, seconds: float, what: str) -> bool:
        """Return whether the section has time for something; if not, report that it was left out."""
        if self.time_left() >= seconds:
            return True
        self.leave_out(what, "no time was left")
        return False

    def time_left(self) -> float:
        """Return the seconds that the section may still take."""
        return self._deadline - time.time()

    # --- what sections measure ------------------------------------------------------------------------------------

    @cached_property
    def _loaded(self) -> tuple[VCPCLIPModel, VCPCLIPImageProcessor]:
        with torch.inference_mode(False):
            return load(self.options)

    @property
    def exact_model(self) -> VCPCLIPModel:
        """Return the model in float32, on the device of `weights_on`."""
        return self._loaded[0]

    @property
    def processor(self) -> VCPCLIPImageProcessor:
        """Return the model's image processor."""
        return self._loaded[1]

    @property
    def dtype_name(self) -> str:
        """Return the name of the dtype that is measured."""
        return self.options.dtypes[0]

    @property
    def image_size(self) -> int:
        """Return the side of the images in pixels."""
        return self.options.image_size or self.exact_model.config.input_size[0]

    @cached_property
    def ways(self) -> Ways:
        """Return the ways of the model, on the device and in the dtype that are measured."""
        # Weights that are made in inference mode cannot be accelerated
        with torch.inference_mode(False):
            model = copy.deepcopy(self.exact_model).to(self.device, DTYPES[self.dtype_name])
        return Ways(model, self.options.compile_mode or "reduce-overhead")

    def setting(self, batch_size: int) -> Setting:
        """Return the setting of a batch size."""
        return Setting(self.device, self.dtype_name, batch_size, self.image_size)

    def inputs(self, batch_size: int) -> torch.Tensor:
        """Return random images on the device, the same ones at every call."""
        setting = self.setting(batch_size)
        return setting.pixel_values().to(setting.device, setting.dtype)

    @cached_property
    def product(self) -> tuple[Callable[[], torch.Tensor], float]:
        """Return a large matrix product in the dtype that is measured, and its FLOPs."""
        return matrix_product(self.device, DTYPES[self.dtype_name])
