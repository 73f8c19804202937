"""How often nominal 95 % intervals hold the truth, by simulation; the docstring of `bootstrap` tells what was found.

    python tests/benchmarks/coverage.py --simulations 2000

Three images a patient; half of what tells images apart is the patient's own.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

import numpy as np

from covidcxr.evaluation import bootstrap, weighted_auroc, weighted_mean


def simulate(kind: str, level: float, patients: int, simulations: int, resamples: int = 500, seed: int = 0) -> float:
    """Return the share of simulations in which the interval held the truth.

    Args:
        kind: "mean" of normal values, "share" of images that are right, or "auroc", with half of the patients sick.
        level: The truth of a share or an AUROC; of a mean it is 0.
        patients: How many there are.
        simulations: How often to simulate.
        resamples: Of each interval.
        seed: Same seed, same share.
    """
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(patients), 3)
    sick = ids % 2 == 1
    held = 0
    for number in range(simulations):
        values = (rng.normal(size=patients)[ids] + rng.normal(size=len(ids))) / math.sqrt(2)
        settings = {"groups": ids, "resamples": resamples, "seed": number, "share": kind != "mean"}
        if kind == "auroc":
            gap = math.sqrt(2) * NormalDist().inv_cdf(level)
            found = bootstrap(weighted_auroc, values + gap * sick, sick, **settings)
        elif kind == "share":
            found = bootstrap(weighted_mean, values < NormalDist().inv_cdf(level), **settings)
        else:
            found = bootstrap(weighted_mean, values, **settings)
        held += found.low <= (0 if kind == "mean" else level) <= found.high
    return held / simulations


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    error = math.sqrt(0.95 * 0.05 / simulations)
    print(f"standard error of a share that is 0.95: {error:.4f}")
    cases = [("mean", 0.0), ("share", 0.7), ("share", 0.9), ("share", 0.97), ("auroc", 0.8), ("auroc", 0.95)]
    for patients in (10, 30, 60, 200):
        found = (f"{kind} {level:g}: {simulate(kind, level, patients, simulations):.3f}" for kind, level in cases)
        print(f"{patients} patients  " + "  ".join(found), flush=True)


if __name__ == "__main__":
    main()
