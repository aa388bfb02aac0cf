"""Commands for a POSIX shell that give the result on the page over HTTP, with `vcp-clip serve` and curl."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vcp_clip_hf import EMBEDDED_CHECKPOINT


__all__ = ["SERVER", "TOKEN_FILE", "request_commands", "start_commands"]

# Where `vcp-clip serve` listens by default
SERVER = "http://127.0.0.1:8000"
TOKEN_FILE = "token"
_RECIPE = "demo-page"
_OVERLAY = "overlay.png"
# A failed change must not be followed by a result with other values
_CURL = "curl --fail-with-body"


def start_commands(model: str, dtype: str = "auto") -> str:
    """
    Return the commands that make a token and start the server.

    Args:
        model (`str`): folder or Hub repository of the checkpoint. Of a folder, only the name is shown, because
            visitors must not see paths of the machine. Empty if the model was never saved.
        dtype (`str`, *optional*, defaults to `"auto"`): dtype of the page's model.
    """
    options = [] if dtype == "auto" else ["--dtype", dtype]
    if not model:
        options += ["--model", "FOLDER"]
    elif not Path(model).is_dir():
        options += ["--model", model]
    elif not Path(model).samefile(EMBEDDED_CHECKPOINT):
        options += ["--model", f"./{Path(model).resolve().name}"]
    return (
        f"python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {TOKEN_FILE}\n"
        f"vcp-clip serve {shlex.join([*options, '--token-file', TOKEN_FILE])}"
    )


def request_commands(name: str, recipe: Mapping[str, Any] | None, with_regions: bool) -> str:
    """
    Return the commands that store a recipe, and send a picture: once for the numbers, once for the overlay.

    Args:
        name (`str`): file name of the picture, without folders.
        recipe (`Mapping[str, Any]`, *optional*): values of the recipe; `None` if the checkpoint's own are used.
        with_regions (`bool`): whether the response has regions, which need a threshold.
    """
    used = {} if recipe is None else {"recipe": _RECIPE}
    commands = [] if recipe is None else [_put(recipe)]
    sent = f"{_CURL} -F {_form_field(name)}"
    commands.append(f"{sent} {_url(**used, **({'include': 'regions'} if with_regions else {}))}")
    # the overlay must not overwrite the picture
    output = f"overlay-of-{_OVERLAY}" if name.casefold() == _OVERLAY else _OVERLAY
    commands.append(f"{sent} -H 'Accept: image/png' -o {output} {_url(**used, include='overlay')}")
    return " &&\n".join(commands)


def _put(recipe: Mapping[str, Any]) -> str:
    values = shlex.quote(json.dumps(recipe))
    headers = f"-H \"Authorization: Bearer $(cat {TOKEN_FILE})\" -H 'Content-Type: application/json'"
    return f"{_CURL} -X PUT {headers} -d {values} {SERVER}/v1/recipes/{_RECIPE}"


def _url(**query: str) -> str:
    return shlex.quote(f"{SERVER}/v1/segment" + (f"?{urlencode(query)}" if query else ""))


def _form_field(name: str) -> str:
    """Return the argument of `curl -F`, which has its own quoting, and reads standard input for the file name `-`."""
    if not name.isprintable():
        name = "PICTURE"  # a terminal would interpret pasted control characters
    path = f"./{name}" if name.startswith("-") else name
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'image=@"{escaped}"')
