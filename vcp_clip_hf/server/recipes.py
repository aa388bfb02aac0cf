"""Named recipes on disk, with their history.

| path | content |
|---|---|
| `recipes/NAME/000001.json` | version 1 of a recipe; the file with the highest version is in force |
| `files/SHA256` | a region of interest or a reference, named after its content |
| `.lock` | held by the process that uses the folder |

A version is one file, written atomically and never changed. Therefore, if the process is killed or the disk is full,
the previous version stays in force. The last version of a deleted recipe records the deletion, and its version numbers
are never used again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
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

# Content of the last version of a deleted recipe
_DELETION = {"deleted": True}
# Fields that no change may name
_BY_STORE = ("name", "version")


class UnknownRecipe(LookupError):
    """There is no recipe of that name, or no such version of it."""


class VersionConflict(ValueError):
    """The recipe was changed by another client in the meantime."""


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
        self._lock = FileLock(self._folder / ".lock", thread_local=False)
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
        """Release the folder, so that another process can use it."""
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
            version (`int`, *optional*): number of an earlier version; default: the version in force.

        Raises:
            UnknownRecipe: there is no such recipe or version.
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
            UnknownRecipe: there was never a recipe of that name.
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
            VersionConflict: the version in force is not the expected one.
            TypeError: a field is unknown; the message names the known ones.
            ValueError: a value is out of range, or the engine cannot follow the recipe.
            OSError: the recipe cannot be stored; the previous version stays in force.
        """
        with self._changing:
            recipe = self._changed(name, changes, expected_version)
            self._store(recipe)
            return recipe

    def set_roi(self, name: str, picture: bytes | None, expected_version: int | None = None) -> Recipe:
        """
        Set the region of interest of a recipe.

        Args:
            name (`str`): name.
            picture (`bytes`, *optional*): content of an image file of the size of the inspected images: pixels that
                are neither black nor transparent are inspected. `None`: the whole image.
            expected_version (`int`, *optional*): see `put`.

        Returns:
            [`Recipe`]: the new version, in force from now on.

        Raises:
            ValueError: the image cannot be read or leaves nothing to inspect; and the errors of `put`.
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
            images (`Sequence[bytes]`): contents of image files; empty: the checkpoint's own references, if any.
            expected_version (`int`, *optional*): see `put`.

        Returns:
            [`Recipe`]: the new version, in force from now on.

        Raises:
            ValueError: an image cannot be read; and the errors of `put`.
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
            UnknownRecipe: there is no such recipe.
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
            self._write_version(name, recipe.version + 1, _DELETION)
            self._current = {each: self._current[each] for each in self._current if each != name}

    # --- versions and files on disk ---------------------------------------------------------------------------------

    def _check_expected(self, name: str, expected_version: int | None) -> None:
        present = self._current[name].version if name in self._current else 0
        if expected_version is not None and expected_version != present:
            raise VersionConflict(
                f"The recipe {name!r} has version {present} now, not {expected_version!r}. Read it again, and repeat"
                " the change if it is still right."
            )

    def _changed(self, name: str, changes: Mapping[str, Any], expected_version: int | None) -> Recipe:
        """Return the next version of a recipe, which the engine can follow, not yet stored."""
        check_recipe_name(name)
        self._check_expected(name, expected_version)
        for field in _BY_STORE:
            if field in changes:
                raise ValueError(f"{field} is not a setting and cannot be changed; leave it out.")
        present = self._current.get(name) or Recipe(name)
        version = self._latest.get(name, 0) + 1
        recipe = Recipe.from_json({**present.as_json(), **changes, "version": version})
        self._engine.fits(recipe)
        return recipe

    def _put_files(
        self,
        name: str,
        contents: Sequence[bytes],
        changes: Callable[[list[str]], dict[str, Any]],
        expected_version: int | None,
    ) -> Recipe:
        """Store files and the version that has their keys; if one of them cannot be stored, store nothing."""
        keys = [hashlib.sha256(content).hexdigest() for content in contents]
        with self._changing:
            recipe = self._changed(name, changes(keys), expected_version)
            written: list[Path] = []
            try:
                for key, content in zip(keys, contents, strict=True):
                    path = self._files / key
                    if not path.is_file():
                        _write(path, content)
                        written.append(path)
                self._store(recipe)
            except BaseException:
                for path in written:
                    path.unlink(missing_ok=True)
                raise
            return recipe

    def _store(self, recipe: Recipe) -> None:
        """Store a version; it is in force afterwards."""
        self._check_files(recipe)
        if recipe.references:
            self._engine.prepare([self._files / key for key in recipe.references])
        self._write_version(recipe.name, recipe.version, recipe.as_json())
        self._current = {**self._current, recipe.name: recipe}

    def _write_version(self, name: str, version: int, values: dict[str, Any]) -> None:
        folder = self._recipes / name
        folder.mkdir(exist_ok=True)
        _write(folder / f"{version:06d}.json", (json.dumps(values, indent=2) + "\n").encode())
        self._latest[name] = version

    def _versions(self, name: str) -> list[tuple[int, Path]]:
        """Return numbers and files of all versions, in order."""
        paths = (self._recipes / name).glob("*.json")
        return sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())

    def _read_all(self) -> tuple[dict[str, Recipe], dict[str, int]]:
        """Return the recipes in force, and the highest version of each name, deleted ones included."""
        current, latest = {DEFAULT_RECIPE: Recipe(DEFAULT_RECIPE)}, {}
        for name in sorted(folder.name for folder in self._recipes.iterdir() if folder.is_dir()):
            versions = self._versions(name)
            if not versions:  # the first version could not be written
                continue
            latest[name], path = versions[-1]
            recipe = _read(path)
            if recipe is not None:
                self._check_read(recipe, path)
                current[name] = recipe
        return current, latest

    def _check_read(self, recipe: Recipe, path: Path) -> None:
        """Raise an error if a stored recipe cannot be followed: its files are missing, or it is for another model."""
        try:
            self._check_files(recipe)
            self._engine.fits(recipe)
        except ValueError as error:
            raise ValueError(
                f"The stored recipe {path} cannot be used: {error} Start with the model that it was made for, or"
                f" delete the folder {path.parent}."
            ) from error

    def _check_files(self, recipe: Recipe) -> None:
        for key in (*recipe.references, *(() if recipe.roi is None else (recipe.roi,))):
            if not (self._files / key).is_file():
                raise ValueError(f"There is no stored file {key!r}; upload the picture first.")


def _read(path: Path) -> Recipe | None:
    """Return one version of a recipe, or `None` if it records a deletion."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values == _DELETION:
            return None
        recipe = Recipe.from_json(values)
        if (recipe.name, recipe.version) != (path.parent.name, int(path.stem)):
            raise ValueError(f"it holds version {recipe.version} of {recipe.name!r}")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The recipe {path} is damaged ({error}). Restore the file, or delete it to go back to the version before."
        ) from error
    return recipe


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, and synchronize it to the disk."""
    with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
