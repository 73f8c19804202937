"""The report: what a model scores, for whom, on what, and what that means, as one page, as numbers and as a card."""

from __future__ import annotations

from functools import partial

from covidcxr import aliases
from covidcxr.evaluation.report.checklists import Checklist, fill_checklist, write_checklists
from covidcxr.evaluation.report.evaluation import Evaluation, Part, evaluate_rows, write_report
from covidcxr.evaluation.report.provenance import Provenance
from covidcxr.evaluation.report.slices import SliceSearch, find_slices
from covidcxr.evaluation.report.subgroups import Subgroups, score_groups
from covidcxr.evaluation.report.verdict import Evidence, Verdict, judge

__all__ = [
    "Checklist",
    "Evaluation",
    "Evidence",
    "Provenance",
    "Part",
    "SliceSearch",
    "Subgroups",
    "Verdict",
    "evaluate_rows",
    "fill_checklist",
    "find_slices",
    "judge",
    "score_groups",
    "write_checklists",
    "write_report",
]

__getattr__ = partial(aliases.find, __name__)
