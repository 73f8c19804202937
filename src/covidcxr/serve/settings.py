"""The settings of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from covidcxr.errors import ConfigError
from covidcxr.types import Backend
from covidcxr.utils.lazy import old_arguments

__all__ = ["Limits", "ServeSettings"]

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_LEAST_TOKEN = 16
_OLD = {"films": "images", "batch_films": "batch_images", "waiting_films": "waiting_images"}
"""Limits that had other names in 0.1.0, which stay."""


@dataclass(frozen=True)
class Limits:
    """How much the server takes before it refuses; all above 0.

    Attributes:
        file_bytes: Size of one uploaded file.
        pixels: Height times width of one image.
        images: Images kept; the oldest without a verdict or a corrected mask goes first.
        store_bytes: Size of all kept pictures together.
        batch_images: Images in one request for many.
        batch_bytes: Size of one request for many; it waits on the disk, not in memory.
        batches: Requests for many at once.
        waiting_images: Images that wait for the model; above it the server is busy.
        waiting_pixels: Their pixels together, a byte each.
        uploads: Uploads at once, from their first byte to their answer; above it the server is busy.
        decode_seconds: Time to decode one image.
        decode_bytes: Memory of a worker that decodes images.
        head_seconds: Time for a request's head.
        idle_seconds: Pause between two pieces of a body, or of an answer that is not taken.
        slow_bytes: Bytes a second that a body must bring on average, after the first `idle_seconds`.
        connections: Connections at once.

    Raises:
        ConfigError: If one is not above 0.

    Example:
        ```python
        from covidcxr.serve import Limits

        assert Limits(images=500).pixels == 40_000_000
        ```
    """

    file_bytes: int = 64_000_000
    pixels: int = 40_000_000
    images: int = 2000
    store_bytes: int = 4_000_000_000
    batch_images: int = 1000
    batch_bytes: int = 1_000_000_000
    batches: int = 4
    waiting_images: int = 128
    waiting_pixels: int = 256_000_000
    uploads: int = 64
    decode_seconds: float = 20.0
    decode_bytes: int = 2_000_000_000
    head_seconds: float = 10.0
    idle_seconds: float = 15.0
    slow_bytes: int = 16_000
    connections: int = 256

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ConfigError(f"The limit {limit.name} must be above 0, not {getattr(self, limit.name)!r}.")

    def __getattr__(self, name: str) -> int:
        """Return a limit under its name of 0.1.0."""
        if name not in _OLD:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return int(getattr(self, _OLD[name]))

    @classmethod
    def for_megapixels(cls, megapixels: float, **others: Any) -> Limits:
        """Return limits that let in images of a size, with the file size and the memory that they need.

        Args:
            megapixels: Height times width of one image, in millions; above 0.
            others: Further limits.

        Returns:
            The limits.

        Raises:
            ConfigError: If one is not above 0.
        """
        if not 0 < megapixels < 10_000:
            raise ConfigError(f"max-megapixels must lie above 0 and below 10,000, not {megapixels:g}.")
        pixels = round(1e6 * megapixels)
        sizes = {"file_bytes": 2 * pixels + 1_000_000, "decode_bytes": 40 * pixels + 1_000_000_000}
        least = {name: max(size, getattr(cls, name)) for name, size in sizes.items()}
        return cls(**{"pixels": pixels, **least, **others})


Limits.__init__ = old_arguments(**_OLD)(Limits.__init__)  # type: ignore[method-assign]


@dataclass(frozen=True)
class ServeSettings:
    """What a server serves, to whom, and where it keeps images and verdicts.

    Attributes:
        model: A bundled name, folder or Hub repository.
        host: Address to listen on. Any but this machine's own needs a token.
        port: Port to listen on; 0 = a free one.
        token: What every call must bring as `Authorization: Bearer`; None = none is asked for.
        store: Folder of the store, or a database's URL (postgresql+psycopg://USER@HOST/NAME).
        hosts: Further names by which browsers may ask for this server.
        device: Where the models run.
        backend: What runs them; "onnx" needs a folder that `covidcxr export` wrote as `model`.
        workers: Processes that decode uploads.
        keep_identifiers: Whether patient id and study id of a DICOM file are stored.
        limits: How much it takes.

    Raises:
        ConfigError: If a setting is wrong, or the server would be open to others without a token.

    Example:
        ```python
        from covidcxr.serve import ServeSettings

        assert ServeSettings(port=0).is_local
        ```
    """

    model: str = "mini"
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    store: str | Path = "covidcxr-store"
    hosts: tuple[str, ...] = ()
    device: str = "cpu"
    backend: Backend = "torch"
    workers: int = 2
    keep_identifiers: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536 or self.workers < 1:
            raise ConfigError(f"port must be in [0, 65535] and workers 1 or more, not {self.port} and {self.workers}.")
        if self.token is None and not self.is_local:
            raise ConfigError(
                f"Listening on {self.host} opens the server to other machines: give a token "
                f"(--token, or the environment variable COVIDCXR_TOKEN)."
            )
        if self.token is not None and (len(self.token) < _LEAST_TOKEN or not self.token.isascii()):
            raise ConfigError(
                f"A token is at least {_LEAST_TOKEN} ASCII characters: take a random one, "
                f'`python -c "import secrets; print(secrets.token_urlsafe())"`.'
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host in _LOCAL

    @property
    def known_hosts(self) -> frozenset[str]:
        """Names by which browsers may ask: against pages that point a name of their own at this machine."""
        return frozenset(name.lower() for name in (*_LOCAL, self.host, *self.hosts))
