"""Push checkpoints and datasets to the Hub. Each push is one commit: all of it arrives, or nothing.

A checkpoint is first saved to a temporary folder, so that mistakes show before anything is uploaded. The commit names
its parent: if somebody else committed in the meantime, the Hub refuses the push and nothing is lost.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .checkpoint_folder import CheckpointParts, complete_parts, load_parts, save_parts
from .configuration_frozen_clip import FrozenCLIPConfig
from .data import export_dataset
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .model_card import hub_name, is_generated, stamped
from .modeling_frozen_clip import FrozenCLIPPreTrainedModel
from .modeling_vcp_clip import VCPCLIPModel
from .references import REFERENCES_FILE, ReferenceMemory


__all__ = ["push_checkpoint", "push_dataset"]

logger = logging.get_logger(__name__)

# Files of an earlier push that are deleted unless replaced: transformers would load them together with
# the new weights, or in their place
_OWN_MODEL_FILES = ("model*.safetensors", "model*.safetensors.index.json", REFERENCES_FILE)
_OWN_DATASET_FILES = ("data/*.parquet",)
_README = "README.md"
_TOKENS = "https://huggingface.co/settings/tokens"


def push_checkpoint(
    model: FrozenCLIPPreTrainedModel | str | os.PathLike,
    repo_id: str,
    *,
    image_processor: VCPCLIPImageProcessor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    references: ReferenceMemory | Literal[False] | None = None,
    adapter_only: bool | None = None,
    include_code: bool | None = None,
    backbone: str | None = None,
    backbone_revision: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """
    Push a whole checkpoint: model, image processor, tokenizer, facts, card, and the code to use it without this
    package.

    Args:
        model ([`VCPCLIPModel`] or another method's model, `str` or `os.PathLike`):
            Model, or the folder or Hub repository of a checkpoint.
        repo_id (`str`): `"owner/name"`; the repository is created if missing.
        image_processor ([`VCPCLIPImageProcessor`], *optional*):
            Image processor to push; by default that of the checkpoint that the model was loaded from.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer to push; by default that of the checkpoint that the model was loaded from.
        references ([`ReferenceMemory`] or `False`, *optional*):
            Memory of normal pictures to push; by default that of the checkpoint that the model was loaded from.
            `False` pushes none.
        adapter_only (`bool`, *optional*):
            Push the learned tensors only; CLIP is then loaded from the repository that the configuration names.
            Default: as the checkpoint is stored.
        include_code (`bool`, *optional*, defaults to `True` for VCP-CLIP):
            Push this package's modules too, so that
            `pipeline("anomaly-segmentation", model=repo_id, trust_remote_code=True)` works without the package.
        backbone (`str`, *optional*): Hub repository of the CLIP, if the configuration does not name it.
        backbone_revision (`str`, *optional*): branch, tag or commit of `backbone`.
        revision (`str`, *optional*): branch to push to; created from `main` if missing.
        tag (`str`, *optional*): tag for the commit, such as `"v1.0"`.
        private (`bool`, *optional*): visibility of a repository that is created.
        token (`str` or `bool`, *optional*): default: the token of `hf auth login`, or of the variable `HF_TOKEN`.
        commit_message (`str`, *optional*): message of the commit.

    Returns:
        `CommitInfo`: with `oid` and `commit_url`.

    Raises:
        ValueError: the checkpoint would not work for others, or the tag exists.
        PermissionError: there is no token, or the token may not write to the repository.
        OSError: the checkpoint cannot be loaded, or the push failed and the repository is unchanged.
    """
    api = _api(token, repo_id)
    if isinstance(model, (str, os.PathLike)):
        loaded = load_parts(model)
        parts = CheckpointParts(
            loaded.model,
            image_processor or loaded.image_processor,
            tokenizer or loaded.tokenizer,
            loaded.references,
        )
    else:
        parts = complete_parts(model, image_processor, tokenizer)
    if references is not None:
        parts.references = references or None
    config = parts.model.config
    adapter_only = not config.backbone_included if adapter_only is None else adapter_only
    include_code = isinstance(parts.model, VCPCLIPModel) if include_code is None else include_code
    with (
        tempfile.TemporaryDirectory() as temporary,
        _backbone_named(config, adapter_only, backbone, backbone_revision),
    ):
        folder = Path(temporary)
        _copy_personal_readme(parts.model.name_or_path, folder)
        save_parts(
            folder, parts, adapter_only=adapter_only, include_code=include_code, download_facts=True, repo_id=repo_id
        )
        with _clear_errors(api, repo_id):
            if adapter_only:
                _check_backbone_exists(api, config)
            message = commit_message or f"Upload {config.title}, {'learned part' if adapter_only else 'with backbone'}"
            return _push_folder(api, folder, repo_id, "model", _OWN_MODEL_FILES, message, revision, tag, private)


def push_dataset(
    dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset],
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
    Push a result of `load_anomaly_dataset` as parquet files with a card. Afterwards, `datasets.load_dataset(repo_id)`
    reads it without this package, and `datasets.load_dataset(repo_id, "bottle")` reads one product.

    Check the license of the images first: the right to use images is not the right to publish them.

    Args:
        dataset (`Dataset`, `IterableDataset` or a mapping of splits to them):
            Records with the columns of this package's datasets.
        repo_id (`str`): `"owner/name"`; the repository is created if missing.
        revision, tag, private, token, commit_message (*optional*): see [`push_checkpoint`].
        max_shard_size (`int`, *optional*, defaults to 500 MiB): maximum size of a parquet file in bytes.

    Returns:
        `CommitInfo`: with `oid` and `commit_url`.

    Raises:
        ValueError: columns are missing, or the tag exists.
        PermissionError: there is no token, or the token may not write to the repository.
        OSError: the push failed and the repository is unchanged.
    """
    api = _api(token, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(
            export_dataset(dataset, os.path.join(temporary, repo_id.split("/")[-1]), "parquet", max_shard_size)
        )
        splits = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
        readme = folder / _README
        card = DatasetCard(readme.read_text(encoding="utf-8"))
        lengths = [len(part) for part in splits.values() if hasattr(part, "__len__")]
        if len(lengths) == len(splits):
            card.data.size_categories = [_size_category(sum(lengths))]
        readme.write_bytes(stamped(str(card)).encode("utf-8"))
        with _clear_errors(api, repo_id):
            message = commit_message or "Upload dataset"
            return _push_folder(api, folder, repo_id, "dataset", _OWN_DATASET_FILES, message, revision, tag, private)


# --- the contents -------------------------------------------------------------------------------------------------


@contextmanager
def _backbone_named(
    config: FrozenCLIPConfig, adapter_only: bool, backbone: str | None, revision: str | None
) -> Iterator[None]:
    """Name a Hub backbone in the configuration during the `with` block, instead of a folder of this machine."""
    before = config.backbone_name_or_path, config.backbone_revision
    try:
        if backbone is not None:
            config.backbone_name_or_path, config.backbone_revision = backbone, revision
        named = config.backbone_name_or_path
        if hub_name(named) is None:
            if adapter_only:
                raise ValueError(
                    f"A checkpoint without CLIP needs a CLIP on the Hub, and {named!r} is not a Hub repository that"
                    " others could load it from. Name one with backbone=... (--backbone), push the backbone there"
                    " first, or push all weights with adapter_only=False (--full)."
                )
            config.backbone_name_or_path = config.backbone_revision = None
        yield
    finally:
        config.backbone_name_or_path, config.backbone_revision = before


def _check_backbone_exists(api: HfApi, config: FrozenCLIPConfig) -> None:
    """Raise unless the backbone is a repository that the token can read."""
    name, revision = config.backbone_name_or_path, config.backbone_revision
    try:
        api.model_info(name, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"A checkpoint without CLIP needs a CLIP on the Hub, and {name!r}{at} cannot be found. Name the repository"
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
            f"Pushing to {repo_id} needs a token with write access. Create one at {_TOKENS}, then run `hf auth login`"
            " or set the variable HF_TOKEN."
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
    """Commit the files of a folder on top of the present state of the repository."""
    # 1. the repository, the tag, the branch
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    repository = {"repo_id": repo_id, "repo_type": repo_type}
    if tag is not None:
        taken = next((each for each in api.list_repo_refs(**repository).tags if each.name == tag), None)
        if taken is not None:
            raise ValueError(
                f"{repo_id} already has a tag {tag!r}, on commit {taken.target_commit[:12]}. Tags do not move: choose"
                f" another, or delete it first (`hf repos tag delete {repo_id} {tag}`)."
            )
    if revision is not None and revision != "main":
        api.create_branch(**repository, branch=revision, exist_ok=True)

    # 2. the files to add and to delete
    head = api.repo_info(**repository, revision=revision)
    present = {sibling.rfilename for sibling in head.siblings or ()}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if _README in present and _README in files and not is_generated(_read_remote(api, repository, head.sha)):
        logger.warning(f"{_README} of {repo_id} was written or edited by a person and is kept.")
        del files[_README]
    stale = [name for name in sorted(present - files.keys()) if any(_matches(name, pattern) for pattern in own_files)]

    # 3. one commit
    commit = api.create_commit(
        **repository,
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
            api.create_tag(**repository, tag=tag, revision=commit.oid)
        except HTTPError as error:
            raise OSError(
                f"Pushed as {commit.commit_url}, but the tag was not set: {error}. Set it with"
                f" `hf repos tag create {repo_id} {tag} --revision {commit.oid}`."
            ) from error
    return commit


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path matches; a star does not match across folders, as that of `fnmatch` does."""
    return fnmatch(name, pattern) and name.split("/")[:-1][:1] == pattern.split("/")[:-1][:1]


def _read_remote(api: HfApi, repository: dict[str, str], commit: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(**repository, filename=_README, revision=commit, local_dir=folder)
        return Path(path).read_text(encoding="utf-8")


@contextmanager
def _clear_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn failures of the Hub's API into errors that say what to do."""
    again = "A push is all or nothing: run the same command again."
    try:
        yield
    except (HTTPError, RuntimeError) as error:
        # huggingface_hub wraps a failed upload into a RuntimeError
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status == 401:
            raise PermissionError(
                "The Hub does not accept the token: it is wrong or has expired. Create one with write access at"
                f" {_TOKENS}, then run `hf auth login` or set the variable HF_TOKEN (which wins over the login)."
            ) from error
        if status == 403:
            raise PermissionError(
                f"The token{_owner(api)} may not write to {repo_id}. Push to a repository of your own, ask its owner"
                f" to add you, or use a token with write access to it ({_TOKENS})."
            ) from error
        if status == 412:
            raise OSError(
                f"Somebody else changed {repo_id} during the push, so the Hub refused it. {again}"
            ) from error
        raise OSError(f"The push failed: {cause}. {again}") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            "The Hub cannot be reached because HF_HUB_OFFLINE=1 is set. Unset it to push."
        ) from error


def _owner(api: HfApi) -> str:
    """Return " of 'name'" for the owner of the token, or an empty string if unknown."""
    try:
        return f" of {api.whoami()['name']!r}"
    except (HTTPError, OSError, KeyError):
        return ""
