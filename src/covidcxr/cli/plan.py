"""`covidcxr plan`: how many patients a study needs for its scores to be known as precisely as wanted."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from covidcxr.errors import ConfigError
from covidcxr.utils.plain import count_of, field_values, json_text

if TYPE_CHECKING:
    from covidcxr.evaluation.metrics.sample_size import SampleSize, StudyDesign

__all__ = ["add_plan"]

_EXAMPLES = """examples:
  covidcxr plan --sensitivity 0.9 --within 0.05 --prevalence 0.2
  covidcxr plan --sensitivity 0.9 --specificity 0.8 --within 0.05 --prevalence 0.2 --images-per-patient 1.8 --icc 0.5
  covidcxr plan --auroc 0.85 --within 0.05 --within-slope 0.2 --prevalence 0.2 --abstention 0.1
  covidcxr plan --dice 0.9 --sd 0.06 --failures 0.02 --within 0.02
  covidcxr plan --sensitivity 0.9 --prevalence 0.2 --patients 300"""

_SCORES = ("sensitivity", "specificity", "accuracy", "auroc", "dice")
_CALIBRATED = {"slope": 1.0, "intercept": 0.0}


def add_plan(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Where the verbs are added.
    """
    verb = verbs.add_parser(
        "plan",
        help="how many patients a study needs for a wanted precision",
        description="Say how many patients a test needs for the 95 % interval that `covidcxr evaluate` will print to "
        "reach no farther than wanted; or with --patients, what intervals so many let expect.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scores = verb.add_argument_group("scores, as high as they are expected to be")
    for name in _SCORES:
        scores.add_argument(f"--{name}", type=float, metavar="F", help=f"expected {name}, in (0, 1)")
    scores.add_argument("--within", type=float, metavar="F", help="how far their intervals may reach to either side")
    for name in _CALIBRATED:
        words = f"the same of the calibration {name} of a calibrated model; needs --auroc"
        scores.add_argument(f"--within-{name}", type=float, metavar="F", help=words)
    scores.add_argument("--patients", type=int, metavar="N", help="the other way round: the intervals of N patients")
    study = verb.add_argument_group("the study")
    flags = {
        "prevalence": (None, "share of patients with the class"),
        "images-per-patient": (1.0, "on average (%(default)s)"),
        "spread": (0.0, "of images per patient: standard deviation / mean (%(default)s)"),
        "icc": (0.5, "how alike images of a patient are, 0 to 1 (%(default)s)"),
        "abstention": (0.0, "share of patients whom the model gives no answer (%(default)s)"),
        "sd": (None, "standard deviation of the Dice of images that do not fail"),
        "failures": (0.0, "share of images on which the mask fails (%(default)s)"),
        "confidence": (0.95, "of the intervals (%(default)s)"),
    }
    for flag, (default, words) in flags.items():
        study.add_argument(f"--{flag}", type=float, default=default, metavar="F", help=words)
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from covidcxr.evaluation.metrics.sample_size import StudyDesign

    design = StudyDesign(**{name: getattr(options, name) for name in StudyDesign.__dataclass_fields__})
    expected = {name: value for name in _SCORES if (value := getattr(options, name)) is not None}
    if options.patients is not None:
        expected |= _CALIBRATED if options.auroc is not None and options.prevalence is not None else {}
        sizes = [design.expect(name, value, options.patients) for name, value in expected.items()]
    else:
        wanted = {} if options.within is None else dict.fromkeys(expected, options.within)
        wanted |= {name: reach for name in _CALIBRATED if (reach := getattr(options, f"within_{name}")) is not None}
        if expected and not wanted:
            raise ConfigError(
                "Say how far an interval may reach: --within 0.05; or how many there are: --patients 300."
            )
        expected |= _CALIBRATED
        sizes = [design.patients_for(name, expected[name], reach) for name, reach in wanted.items()]
    if not sizes:
        raise ConfigError(f"Say which score is planned for: {', '.join(f'--{name}' for name in _SCORES)}.")
    _say(sizes, design, options)
    return 0


def _say(sizes: list[SampleSize], design: StudyDesign, options: argparse.Namespace) -> None:
    from rich.table import Table

    from covidcxr.evaluation.metrics.scores import format_interval
    from covidcxr.utils.console import screen

    patients = max(size.patients for size in sizes)
    if options.json:
        plan = {"patients": patients, "scores": [size.to_dict() for size in sizes], "design": field_values(design)}
        sys.stdout.write(json_text(plan) + "\n")
        return
    table = Table("score", "expected [interval]", "patients", "with the class", "images")
    for size in sizes:
        positives = "-" if size.positives is None else f"{size.positives:,}"
        value = format_interval(size.value, size.low, size.high)
        table.add_row(size.score, value, f"{size.patients:,}", positives, f"{size.images:,}")
    console = screen()
    console.print(table)
    for size in sizes:
        if size.note:
            console.print(f"No interval of {size.score}: {size.note}.", soft_wrap=True)
    if options.patients is None:
        lost = f", {design.abstention:.0%} of whom get no answer" if design.abstention else ""
        console.print(f"Plan {count_of(patients, 'patient')}{lost}.", style="bold", soft_wrap=True)
