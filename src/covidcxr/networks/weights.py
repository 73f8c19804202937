"""What to say when pretrained weights cannot be had."""

from __future__ import annotations

from pathlib import Path

from covidcxr.errors import PretrainedError

__all__ = ["weights_error"]


def weights_error(name: str, pretrained: bool | str, error: Exception) -> PretrainedError:
    """Return the error that says why a backbone's weights could not be had, and how to bring them by file."""
    where = f"the file {pretrained}" if isinstance(pretrained, str) else "the network"
    missing = isinstance(pretrained, str) and not Path(pretrained).is_file()
    reason = "there is no such file" if missing else f"{type(error).__name__}: {error}"
    return PretrainedError(
        f"Pretrained weights of {name!r} could not be had from {where} ({reason}). Bring them as a file with "
        f"pretrained_backbone=PATH, start from a saved model with init_from=FOLDER, or set pretrained_backbone=False."
    )
