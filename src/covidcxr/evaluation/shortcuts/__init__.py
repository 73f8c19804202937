"""The audit of data before training: what can be scored without looking at a lung, and what leaks."""

from __future__ import annotations

from covidcxr.evaluation.shortcuts.confounding import CrossTable, Pair
from covidcxr.evaluation.shortcuts.leakage import Copies, Leakage, RandomSplit
from covidcxr.evaluation.shortcuts.probes import PROBES, Probe, ProbeScore
from covidcxr.evaluation.shortcuts.result import DataAudit, QuestionAudit
from covidcxr.evaluation.shortcuts.run import audit_data

__all__ = [
    "audit_data",
    "DataAudit",
    "QuestionAudit",
    "ProbeScore",
    "Probe",
    "PROBES",
    "CrossTable",
    "Pair",
    "Leakage",
    "RandomSplit",
    "Copies",
]
