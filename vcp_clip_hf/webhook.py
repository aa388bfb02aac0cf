"""Post one result to the receiver that the user configured, over HTTP or HTTPS.

A delivery has the headers of the open specification "Standard Webhooks" (www.standardwebhooks.com): `webhook-id`, and
with a secret `webhook-timestamp` and `webhook-signature` (HMAC-SHA256 over `id.timestamp.body`, in base64 after
`v1,`). `Idempotency-Key` is the same as `webhook-id`: a result may be delivered twice, always with the same key.

Redirects are not followed. The statuses 408, 425, 429 and 5xx, and failed connections, are temporary; every other
status that is not 2xx is final.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .picture_writer import picture_path
from .version import __version__


if TYPE_CHECKING:
    import httpx2

__all__ = ["RefusedError", "UnavailableError", "Webhook", "letter", "open_client", "post", "read_secret"]

_TEMPORARY = frozenset((408, 425, 429))
_SHORTEST_SECRET = 16
_SECRET_PREFIX = "whsec_"
# Maximum number of bytes that are read of a response; the rest is not needed
_ANSWER_BYTES = 65536
_SHOWN_CHARACTERS = 200


class RefusedError(Exception):
    """The receiver refused this result, which must not be posted again unchanged."""


class UnavailableError(Exception):
    """
    The receiver cannot be reached, or cannot accept results now.

    Args:
        reason (`str`): the problem, as a sentence.
        retry_after (`float`): seconds from the header `Retry-After`; 0 without this header.
    """

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Webhook:
    """
    A receiver of results, with time limits and retries.

    Args:
        url (`str`): http or https address.
        secret (`bytes`, *optional*): key of the signature, see [`read_secret`].
        with_overlay (`bool`): whether the overlay is posted too, as base64 of a JPEG file.
        timeout_seconds (`float`): longest time to connect, and longest time without an answer.
        give_up_hours (`float`): age at which a result becomes a dead letter and is no longer posted.
        first_wait_seconds (`float`), longest_wait_seconds (`float`):
            Time before the second attempt, which is doubled for each further attempt, and the limit of this time. A
            random time of up to `first_wait_seconds` is added.
    """

    url: str
    secret: bytes | None = field(default=None, repr=False)
    with_overlay: bool = False
    timeout_seconds: float = 10.0
    give_up_hours: float = 24.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # unclosed brackets, or a port out of range
            usable = False
        if not usable:
            raise ValueError(f"The webhook {self.url!r} must be an address such as https://host:port/path.")


def read_secret(path: str | os.PathLike) -> bytes:
    """
    Read the secret that deliveries are signed with.

    Args:
        path (`str` or `os.PathLike`):
            File with one line: any text of at least 16 bytes, or `whsec_` and base64, as Standard Webhooks writes it.

    Raises:
        ValueError: the secret is too short, or not base64 after `whsec_`.
    """
    text = Path(path).read_text(encoding="utf-8").strip()
    try:
        secret = base64.b64decode(text[len(_SECRET_PREFIX) :], validate=True) if _is_encoded(text) else text.encode()
    except ValueError as error:
        raise ValueError(f"{path}: after {_SECRET_PREFIX}, the secret must be base64 ({error}).") from None
    if len(secret) < _SHORTEST_SECRET:
        raise ValueError(
            f"{path}: the secret has {len(secret)} bytes, and must have {_SHORTEST_SECRET} or more. `openssl"
            f" rand -base64 32` makes one; write it after {_SECRET_PREFIX}."
        )
    return secret


def _is_encoded(text: str) -> bool:
    return text.startswith(_SECRET_PREFIX)


def letter(record: Mapping[str, Any], output_dir: Path, with_overlay: bool) -> bytes:
    """
    Return the body of a delivery: the record as JSON, the same for every attempt.

    Args:
        record (`Mapping`): record of the journal.
        output_dir (`Path`): folder of the results.
        with_overlay (`bool`): whether to add `overlay_base64`; `null` if the file does not exist.
    """
    body = dict(record)
    if with_overlay:
        path = picture_path(output_dir, record, "overlay")
        try:
            body["overlay_base64"] = None if path is None else base64.b64encode(path.read_bytes()).decode()
        except OSError:
            body["overlay_base64"] = None
    return json.dumps(body).encode()


def open_client(webhook: Webhook) -> "httpx2.Client":
    """
    Return a client that keeps its connection open, for use as a context.

    Raises:
        ImportError: the extra `watch` is not installed.
        ValueError: the address cannot be used.
    """
    httpx = _httpx()
    try:
        httpx.URL(webhook.url)
    except httpx.InvalidURL as error:
        raise ValueError(f"The webhook {webhook.url!r} is not a valid address ({error}).") from error
    return httpx.Client(timeout=webhook.timeout_seconds, follow_redirects=False)


def _httpx() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise ImportError('Webhooks need httpx2: pip install "vcp-clip-hf[watch]"') from error
    return httpx2


def post(client: "httpx2.Client", webhook: Webhook, key: str, body: bytes) -> None:
    """
    Post a result once.

    Args:
        client (`httpx2.Client`): client of [`open_client`].
        webhook ([`Webhook`]): the receiver.
        key (`str`): identity of the result, printable ASCII.
        body (`bytes`): JSON.

    Raises:
        UnavailableError: the receiver does not answer, or answers with 408, 425, 429 or 5xx.
        RefusedError: the receiver answers with another status that is not 2xx.
    """
    httpx = _httpx()
    try:
        with client.stream("POST", webhook.url, content=body, headers=_headers(webhook, key, body)) as response:
            answer = _start_of(response)
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise UnavailableError(f"{type(error).__name__}: {error}") from error
    if response.is_success:
        return
    reason = f"status {response.status_code}"
    if response.is_redirect:
        raise RefusedError(f"{reason}: a redirect, which is not followed")
    reason += f": {answer}" if answer else ""
    if response.is_server_error or response.status_code in _TEMPORARY:
        raise UnavailableError(reason, _retry_after(response.headers.get("retry-after", "")))
    raise RefusedError(reason)


def _headers(webhook: Webhook, key: str, body: bytes) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "user-agent": f"vcp-clip-hf/{__version__}",
        "idempotency-key": key,
        "webhook-id": key,
    }
    if webhook.secret is not None:
        timestamp = str(int(time.time()))
        signed = b".".join((key.encode(), timestamp.encode(), body))
        digest = hmac.new(webhook.secret, signed, hashlib.sha256).digest()
        headers |= {"webhook-timestamp": timestamp, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}
    return headers


def _start_of(response: "httpx2.Response") -> str:
    """Read a response, so that the connection can be used again; return its first characters on one line."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) >= _ANSWER_BYTES:
            break
    return " ".join(content[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace").split())[:_SHOWN_CHARACTERS]


def _retry_after(value: str) -> float:
    """Return the seconds of a `Retry-After` header (RFC 9110, section 10.2.3): a number or a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
