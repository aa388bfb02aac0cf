"""Contents of image files that do not lie on the disk: URLs, data URIs and base64. Standard library only.

No message contains the content: a data URI or a base64 string is described by its kind and length.
"""

import base64
import binascii
import http.client
import os
import queue
import threading
import time
import urllib.parse
import urllib.request


__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_TIMEOUT", "decode_base64", "decode_data_uri", "download", "shown_name"]

DEFAULT_TIMEOUT = 30.0
DEFAULT_MAX_BYTES = 256 * 2**20
_CHUNK = 2**16
_LONGEST_NAME = 300
# base64 of the smallest image files has about 50 characters
_SHORTEST_BASE64 = 48


def shown_name(source: str) -> str:
    """Return a path or URL for a message; what is too long for one is cut in the middle."""
    if source.startswith("data:"):
        return f"the data URI ({source[5:].partition(',')[0].partition(';')[0][:40]}, {len(source)} characters)"
    half = _LONGEST_NAME // 2
    return source if len(source) <= _LONGEST_NAME else f"{source[:half]}...{source[-half // 2 :]}"


def download(url: str, timeout: float = DEFAULT_TIMEOUT, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """
    Request an http(s) URL once.

    Args:
        url (`str`): address; redirects to other http(s) addresses are followed.
        timeout (`float`, *optional*, defaults to 30): seconds for everything, from the connection to the last byte.
        max_bytes (`int`, *optional*, defaults to 256 MiB): maximum size of the file.

    Returns:
        `bytes`: the content.

    Raises:
        ValueError: the URL cannot be fetched, takes too long, or its content is too large.
    """
    if not (timeout > 0 and max_bytes > 0):
        raise ValueError(f"timeout={timeout} and max_download_bytes={max_bytes} must be positive.")
    # The timeout of a socket restarts with each byte, so that the total time is watched from outside, by a thread.
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    deadline = time.monotonic() + timeout

    def work() -> None:
        try:
            outcome.put(_fetch(url, timeout, deadline, max_bytes))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True, name="download").start()
    try:
        found = outcome.get(timeout=timeout)
    except queue.Empty:
        found = TimeoutError()
    name = shown_name(url)
    if isinstance(found, TimeoutError):
        raise ValueError(f"{name}: could not be fetched within {timeout:g} s. Raise timeout if the server is slow.")
    if isinstance(found, _TooLarge):
        raise ValueError(
            f"{name}: larger than max_download_bytes={max_bytes} ({max_bytes / 2**20:g} MiB). Raise the limit if you"
            " trust the address."
        )
    if isinstance(found, (OSError, ValueError, http.client.HTTPException)):
        raise ValueError(f"{name}: could not be fetched ({str(found) or type(found).__name__}).") from found
    if isinstance(found, Exception):
        raise found
    return found


class _TooLarge(Exception):
    pass


def _fetch(url: str, timeout: float, deadline: float, max_bytes: int) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "vcp_clip_hf"})  # some servers refuse Python's own
    content = bytearray()
    with _opener().open(request, timeout=timeout) as response:
        if int(response.headers.get("Content-Length") or 0) > max_bytes:
            raise _TooLarge
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise _TooLarge
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:  # `read1` does not report a connection that ends early
            raise http.client.IncompleteRead(b"", response.length)
    return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https only, so that no redirect leads to another protocol."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def decode_data_uri(uri: str) -> bytes:
    """
    Return the content of a data URI, `data:image/png;base64,...` or percent-encoded.

    Raises:
        ValueError: the URI has no comma, or its base64 is damaged.
    """
    kind, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ValueError(f"{shown_name(uri)}: no comma; expected data:image/png;base64,...")
    if not kind.rstrip().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    content = _strict_base64(urllib.parse.unquote(payload))
    if content is None:
        raise ValueError(f"{shown_name(uri)}: damaged base64.")
    return content


def decode_base64(text: str) -> bytes | None:
    """
    Return the content of a string that may be base64, as transformers' pipelines take it.

    Returns:
        `bytes`, or `None` if the string is too short or not base64.
    """
    return _strict_base64(text) if len(text) >= _SHORTEST_BASE64 and not os.path.exists(text) else None


def _strict_base64(text: str) -> bytes | None:
    text = "".join(text.split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):  # not ASCII, too
        return None
