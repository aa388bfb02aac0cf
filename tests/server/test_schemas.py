"""Bodies and queries: the examples are valid, and so is what answers promise."""

import base64
import io
import json

import pytest
from PIL import Image
from pydantic import ValidationError

from vcp_clip_hf.server import schemas
from vcp_clip_hf.server.recipe import Recipe


def test_examples_are_valid():
    for model in (schemas.ImageBody, schemas.RecipeValues):
        examples = model.model_json_schema()["examples"]
        assert examples and all(model.model_validate_json(json.dumps(example)) for example in examples)
    (example,) = schemas.ImageBody.model_json_schema()["examples"]
    assert Image.open(io.BytesIO(base64.b64decode(example["image"]))).size == (1, 1)


def test_recipe_values_are_the_settings_of_a_recipe():
    stored = Recipe("a").as_json()
    assert {**schemas.RecipeValues().model_dump(), "name": "a", "version": 0, "roi": None, "references": []} == stored
    assert schemas.RecipeAnswer(**stored)


def test_parts_of_a_query():
    assert schemas.SegmentQuery().parts == ()
    assert schemas.SegmentQuery(include="mask,regions,mask").parts == ("mask", "regions")
    for include in ("", "mask,", "mask regions", "MASK", "mask,maps"):
        with pytest.raises(ValidationError):
            schemas.SegmentQuery(include=include)
