"""Reporting checklists, filled as far as an evaluation tells: CLAIM 2024, TRIPOD+AI 2024 and STARD-AI 2025.

Items bear the numbers of the guidelines and are paraphrased in `checklists.csv` beside this file; read the guideline
itself before you submit. What a run cannot know is left for a person, and marked as such.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.errors import UnknownNameError, did_you_mean
from covidcxr.evaluation.metrics.intervals import Estimate
from covidcxr.evaluation.metrics.scores import format_estimate, headline, title
from covidcxr.io.pretrained import write_json
from covidcxr.page import Page, Section, Table, sections_of, write_markdown
from covidcxr.utils.plain import count_of, field_values, json_text, user_path

if TYPE_CHECKING:
    from covidcxr.evaluation.report.evaluation import Evaluation

__all__ = ["CHECKLISTS", "Checklist", "ChecklistItem", "fill_checklist", "write_checklists"]

CHECKLISTS = {
    "claim": "CLAIM 2024 (Tejani et al. 2024, doi:10.1148/ryai.240300)",
    "tripod": "TRIPOD+AI 2024 (Collins et al. 2024, doi:10.1136/bmj-2023-078378)",
    "stard": "STARD-AI 2025 (Sounderajah et al. 2025, doi:10.1038/s41591-025-03953-8)",
}
"""The guidelines, by the name of their checklist here."""

PERSON = "for a person to fill in"


@dataclass(frozen=True)
class ChecklistItem:
    """An item of a checklist.

    Attributes:
        number: As the guideline numbers it.
        section: Part of the paper.
        item: What it asks for, paraphrased.
        answers: What the evaluation says, by where that stands in `report.json`; empty = nothing.
        left: What is left for a person; empty = to read it through.

    Example:
        ```python
        from covidcxr.evaluation.report.checklists import ChecklistItem

        assert ChecklistItem("44", "Other", "Funding and the role of funders", {}, "all of it").state == "person"
        ```
    """

    number: str
    section: str
    item: str
    answers: Mapping[str, str]
    left: str

    @property
    def state(self) -> str:
        """Who fills it in: "run", "partly" or "person"."""
        return "person" if not self.answers else "partly" if self.left else "run"


@dataclass(frozen=True)
class Checklist:
    """A checklist, filled as far as an evaluation tells.

    Attributes:
        name: "claim", "tripod" or "stard".
        guideline: The guideline, with its version and paper.
        items: In its order.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows, fill_checklist

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        checklist = fill_checklist(evaluate_rows(rows, resamples=20), "claim")
        assert len(checklist.items) == 44 and checklist.items[28].state == "run"
        ```
    """

    name: str
    guideline: str
    items: tuple[ChecklistItem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        items = [{**field_values(item), "state": item.state} for item in self.items]
        return {"name": self.name, "guideline": self.guideline, "items": items}


@sections_of.register
def _(checklist: Checklist) -> list[Section]:
    by_section: dict[str, list[ChecklistItem]] = {}
    for item in checklist.items:
        by_section.setdefault(item.section, []).append(item)
    heads = ["item", "what is asked for", "what the run says", "left for a person"]
    return [
        Section(name, "", [Table(heads, [[i.number, i.item, _said(i), i.left or "read it through"] for i in items])])
        for name, items in by_section.items()
    ]


def _said(item: ChecklistItem) -> str:
    answers = " ".join(f"{text} (report.json: {place})" for place, text in item.answers.items())
    return answers or PERSON.upper()


def fill_checklist(evaluation: Evaluation | Mapping[str, Any], name: str) -> Checklist:
    """Fill a reporting checklist as far as an evaluation tells.

    Args:
        evaluation: What `evaluate_rows` returned, or the content of its `report.json`.
        name: "claim", "tripod" or "stard"; see `CHECKLISTS`.

    Returns:
        Every item of the guideline, with what the evaluation says of it.

    Raises:
        UnknownNameError: If there is no such checklist.
    """
    if name not in CHECKLISTS:
        raise UnknownNameError(f"There is no checklist {name!r}. {did_you_mean(name, CHECKLISTS)}")
    report = evaluation if isinstance(evaluation, Mapping) else evaluation.to_dict()
    known = {fact: (place, text) for fact, (place, find) in _FACTS.items() if (text := find(report))}
    items = []
    for row in _rows(name):
        answers = dict(known[fact] for fact in row["facts"].split(",") if fact in known)
        left = row["left"] if answers else "all of it"
        items.append(ChecklistItem(row["number"], row["section"], row["item"], answers, left))
    return Checklist(name, CHECKLISTS[name], tuple(items))


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("covidcxr.evaluation.report") / "checklists.csv").read_text(encoding="utf-8")
    return [row for row in csv.DictReader(text.splitlines(), delimiter="|") if row["checklist"] == name]


def write_checklists(
    evaluation: Evaluation | Mapping[str, Any], names: Sequence[str], folder: str | Path
) -> dict[str, Path]:
    """Write checklists as `checklist-NAME.md` and `checklist-NAME.json`.

    Args:
        evaluation: As for `fill_checklist`.
        names: Of the checklists.
        folder: Made if need be.

    Returns:
        The paths of the Markdown files, by name.

    Raises:
        UnknownNameError: If there is no such checklist.
    """
    target = user_path(folder)
    filled = [fill_checklist(evaluation, name) for name in dict.fromkeys(names)]
    target.mkdir(parents=True, exist_ok=True)
    paths = {}
    for checklist in filled:
        states = [item.state for item in checklist.items]
        counts = {"filled from the run": "run", "filled in part": "partly", PERSON: "person"}
        facts = [(words, str(states.count(state))) for words, state in counts.items()]
        verdict = f"Items are paraphrased: read {checklist.guideline} itself, and check what the run says."
        page = Page(f"Checklist {checklist.guideline.partition(' (')[0]}", verdict, facts, sections_of(checklist), "")
        paths[checklist.name] = write_markdown(page, target / f"checklist-{checklist.name}.md")
        write_json(target / f"checklist-{checklist.name}.json", checklist.to_dict())
    return paths


Report = Mapping[str, Any]


def _lineage(part: str, *names: str) -> Callable[[Report], str]:
    """Return what tells facts of the section on provenance."""

    def find(report: Report) -> str:
        facts = (report.get("lineage") or {}).get(part) or {}
        known = {name: facts[name] for name in names if facts.get(name) and "not known" not in str(facts[name])}
        entries = [f"{name}: {json_text(fact) if isinstance(fact, dict) else fact}" for name, fact in known.items()]
        return f"{'; '.join(entries)}." if entries else ""

    return find


def _has(part: str, text: str) -> Callable[[Report], str]:
    return lambda report: text if report.get(part) else ""


def _scores(report: Report, part: str) -> dict[str, Estimate]:
    scores = (report.get(part) or {}).get("scores") or {}
    return {name: Estimate.from_dict(score) for name, score in scores.items()}


def _headline(report: Report) -> str:
    scores = _scores(report, "classes") | _scores(report, "masks")
    chosen = headline(scores, report.get("positive"))
    return f"{'; '.join(f'{title(name)} {format_estimate(scores[name])}' for name in chosen)}." if chosen else ""


def _measures(report: Report) -> str:
    names = dict.fromkeys(title(name) for name in headline(_scores(report, "classes") | _scores(report, "masks")))
    also = {"reliability": "calibration", "decisions": "decision curves", "agreement": "agreement"}
    names |= {words: None for part, words in also.items() if report.get(part)}
    return f"{', '.join(names)}." if names else ""


def _intervals(report: Report) -> str:
    lineage = report.get("lineage") or {}
    if "resamples" not in lineage:
        return ""
    unit = "patients" if report["patients_known"] else "images, since no patient is known"
    return f"95 % intervals over {unit}; {lineage['resamples']} resamples, seed {lineage['seed']}."


def _counts(report: Report) -> str:
    patients = count_of(report["patients"], "patient") if report["patients_known"] else "patients who are not known"
    return f"Scored: {count_of(report['films'], 'image')} of {patients}. {_split(report)}".rstrip()


def _split(report: Report) -> str:
    data = (report.get("lineage") or {}).get("data") or {}
    parts = [f"{part} {_number(numbers)}" for part, numbers in (data.get("counts") or {}).items()]
    asked = data.get("split that was asked about")
    return f"{'; '.join([*parts, *([f'scored: {asked}'] if asked else [])])}." if parts else ""


def _number(counts: Mapping[str, Any]) -> str:
    return f"{count_of(counts['films'], 'image')} of {count_of(counts['patients'], 'patient')}"


def _unit(report: Report) -> str:
    if not report["patients_known"]:
        return "No patient is known: whether partitions share patients cannot be said."
    searched = " The audit says which patients are in more than one part." if report.get("audit") else ""
    return f"The patients of these images are known, and intervals resample them.{searched}"


def _support(report: Report) -> str:
    support = (report.get("classes") or {}).get("support") or {}
    parts = [f"{name}: {_number(counts)}" for name, counts in support.items()]
    return f"{'; '.join(parts)}." if parts else ""


def _confusion(report: Report) -> str:
    classes = report.get("classes") or {}
    rows = zip(classes.get("support", ()), classes.get("confusion", ()), strict=False)  # findings have no confusion
    text = "; ".join(f"{name}: {', '.join(map(str, row))}" for name, row in rows)
    return f"Rows are true, columns predicted, in this order. {text}." if text else ""


def _groups_of(*traits: str) -> Callable[[Report], str]:
    def find(report: Report) -> str:
        groups = report.get("groups") or {}
        entries = [
            f"{group['trait']} {group['name']}: {_number(group)}"
            for group in groups.get("groups", ())
            if group["trait"] in traits
        ]
        entries += [
            f"{trait}: all {value}" for trait, value in groups.get("alone", {}).items() if value and trait in traits
        ]
        return f"{'; '.join(entries)}." if entries else ""

    return find


def _scored_groups(report: Report) -> str:
    traits = dict.fromkeys(group["trait"] for group in (report.get("groups") or {}).get("groups", ()))
    return f"Scores with intervals, and gaps, by {', '.join(traits)}." if traits else ""


def _slices(report: Report) -> str:
    search = (report.get("groups") or {}).get("search") or {}
    if not search.get("tried"):
        return ""
    named = ", ".join(" and ".join(f"{k} {v}" for k, v in s["attributes"].items()) for s in search["slices"])
    return f"{search['tried']} comparisons of groups by one or two attributes; worse: {named or 'none found'}."


def _calibration(report: Report) -> str:
    ece = (report.get("reliability") or {}).get("ece")
    return f"ECE {format_estimate(Estimate.from_dict(ece))}." if ece else ""


def _threshold(report: Report) -> str:
    if not (point := report.get("point")):
        return ""
    chosen = point["point"]
    how = (
        f"for a {chosen['wanted']} of {chosen['least']:.0%} on {chosen['chosen_on']}"
        if chosen
        else "on no other images"
    )
    return f"{point['class']} from a probability of {point['threshold']:.3f} up, chosen {how}."


def _errors(report: Report) -> str:
    errors = (report.get("mistakes") or {}).get("mistakes")
    return f"{count_of(len(errors), 'image')} with a wrong prediction are listed, and grouped." if errors else ""


def _missing(report: Report) -> str:
    notes = [note for note in report["notes"] if "not known" in note or "no label" in note]
    errors = (report.get("answers") or {}).get("errors") or {}
    notes += [f"{count_of(len(errors), 'image')} could not be read."] if errors else []
    complete = report.get("classes") and not notes
    return " ".join(["Nothing is imputed.", *notes, *(["No image lacks label or prediction."] if complete else [])])


def _abstention(report: Report) -> str:
    answered = _scores(report, "answers").get("answered")
    return f"The model may abstain, with reasons; share answered: {format_estimate(answered)}." if answered else ""


def _limits(report: Report) -> str:
    against = [f["reason"] for f in report["verdict"]["findings"] if f["weight"] != "for" and f.get("reason")]
    return " ".join(f"{text.rstrip('.')}." for text in (*against, *report["notes"]))


def _copies(report: Report) -> str:
    copies = report.get("copies")
    return str(copies["summary"]) if copies else ""


def _model_has(*words: str) -> Callable[[Report], str]:
    def find(report: Report) -> str:
        model = str(((report.get("lineage") or {}).get("model") or {}).get("model", ""))
        known = [word for word in words if word in model]
        return f"The config of the run says {', '.join(known)}." if known else ""

    return find


def _versions(report: Report) -> str:
    versions = (report.get("lineage") or {}).get("versions") or {}
    return f"{', '.join(f'{name} {number}' for name, number in versions.items())}." if versions else ""


def _classes(report: Report) -> str:
    names = (report.get("classes") or {}).get("support") or {}
    return f"Classes: {', '.join(names)}." if names else ""


_FACTS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "data": ("lineage.data", _lineage("data", "name", "predictions", "homepage", "citation", "caveats")),
    "sources": ("lineage.data", _lineage("data", "sources")),
    "left_out": ("lineage.data", _lineage("data", "left out")),
    "availability": ("lineage.data", _lineage("data", "homepage", "license")),
    "split": ("lineage.data.counts", _split),
    "stored": ("lineage.data", _lineage("data", "sha256 of the rows")),
    "model": ("lineage.model", _lineage("model", "source", "run", "model", "sha256 of the weights")),
    "training": ("lineage.model", _lineage("model", "trained on", "seed of the training")),
    "preprocessing": ("lineage.model", lambda r: "It is part of the saved model." if _FACTS["model"][1](r) else ""),
    "initial": ("lineage.model.model", _model_has("pretrained_backbone")),
    "ensemble": ("lineage.model.model", _model_has("ensemble")),
    "inputs": ("lineage.model", lambda r: "The image alone." if _FACTS["model"][1](r) else ""),
    "command": ("lineage.command", lambda r: (r.get("lineage") or {}).get("command", "")),
    "software": ("lineage.versions", _versions),
    "intervals": ("lineage", _intervals),
    "counts": ("films, patients", _counts),
    "size": ("films, patients", _counts),
    "unit": ("patients_known", _unit),
    "copies": ("copies", _copies),
    "missing": ("notes", _missing),
    "limits": ("verdict, notes", _limits),
    "verdict": ("verdict.sentence", lambda r: str(r["verdict"]["sentence"])),
    "classes": ("classes.support", _classes),
    "support": ("classes.support", _support),
    "confusion": ("classes.confusion", _confusion),
    "scores": ("classes.scores, masks.scores", _headline),
    "measures": ("classes.scores, masks.scores", _measures),
    "calibration": ("reliability", _calibration),
    "threshold": ("point", _threshold),
    "utility": ("decisions", _has("decisions", "Decision curves, at stated prevalences too.")),
    "groups": ("groups", _scored_groups),
    "characteristics": ("groups", _groups_of("sex", "age", "view", "source")),
    "views": ("groups", _groups_of("view")),
    "slices": ("groups.search", _slices),
    "external": ("held_out", _has("held_out", "Sources that were never trained on are scored apart.")),
    "errors": ("mistakes", _errors),
    "abstention": ("answers", _abstention),
    "agreement": ("agreement", _has("agreement", "Agreement with readers is measured.")),
    "robustness": ("robustness", _has("robustness", "Scores under changed images are measured.")),
    "explained": ("attention", _has("attention", "Where heat maps lie is measured.")),
}
"""By name: where it stands in `report.json`, and what finds it; no text = the evaluation does not tell."""
