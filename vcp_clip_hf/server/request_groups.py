"""Groups of requests that go through the model together; a broken request does not fail the others."""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from .request import SegmentationRequest


__all__ = ["answer_in_groups"]

logger = logging.getLogger(__name__)

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")

# Errors with a sentence for the client; all others are logged with a traceback
_EXPECTED = (ValueError, TypeError, OSError)


def answer_in_groups(
    requests: Sequence[SegmentationRequest],
    prepare: Callable[[SegmentationRequest], tuple[Hashable, Inputs]],
    forward: Callable[[Any, list[Inputs]], Sequence[Outputs]],
    finish: Callable[[SegmentationRequest, Inputs, Outputs], dict[str, Any]],
) -> list[dict[str, Any] | Exception]:
    """
    Answer requests in three steps.

    Args:
        requests (`Sequence[SegmentationRequest]`): requests.
        prepare (`Callable`): request -> settings of its forward pass, which are the key of its group, and its inputs.
        forward (`Callable`): key and inputs of a group -> output of each request. If it raises for several requests,
            it is called again for each of them alone.
        finish (`Callable`): request, its inputs and its output -> result.

    Returns:
        `list`: for each request, in order, its result or the exception that it caused.
    """
    answers: dict[int, dict[str, Any] | Exception] = {}
    groups: dict[Hashable, list[tuple[int, Inputs]]] = {}
    for index, request in enumerate(requests):
        try:
            key, inputs = prepare(request)
        except Exception as error:
            answers[index] = _reported(error)
        else:
            groups.setdefault(key, []).append((index, inputs))
    for key, group in groups.items():
        for index, inputs, outputs in _outputs(forward, key, group):
            if isinstance(outputs, Exception):
                answers[index] = outputs
                continue
            try:
                answers[index] = finish(requests[index], inputs, outputs)
            except Exception as error:
                answers[index] = _reported(error)
    return [answers[index] for index in range(len(requests))]


def _outputs(forward: Callable, key: Hashable, group: list[tuple[int, Any]]) -> list[tuple[int, Any, Any]]:
    """Return index, inputs, and output or exception of each request of a group."""
    try:
        outputs = forward(key, [inputs for _, inputs in group])
    except Exception as error:
        if len(group) == 1:
            return [(*group[0], _reported(error))]
        logger.warning("A batch of %d images failed (%s); its images are computed one by one.", len(group), error)
    else:
        return [(*each, output) for each, output in zip(group, outputs, strict=True)]
    return [alone for each in group for alone in _outputs(forward, key, [each])]


def _reported(error: Exception) -> Exception:
    """Return the exception without its frames, which would keep images in memory; log an unexpected exception."""
    if not isinstance(error, _EXPECTED):
        logger.error("A request failed unexpectedly.", exc_info=error)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
