"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

__all__ = ["replace_file"]


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written takes the place of `path` only when all went well.

    Args:
        path: The file to write; its folder is made if need be.

    Yields:
        A path in the same folder, because replacing is atomic on one disk only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # or a power failure may leave an empty file under the new name
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
