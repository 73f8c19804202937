"""From a pre-test to a post-test probability, by Bayes' rule."""

from __future__ import annotations

from collections.abc import Mapping

from covidcxr.errors import ConfigError, did_you_mean

__all__ = ["FORMULA", "check_prior", "post_test", "uniform"]

FORMULA = "post-test(c) = p(c) · pre-test(c) / trained(c), divided by its sum over all classes"
"""p: the model's calibrated probability; trained: the share of the class in training, which is taken out again."""


def uniform(classes: Mapping[str, float] | tuple[str, ...]) -> dict[str, float]:
    """Return equal shares: what classifiers see that draw their training films balanced by class."""
    return {name: 1 / len(classes) for name in classes}


def check_prior(prior: Mapping[str, float], classes: tuple[str, ...]) -> dict[str, float]:
    """Return pre-test probabilities of exclusive classes, in the order of the classes, with a sum of exactly 1.

    Args:
        prior: By class, in [0, 1]; their sum is 1 to within 0.001.
        classes: All of them.

    Raises:
        ConfigError: If a class is missing or unknown, or the numbers are no probabilities.
    """
    for name in prior.keys() ^ set(classes):
        raise ConfigError(
            f"State the pre-test probability of each class; {name!r} is amiss. {did_you_mean(name, classes)}"
        )
    total = sum(prior.values())
    if not all(0 <= value <= 1 for value in prior.values()) or not abs(total - 1) <= 1e-3:
        raise ConfigError(f"Pre-test probabilities lie in [0, 1] and sum to 1, not to {total:.4g}.")
    return {name: prior[name] / total for name in classes}


def post_test(
    probabilities: Mapping[str, float], prior: Mapping[str, float], trained: Mapping[str, float] | None = None
) -> dict[str, float] | None:
    """Return post-test probabilities of exclusive classes (Bayes' rule; Saerens 2002, equation 4).

    A calibrated classifier gives p(class | film) under the shares `trained` of the classes in its training. Divided by
    them it is the likelihood of the film, up to a factor; times the pre-test probability it is the post-test one.

    Args:
        probabilities: The classifier's, calibrated, by class; in [0, 1].
        prior: Pre-test probabilities by class; in [0, 1], sum 1.
        trained: Shares of the classes in training; by default equal.

    Returns:
        By class, in [0, 1], sum 1; None if the film is impossible under the prior.
    """
    trained = trained or uniform(dict(probabilities))
    products = {name: value * prior[name] / trained[name] for name, value in probabilities.items()}
    total = sum(products.values())
    return {name: value / total for name, value in products.items()} if total > 0 else None
