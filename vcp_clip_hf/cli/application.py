"""The command `vcp-clip` without its verbs: the application, and what all verbs do when they run."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..version import __version__


__all__ = ["InterruptibleVerb", "Verb", "app", "hide_progress_bars"]

app = typer.Typer(
    name="vcp-clip",
    help="Find and outline defects in images of products, without training on them (VCP-CLIP, zero-shot).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Options and verbs may be spelled with underscores; values are not normalized
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def hide_progress_bars(context: typer.Context) -> None:
    """Hide the progress bars of transformers, unless `--verbose` is given."""
    if not context.find_root().params["verbose"]:
        from transformers.utils import logging

        logging.disable_progress_bar()


class InterruptibleVerb(TyperCommand):
    """A verb that ends with one line and status 130 when it is interrupted."""

    def invoke(self, context: typer.Context) -> Any:
        """Run the verb."""
        from ..interruption import EXIT_STATUS

        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            if not error.args:  # otherwise, the run has said how to go on
                typer.echo(f"Interrupted: {self.name} ended before it was done; run it again.", err=True)
            raise typer.Exit(EXIT_STATUS) from None


class Verb(InterruptibleVerb):
    """A verb that hides progress bars when it runs, which is after `--help` has been answered."""

    def invoke(self, context: typer.Context) -> Any:
        """Run the verb without progress bars."""
        hide_progress_bars(context)
        return super().invoke(context)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show progress bars of loading, and tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()
