"""Average the weights of checkpoints of one training (Izmailov 2018) and save them as a model.

python average.py --out segmenter --threshold infection=0.4 CHECKPOINT CHECKPOINT ...
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from covidcxr import SegmentationTask


def main() -> None:
    """Average and save."""
    parser = argparse.ArgumentParser(description="Average the weights of checkpoints.")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threshold", action="append", default=[], metavar="CLASS=P", help="0.5 where none is given")
    given = parser.parse_args()
    models = [SegmentationTask.load_from_checkpoint(path, map_location="cpu").model for path in given.checkpoints]
    states = [model.network.state_dict() for model in models]
    mean = {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}
    model = models[-1]
    model.network.load_state_dict({name: value.to(states[0][name].dtype) for name, value in mean.items()})
    pairs = (text.split("=") for text in given.threshold)
    model.config = replace(model.config, thresholds={name: float(value) for name, value in pairs})
    model.save_pretrained(given.out)


if __name__ == "__main__":
    main()
