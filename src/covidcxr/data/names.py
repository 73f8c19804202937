"""Names of files after image ids, which may be any path: outside of the data set's folder, too."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from hashlib import blake2b

__all__ = ["digest", "file_names", "safe_name"]

_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*\\]|(^|/)\.{0,2}(/|$)|\.png/', re.IGNORECASE)
"""What no name of a file may hold, on any system: a way out of its folder, and a film that is a folder, too."""
_LONGEST = 200
"""Bytes of a name, or of a folder's in it: 255 are the limit of most disks."""


def file_names(image_ids: Collection[str]) -> dict[str, str]:
    """Name the files of films, without ending, below a folder of our own.

    Returns:
        From image id to name: itself, or a digest of it where it would lead out of the folder, or meet another one on a
        disk that knows no upper case. It does not depend on the order of the films.
    """
    alike = Counter(name.casefold() for name in image_ids)
    return {name: safe_name(name if alike[name.casefold()] == 1 else f"{name}-{digest(name)}") for name in image_ids}


def safe_name(name: str) -> str:
    """Return a name that any disk takes and that leads nowhere else: itself, or a digest of it."""
    too_long = any(len(os.fsencode(part)) > _LONGEST for part in name.split("/"))
    return f"renamed/{digest(name)}" if too_long or _UNSAFE.search(name) else name


def digest(text: str) -> str:
    """Return 24 hexadecimal digits that stand for a text, on every machine."""
    return blake2b(os.fsencode(text), digest_size=12).hexdigest()
