"""`covidcxr explain`: where a classifier looks, film by film."""

from __future__ import annotations

import argparse

__all__ = ["add_explain"]

_EXAMPLES = """examples:
  covidcxr explain film.png --out heat
  covidcxr explain films/ --model mini --target covid19 --out heat
  covidcxr explain film.png --method occlusion --out heat"""


def add_explain(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    explain = verbs.add_parser(
        "explain",
        help="where a classifier looks: heat maps beside the films, as data and as one page",
        description="Draw what speaks for a class on each film. A film that cannot be read is one entry with its "
        "reason; the others go on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("paths", nargs="+", metavar="FILM", help="films, or folders that are searched for films")
    explain.add_argument("--out", required=True, metavar="DIR", help="where the maps and the page go")
    explain.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    explain.add_argument(
        "--method",
        default="gradcam",
        help="gradcam, hirescam, integrated_gradients or occlusion (%(default)s)",
    )
    explain.add_argument("--target", metavar="CLASS", help="the class to explain; by default each film's answer")
    explain.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    explain.add_argument("--json", action="store_true", help="print the summary as JSON")
    explain.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    raise NotImplementedError
