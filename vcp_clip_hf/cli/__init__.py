"""The command `vcp-clip`: predict, calibrate, evaluate, train, push, ... Verbs parse options and call the library.

Each verb imports what it needs, so that this package itself imports neither torch nor transformers. `vcp_clip_hf`
imports both, so `vcp-clip --help` takes as long as these imports; `vcp-clip --version` does not (`vcp_clip_cli.py`).
"""

import sys
from collections.abc import Sequence

import typer

from .application import InterruptibleVerb, Verb, app
from .calibrate import calibrate
from .common import UNPARSED
from .error_sentences import error_sentence
from .evaluate import EvaluateVerb, evaluate
from .export import export
from .info import info
from .predict import predict
from .publish import card, push, push_dataset
from .report import report
from .serve import serve
from .train import convert, train
from .watch import watch


__all__ = ["app", "main"]

# In the order of `vcp-clip --help`
app.command(cls=Verb)(predict)
app.command(cls=Verb)(watch)
app.command(cls=Verb)(calibrate)
app.command(cls=EvaluateVerb)(evaluate)
app.command(cls=Verb)(report)
app.command(cls=InterruptibleVerb, context_settings=UNPARSED)(train)
app.command(cls=InterruptibleVerb, context_settings=UNPARSED)(convert)
app.command(cls=Verb)(export)
# without `Verb`, which imports transformers: an exported folder is served without it
app.command(cls=InterruptibleVerb)(serve)
app.command(cls=Verb)(card)
app.command(cls=Verb)(push)
app.command(cls=Verb)(push_dataset)
app.command(cls=Verb)(info)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line. A mistake of the user ends in a sentence, with `--verbose` in a traceback.

    Args:
        arguments (`Sequence[str]`, *optional*): arguments after the name of the program; `sys.argv[1:]` by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(arguments, prog_name="vcp-clip")
    except Exception as error:
        sentence = error_sentence(error)
        if sentence is None or "--verbose" in arguments:
            raise
        typer.echo(f"error: {sentence}".encode("utf-8", "backslashreplace").decode(), err=True)
        sys.exit(1)
