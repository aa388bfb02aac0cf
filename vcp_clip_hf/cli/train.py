"""`vcp-clip train` and `vcp-clip convert`, which parse their arguments themselves."""

import typer

from .application import hide_progress_bars
from .common import is_main_process


__all__ = ["convert", "train"]


def train(context: typer.Context) -> None:
    """Train a checkpoint: `--config FILE` and `--SETTING VALUE`; see `vcp-clip train --help`."""
    from ..training_config import TrainingConfig

    config = TrainingConfig.from_arguments(
        context.args,
        prog="vcp-clip train",
        description="Train the learned part of a checkpoint on an auxiliary dataset. Settings come from a file"
        " (`learning_rate: 4e-5`) and from the command line (`--learning-rate 4e-5`), which overrides the file. The"
        " defaults are the paper's with VisA as auxiliary dataset.",
    )
    hide_progress_bars(context)
    from ..interruption import EXIT_STATUS
    from ..training import train as run

    result = run(config)
    if is_main_process():
        typer.echo(f"step {result.state.step}, loss {result.loss:.4f}, {result.images_per_second:.1f} images/s")
        for folder in (result.last, result.best):
            if folder is not None:
                typer.echo(str(folder))
    if result.interrupted:
        raise typer.Exit(EXIT_STATUS)


def convert(context: typer.Context) -> None:
    """Convert the authors' .pth checkpoint into a folder for from_pretrained; see `vcp-clip convert --help`."""
    from ..convert_vcp_clip_to_hf import main as run

    hide_progress_bars(context)
    run(context.args, prog="vcp-clip convert")
