"""Names read from signatures, and hints for misspelled names."""

import pytest

from vcp_clip_hf.call_arguments import argument_names, refuse_unknown


def function(image, tile_size=None, *, heatmap=False, **settings):
    return image, tile_size, heatmap, settings


def test_names_of_optional_arguments():
    assert argument_names(function) == ["tile_size", "heatmap"]


def test_an_unknown_name_is_refused_with_the_closest_one():
    refuse_unknown(["heatmap"], argument_names(function), "It")
    with pytest.raises(TypeError, match="It has no argument 'heat_map'; did you mean 'heatmap'"):
        refuse_unknown(["tile_size", "heat_map"], argument_names(function), "It")
    with pytest.raises(TypeError, match="It has no argument 'zzz'; known are tile_size, heatmap"):
        refuse_unknown(["zzz"], argument_names(function), "It")
