"""`covidcxr fit | validate | test`: flags and YAML files become a plain config for `covidcxr.training`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

__all__ = ["READ_SAFELY", "SAFE", "VERBS", "add_safe", "train"]

SAFE = "--safe"
READ_SAFELY = ("--weights_only", "true")
"""Flags that a checkpoint which a config names is read without pickled code."""

VERBS = {
    "fit": "train a model (every argument of Trainer, task and data module is a flag and a YAML key)",
    "validate": "score a model on the validation images",
    "test": "score a model on the test images, with patient-clustered intervals",
}
"""Verbs, each with its help in one line."""


def add_safe(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--safe` to a verb that reads configs; the verb calls `allow_registered_only` when it is set.

    Args:
        parser: Parser of the verb.
    """
    parser.add_argument(
        SAFE,
        action="store_true",
        help="import nothing that a config names by a dotted path, only what is registered: a config is code, so give "
        "this for one that you have not read",
    )


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
    from covidcxr.training.recipe import allow_registered_only

    verb: Verb = next(name for name in get_args(Verb) if name == words[0])
    flags = list(words[1:])
    if SAFE in flags:
        allow_registered_only()
        flags = [*(flag for flag in flags if flag != SAFE), *READ_SAFELY]
    config = parse_words(flags, verb)
    if verb == "fit":
        training.fit(config, record=True)
    else:
        (training.validate if verb == "validate" else training.test)(config, record=True)
    return 0
