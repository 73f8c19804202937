"""Scores and their confidence intervals, as functions of predictions."""
