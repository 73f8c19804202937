"""`covidcxr fit | validate | test`."""

from __future__ import annotations

__all__ = ["train"]


def train(words: list[str]) -> int:
    from covidcxr.training.lightning_cli import run

    run(words)
    return 0
