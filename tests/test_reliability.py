"""Every test that docs/reliability.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_the_test_of_a_promise_is_there(name: str) -> None:
    file, *parts = name.split("::")
    text = (ROOT / file).read_text(encoding="utf-8") if file.endswith(".py") else ""
    assert (ROOT / file).exists()
    for part in parts:
        assert re.search(rf"^ *(class|def|async def) {re.escape(part.partition('[')[0])}\b", text, re.M), name


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]
    assert len(rows) > 40
    assert all("`tests/" in row for row in rows)
