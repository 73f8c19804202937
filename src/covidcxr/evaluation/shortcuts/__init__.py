"""The audit of data before training: shortcut probes, confounding, and patient leakage between splits."""

from __future__ import annotations

from typing import Any

from covidcxr import aliases
from covidcxr.evaluation.shortcuts.association import QualityAudit
from covidcxr.evaluation.shortcuts.drift import Difference, Drift, find_drift
from covidcxr.evaluation.shortcuts.leakage import Copies, Leakage, RandomSplit, Series, copies_across_parts
from covidcxr.evaluation.shortcuts.probes import PROBES, Probe, ProbeScore
from covidcxr.evaluation.shortcuts.report import make_drift_page, make_page, make_sections
from covidcxr.evaluation.shortcuts.result import DataAudit, TargetAudit
from covidcxr.evaluation.shortcuts.run import audit_data, compare_data
from covidcxr.evaluation.shortcuts.targets import CrossTable, Pair

__all__ = [
    "PROBES",
    "Copies",
    "CrossTable",
    "DataAudit",
    "Difference",
    "Drift",
    "Leakage",
    "Pair",
    "Probe",
    "ProbeScore",
    "QualityAudit",
    "RandomSplit",
    "Series",
    "TargetAudit",
    "audit_data",
    "compare_data",
    "copies_across_parts",
    "find_drift",
    "make_drift_page",
    "make_page",
    "make_sections",
]


def __getattr__(name: str) -> Any:
    """Find a name of 0.1.0."""
    return aliases.find(__name__, name)
