"""Who may change recipes: a bearer token (RFC 6750), compared in constant time."""

import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer


__all__ = ["TOKEN_VARIABLE", "read_token", "require_token"]

# Environment variable with the token, for containers; --token-file has precedence
TOKEN_VARIABLE = "VCP_CLIP_TOKEN"
_SHORTEST_TOKEN = 16
_MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."


def read_token(token_file: str | os.PathLike | None, environment: Mapping[str, str]) -> str | None:
    """
    Read the token from a file or from the environment.

    Args:
        token_file (`str` or `os.PathLike`, *optional*): text file that contains only the token.
        environment (`Mapping[str, str]`): variables of the process; `VCP_CLIP_TOKEN` is read if there is no file.

    Returns:
        `str`, or `None` if neither has a token.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: the token is short, has spaces inside, or is not ASCII.
    """
    if token_file is not None:
        source, token = os.fspath(token_file), Path(token_file).read_text(encoding="utf-8", errors="replace").strip()
    else:
        source, token = TOKEN_VARIABLE, environment.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"The token in {source} has {len(token)} characters; expected {_SHORTEST_TOKEN} or more. {_MAKE_ONE}"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"The token in {source} must be one word of ASCII characters. {_MAKE_ONE}")
    return token


def require_token(token: str | None) -> Callable[..., Awaitable[None]]:
    """
    Make the check of requests that change state, as a dependency of FastAPI.

    Args:
        token (`str`, *optional*): the server's token; without one, every such request is refused.

    Returns:
        A function that raises an `HTTPException`: 403 if the server has no token, 401 without the right token.
    """
    scheme = HTTPBearer(auto_error=False, description="The token that the server was started with.")

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        if token is None:
            raise HTTPException(
                403,
                "This server was started without a token, so nothing can be changed. Start it with --token-file"
                f" FILE or with {TOKEN_VARIABLE} in its environment.",
            )
        if given is None:
            reason = "This request needs the header 'Authorization: Bearer TOKEN'."
        elif not hmac.compare_digest(given.credentials.encode(), token.encode()):
            reason = "The token of this request is wrong."
        else:
            return
        raise HTTPException(401, reason, headers={"WWW-Authenticate": "Bearer"})

    return check
