"""Results as plain data for JSON and for notebooks, and paths as users write them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

__all__ = ["count_of", "field_values", "html_table", "is_number", "json_text", "plain", "plain_result", "user_path"]


def field_values(result: Any) -> dict[str, Any]:
    """Return the fields of a result by their keys in JSON.

    A number of images stands under "films" there: 0.1.0 wrote it so, and the key is kept.

    Args:
        result: An instance of a dataclass.

    Returns:
        From key to the field's value as it is.

    Example:
        ```python
        from dataclasses import dataclass

        from covidcxr.utils.plain import field_values

        @dataclass
        class Count:
            images: int

        assert field_values(Count(3)) == {"films": 3}
        ```
    """
    return {"films" if field.name == "images" else field.name: getattr(result, field.name) for field in fields(result)}


def json_text(data: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Write plain data as JSON. What is not a finite number becomes null: JSON has no NaN and no infinity.

    Args:
        data: Dictionaries, lists, tuples, text, numbers, true, false and None.
        indent: Spaces a level; None = one line.
        default: Makes plain data of anything else.

    Returns:
        The text, without a line break at its end.

    Raises:
        TypeError: If the data holds something else, and there is no `default`.

    Example:
        ```python
        from covidcxr.utils.plain import json_text

        assert json_text({"value": float("nan"), "low": 0.5}) == '{"value": null, "low": 0.5}'
        ```
    """
    try:
        return json.dumps(data, indent=indent, default=default, allow_nan=False)
    except ValueError:  # rare, so it is looked for only then
        return json.dumps(_without_nan(data), indent=indent, default=default, allow_nan=False)


def _without_nan(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def plain(value: Any) -> Any:
    """Return numbers and arrays of numpy or torch as Python's own, in lists, tuples and tables too.

    Args:
        value: Anything.

    Returns:
        The same in plain data; what is no such number, array or container comes back as it is.

    Example:
        ```python
        import numpy as np

        from covidcxr.utils.plain import plain

        assert plain({"size": np.array([64, 64]), "share": np.float32(0.5)}) == {"size": [64, 64], "share": 0.5}
        ```
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def plain_result(value: Any) -> Any:
    """Write anything made of results as plain data for JSON.

    Args:
        value: Estimates and other results with `to_dict`, and mappings, lists and numbers of them.

    Returns:
        Mappings, lists, text and finite numbers; None in place of NaN.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.utils.plain import plain_result

        assert plain_result({"auroc": Estimate(0.9, 0.8, float("nan"), 20, 10)})["auroc"]["high"] is None
        ```
    """
    if hasattr(value, "to_dict"):
        return plain_result(value.to_dict())
    if isinstance(value, Mapping):
        return {str(name): plain_result(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_result(item) for item in value]
    return _without_nan(plain(value))


def count_of(number: int, noun: str) -> str:
    """Write a number of things.

    Args:
        number: How many.
        noun: What they are, in the singular; its plural ends in s.

    Returns:
        "1 image", "1,000 images".

    Example:
        ```python
        from covidcxr.utils.plain import count_of

        assert count_of(1, "patient") == "1 patient" and count_of(0, "patient") == "0 patients"
        ```
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def html_table(title: str, rows: Iterable[Sequence[object]], columns: Sequence[str] = ()) -> str:
    """Write a table as HTML, as notebooks show it; everything in it is text.

    Args:
        title: What stands above it.
        rows: The cells of each row, the first of which names it.
        columns: Heads of the columns; none = no head.

    Returns:
        The HTML.

    Example:
        ```python
        from covidcxr.utils.plain import html_table

        assert "<td>1 &lt; 2</td>" in html_table("Counts", [("train", "1 < 2")])
        ```
    """

    def cell(value: object, kind: str) -> str:
        return f"<{kind}>{escape(str(value))}</{kind}>"

    lines = ["".join(cell(name, "th") for name in columns)] if columns else []
    lines += [cell(name, "th") + "".join(cell(value, "td") for value in values) for name, *values in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><b>{escape(title)}</b><table>{body}</table></div>"


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a real number, of Python or of NumPy.

    Args:
        value: Anything.

    Returns:
        False of bool too, which Python counts among the whole numbers.

    Example:
        ```python
        import numpy as np

        from covidcxr.utils.plain import is_number

        assert is_number(np.float32(0.5)) and not is_number(True)
        ```
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with the home folder for `~`.

    Args:
        path: The path; a name that only begins with `~`, such as `~draft.png`, stays as it is.

    Returns:
        The path.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.utils.plain import user_path

        assert user_path("~/images") == Path.home() / "images"
        ```
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser fails on ~draft.png
