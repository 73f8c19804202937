"""Files of object stores and servers, named by a URL; fsspec reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from covidcxr.errors import ConfigError, ImageReadError

__all__ = ["full_url", "is_url", "list_remote", "read_remote"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive


def is_url(path: object) -> bool:
    """Tell a URL from a path of this machine.

    Args:
        path: What a user named.

    Returns:
        Whether it is text that begins with a protocol, as `s3://` or `https://`.

    Example:
        ```python
        from covidcxr.io.remote import is_url

        assert is_url("s3://bucket/image.png") and not is_url("images/1.png")
        ```
    """
    return isinstance(path, str) and _URL.match(path) is not None


def full_url(url: str) -> str:
    """Return a URL as the listing of its store writes it.

    Args:
        url: As fsspec takes it.

    Returns:
        The URL, without a slash at its end.

    Raises:
        ConfigError: If a library for this protocol is missing.
    """
    with _explained(url):
        system, place = _system(url)
        return str(system.unstrip_protocol(place)).rstrip("/")


def list_remote(url: str) -> Iterator[str]:
    """List what a URL means: a file as it is, a folder (prefix) with all files below it.

    A folder's entries are held at a time, not those of the whole tree.

    Args:
        url: As fsspec takes it; keys come from the environment, as the store's own library finds them.

    Yields:
        A URL a file, in no order.

    Raises:
        ConfigError: If a library for this protocol is missing, or the store cannot be listed.
    """
    with _explained(url):
        system, place = _system(url)
        if not system.isdir(place):
            yield url
            return
        for _, _, files in system.walk(place, detail=True):
            for facts in files.values():
                yield system.unstrip_protocol(facts["name"])


def read_remote(url: str) -> bytes:
    """Read a file.

    Args:
        url: As fsspec takes it.

    Returns:
        Its content.

    Raises:
        ImageReadError: If it cannot be read.
    """
    try:
        system, place = _system(url)
        return bytes(system.cat_file(place))
    except Exception as error:  # every store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(f"{url!r} cannot be read: {reason.rstrip('.')}.") from error


def _system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ConfigError(f'{url} needs fsspec: pip install "covidcxr[remote]"') from error
    # A listing that is kept would hold a bucket of a million images in memory.
    system, place = url_to_fs(url, use_listings_cache=False)
    return system, str(place)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, GeneratorExit):
        raise
    except Exception as error:  # every store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{url} cannot be listed: {reason.rstrip('.')}.") from error
