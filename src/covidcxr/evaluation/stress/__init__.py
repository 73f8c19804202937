"""Stress tests of a model: where it looks, whether its heat maps are faithful, and how it predicts changed images."""

from __future__ import annotations

from covidcxr.evaluation.stress.report import attention_sections, faithfulness_sections, robustness_sections

__all__ = ["attention_sections", "faithfulness_sections", "robustness_sections"]
