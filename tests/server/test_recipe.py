"""Recipes are plain JSON, checked when they are made."""

import json

import pytest

from vcp_clip_hf.server.recipe import Recipe, check_recipe_name


KEY = "0123456789abcdef" * 4


def test_json_keeps_every_field():
    recipe = Recipe("part-7.b", 3, 0.25, 0.5, "top_k", 12, True, 0.75, KEY, (KEY, KEY[::-1]))
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    assert Recipe.from_json({"name": "part"}) == Recipe("part")
    assert hash(recipe) != hash(Recipe("part"))  # keys of caches


@pytest.mark.parametrize("name", ["a", "Part_1.v-2", "x" * 64, "7"])
def test_names(name):
    assert check_recipe_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "x" * 65, "größe", "a\n", "a b", None, 7])
def test_names_that_could_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a recipe: use 1 to 64 of the characters"):
        Recipe(name)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", 1.5, r"threshold=1.5 must be a number in \[0, 1\], or null for the checkpoint's"),
        ("threshold", "0.5", r"threshold='0.5' must be a number"),
        ("threshold", True, r"threshold=True must be a number"),
        ("image_threshold", float("nan"), r"image_threshold=nan must be a number in \[0, 2\]"),
        ("reference_weight", -0.1, r"reference_weight=-0.1 must be a number in \[0, 1\]"),
        ("score_mode", "mean", r"score_mode='mean' must be one of 'max', 'top_k', 'image_head'"),
        ("min_area", -1, r"min_area=-1 must be a whole number"),
        ("min_area", 2.5, r"min_area=2.5 must be a whole number"),
        ("version", True, r"version=True must be a whole number"),
        ("fill_holes", 1, r"fill_holes=1 must be true or false"),
        ("roi", "../../etc/passwd", r"'../../etc/passwd' is not a content key"),
        ("references", KEY, r"must be a list of content keys"),
        ("references", [KEY, 7], r"7 is not a content key"),
    ],
)
def test_wrong_values_are_named(field, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Recipe.from_json({"name": "part", field: value})


def test_the_range_of_the_image_threshold_is_that_of_the_score():
    assert Recipe("part", image_threshold=1.5, score_mode="top_k").image_threshold == 1.5
    with pytest.raises(ValueError, match=r"image_threshold=1.5 must be a number in \[0, 1\]"):
        Recipe("part", image_threshold=1.5, score_mode="max")


def test_an_unknown_field_is_an_error_that_names_the_known_ones():
    with pytest.raises(TypeError, match=r"A recipe has no argument 'treshold'; did you mean 'threshold'\?"):
        Recipe.from_json({"name": "part", "treshold": 0.5})
    with pytest.raises(TypeError, match="known are name, version, threshold, image_threshold, score_mode, min_area"):
        Recipe.from_json({"name": "part", "color": "red"})
