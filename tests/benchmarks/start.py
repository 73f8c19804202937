"""What starting costs: `OMP_NUM_THREADS=1 python tests/benchmarks/start.py [--rounds 5] [--onnx FOLDER] [--json]`.

Fresh processes in turns: user and system CPU time of the whole process, its end included; medians of the rounds.
`import torch` stands beside what needs it, since it is most of that. `--onnx` adds what `covidcxr export` wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from covidcxr.io import write_image
from covidcxr.phantom import draw_phantom

ANSWER = "import sys; from covidcxr import Pipeline; Pipeline.from_pretrained('mini')(sys.argv[1])"
ANSWER_ONNX = (
    "import sys; from covidcxr import Pipeline; Pipeline.from_pretrained(sys.argv[2], backend='onnx')(sys.argv[1])"
)


def cpu_seconds(words: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = os.times()
    used = after.children_user - before.children_user
    return used + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--onnx", metavar="FOLDER")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        write_image(image, draw_phantom(0, size=(320, 320)).image)
        commands = {
            "import torch": ["-c", "import torch"],
            "Pipeline.from_pretrained('mini') and an answer": ["-c", ANSWER, str(image)],
            **{
                f"covidcxr {line}": ["-m", "covidcxr", *line.split()]
                for line in ("doctor", "doctor --full", "--help", "datasets list", "recipes list", "fit --help")
            },
        }
        if options.onnx:
            commands["the same by backend='onnx'"] = ["-c", ANSWER_ONNX, str(image), options.onnx]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, words in commands.items():
                times[name].append(cpu_seconds(words))
    medians = {name: statistics.median(values) for name, values in times.items()}
    if options.json:
        print(json.dumps({"rounds": options.rounds, "seconds": medians, "all": times}))
        return
    for name, seconds in medians.items():
        print(f"{name:<50} {seconds:6.2f} s  {seconds / medians['import torch']:5.2f}")


if __name__ == "__main__":
    main()
