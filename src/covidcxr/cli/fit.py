"""`covidcxr fit | validate | test`: flags and YAML files become a plain config for `covidcxr.training`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

__all__ = ["VERBS", "train"]

VERBS = {
    "fit": "train a model (every argument of Trainer, task and data module is a flag and a YAML key)",
    "validate": "score a model on the validation images",
    "test": "score a model on the test images, with patient-clustered intervals",
}
"""Verbs, each with its help in one line."""


def train(words: Sequence[str]) -> int:
    """Run one of the verbs.

    Args:
        words: The verb and its flags.

    Returns:
        The exit code, 0.

    Raises:
        CovidCXRError: If a setting is wrong.
    """
    from covidcxr import training
    from covidcxr.training.parser import Verb, parse_words

    verb: Verb = next(name for name in get_args(Verb) if name == words[0])
    config = parse_words(words[1:], verb)
    if verb == "fit":
        training.fit(config, record=True)
    else:
        (training.validate if verb == "validate" else training.test)(config, record=True)
    return 0
