"""Results as plain data for JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["field_values"]


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
