"""The classifiers behind the probes: small, seeded, and bounded in time for any number of films."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

__all__ = ["ModelName", "answer"]

ModelName: TypeAlias = Literal["table", "forest", "pixels"]
"""Logistic regression over the values of a column, random forest over numbers, strongly regularised logistic regression
over pixels."""

_MOST_TRAINING_FILMS = 20_000
_TREES = 60
_TREE_FILMS = 2_000  # each tree of a forest sees no more: that bounds the time for any number of films


def answer(
    model: ModelName, values: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int, seed: int
) -> Float[np.ndarray, "films classes"]:
    """Train a classifier in which every class weighs alike, and return its probabilities for other films."""
    if len(values) > _MOST_TRAINING_FILMS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(values))[:_MOST_TRAINING_FILMS])
        values, labels = values[kept], labels[kept]
    trained = _classifier(model, len(values), seed)
    trained.fit(values, labels)
    answers = np.zeros((len(asked), classes))
    answers[:, trained.classes_] = trained.predict_proba(asked)
    return answers


def _classifier(name: ModelName, films: int, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "forest":
        return RandomForestClassifier(
            n_estimators=_TREES,
            min_samples_leaf=3,
            max_samples=min(films, _TREE_FILMS),
            class_weight="balanced",
            random_state=seed,
        )
    if name == "table":
        return LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
