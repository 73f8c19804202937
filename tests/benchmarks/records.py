"""What a record costs at set-up: `python tests/benchmarks/records.py [--records 10000 50000 100000 200000] [--json]`.

Tables of made-up images with lung masks, patients and sources; the files are there and empty, so that an image that was
opened would stop the run. Timed is everything up to the first sample: table, files, splits, labels (`setup`), in
process CPU time; memory is what Python holds after it (`tracemalloc`, in a run of its own), without torch's tensors.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

from covidcxr.data import CSVDataModule

ROUNDS = 3


def write_set(root: Path, records: int) -> Path:
    """Write a table with two images a patient and a mask an image, in folders of 1,000 files."""
    with (root / f"{records}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "patient_id", "source", "view", "sex", "age", "lungs"))
        for number in range(records):
            folder, name = f"{number // 1000:03d}", f"film-{number:06d}.png"
            for kind in ("images", "masks"):
                (root / kind / folder).mkdir(parents=True, exist_ok=True)
                (root / kind / folder / name).touch()
            patient = number // 2
            label, source = ("covid19", "pneumonia", "normal")[patient % 3], f"hospital-{patient % 7}"
            row = (f"images/{folder}/{name}", label, f"p{patient}", source, "PA", "FM"[patient % 2], patient % 90)
            table.writerow((*row, f"masks/{folder}/{name}"))
    return root


def set_up(root: Path, records: int) -> CSVDataModule:
    module = CSVDataModule(root, table=f"{records}.csv", mask_columns={"lung_field": "lungs"}, region="lungs")
    module.setup()
    return module


def measure(root: Path, records: int) -> dict[str, float]:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        module = set_up(root, records)
        times.append(time.process_time() - start)
        assert len(module.records) == records
        del module
    tracemalloc.start()
    module = set_up(root, records)
    held = tracemalloc.get_traced_memory()[0] / records
    tracemalloc.stop()
    assert module.train_dataset  # it is still there
    seconds = min(times)  # what is above it is another process on the machine
    return {"records": records, "seconds": seconds, "us_a_record": 1e6 * seconds / records, "bytes_a_record": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 50_000, 100_000, 200_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        set_up(write_set(Path(folder), 100), 100)  # pays for what is loaded on demand
        found = [measure(write_set(Path(folder), records), records) for records in options.records]
    if options.json:
        print(json.dumps(found))
        return
    print(" records  set-up s  us a record  bytes a record")
    for row in found:
        print(f"{row['records']:8,} {row['seconds']:9.2f} {row['us_a_record']:12.1f} {row['bytes_a_record']:15.0f}")


if __name__ == "__main__":
    main()
