"""Checkpoints and datasets on the Hub: each push is one commit, whole or not at all.

A checkpoint is put together in a folder of its own first, so that what is wrong with it shows before anything is
uploaded. The commit names the state of the repository that it was made for: if somebody else changed that meanwhile,
it is refused and nothing is lost.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .checkpoint_folder import CheckpointParts, complete_parts, load_parts, save_parts
from .data import export_dataset
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .model_card import hub_name, is_generated, stamped
from .modeling_vcp_clip import VCPCLIPModel


__all__ = ["push_checkpoint", "push_dataset"]

logger = logging.get_logger(__name__)

# Files of an earlier push that must not stay beside the new ones: transformers would load them too, or instead
_OWN_MODEL_FILES = ("model*.safetensors", "model*.safetensors.index.json")
_OWN_DATASET_FILES = ("data/*.parquet",)
_README = "README.md"
_TOKENS = "https://huggingface.co/settings/tokens"


def push_checkpoint(
    model: VCPCLIPModel | str | os.PathLike,
    repo_id: str,
    *,
    image_processor: VCPCLIPImageProcessor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter_only: bool | None = None,
    include_code: bool = True,
    backbone: str | None = None,
    backbone_revision: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """
    Push a checkpoint: model, image processor, tokenizer, card, and the code that makes it work without this package.

    Args:
        model ([`VCPCLIPModel`] or `str`): the model, or the folder or Hub repository of a checkpoint.
        repo_id (`str`): `"owner/name"`; made if missing.
        image_processor, tokenizer (*optional*): default: those of the checkpoint that the model was loaded from.
        adapter_only (`bool`, *optional*):
            Push the learned tensors only; CLIP is then loaded from the repository that the configuration names.
            Default: as the checkpoint is stored.
        include_code (`bool`, *optional*, defaults to `True`):
            Push this package's modules too, so that
            `pipeline("anomaly-segmentation", model=repo_id, trust_remote_code=True)` works where it is not installed.
        backbone, backbone_revision (`str`, *optional*):
            Hub repository (and its revision) of the CLIP, where the configuration does not name it.
        revision (`str`, *optional*): branch to push to, made from `main` if missing.
        tag (`str`, *optional*): to name the commit with, `"v1.0"` say.
        private (`bool`, *optional*): for a repository that is made.
        token (`str`, *optional*): default: that of `hf auth login`, or of the variable `HF_TOKEN`.
        commit_message (`str`, *optional*): of the commit.

    Returns:
        `CommitInfo`: `oid`, `commit_url`.

    Raises:
        ValueError: what is to be pushed would not work for others, or the tag exists.
        PermissionError: no token, or one that may not write there.
        OSError: the checkpoint is not there, or the push failed; the repository is then as it was.
    """
    api = _api(token, repo_id)
    if isinstance(model, (str, os.PathLike)):
        loaded = load_parts(model)
        parts = CheckpointParts(loaded.model, image_processor or loaded.image_processor, tokenizer or loaded.tokenizer)
    else:
        parts = complete_parts(model, image_processor, tokenizer)
    config = parts.model.config
    adapter_only = not config.backbone_included if adapter_only is None else adapter_only
    with (
        tempfile.TemporaryDirectory() as temporary,
        _backbone_named(config, adapter_only, backbone, backbone_revision),
    ):
        folder = Path(temporary)
        _copy_personal_readme(parts.model.name_or_path, folder)
        save_parts(
            folder, parts, adapter_only=adapter_only, include_code=include_code, download_facts=True, repo_id=repo_id
        )
        with _explained(api, repo_id):
            if adapter_only:
                _check_backbone_is_there(api, config)
            message = commit_message or f"Upload VCP-CLIP, {'learned part' if adapter_only else 'with backbone'}"
            return _push_folder(api, folder, repo_id, "model", _OWN_MODEL_FILES, message, revision, tag, private)


def push_dataset(
    dataset,
    repo_id: str,
    *,
    revision: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    max_shard_size: int = 500 * 2**20,
) -> CommitInfo:
    """
    Push what `load_anomaly_dataset` gave as parquet with a card: `datasets.load_dataset(repo_id)` reads it without
    this package, `datasets.load_dataset(repo_id, "bottle")` one product. Mind the licence of the images: to be allowed
    to use them is not to be allowed to publish them.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dict of them by split): with the columns of this package's datasets.
        max_shard_size (`int`, *optional*, defaults to 500 MiB): bytes after which a new file begins.
        repo_id, revision, tag, private, token, commit_message: as of [`push_checkpoint`].

    Returns:
        `CommitInfo`

    Raises:
        ValueError, PermissionError, OSError: as [`push_checkpoint`].
    """
    api = _api(token, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(
            export_dataset(dataset, os.path.join(temporary, repo_id.split("/")[-1]), "parquet", max_shard_size)
        )
        splits = dict(dataset) if hasattr(dataset, "keys") else {"": dataset}
        readme = folder / _README
        card = DatasetCard(readme.read_text(encoding="utf-8"))
        lengths = [len(part) for part in splits.values() if hasattr(part, "__len__")]
        if len(lengths) == len(splits):
            card.data.size_categories = [_size_category(sum(lengths))]
        readme.write_bytes(stamped(str(card)).encode("utf-8"))
        with _explained(api, repo_id):
            message = commit_message or "Upload dataset"
            return _push_folder(api, folder, repo_id, "dataset", _OWN_DATASET_FILES, message, revision, tag, private)


# --- what is pushed -----------------------------------------------------------------------------------------------


@contextmanager
def _backbone_named(config, adapter_only: bool, backbone: str | None, revision: str | None) -> Iterator[None]:
    """While it lasts, the configuration names the backbone as others can find it: never a folder of this machine."""
    before = config.backbone_name_or_path, config.backbone_revision
    try:
        if backbone is not None:
            config.backbone_name_or_path, config.backbone_revision = backbone, revision
        named = config.backbone_name_or_path
        if hub_name(named) is None:
            if adapter_only:
                raise ValueError(
                    f"The learned part alone needs its CLIP, and {named!r} is not a Hub repository that others could"
                    " load it from. Name one with backbone=... (--backbone), push the backbone there first, or push"
                    " all weights with adapter_only=False (--full)."
                )
            config.backbone_name_or_path = config.backbone_revision = None
        yield
    finally:
        config.backbone_name_or_path, config.backbone_revision = before


def _check_backbone_is_there(api: HfApi, config) -> None:
    name, revision = config.backbone_name_or_path, config.backbone_revision
    try:
        api.model_info(name, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"The learned part alone needs its CLIP, and {name!r}{at} cannot be found on the Hub. Name the repository"
            " with backbone=... (--backbone), or push all weights with adapter_only=False (--full)."
        ) from error


def _copy_personal_readme(source: str, folder: Path) -> None:
    """Copy the README of the checkpoint that is pushed, if a person wrote it."""
    readme = Path(source) / _README
    if source and readme.is_file() and not is_generated(readme.read_text(encoding="utf-8")):
        shutil.copyfile(readme, folder / _README)


def _size_category(count: int) -> str:
    names, bound = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"), 1000
    for name in names:
        if count < bound:
            return name
        bound *= 10
    return "10M<n<100M"


# --- the push -----------------------------------------------------------------------------------------------------


def _api(token: str | bool | None, repo_id: str) -> HfApi:
    if not (token if isinstance(token, str) else get_token()):
        raise PermissionError(
            f"Pushing to {repo_id} needs a token that may write. Make one at {_TOKENS}, then run `hf auth login` or"
            " set the variable HF_TOKEN."
        )
    return HfApi(token=token)


def _push_folder(
    api: HfApi,
    folder: Path,
    repo_id: str,
    repo_type: str,
    own_files: tuple[str, ...],
    message: str,
    revision: str | None,
    tag: str | None,
    private: bool | None,
) -> CommitInfo:
    """One commit with the files of a folder, on the state of the repository that was looked at."""
    # 1. where
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    place = {"repo_id": repo_id, "repo_type": repo_type}
    if tag is not None:
        taken = next((each for each in api.list_repo_refs(**place).tags if each.name == tag), None)
        if taken is not None:
            raise ValueError(
                f"{repo_id} has a tag {tag!r} already, on commit {taken.target_commit[:12]}. Tags do not move: choose"
                f" another, or delete it first (`hf repos tag delete {repo_id} {tag}`)."
            )
    if revision is not None and revision != "main":
        api.create_branch(**place, branch=revision, exist_ok=True)

    # 2. what is there
    head = api.repo_info(**place, revision=revision)
    there = {sibling.rfilename for sibling in head.siblings or ()}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if _README in there and _README in files and not is_generated(_read_remote(api, place, head.sha)):
        logger.warning(f"{_README} of {repo_id} was written or edited by a person and stays as it is.")
        del files[_README]
    stale = [name for name in sorted(there - files.keys()) if any(_matches(name, pattern) for pattern in own_files)]

    # 3. all at once, or nothing
    commit = api.create_commit(
        **place,
        operations=[
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
        ],
        commit_message=message,
        revision=revision,
        parent_commit=head.sha,
    )
    if tag is not None:
        try:
            api.create_tag(**place, tag=tag, revision=commit.oid)
        except HTTPError as error:
            raise OSError(
                f"Pushed as {commit.commit_url}, but the tag was not set: {error}. Set it with"
                f" `hf repos tag create {repo_id} {tag} --revision {commit.oid}`."
            ) from error
    return commit


def _matches(name: str, pattern: str) -> bool:
    """`fnmatch`, whose star would reach into folders, from the same folder on."""
    return fnmatch(name, pattern) and name.split("/")[:-1][:1] == pattern.split("/")[:-1][:1]


def _read_remote(api: HfApi, place: dict[str, str], commit: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(**place, filename=_README, revision=commit, local_dir=folder)
        return Path(path).read_text(encoding="utf-8")


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Failures of the Hub's API as errors that say what to do."""
    again = "A push is all or nothing: run the same command again."
    try:
        yield
    except (HTTPError, RuntimeError) as error:
        # an upload that failed is wrapped into a RuntimeError
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status == 401:
            raise PermissionError(
                f"The Hub does not accept the token: it is wrong or has expired. Make one that may write at {_TOKENS},"
                " then run `hf auth login` or set the variable HF_TOKEN (which wins over the login)."
            ) from error
        if status == 403:
            raise PermissionError(
                f"The token{_owner(api)} may not write to {repo_id}. Push to a repository of your own, have its owner"
                f" add you, or take a token with write access to it ({_TOKENS})."
            ) from error
        if status == 412:
            raise OSError(
                f"{repo_id} was changed by somebody else during the push, which was therefore refused. {again}"
            ) from error
        raise OSError(f"The push failed: {cause}. {again}") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError("The Hub cannot be reached: HF_HUB_OFFLINE=1 is set. Unset it to push.") from error


def _owner(api: HfApi) -> str:
    try:
        return f" of {api.whoami()['name']!r}"
    except (HTTPError, OSError, KeyError):
        return ""
