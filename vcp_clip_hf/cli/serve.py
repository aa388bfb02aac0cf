"""`vcp-clip serve`."""

import ipaddress
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from ..version import EMBEDDED_CHECKPOINT
from .application import hide_progress_bars
from .common import Device, DType, Model, WeightType, announce_embedded, printable


__all__ = ["serve"]

# Modules that the extra installs
_EXTRA = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "multipart")
_MEBIBYTE = 2**20


def serve(
    context: typer.Context,
    model: Model = EMBEDDED_CHECKPOINT,
    host: Annotated[
        str, typer.Option(help="Address to listen on; an address that other machines can reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8000,
    recipes: Annotated[Path, typer.Option(file_okay=False, help="Folder of the recipes; created if missing.")] = Path(
        "recipes"
    ),
    token_file: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="File with the token for changes of recipes; default: the environment variable VCP_CLIP_TOKEN.",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Listen on any --host without a token: recipes cannot be changed.")
    ] = False,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Largest number of images in one run of the model.")] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=10_000, help="Time that an image waits for others, in milliseconds.")
    ] = 5.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Maximum number of images that wait; more are refused (503).")
    ] = 64,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest body of a request, in MiB.")] = 32.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest image, in pixels.")] = 25_000_000,
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls", help="Allow requests with URLs of images; the server fetches them from any address."
        ),
    ] = False,
    device: Device = None,
    dtype: DType = WeightType.auto,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the model; default: that of its runtime.")
    ] = None,
) -> None:
    """Serve a model over HTTP, in batches across clients; the settings of each product are stored as a recipe."""
    try:
        from ..server.app import create_app
        from ..server.authorization import read_token
        from ..server.process import bind, run
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in _EXTRA:
            raise ImportError(f'The server needs {error.name}: pip install "vcp-clip-hf[serve]"') from error
        raise
    from ..server.engine import is_exported, open_engine
    from ..server.recipes import RecipeStore
    from ..server.settings import ServerSettings

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    token = read_token(token_file, os.environ)
    if token is None and not no_token and not _is_own(host):
        raise typer.BadParameter(
            f"{host} can be reached by other machines. Give a token by --token-file FILE, or confirm with --no-token."
        )
    settings = ServerSettings(
        token=None if no_token else token,
        allow_urls=allow_urls,
        max_body_bytes=round(max_body_mb * _MEBIBYTE),
        max_pixels=max_pixels,
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
        max_waiting=max_waiting,
    )
    if not is_exported(model):
        hide_progress_bars(context)
    announce_embedded(model)

    listener = bind(host, port)
    address, number = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address

    def open_parts():
        engine = open_engine(model, device, dtype.value, threads)
        store = RecipeStore(recipes, engine)
        # last, so that a model that cannot be opened is the only message
        typer.echo(
            f"Listening on http://{shown}:{number} (documentation: /docs); recipes in {printable(str(recipes))}",
            err=True,
        )
        return engine, store

    run(create_app(open_parts, settings), listener, settings)


def _is_own(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
