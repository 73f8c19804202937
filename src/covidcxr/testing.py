"""Help for tests: the checker for shapes in signatures.

    pytest --jaxtyping-packages=my_package.losses,covidcxr.testing.shapechecker

checks every jaxtyping annotation of `my_package.losses` on each call; a mask [B, H, W] against logits
[B, 1, H, W], which would broadcast in silence, is an error at once. Needs beartype (extra `test`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["shapechecker"]

Checked = TypeVar("Checked", bound=Callable[..., Any])


def shapechecker(function: Checked) -> Checked:
    """Check the arguments and the result of a function against its annotations; an int may stand for a float.

    Args:
        function: The function or method to check.

    Returns:
        The same function, which raises a beartype error when an annotation does not hold.
    """
    from beartype import BeartypeConf, beartype

    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
