"""Settings of a server: limits, times and the token. Standard library only."""

from dataclasses import dataclass, fields


__all__ = ["ServerSettings"]

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """
    Limits, times and the token of a server.

    Args:
        token (`str`, *optional*):
            Bearer token that changes of recipes need. Without a token, changes are refused.
        allow_urls (`bool`, *optional*, defaults to `False`): whether requests may name URLs of images.
        max_body_bytes (`int`, *optional*, defaults to 32 MiB): maximum size of the body of a request.
        max_pixels (`int`, *optional*, defaults to 25 million): maximum number of pixels of an image.
        max_images (`int`, *optional*, defaults to 32): maximum number of images in one request.
        max_batch_size (`int`, *optional*, defaults to 8): maximum number of images in one run of the model.
        max_wait_ms (`float`, *optional*, defaults to 5):
            Milliseconds that an image waits for others, to be computed in one batch with them.
        max_waiting (`int`, *optional*, defaults to 64): maximum number of images that wait for the model.
        header_seconds (`float`, *optional*, defaults to 10): maximum time in seconds for the headers of a request.
        body_seconds (`float`, *optional*, defaults to 30): maximum time in seconds for the body of a request.
        url_seconds (`float`, *optional*, defaults to 10): maximum time in seconds for the image at a URL.
        drain_seconds (`float`, *optional*, defaults to 60):
            Maximum time in seconds for the requests that were accepted before a signal to stop.

    Raises:
        ValueError: a limit is not positive.
    """

    token: str | None = None
    allow_urls: bool = False
    max_body_bytes: int = 32 * _MEBIBYTE
    max_pixels: int = 25_000_000
    max_images: int = 32
    max_batch_size: int = 8
    max_wait_ms: float = 5.0
    max_waiting: int = 64
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    url_seconds: float = 10.0
    drain_seconds: float = 60.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("token", "allow_urls"):
                continue
            if value < 0 or (value == 0 and each.name != "max_wait_ms"):
                raise ValueError(f"{each.name}={value!r} must be positive.")

    @property
    def max_requests(self) -> int:
        """Return the maximum number of requests that are read or computed at one time: it bounds the memory."""
        return self.max_waiting + 2 * self.max_batch_size
