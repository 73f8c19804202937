"""Results as JSON: always valid, whatever was computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covidcxr
from covidcxr.utils.plain import json_text

NAN, INF = float("nan"), float("inf")
OWN_TEXT = {
    "config/checks.py": "refuses what is not finite",
    "data/curation/duplicates.py": "names a file of a cache",
    "evaluation/report/provenance.py": "is shown on a page",
    "pipeline/lung_masks.py": "is hashed",
    "serve/engine.py": "is read by our own process",
    "serve/worker.py": "is read by our own process",
    "tasks/processes.py": "is read by our own process",
    "training/recipe.py": "is hashed",
    "training/changes.py": "names a choice",
    "utils/plain.py": "is `json_text` itself",
}
"""Files that write JSON which nobody else reads."""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": NAN, "b": [INF, -INF, 1.5]}, '{"a": null, "b": [null, null, 1.5]}'),
        ([(NAN,), {"NaN": "NaN"}], '[[null], {"NaN": "NaN"}]'),
        (np.float64("nan"), "null"),
        ({"ä": True, 1: None}, '{"\\u00e4": true, "1": null}'),
    ],
)
def test_what_is_not_finite_is_null(data: Any, text: str) -> None:
    assert json_text(data) == text
    assert json.loads(json_text(data, indent=2), parse_constant=pytest.fail) == json.loads(text)


def test_other_things_are_made_plain_or_refused() -> None:
    assert json_text({"path": Path("a"), "value": NAN}, default=str) == '{"path": "a", "value": null}'
    with pytest.raises(TypeError):
        json_text({"path": Path("a")})


def test_every_result_is_written_by_it() -> None:
    """Python's own writer makes NaN of what is not finite, which is no JSON."""
    package = Path(covidcxr.__file__).parent
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.dump" in path.read_text(encoding="utf-8")
    }
    assert writers == OWN_TEXT.keys()
