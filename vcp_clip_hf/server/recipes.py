"""Named recipes on disk, with their history.

| path | content |
|---|---|
| `recipes/NAME/000001.json` | version 1 of a recipe; the file with the highest version is in force |
| `files/SHA256` | a region of interest or a reference, named after its content |
| `.lock` | held by the process that uses the folder |

A version is one file, written atomically and never changed. Therefore a process that is killed, or a full disk, leaves
the former version in force. A deleted recipe has a last version that says so, and its numbers are never used again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from ..atomic_write import atomic_file
from ..image_loading import load_image, load_nonzero
from .engine import SegmentationEngine
from .recipe import CONTENT_KEY, DEFAULT_RECIPE, Recipe, check_recipe_name
from .request import SegmentationRequest


__all__ = ["Recipe", "RecipeStore", "UnknownRecipe", "VersionConflict"]

_DELETED = "deleted"
_BY_STORE = ("name", "version")


class UnknownRecipe(LookupError):
    """There is no recipe of that name, or no such version of it."""


class VersionConflict(ValueError):
    """Somebody else has changed the recipe in the meantime."""


class RecipeStore:
    """
    The recipes of a server. All methods may be called from any thread.

    Args:
        folder (`str` or `os.PathLike`): folder of the recipes, created if missing. One process at a time uses it.
        engine ([`SegmentationEngine`]): engine; recipes that it cannot follow are refused.

    Raises:
        ValueError: another process uses the folder, a file in it is damaged, or the engine cannot follow a recipe.
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike, engine: SegmentationEngine):
        self._folder, self._engine = Path(folder), engine
        self._recipes, self._files = self._folder / "recipes", self._folder / "files"
        for each in (self._recipes, self._files):
            each.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process uses the recipes in {self._folder}. Stop it, or give this server another folder."
            ) from None
        self._changing = threading.RLock()
        try:
            self._current, self._latest = self._read_all()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.release()

    # --- reading ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all recipes, sorted; `default` is always among them."""
        return sorted(self._current)

    def get(self, name: str = DEFAULT_RECIPE, version: int | None = None) -> Recipe:
        """
        Return a recipe.

        Args:
            name (`str`, *optional*, defaults to `"default"`): name.
            version (`int`, *optional*): an earlier version; default: the one in force.

        Raises:
            UnknownRecipe: there is none.
        """
        if version is not None:
            for recipe in self.history(name):
                if recipe.version == version:
                    return recipe
            raise UnknownRecipe(f"The recipe {name!r} has no version {version!r}.")
        recipe = self._current.get(name)
        if recipe is None:
            raise UnknownRecipe(f"There is no recipe {name!r}; known are {', '.join(self.names())}.")
        return recipe

    def history(self, name: str) -> list[Recipe]:
        """
        Return all versions of a recipe, the oldest first, those before a deletion included.

        Raises:
            UnknownRecipe: there was never one of that name.
        """
        found = [_read(path) for _, path in self._versions(name)] if name in self._latest else []
        if name == DEFAULT_RECIPE:
            found.insert(0, Recipe(name))
        if not found:
            raise UnknownRecipe(f"There is no recipe {name!r}; known are {', '.join(self.names())}.")
        return [recipe for recipe in found if recipe is not None]

    def file(self, key: str) -> Path:
        """
        Return the path of a stored region of interest or reference.

        Args:
            key (`str`): content key, as in `Recipe.roi` and `Recipe.references`.

        Raises:
            UnknownRecipe: there is no such file.
        """
        path = self._files / key if CONTENT_KEY.fullmatch(key) else None
        if path is None or not path.is_file():
            raise UnknownRecipe(f"There is no stored file {key!r}; upload the picture first.")
        return path

    def request(
        self,
        image: Image.Image,
        name: str = DEFAULT_RECIPE,
        with_regions: bool = False,
        with_overlay: bool = False,
    ) -> SegmentationRequest:
        """
        Make the request for an image under the version of a recipe that is in force now.

        Args:
            image, with_regions, with_overlay: see [`SegmentationRequest`].
            name (`str`, *optional*, defaults to `"default"`): name of the recipe.

        Raises:
            UnknownRecipe: there is no such recipe.
        """
        recipe = self.get(name)
        roi = None if recipe.roi is None else self._files / recipe.roi
        references = tuple(self._files / key for key in recipe.references)
        return SegmentationRequest(image, recipe, with_regions, with_overlay, roi, references)

    # --- changing ---------------------------------------------------------------------------------------------------

    def put(self, name: str, changes: Mapping[str, Any], expected_version: int | None = None) -> Recipe:
        """
        Change a recipe, or make a new one.

        Args:
            name (`str`): name.
            changes (`Mapping[str, Any]`): fields of [`Recipe`], except name and version, with their new values; the
                other fields stay as they are.
            expected_version (`int`, *optional*): version that the changes are based on; 0 for a new recipe.

        Returns:
            [`Recipe`]: the new version, in force from now on.

        Raises:
            VersionConflict: the version in force is another one than expected.
            TypeError: a field is unknown; the message names the known ones.
            ValueError: a value is out of range, or the engine cannot follow the recipe.
            OSError: the recipe cannot be stored; the former version stays in force.
        """
        with self._changing:
            recipe = self._changed(name, changes, expected_version)
            self._write(recipe)
            return recipe

    def set_roi(self, name: str, picture: bytes | None, expected_version: int | None = None) -> Recipe:
        """
        Set the region of interest of a recipe.

        Args:
            name (`str`): name.
            picture (`bytes`, *optional*): content of an image file of the size of the images: pixels that are neither
                black nor transparent are inspected. `None`: the whole image.
            expected_version (`int`, *optional*): see `put`.

        Returns, Raises: as `put`; `ValueError` if the picture cannot be read or leaves nothing to inspect.
        """
        if picture is not None and not load_nonzero(picture)[1].any():
            raise ValueError("The region of interest leaves nothing to inspect: all pixels are black or transparent.")
        contents = [] if picture is None else [picture]
        return self._put_files(name, contents, lambda keys: {"roi": keys[0] if keys else None}, expected_version)

    def set_references(self, name: str, images: Sequence[bytes], expected_version: int | None = None) -> Recipe:
        """
        Set the normal images that a recipe compares images with.

        Args:
            name (`str`): name.
            images (`Sequence[bytes]`): contents of image files; none: the checkpoint's own references, if any.
            expected_version (`int`, *optional*): see `put`.

        Returns, Raises: as `put`; `ValueError` if an image cannot be read.
        """
        for index, image in enumerate(images, start=1):
            try:
                load_image(image, self._engine.input_range)
            except ValueError as error:
                raise ValueError(f"Reference {index} of {len(images)}: {error}") from error
        return self._put_files(name, images, lambda keys: {"references": list(dict.fromkeys(keys))}, expected_version)

    def delete(self, name: str, expected_version: int | None = None) -> None:
        """
        Delete a recipe. Its history stays.

        Raises:
            UnknownRecipe: there is none.
            ValueError: the recipe is `default`, which always exists.
            VersionConflict, OSError: as in `put`.
        """
        if name == DEFAULT_RECIPE:
            raise ValueError(
                f"The recipe {DEFAULT_RECIPE!r} cannot be deleted; to go back to the checkpoint's settings, set its"
                " fields to null."
            )
        with self._changing:
            recipe = self.get(name)
            self._check_expected(name, expected_version)
            self._write_version(name, recipe.version + 1, {_DELETED: True})
            self._latest[name] = recipe.version + 1
            del self._current[name]
