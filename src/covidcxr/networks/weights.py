"""What to say when a library refuses, or pretrained weights cannot be had."""

from __future__ import annotations

from pathlib import Path

from covidcxr.errors import PretrainedError

__all__ = ["REFUSALS", "check_weights_file", "weights_error"]

REFUSALS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
"""What timm's and smp's constructors raise for arguments that they do not understand."""


def check_weights_file(path: str) -> None:
    """Refuse formats whose reading may run code.

    Raises:
        PretrainedError: If the file is not a safetensors file by its name.
    """
    if Path(path).suffix != ".safetensors":
        raise PretrainedError(
            f"Pretrained weights come from safetensors files only, not {path}: other formats may run code when they "
            f"are read. Convert it once, where you trust it: safetensors.torch.save_file(torch.load(path), new_path)."
        )


def weights_error(name: str, pretrained: bool | str, error: Exception) -> PretrainedError:
    """Return the error that says why a backbone's weights could not be had, and how to bring them by file."""
    where = f"the file {pretrained}" if isinstance(pretrained, str) else "the network"
    missing = isinstance(pretrained, str) and not Path(pretrained).is_file()
    reason = "there is no such file" if missing else f"{type(error).__name__}: {error}"
    return PretrainedError(
        f"Pretrained weights of {name!r} could not be had from {where} ({reason}). Bring them as a file with "
        f"pretrained_backbone=PATH, start from a saved model with init_from=FOLDER, or set pretrained_backbone=False."
    )
