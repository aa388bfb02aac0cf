"""Bodies, queries and responses of the server, as OpenAPI describes them, with examples."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


__all__ = [
    "PICTURES",
    "BatchAnswer",
    "BatchQuery",
    "ImageBody",
    "ImageError",
    "ImagesBody",
    "ModelFacts",
    "Problem",
    "RecipeAnswer",
    "RecipeList",
    "RecipeValues",
    "SegmentQuery",
    "Segmented",
    "UsedRecipe",
]

# Parts of a response that are sent on request; all but regions are PNG files
PICTURES = ("map", "mask", "overlay")
_PARTS = (*PICTURES, "regions")
_PARTS_PATTERN = f"^({'|'.join(_PARTS)})(,({'|'.join(_PARTS)}))*$"
_FINGERPRINT = "4f0a6f0c1d4b6c0e"
# A gray pixel
_SMALL_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _without_repetition(parts: str | None) -> str | None:
    return None if parts is None else ",".join(dict.fromkeys(parts.split(",")))


class SegmentQuery(BaseModel):
    """Query of `/v1/segment`."""

    model_config = ConfigDict(extra="forbid")

    recipe: Annotated[str, Field(description="Name of the recipe.", examples=["default"])] = "default"
    include: Annotated[
        str | None,
        AfterValidator(_without_repetition),
        Field(
            pattern=_PARTS_PATTERN,
            description="Further parts of the response, separated by commas: map, mask, overlay (PNG files in base64)"
            " and regions. With `Accept: image/png`: exactly one of map, mask and overlay, which is the response.",
            examples=["mask,regions"],
        ),
    ] = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the requested parts."""
        return () if self.include is None else tuple(self.include.split(","))


class BatchQuery(SegmentQuery):
    """Query of `/v1/segment/batch`."""


class ImageBody(BaseModel):
    """JSON body with one image: its content in base64, or its URL if the server was started with `--allow-urls`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "part-17",
                    "image": _SMALL_PNG,
                }
            ],
            "oneOf": [{"required": ["image"]}, {"required": ["url"]}],
        },
    )

    name: Annotated[str | None, Field(max_length=256, description="Name of the image, repeated in the response.")] = (
        None
    )
    image: Annotated[
        str | None, Field(description="Content of an image file in base64, or a data URI with base64.")
    ] = None
    url: Annotated[str | None, Field(description="Address of an image: http or https.", max_length=4096)] = None

    @model_validator(mode="after")
    def _check_one_source(self) -> "ImageBody":
        if (self.image is None) == (self.url is None):
            raise ValueError("an image needs either `image` (base64) or `url`")
        return self


class ImagesBody(BaseModel):
    """JSON body with several images."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[ImageBody], Field(min_length=1)]


class UsedRecipe(BaseModel):
    """Recipe that was used for a result."""

    name: Annotated[str, Field(examples=["default"])]
    version: Annotated[int, Field(ge=0, description="0: the checkpoint's own settings, never changed.", examples=[3])]


class ModelFacts(BaseModel):
    """Model that was used for a result."""

    name: Annotated[str, Field(examples=["vcp-clip-tiny"])]
    fingerprint: Annotated[str, Field(description="SHA-256 over the weights.", examples=[_FINGERPRINT])]


class _Provenance(BaseModel):
    recipe: UsedRecipe
    model: ModelFacts
    package_version: Annotated[str, Field(examples=["0.1.0"])]


