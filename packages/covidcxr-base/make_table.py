"""Write the table that the segmenter of `base` learns from: two collections, a row an image, who trains and who tests.

    python make_table.py DATA --first data --second data2

`DATA/base.csv` names the files below DATA. What its column `split` holds:

test    the official test images of COVID-QU-Ex; all of Montgomery, a source that does not train; all images of ieee8023
        patients whose infections General Blockchain's radiologists drew
val     images of 30 % of the BIMCV groups, the official validation images of the other sources, and a few of the first
        collection
train   the rest, with 500 of the RSNA images. Of an image that is a copy of an official test image none of its
        patient's images is in the table.

`seen_group` is 1 for test images of which another image of the same group trains: without them figures are by groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

COPY = 0.93
"""Correlation of band-passed thumbnails above which an image counts as a copy; known copies are above 0.98."""
COLUMNS = [
    "path", "source", "label", "patient_id", "split", "seen_group", "view", "license", "lung_field", "lung", "infection"
]  # fmt: skip


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Write the training table of base.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--first", default="data", help="folder of the first collection in ROOT")
    parser.add_argument("--second", default="data2", help="folder of COVID-QU-Ex and the extra masks in ROOT")
    parser.add_argument("--out", type=Path, help="where to write it; by default ROOT/base.csv")
    given = parser.parse_args()
    second = second_collection(given.root, given.second)
    first = first_collection(given.root, given.first, given.second)
    table = pd.concat([second, first])
    trained = set(table.patient_id[table.split == "train"])
    table["seen_group"] = ((table.split == "test") & table.patient_id.isin(trained)).astype(int)
    table[COLUMNS].to_csv(given.out or given.root / "base.csv", index=False)
    print(table.groupby(["split", "source", "label"])[["lung_field", "lung", "infection"]].count().to_string())


def second_collection(root: Path, folder: str) -> pd.DataFrame:
    """Give the images of COVID-QU-Ex their split."""
    table = pd.read_csv(root / folder / "manifest.csv", keep_default_na=False)
    random = np.random.default_rng(0)
    blocks = sorted(set(table.patient_id[table.source == "bimcv"]))
    held = set(random.permutation(blocks)[: round(0.3 * len(blocks))])
    bimcv = table.source == "bimcv"
    table["split"] = table.official_split
    table.loc[bimcv & (table.split != "test"), "split"] = "train"
    table.loc[bimcv & (table.split != "test") & table.patient_id.isin(held), "split"] = "val"
    tests = set(table.patient_id[~bimcv & (table.split == "test")])
    table = table[bimcv | (table.split == "test") | ~table.patient_id.isin(tests)]
    # Lungs are learnt from fewer: 250 of each label train, 30 validate.
    surplus = [
        rows.index[count:]
        for (split, _), rows in table[table.source == "rsna"].sample(frac=1, random_state=0).groupby(["split", "label"])
        for count in [{"train": 250, "val": 30}.get(str(split), len(rows))]
    ]
    table = table.drop(np.concatenate(surplus)).sort_index()
    for name, column in (("lung_field", "lung_mask"), ("infection", "infection_mask")):
        table[name] = [f"{folder}/{path}" if path else "" for path in table[column]]
    table["path"] = [f"{folder}/{path}" for path in table.path]
    return table.assign(lung="").replace("", None)


def first_collection(root: Path, folder: str, second: str) -> pd.DataFrame:
    """Give the images of the first collection their split, and those without a mask the extra masks."""
    table = pd.read_csv(root / folder / "manifest.csv", keep_default_na=False)
    extra = pd.read_csv(root / second / "extra_masks" / "extra_masks.csv", keep_default_na=False).set_index("path")
    official = sorted((root / second / "Infection Segmentation Data" / "Test").glob("*/images/*.png"))
    copies = set(extra.index[extra.from_film.isin({path.name for path in official})])
    ours = np.stack([thumbnail(root / folder / path) for path in table.path])
    theirs = np.stack([thumbnail(path) for path in official])
    copies |= set(table.path[(ours @ theirs.T).max(1) > COPY])
    readers = set(table.patient_id[table.infection_mask != ""])
    barred = set(table.patient_id[table.path.isin(copies)]) - readers

    plain = table.source.isin(["montgomery", "shenzhen"])
    own = [f"{folder}/{path}" if path else "" for path in table.lung_mask]
    table["lung"] = np.where(plain, "", own)
    table["lung_field"] = np.where(plain, own, [_extra(extra, path, "lung_mask", second) for path in table.path])
    drawn = [_extra(extra, path, "infection_mask", second) for path in table.path]
    tests = table.patient_id.isin(readers)
    own = [f"{folder}/{path}" if path else "" for path in table.infection_mask]
    table["infection"] = np.where(tests, own, drawn)  # the test is of other readers alone
    table.loc[tests, "lung_field"] = ""
    patients = sorted(set(table.patient_id[table.source.isin(["shenzhen", "ieee8023"]) & ~tests]))
    val = set(np.random.default_rng(0).permutation(patients)[:25])
    table["split"] = np.select(
        [tests | (table.source == "montgomery"), table.patient_id.isin(val)], ["test", "val"], "train"
    )
    known = (table.lung != "") | (table.lung_field != "") | (table.infection != "")
    table = table[known & ~table.patient_id.isin(barred)]
    return table.assign(path=[f"{folder}/{path}" for path in table.path]).replace("", None)


def thumbnail(path: Path) -> np.ndarray:
    """Return an image as 1,024 numbers that correlate with those of its copies."""
    grey = np.asarray(Image.open(path).convert("L").resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    grey = grey - gaussian_filter(grey, 6)
    return ((grey - grey.mean()) / (np.linalg.norm(grey - grey.mean()) + 1e-6)).ravel()


def _extra(extra: pd.DataFrame, path: str, column: str, folder: str) -> str:
    value = str(extra[column].get(path, ""))
    return f"{folder}/{value}" if value else ""


if __name__ == "__main__":
    main()
