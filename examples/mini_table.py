"""One table of two folders, from which the recipes of `mini` train: which images and masks are openly licensed.

    python examples/mini_table.py DIR
    python examples/mini_table.py DIR --infections FOLDER

DIR holds `data` (a table `manifest.csv` of images with licences, lung masks and infection masks) and `data2`
(COVID-QU-Ex with its `manifest.csv`, the masks of `extra_masks` for images of `data`, and `not_frontal` with children).
Writes DIR/mini.csv: paths below DIR, `terms` ("open", or "restricted" for non-commercial, research-only and unstated
ones), and one column a mask class. Restricted images and masks train nothing; those with hand-drawn masks test.

The second command needs a trained segmenter, by the FOLDER of a pipeline. On the training images with COVID-19 or other
pneumonia for which there is no infection mask it predicts one (DIR/drawn), and writes DIR/mini-drawn.csv: the same
table with these pseudo-masks.
"""

import argparse
from pathlib import Path

import pandas as pd
from rich.progress import track

from covidcxr import Pipeline
from covidcxr.data import CSVDataModule
from covidcxr.io.image import write_mask
from covidcxr.transforms.pyramid import Orientation

RESTRICTED = "NC|unstated|research"
COLUMNS = ["path", "source", "label", "patient_id", "view", "sex", "age", "license", "terms"]
MASKS = ["lung_field", "lung", "infection"]


def below(folder: str, paths: pd.Series) -> pd.Series:
    """Put a folder before paths; what is missing stays missing."""
    return paths.map(lambda path: f"{folder}/{path}", na_action="ignore")


def first_collection(root: Path) -> pd.DataFrame:
    """Return the images of `data`, with masks that were drawn for them and those of `extra_masks`."""
    table = pd.read_csv(root / "data" / "manifest.csv")
    image_terms = table.license.str.partition(";")[0]
    # Masks of Shenzhen are for non-commercial use, its images are not.
    table["terms"] = image_terms.str.contains(RESTRICTED).map({True: "restricted", False: "open"})
    hand_drawn = below("data", table.lung_mask)
    extra = pd.read_csv(root / "data2" / "extra_masks" / "extra_masks.csv").set_index("path")
    fields = below("data2", table.path.map(extra.lung_mask))
    table["lung_field"] = hand_drawn.where(table.source.isin(["montgomery", "shenzhen"]), fields)
    table["lung"] = hand_drawn.where(table.source == "ieee8023")
    table["infection"] = below("data", table.infection_mask).fillna(
        below("data2", table.path.map(extra.infection_mask))
    )
    table["path"] = below("data", table.path)
    return table


def second_collection(root: Path) -> pd.DataFrame:
    """Return the adults of NIH in COVID-QU-Ex, whose images are free for any use."""
    table = pd.read_csv(root / "data2" / "manifest.csv")
    table = table[table.source == "rsna"].copy()
    table["terms"], table["lung_field"] = "open", below("data2", table.lung_mask)
    table["path"] = below("data2", table.path)
    return table


def children(root: Path) -> pd.DataFrame:
    """Return the chest radiographs of children, and the test pictures that are no frontal chest radiographs."""
    table = pd.read_csv(root / "data2" / "not_frontal" / "not_frontal.csv")
    is_child = table.kind == "paediatric_chest"
    table["label"] = table.kind.mask(is_child, "child")
    table["terms"] = is_child.map({True: "open", False: "restricted"})
    table["path"] = below("data2", table.path)
    return table


def predict_infections(root: Path, table: pd.DataFrame, model: Path) -> pd.DataFrame:
    """Return the table with predicted infection masks where training images of pneumonia have none."""
    restricted = {"terms": "restricted", "source": "shenzhen"}
    records = CSVDataModule(root, table="mini.csv", test_only=restricted).records
    table = table.set_index("path", drop=False)
    train = table.loc[[record.image_id for record in records if record.split == "train"]]
    unknown = train[train.infection.isna() & train.label.isin(["covid19", "pneumonia"])].path
    pipeline = Pipeline.from_pretrained(model)
    for path in track(unknown, "infections"):
        prediction = pipeline(root / path)
        # The masks of an image that lies on its side are those of the image set upright.
        if "infection" in prediction.masks and prediction.orientation in (None, Orientation()):
            mask = f"drawn/{path.rpartition('.')[0].replace('/', '_')}.png"
            write_mask(root / mask, prediction.masks["infection"])
            table.loc[path, "infection"] = mask
    return table


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--infections", type=Path, metavar="FOLDER", help="a pipeline that predicts infections")
    options = parser.parse_args()
    root = options.root
    table = pd.concat([first_collection(root), second_collection(root), children(root)], ignore_index=True)
    table = table.reindex(columns=COLUMNS + MASKS)
    table.to_csv(root / "mini.csv", index=False)
    if options.infections:
        table = predict_infections(root, table, options.infections)
        table.to_csv(root / "mini-drawn.csv", index=False)
    print(table.groupby(["terms", "source"])[["path", *MASKS]].count().to_string())


if __name__ == "__main__":
    main()
