"""Settings of the accelerated inference copy."""

from dataclasses import dataclass

import torch


__all__ = ["Acceleration", "computes_in_float8", "precision_name", "weights_and_settings"]

# Name of the precision of `Acceleration.float8` where a data type is chosen by its name
_FLOAT8 = "float8"


@dataclass(frozen=True)
class Acceleration:
    """
    Settings of the copy that [`accelerate_inference`] makes. With the defaults, they have an effect on a GPU only.

    Args:
        cuda_graphs (`bool`, *optional*, defaults to `True`):
            Whether to replay forward passes as CUDA graphs, one launch in place of hundreds, see
            [`~vcp_clip_hf.cuda_graphs.CapturedForwards`].
        float8 (`bool`, *optional*, defaults to `False`):
            Whether to compute the linear layers of the image tower in 8-bit floating point, for models in bfloat16 on
            a GPU of compute capability 8.9 or higher; anything else is an error. Maps differ slightly. Includes
            `compile_pointwise`. The weights are kept in both forms: for ViT-L/14, 303 MB more.
        compile_pointwise (`bool`, *optional*, defaults to `False`):
            Whether to compile the elementwise operations of the image tower with `torch.compile`, which takes some
            seconds at the first call. If that fails, they run uncompiled, with a warning.
    """

    cuda_graphs: bool = True
    float8: bool = False
    compile_pointwise: bool = False

    @classmethod
    def of(cls, value: "bool | Acceleration") -> "Acceleration | None":
        """
        Return the settings of an argument `accelerate`: `True` for the defaults, `None` for `False`.

        Args:
            value (`bool` or [`Acceleration`]): the argument.

        Raises:
            TypeError: another kind of value.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, bool):
            return cls() if value else None
        raise TypeError(f"accelerate={value!r} must be True, False or Acceleration(...).")


def computes_in_float8(settings: Acceleration | None) -> bool:
    """
    Return whether products are computed in float8.

    Args:
        settings ([`Acceleration`], *optional*): settings of the accelerated copy, if there is one.
    """
    return settings is not None and settings.float8


def weights_and_settings(precision: str) -> tuple[str, Acceleration]:
    """
    Return what the name of a precision means.

    Args:
        precision (`str`): name of a data type, `"auto"`, or `"float8"`.

    Returns:
        `tuple`: data type to load the weights in, and the settings of the accelerated copy.
    """
    return ("bfloat16", Acceleration(float8=True)) if precision == _FLOAT8 else (precision, Acceleration())


def precision_name(dtype: torch.dtype, settings: Acceleration | None) -> str:
    """
    Return the name of a precision, for records of a run.

    Args:
        dtype (`torch.dtype`): data type of the weights.
        settings ([`Acceleration`], *optional*): settings of the accelerated copy, if there is one.
    """
    return _FLOAT8 if computes_in_float8(settings) else str(dtype).removeprefix("torch.")
