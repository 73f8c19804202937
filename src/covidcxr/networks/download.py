"""Downloads of pretrained weights that fail at once where there is no network, not after a minute of retries."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

__all__ = ["check_download", "hub_or_cache", "reachable"]


def reachable(url: str, seconds: float = 5) -> bool:
    """Say whether anybody answers at the host of a web address, whatever the answer."""
    host = urlsplit(url)
    try:
        with urlopen(Request(f"{host.scheme}://{host.netloc}", method="HEAD"), timeout=seconds):
            return True
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it answered; what is wrong the download itself will say
    except OSError:
        return False


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Keep the Hub's client from trying again and again what cannot be reached; its cache is used all the same.

    The client's own answer to an unreachable Hub takes 23 to 46 seconds, its offline mode none.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def check_download(url: str) -> None:
    """Fail now if a file that torch downloads is neither in its cache nor to be had.

    `HF_HUB_OFFLINE=1` forbids these downloads as it does the Hub's.

    Raises:
        ConnectionError: If it cannot be downloaded; says why.
    """
    import torch
    from huggingface_hub import constants

    if (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name).is_file():
        return
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    if not reachable(url):
        raise ConnectionError(f"{urlsplit(url).netloc} cannot be reached")
