"""`vcp-clip card`, `vcp-clip push` and `vcp-clip push-dataset`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..version import EMBEDDED_CHECKPOINT
from .common import DATASET_HELP, Model, Products, load_dataset, name_and_folder


__all__ = ["Message", "Private", "RepoId", "Revision", "Tag", "card", "push", "push_dataset"]


def card(
    model: Annotated[
        Path, typer.Option("--model", "-m", exists=True, file_okay=False, help="Folder of the checkpoint.")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="results.json of `vcp-clip evaluate --output`, made with this checkpoint."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    description: Annotated[str | None, typer.Option(help="One or two sentences below the title.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights: apache-2.0, other, ...")] = None,
    license_note: Annotated[str | None, typer.Option(help="Remark on the license.")] = None,
    backbone_note: Annotated[str | None, typer.Option(help="Origin of CLIP, if it is not from the Hub.")] = None,
    repository: Annotated[str | None, typer.Option(help="Address of the code.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="The Hub repository that the card is for.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: README.md in the folder.")
    ] = None,
) -> None:
    """
    Write the model card of a checkpoint's folder from its facts; new facts are stored in the folder first.

    A README that a person wrote or edited is not changed.
    """
    from ..checkpoint_facts import add_results, set_statements
    from ..model_card import write_model_card

    set_statements(
        model,
        name=name,
        description=description,
        license=license,
        license_note=license_note,
        backbone=backbone_note,
        repository=repository,
    )
    for path in results or ():
        add_results(model, _read_json(path))
    written = write_model_card(model, output, repo_id)
    if written is None:
        raise typer.Exit(1)
    typer.echo(f"wrote {written}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Pass a results.json of `vcp-clip evaluate`.") from error


RepoId = Annotated[str, typer.Argument(help="Hub repository: owner/name. Created if missing.")]
Revision = Annotated[str | None, typer.Option(help="Branch to push to; created if missing.")]
Tag = Annotated[str | None, typer.Option(help="Tag for the commit, e.g. v1.0.")]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Visibility of a repository that is created.")
]
Message = Annotated[str | None, typer.Option("--message", help="Commit message.")]


def push(
    repo_id: RepoId,
    model: Model = EMBEDDED_CHECKPOINT,
    adapter_only: Annotated[
        bool | None,
        typer.Option("--adapter-only/--full", help="Push the learned part only, or CLIP too; default: as stored."),
    ] = None,
    code: Annotated[bool, typer.Option("--code/--no-code", help="Push the code too, for trust_remote_code.")] = True,
    backbone: Annotated[str | None, typer.Option(help="Hub repository of CLIP, for --adapter-only.")] = None,
    backbone_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the backbone's repository.")
    ] = None,
    revision: Revision = None,
    tag: Tag = None,
    private: Private = None,
    message: Message = None,
) -> None:
    """
    Push a checkpoint to the Hub: weights, image processor, tokenizer, card, code; in one commit.

    Log in first with `hf auth login`, or set HF_TOKEN.
    """
    from ..hub import push_checkpoint

    commit = push_checkpoint(
        model,
        repo_id,
        adapter_only=adapter_only,
        include_code=code,
        backbone=backbone,
        backbone_revision=backbone_revision,
        revision=revision,
        tag=tag,
        private=private,
        commit_message=message,
    )
    typer.echo(commit.commit_url)


def push_dataset(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    repo_id: RepoId,
    split: Annotated[str | None, typer.Option(help="Part of the dataset; default: all parts.")] = None,
    products: Products = None,
    revision: Revision = None,
    tag: Tag = None,
    private: Private = None,
    message: Message = None,
) -> None:
    """
    Push a dataset to the Hub as parquet with a card, for plain `datasets.load_dataset`.

    Check the dataset's license first: a permission to use images is not a permission to publish them.
    """
    from ..hub import push_dataset as run

    name, folder = name_and_folder(dataset)
    records = load_dataset(name, folder, split, products)
    commit = run(records, repo_id, revision=revision, tag=tag, private=private, commit_message=message)
    typer.echo(commit.commit_url)
