"""Requests go through the model in groups; each answer stands at the place of its request."""

import gc
import logging
import weakref

from PIL import Image

from vcp_clip_hf.server.recipe import Recipe
from vcp_clip_hf.server.request import SegmentationRequest
from vcp_clip_hf.server.request_groups import answer_in_groups


def requests_of_widths(*widths):
    return [SegmentationRequest(Image.new("RGB", (width, 4)), Recipe("default")) for width in widths]


def prepare(request):
    if request.image.width == 13:
        raise ValueError("unlucky")
    return request.image.width % 2, request.image.width


def finish(request, inputs, outputs):
    if inputs == 7:
        raise ValueError("no region")
    assert request.image.width == inputs
    return {"doubled": outputs}


def test_groups_answers_and_errors_keep_their_places():
    seen = []

    def forward(key, inputs):
        seen.append((key, inputs))
        return [2 * each for each in inputs]

    answers = answer_in_groups(requests_of_widths(1, 2, 13, 3, 7, 4), prepare, forward, finish)
    assert seen == [(1, [1, 3, 7]), (0, [2, 4])]
    assert [answers[index] for index in (0, 1, 3, 5)] == [{"doubled": 2 * width} for width in (1, 2, 3, 4)]
    assert (str(answers[2]), str(answers[4])) == ("unlucky", "no region")


def test_a_forward_pass_that_fails_for_one_is_repeated_for_each(caplog):
    seen = []

    def forward(key, inputs):
        seen.append(inputs)
        if 3 in inputs:
            raise RuntimeError("out of memory")
        return inputs

    with caplog.at_level(logging.WARNING):
        answers = answer_in_groups(requests_of_widths(1, 3, 5), prepare, forward, finish)
    assert seen == [[1, 3, 5], [1], [3], [5]]
    assert answers[0] == {"doubled": 1} and answers[2] == {"doubled": 5}
    assert isinstance(answers[1], RuntimeError) and str(answers[1]) == "out of memory"
    assert "A batch of 3 images failed" in caplog.text and "A request failed unexpectedly" in caplog.text


def test_an_exception_keeps_no_picture():
    requests = requests_of_widths(13, 7)
    pictures = [weakref.ref(request.image) for request in requests]
    gc.disable()
    try:
        answers = answer_in_groups(requests, prepare, lambda key, inputs: inputs, finish)
        del requests
        assert [picture() for picture in pictures] == [None, None]
    finally:
        gc.enable()
    assert all(answer.__traceback__ is None and answer.__context__ is None for answer in answers)
