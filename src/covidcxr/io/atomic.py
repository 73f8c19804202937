"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

__all__ = ["replace_file"]


@contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a path to write to; what was written takes the place of `path` only when all went well.

    Args:
        path: The file to write; its folder is made if need be.
        sync: Wait until the content is on the disk, or a power failure may leave an empty file under the new name. It
            takes some 7 ms; without it, whoever writes many files must tell such a file by its size.

    Yields:
        A path in the same folder, because replacing is atomic on one disk only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield draft
        if sync:
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
