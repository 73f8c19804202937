"""`covidcxr evaluate`: a report of predictions, of a run's folder or of a model on a data set."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.cli.fit import add_safe
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.data import CXRDataModule, DuplicateGroup, Record
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
    from covidcxr.evaluation.predictions.table import RunFolder
    from covidcxr.evaluation.report.evaluation import Evaluation, Part
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.types import SplitName

__all__ = ["add_evaluate", "keep_data_apart", "open_data_of"]

_EXAMPLES = """examples:
  covidcxr evaluate predictions.csv --out report
  covidcxr evaluate ours.csv theirs.csv --validation val.csv --prevalence 0.05 --out report
  covidcxr evaluate runs/darkcovidnet --data.root DIR --out report
  covidcxr evaluate --model mini --data csv --data.root DIR --robustness --out report"""


def add_evaluate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Where the verbs are added.
    """
    verb = verbs.add_parser(
        "evaluate",
        help="an honest report: one HTML page, a JSON of every number and a model card",
        description="Write report.html (one file, no network), report.json (every number) and MODEL_CARD.md from "
        "tables of predictions, from folders of runs, or by asking a model about the images of a data set. Several "
        "tables or folders are compared with the first. Any flag --data.KEY is a setting of the data set, as for "
        "`covidcxr fit`; with it, the page also shows images of patients: keep it as you keep them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("paths", nargs="*", metavar="PATH", help="predictions (CSV) or folders of `covidcxr recipes run`")
    verb.add_argument("--out", metavar="DIR", help="where the report goes (runs/evaluate-1, -2, ...)")
    verb.add_argument("--name", metavar="TEXT", help="what the report calls the model")
    _add_model(verb)
    _add_scores(verb)
    verb.add_argument(
        "--checklist",
        action="append",
        choices=("claim", "tripod", "stard"),
        default=[],
        help="write this reporting checklist, filled as far as the run tells; repeatable",
    )
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    add_safe(verb)
    verb.set_defaults(run=_run, default_out="evaluate", takes_more=True)
    keep_data_apart(verb)


def keep_data_apart(verb: argparse.ArgumentParser) -> None:
    """Let a verb with paths take `--data.KEY VALUE`: the value is no path.

    Args:
        verb: Its parser; what it does not know, and these flags, are in `more`.
    """
    parse = verb.parse_known_args

    def parse_apart(args: Any = None, namespace: Any = None) -> Any:
        words, of_data = _parted(args or [])
        known, more = parse(words, namespace)
        return known, [*more, *of_data]

    verb.parse_known_args = parse_apart  # type: ignore[method-assign]  # or DIR of `--data.root DIR` would be a PATH


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words of the command from `--data.KEY VALUE` and `--data.KEY=VALUE`."""
    ours: list[str] = []
    of_data: list[str] = []
    wanting = False
    for word in words:
        if word.startswith("--data.") or (wanting and not word.startswith("--")):
            of_data.append(word)
            wanting = word.startswith("--data.") and "=" not in word
        else:
            ours.append(word)
            wanting = False
    return ours, of_data


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", metavar="SOURCE", help="is asked about the images: bundled name, folder or Hub id")
    verb.add_argument("--data", metavar="NAME", help="the data set: a name of `covidcxr datasets list`")
    verb.add_argument("--split", default="test", metavar="NAME", help="train, val, test or all (%(default)s)")
    verb.add_argument(
        "--audit", action=argparse.BooleanOptionalAction, help="probe the data for shortcuts (with --model: yes)"
    )
    verb.add_argument(
        "--ablation",
        action=argparse.BooleanOptionalAction,
        help="paint the lungs out, and show the lungs alone: does it need them? (yes)",
    )
    verb.add_argument(
        "--copies",
        action=argparse.BooleanOptionalAction,
        help="look for copies of the scored images among the training images (yes, where both are at hand)",
    )
    verb.add_argument(
        "--attention", action=argparse.BooleanOptionalAction, help="measure how much it looks at the lungs (yes)"
    )
    verb.add_argument("--robustness", action="store_true", help="ask again about changed images, which takes longer")
    verb.add_argument(
        "--max-images",
        "--max-films",
        type=int,
        default=200,
        metavar="N",
        help="of those three, most images (%(default)s)",
    )
    verb.add_argument(
        "--gallery", action=argparse.BooleanOptionalAction, default=True, help="show images where at hand"
    )
    verb.add_argument("--batch-size", type=int, default=16, metavar="N", help="images a batch (%(default)s)")
    verb.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")


def _add_scores(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--validation", metavar="CSV", help="predictions of validation images: they choose the threshold")
    verb.add_argument("--positive", metavar="CLASS", help="the class whose sensitivity counts (that of the model)")
    verb.add_argument(
        "--sensitivity", type=float, default=0.95, metavar="F", help="wanted on validation images (%(default)s)"
    )
    verb.add_argument(
        "--prevalence",
        type=float,
        action="append",
        metavar="F",
        help="share of positives where it is used: predictive values and decision curve; repeatable, for more curves",
    )
    verb.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the patients (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")


def _run(options: argparse.Namespace) -> int:
    from covidcxr.evaluation.report.checklists import write_checklists
    from covidcxr.evaluation.report.evaluation import write_report
    from covidcxr.utils.console import collect_notes, show_status

    if options.paths and options.model is not None:
        raise ConfigError("Evaluate either predictions (PATH) or a model (--model), not both at once.")
    if not options.paths and options.model is None:
        raise ConfigError("Say what to evaluate: predictions (CSV), folders of runs, or --model with --data.")
    with collect_notes() as notes:
        evaluation = _of_model(options) if options.model is not None else _of_paths(options, notes)
        with show_status("the page"):
            paths = write_report(evaluation, options.out)
        checklists = write_checklists(evaluation, options.checklist, options.out)
    _say(evaluation, {**paths, **checklists}, notes, options.json)
    return 0


def _of_model(options: argparse.Namespace) -> Evaluation:
    """Ask a model about the images of a data set."""
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup, open_pipeline, pipeline_rows, write_rows
    from covidcxr.evaluation.report.provenance import Provenance, data_facts, model_facts
    from covidcxr.utils.console import show_progress

    data, name = open_data_of(options, {})
    pipeline = open_pipeline(options.model).to(options.device)
    split = None if options.split == "all" else options.split
    with show_progress("images") as progress:
        rows = pipeline_rows(pipeline, data, split, batch_size=options.batch_size, progress=progress)
    write_rows(rows, Path(options.out) / "predictions.csv")
    validation = None
    if split == "test" and pipeline.classifier is not None and any(record.split == "val" for record in data.records):
        with show_progress("validation images") as progress:
            validation = pipeline_rows(pipeline, data, "val", batch_size=options.batch_size, progress=progress)
    facts = {**data_facts(data, name), "split that was asked about": options.split}
    provenance = Provenance(_command(), facts, model_facts(options.model), options.seed, options.resamples)
    parts: dict[str, Part | None] = {"lineage": provenance}
    if options.audit is not False:
        parts["audit"] = _audit(data, name, options)
    copied = _copied(data, rows, parts.get("audit"), options)
    parts |= _looks(pipeline, data, split, options)
    lookup = ImageLookup(data, lambda row: pipeline) if options.gallery else None
    config = None if pipeline.classifier is None else pipeline.classifier.config
    title = options.name or f"{options.model} on {name}"
    return _evaluate(options, rows, validation, title, parts, copied, lookup, config)


def _of_paths(options: argparse.Namespace, notes: list[str]) -> Evaluation:
    """Read predictions, with the images behind them where these are at hand."""
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
    from covidcxr.evaluation.predictions.table import read_rows
    from covidcxr.evaluation.report.provenance import Provenance, data_facts, hash_rows, run_facts
    from covidcxr.evaluation.report.sources import read_sources, relate_sources

    sources = read_sources(options.paths)
    main, parts = relate_sources(sources, resamples=options.resamples, seed=options.seed)
    run = main.run
    validation = None if options.validation is None else read_rows(options.validation)
    facts: dict[str, Any] = {"predictions": ", ".join(options.paths), "sha256 of the rows": hash_rows(main.rows)}
    lookup = copied = None
    with_images = options.data is not None or any(word.startswith("--data.") for word in options.more)
    _check_words(options)
    if with_images:
        data, name = open_data_of(options, {} if run is None else run.config.get("data") or {})
        facts |= data_facts(data, name)
        if options.gallery:
            lookup = ImageLookup(data, None if run is None else run.pipeline_of)
        if options.audit:
            parts["audit"] = _audit(data, name, options)
        copied = _copied(data, main.rows, parts.get("audit"), options)
        if run is not None and options.ablation is not False:
            parts["ablation"] = _ablation_of_run(run, data, main.rows, options)
        if validation is None and run is not None:
            validation = run.validation_rows(data)
    elif options.audit:
        raise ConfigError("An audit needs the images: give --data NAME --data.root DIR (of a run --data.root alone).")
    parts["lineage"] = Provenance(
        _command(), facts, {} if run is None else run_facts(run), options.seed, options.resamples
    )
    title = options.name or main.name
    return _evaluate(options, main.rows, validation, title, parts, copied, lookup, run)


def _evaluate(
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]] | None,
    name: str,
    parts: Mapping[str, Part | None],
    copied: Collection[str] | None,
    lookup: ImageLookup | None,
    said: Any,
) -> Evaluation:
    """Evaluate rows, with what a config or a run has `said`: positive class, temperature, coverage."""
    from covidcxr.evaluation.report.evaluation import evaluate_rows
    from covidcxr.utils.console import show_status

    with show_status(f"scores of {len(rows)} predictions, and intervals over {options.resamples} resamples"):
        return evaluate_rows(
            rows,
            validation=validation,
            name=name,
            positive=options.positive or getattr(said, "positive", None),
            sensitivity=options.sensitivity,
            prevalence=options.prevalence,
            parts=parts,
            copied=copied,
            lookup=lookup,
            temperature=float(getattr(said, "temperature", 1.0)),
            coverage=getattr(said, "coverage", None),
            resamples=options.resamples,
            seed=options.seed,
        )


def _audit(data: CXRDataModule, name: str, options: argparse.Namespace) -> Part:
    from covidcxr.evaluation.shortcuts import audit_data
    from covidcxr.utils.console import show_progress

    return audit_data(data, name=name, seed=options.seed, cache=Path(options.out) / "cache", progress=show_progress)


def _copied(
    data: CXRDataModule, rows: Sequence[Mapping[str, Any]], audit: Part | None, options: argparse.Namespace
) -> list[str] | None:
    """Return the scored images that have a copy in training; None where that is not known."""
    from covidcxr.data import find_duplicates
    from covidcxr.evaluation.report.copies import find_copied
    from covidcxr.evaluation.shortcuts import DataAudit
    from covidcxr.utils.console import show_progress

    def search(records: Sequence[Record]) -> Sequence[DuplicateGroup]:
        if isinstance(audit, DataAudit) and audit.leakage.copies is not None:
            return audit.leakage.copies.groups
        with show_progress("copies") as bar:
            return find_duplicates(
                records, read=data.load_image, cache=Path(options.out) / "cache", progress=bar
            ).groups

    return None if options.copies is False else find_copied(rows, data.records, search)


def _ablation_of_run(
    run: RunFolder, data: CXRDataModule, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> Part | None:
    """Paint the lungs out for the models of a run, each on the images that it tested; None where none classifies."""
    pipelines: dict[str, Pipeline] = {}
    folds: dict[str, str] = {}
    for row in rows:
        pipeline = run.pipeline_of(row)
        if pipeline is not None and pipeline.classifier is not None:
            folds[str(row["image_id"])] = fold = str(row.get("fold") or "")
            pipelines[fold] = pipeline
    at_hand = any(record.image_id in folds for record in data.records)
    return _ablation(pipelines, data, options, folds=folds) if at_hand else None


def _ablation(
    model: Pipeline | Mapping[str, Pipeline], data: CXRDataModule, options: argparse.Namespace, **images: Any
) -> Part | None:
    """Paint the lungs out; a data set without labels or lungs costs a warning, unless it was asked for."""
    from covidcxr.evaluation.stress.ablation import ablation

    settings: dict[str, Any] = {"max_images": options.max_images, "seed": options.seed, **images}
    try:
        return ablation(model, data, resamples=options.resamples, **settings)
    except ConfigError as error:
        if options.ablation:
            raise
        warnings.warn(f"The lungs were not painted out: {error}", stacklevel=2)
        return None


def _looks(
    pipeline: Pipeline, data: CXRDataModule, split: SplitName | None, options: argparse.Namespace
) -> dict[str, Part | None]:
    """Ask what the classifier knows without the lungs, where it looks, and what changed images do to it."""
    from covidcxr.evaluation.stress.attention import attention
    from covidcxr.evaluation.stress.robustness import robustness

    settings: dict[str, Any] = {"split": split, "max_films": options.max_images, "seed": options.seed}
    settings["resamples"] = options.resamples
    parts: dict[str, Part | None] = {}
    if options.ablation is not False and pipeline.classifier is not None:
        parts["ablation"] = _ablation(pipeline, data, options, split=split)
    if options.attention is not False and pipeline.classifier is not None:
        try:
            parts["attention"] = attention(pipeline, data, **settings)
        except ConfigError as error:  # a network without a layer that keeps places
            if options.attention:
                raise
            warnings.warn(f"Where it looks was not measured: {error}", stacklevel=2)
    if options.robustness:
        parts["robustness"] = robustness(pipeline, data, **settings)
    return parts


def open_data_of(options: argparse.Namespace, config: Mapping[str, Any]) -> tuple[CXRDataModule, str]:
    """Build the data module that is asked for, else that of a run's config, and name it.

    Args:
        options: Has `data`, `safe` and `more`, the flags `--data.KEY`.
        config: The `data` of a run's config; empty = there is none.

    Returns:
        The data module, and its name.

    Raises:
        ConfigError: If no data set is named, or a flag is unknown.
    """
    from covidcxr.training.parser import open_data
    from covidcxr.training.recipe import allow_registered_only, data_class

    if options.safe:
        allow_registered_only()
    _check_words(options)
    if options.data is not None:
        path = data_class(options.data)
        config = {**(config if config.get("class_path") == path else {}), "class_path": path}
    if "class_path" not in config:
        raise ConfigError("Say which data set is meant: --data NAME (see covidcxr datasets list) --data.root DIR.")
    return open_data({"data": config}, options.more), options.data or str(config["class_path"]).rpartition(".")[2]


def _check_words(options: argparse.Namespace) -> None:
    if unknown := [word for word in options.more if word.startswith("--") and not word.startswith("--data.")]:
        raise ConfigError(f"{options.parser.prog} knows no {', '.join(unknown)}; see {options.parser.prog} --help.")


def _command() -> str:
    return shlex.join(["covidcxr", *sys.argv[1:]])


def _say(evaluation: Evaluation, paths: dict[str, Any], notes: list[str], as_json: bool) -> None:
    from covidcxr.utils.console import screen

    console = screen()
    if as_json:
        console.file.write(json_text(evaluation.to_dict()) + "\n")
        return
    console.print(evaluation.verdict.sentence, style="bold", soft_wrap=True)
    for name, value in evaluation.facts:
        console.print(f"  {name:<28} {value}", soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}", soft_wrap=True)
    names = {"html": "Report", "json": "Numbers", "card": "Model card"}
    for name, path in paths.items():
        console.print(f"{names.get(name, f'Checklist {name}')}: {path}", soft_wrap=True)
