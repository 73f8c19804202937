"""`covidcxr completion`: a script that lets the shell complete verbs and flags."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_completion"]

_EXAMPLES = """examples:
  covidcxr completion bash > ~/.local/share/bash-completion/completions/covidcxr
  covidcxr completion zsh > ~/.zfunc/_covidcxr        # a folder of $fpath, before compinit
  covidcxr completion tcsh > ~/.covidcxr.tcsh         # and `source` it in ~/.tcshrc"""


def add_completion(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `completion`; it completes the verbs that are added before it.

    Args:
        verbs: Where the verbs are added.
    """
    completion = verbs.add_parser(
        "completion",
        help="a script for the shell that completes verbs and flags",
        description="Print a script that completes the verbs and flags of covidcxr in your shell.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from covidcxr.cli.main import _parser

    sys.stdout.write(shtab.complete(_parser(["completion"]), shell=options.shell) + "\n")
    return 0
