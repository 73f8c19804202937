"""`covidcxr fit | validate | test`: flags and YAML files become a plain config for `covidcxr.training`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import get_args

__all__ = ["READ_SAFELY", "SAFE", "VERBS", "add_safe", "add_training", "train"]

SAFE = "--safe"
READ_SAFELY = ("--weights_only", "true")
"""Flags that a checkpoint which a config names is read without pickled code."""

VERBS = {
    "fit": "train a model (every argument of Trainer, task and data module is a flag and a YAML key)",
    "validate": "score a model on the validation images",
    "test": "score a model on the test images, with patient-clustered intervals",
}
"""Verbs, each with its help in one line."""


_COMMON = {
    "--config": "a recipe (see covidcxr recipes list) or a YAML file; flags change its settings",
    "--data": "the data set: a name of covidcxr datasets list",
    "--data.root": "its folder; --data.KEY sets anything else of it (covidcxr datasets show NAME lists its own keys)",
    "--out": "folder for the trained model, or for the scores (runs/VERB-1, -2, ...)",
    "--model": "the task: segmentation, classification or multitask",
    "--model.model.network": "the network, as timm:resnet50 or smp:fpn",
    "--model.init_from": "a saved model to start from, or to score",
    "--model.lr": "learning rate",
    "--data.batch_size": "images in a batch",
    "--data.num_workers": "processes that read images",
    "--trainer.max_epochs": "how often every image is trained on",
    "--trainer.accelerator": "auto, cpu, gpu or mps",
    "--trainer.devices": "how many devices, or which",
    "--trainer.precision": "32-true, bf16-mixed or 16-mixed",
    "--seed_everything": "seed of everything random (0)",
    "--ckpt_path": "a checkpoint to resume from, or to score; last = this training's own in --out, if it was begun",
}
"""The settings that people change."""
_CHOSEN = "COVIDCXR_OUTPUT"
"""Variable of the environment by which the processes of one training share a folder."""
_EXAMPLES = """examples:
  covidcxr fit --config mini-classifier --data.root DIR --out my-model
  covidcxr fit --config my-recipe.yaml --trainer.max_epochs 50 --data.batch_size 64
  covidcxr test --config mini-classifier --data.root DIR --model.init_from my-model --out scores
  covidcxr fit --model.help ClassificationTask        every setting of a task; --data.help NAME: of a data set"""


def add_training(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs that train and score, for help and completion; `train` parses and runs them.

    Args:
        verbs: Where the verbs are added.
    """
    for verb, purpose in VERBS.items():
        parser = verbs.add_parser(
            verb,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}. These are the settings that people change; --help-all "
            "lists all, among them every one of Lightning's Trainer. A config is code: see --safe.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flag, what in _COMMON.items():
            names = (flag, "--output") if flag == "--out" else ("-c", flag) if flag == "--config" else (flag,)
            parser.add_argument(*names, metavar="VALUE", help=what)
        parser.add_argument("--help-all", action="store_true", help="list every setting; takes some seconds")
        add_safe(parser)


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
        The exit code, 0; 2 where another process has ended, and the one that started this one says so.

    Raises:
        CovidCXRError: If a setting is wrong, or another process of the training has ended.
    """
    from covidcxr import training
    from covidcxr.errors import ProcessLostError
    from covidcxr.training.parser import Verb, parse_words
    from covidcxr.training.recipe import allow_registered_only
    from covidcxr.utils.console import print_line

    parent = os.getppid()
    verb: Verb = next(name for name in get_args(Verb) if name == words[0])
    flags = ["--help" if word == "--help-all" else _as_key(word) for word in words[1:]]
    if SAFE in flags:
        allow_registered_only()
        flags = [*(flag for flag in flags if flag != SAFE), *READ_SAFELY]
    config = parse_words(flags, verb)
    if config["output"] is None and config["ckpt_path"] != "last":
        config["output"] = _default_output(verb)
    if verb != "fit":
        (training.validate if verb == "validate" else training.test)(config, record=True)
        return 0
    try:
        training.fit(config, record=True)
    except ProcessLostError:
        if os.environ.get("LOCAL_RANK", "0") != "0" and _is_alive(parent):
            return 2  # who started this process says it
        raise
    print_line(f"Model: {config['output']}")
    return 0


def _is_alive(parent: int) -> bool:
    """Tell whether the process that started this one goes on; one that is killed is lost a moment before it is gone."""
    until = time.monotonic() + 0.25
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.01)
    return os.getppid() == parent


def _as_key(word: str) -> str:
    """Return the flag `--out` as the key of configs that it sets."""
    return word.replace("--out", "--output", 1) if word == "--out" or word.startswith("--out=") else word


def _default_output(verb: str) -> str:
    """Return a new folder; a process that another one started, which has chosen it, gets the same."""
    from covidcxr.io.folders import next_folder

    if "LOCAL_RANK" not in os.environ or _CHOSEN not in os.environ:
        os.environ[_CHOSEN] = str(next_folder(verb))  # Lightning starts the other processes with this environment
    return os.environ[_CHOSEN]
