"""The audit of data before training: what can be scored without looking at a lung, and what leaks."""

from __future__ import annotations

from covidcxr.evaluation.audit.audit import audit_data
from covidcxr.evaluation.audit.confounding import CrossTable, Pair
from covidcxr.evaluation.audit.leakage import Copies, Leakage, RandomSplit
from covidcxr.evaluation.audit.probes import PROBES, Probe, ProbeScore
from covidcxr.evaluation.audit.result import DataAudit, QuestionAudit

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