class Box(BaseModel):
    """Box of a region, along pixel edges: xmax is one past the last column."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Region(BaseModel):
    """Connected abnormal pixels."""

    model_config = ConfigDict(extra="allow")

    score: Annotated[float, Field(ge=0, le=1, description="Maximum of the map inside the region.")]
    area: Annotated[int, Field(ge=1, description="Number of pixels.")]
    box: Box
    polygon: Annotated[list[list[int]], Field(description="Corners [x, y] of the outer outline, clockwise.")]
    holes: Annotated[list[list[list[int]]], Field(description="Corners of the outline of each hole.")]


class ImageResult(BaseModel):
    """Result of one image."""

    name: Annotated[str | None, Field(description="Name or file name in the request.", examples=["part-17"])]
    score: Annotated[float, Field(ge=0, le=2, examples=[0.87])]
    label: Annotated[
        Literal["normal", "anomalous"] | None, Field(description="null without a threshold.", examples=["anomalous"])
    ]
    threshold: Annotated[float | None, Field(description="Limit of the mask's pixels.", examples=[0.5])]
    image_threshold: Annotated[float | None, Field(description="Limit of the score.", examples=[0.5])]
    height: Annotated[int, Field(ge=1, examples=[480])]
    width: Annotated[int, Field(ge=1, examples=[640])]
    regions: Annotated[list[Region] | None, Field(description="On request; null without a threshold.")] = None
    map: Annotated[
        str | None, Field(description="On request: 16-bit gray PNG in base64, value / 65535 in [0, 1].")
    ] = None
    mask: Annotated[
        str | None, Field(description="On request: gray PNG in base64, 255 is abnormal; null without a threshold.")
    ] = None
    overlay: Annotated[
        str | None, Field(description="On request: RGB PNG in base64, the map drawn over the image.")
    ] = None


class Segmented(ImageResult, _Provenance):
    """Response of `/v1/segment`."""


class ImageError(BaseModel):
    """Image of a batch that has no result."""

    name: Annotated[str | None, Field(description="Name or file name in the request.")]
    error: Annotated[str, Field(examples=["the image bytes: not an image file that Pillow can read."])]
    status: Annotated[
        int, Field(description="Status that a request with this image alone would have.", examples=[422])
    ]


class BatchAnswer(_Provenance):
    """Response of `/v1/segment/batch`: a result or an error for each image, in the order of the request."""

    results: list[ImageResult | ImageError]


class RecipeValues(BaseModel):
    """Settings of a recipe. A missing value, or null, stands for the checkpoint's own."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"threshold": 0.55, "score_mode": "max", "min_area": 20}]},
    )

    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="Pixels of the map at or above it are abnormal.")
    ] = None
    image_threshold: Annotated[
        float | None,
        Field(ge=0, le=2, description="Images with a score at or above it are anomalous; above 1 for top_k only."),
    ] = None
    score_mode: Annotated[
        Literal["max", "top_k", "image_head"] | None,
        Field(description="How the score of an image is computed; the possible modes depend on the model."),
    ] = None
    min_area: Annotated[int, Field(ge=0, le=10**9, description="Minimum area of a region in pixels.")] = 0
    fill_holes: Annotated[bool, Field(description="Whether holes in the mask are filled.")] = False
    reference_weight: Annotated[
        float | None, Field(ge=0, le=1, description="Weight of the references; 0 is zero-shot.")
    ] = None


class RecipeAnswer(RecipeValues):
    """A recipe as it is stored."""

    name: Annotated[str, Field(examples=["default"])]
    version: Annotated[int, Field(ge=0, description="Also the ETag. 0: never stored.", examples=[3])]
    roi: Annotated[str | None, Field(description="SHA-256 of the region of interest.", examples=[_SHA256])]
    references: Annotated[list[str], Field(description="SHA-256 of each reference image.", examples=[[_SHA256]])]


class RecipeList(BaseModel):
    """Recipes of the server, and the model that they belong to."""

    recipes: list[UsedRecipe]
    model: Annotated[dict[str, Any], Field(description="Facts about the model and its own settings.")]
    package_version: Annotated[str, Field(examples=["0.1.0"])]


class Problem(BaseModel):
    """Response to a request that was refused or failed."""

    detail: Annotated[
        str, Field(description="What is wrong, and what to do.", examples=["There is no recipe 'screws'."])
    ]
    id: Annotated[
        str | None,
        Field(description="For an unexpected error (status 500): the server's log has the error under this id."),
    ] = None
