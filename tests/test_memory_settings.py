"""Settings of a memory, and turned copies of pictures."""

import pytest

from tests.memories import small_picture
from vcp_clip_hf.memory_settings import COPIES, MemorySettings, turned_copies
from vcp_clip_hf.references import picture_digest


def test_copies():
    image = small_picture(0)
    counts = {copies: len(turned_copies(image, copies)) for copies in COPIES}
    assert counts == {"none": 1, "flips": 3, "rotations": 4, "all": 8}
    every = {picture_digest(each) for each in turned_copies(image, "all")}
    assert len(every) == 8, "the eight symmetries of a square, each once"
    for copies in COPIES:
        found = [picture_digest(each) for each in turned_copies(image, copies)]
        assert found[0] == picture_digest(image) and set(found) <= every


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "must be whole numbers, at least one"),
        ({"layers": (1, "stem")}, "before them may stand 'stem'"),
        ({"layers": ("stem", 2, 1)}, "must be ascending"),
        ({"layers": ("stem", -1)}, "0 or more"),
        ({"layers": ("stem", True)}, "must be whole numbers"),
        ({"layers": (1.0,)}, "whole numbers"),
        ({"layers": (True,)}, "whole numbers"),
        ({"layers": (1, "windows_2")}, "whole numbers"),
        ({"layers": (2, 1)}, "ascending, distinct"),
        ({"layers": (1, 1)}, "ascending, distinct"),
        ({"layers": (-1, 1)}, "0 or more"),
        ({"max_patches": 0}, "max_patches=0 must be a whole number, 1 or more"),
        ({"max_patches": 10.0}, "max_patches=10.0"),
        ({"max_patches": True}, "max_patches=True"),
        ({"neighborhood": 2}, "neighborhood=2 must be odd"),
        ({"neighborhood": -3}, "neighborhood=-3 must be a whole number"),
        ({"scale": 0}, "scale=0 must be a positive number"),
        ({"scale": float("nan")}, "scale=nan must be a positive number"),
        ({"copies": "mirror"}, "copies='mirror' must be one of 'none', 'flips', 'rotations', 'all'"),
        ({"copies": ["flips"]}, r"copies=\['flips'\] must be one of"),
        ({"distance": "absolute"}, "distance='absolute' must be one of 'scaled', 'relative'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MemorySettings(**{"layers": (1,), **settings})
