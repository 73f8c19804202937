"""Writes small data sets in the layouts of real ones; every picture is made up here."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (40, 32)  # height, width of an image


def draw_image(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Two dark lungs on a grey body, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    image = rng.normal(150 + 40 * rng.random(), 12, size)
    image[draw_lungs(size)] -= 90
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_lungs(size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """The lungs of every image, bool [H, W]."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    return np.logical_or.reduce([((y - 0.5) / 0.35) ** 2 + ((x - middle) / 0.15) ** 2 < 1 for middle in (0.28, 0.72)])


def write_image(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write grey pixels (a mask as 0 and 255), with the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> Path:
    """Write rows with the columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_folder_fake(
    root: Path, classes: Iterable[str] = ("covid19", "normal"), patients: int = 10, splits: Iterable[str] = ("",)
) -> Path:
    """`root[/split]/CLASS/p03_1.png`: two images a patient, besides files that are no images."""
    for split in splits:
        for place, name in enumerate(classes):
            folder = root / split / name
            for image in range(2 * patients):
                patient = f"{split}{place}{image // 2:02d}"
                write_image(folder / f"p{patient}_{image % 2}.png", draw_image(1000 * place + image))
            (folder / "Thumbs.db").write_bytes(b"no image")
            (folder / ".hidden.png").write_bytes(b"no image")
            (folder / "notes.txt").write_text("no image")
    return root


def write_table_fake(root: Path, patients: int = 24, name: str = "manifest.csv", delimiter: str = ",") -> Path:
    """A table in the style of a collection of sources: lung masks in one column, of another kind for each source.

    Patient i has 1 to 3 images; source "north" draws lung fields, "south" lungs, "east" no masks; every eighth image
    has an infection mask. The masks of "south" are half as large as the images.
    """
    rows = []
    for patient in range(patients):
        source = ("north", "south", "east")[patient % 3]
        label = ("covid19", "pneumonia", "normal", "other")[patient // 3 % 4]
        for image in range(1 + patient % 3):
            stem = f"{source}{patient:02d}_{image}"
            write_image(root / "images" / source / f"{stem}.png", draw_image(10 * patient + image))
            row = {"path": f"images/{source}/{stem}.png", "source": source, "label": label}
            row |= {"patient_id": f" {source}-{patient} ", "view": "PA", "sex": "F", "age": "early 40s"}
            row |= {"lung_mask": "", "infection_mask": ""}
            if source != "east":
                row["lung_mask"] = f"lungs/{stem}.png"
                size = SIZE if source == "north" else (SIZE[0] // 2, SIZE[1] // 2)
                write_image(root / row["lung_mask"], draw_lungs(size))
            if len(rows) % 8 == 0:
                row["infection_mask"] = f"infections/{stem}.png"
                write_image(root / row["infection_mask"], draw_lungs() & (np.arange(SIZE[1]) < SIZE[1] // 2))
            rows.append(row)
    write_csv(root / name, rows, delimiter)
    return root


MASK_COLUMNS = {
    "lung_field": {"column": "lung_mask", "where": {"source": ["north"]}},
    "lung": {"column": "lung_mask", "where": {"source": "south"}},
    "infection": "infection_mask",
}
"""How `CSVDataModule` reads the masks of `write_table_fake`."""


def write_darkcovidnet_fake(root: Path, metadata: bool = True) -> Path:
    """The published folders, as a clone of the repository holds them, with names in the style of the real ones."""
    top = root / "X-Ray Image DataSet"
    for place, name in enumerate(("No_findings", "Pneumonia")):
        for image in range(30):
            number = 90_000_000 + 1000 * place + image // 3
            write_image(top / name / f"{number:08d}_{image % 3:03d}.png", draw_image(100 * place + image))
    rows = []
    for image in range(12):
        stem = f"covid-19-pneumonia-{image // 2}-day{1 + 4 * (image % 2)}"
        write_image(top / "Covid-19" / f"{stem}.jpeg", draw_image(500 + image))
        rows.append({"patientid": f"{image // 4}", "finding": "COVID-19", "filename": f"{stem}.jpg"})
    if metadata:
        write_csv(root / "metadata.csv", rows)
    return root


IEEE8023_COLUMNS = (
    "patientid offset sex age finding survival intubated intubation_present went_icu in_icu needed_supplemental_O2 "
    "extubated temperature pO2_saturation leukocyte_count neutrophil_count lymphocyte_count view modality date "
    "location folder filename doi url license clinical_notes other_notes"
)
IEEE8023_FINDINGS = {  # as snapshots of July 2020 write them -> as later ones do
    "COVID-19": "Pneumonia/Viral/COVID-19",
    "COVID-19, ARDS": "Pneumonia/Viral/COVID-19",
    "Pneumocystis": "Pneumonia/Fungal/Pneumocystis",
    "SARS": "Pneumonia/Viral/SARS",
    "No Finding": "No Finding",
    "ARDS": "Tuberculosis",
    "todo": "todo",
    "E.Coli": "Pneumonia/Bacterial/E.Coli",
}


def write_ieee8023_fake(root: Path, later: bool = False) -> Path:
    """A clone of the repository: 32 patients with two radiographs each, some CT, a volume that is not there.

    Of each patient the first image is PA; the second is AP, AP Supine, L, ?, or without a view.
    """
    rows = []
    hannover = "https://github.com/ml-workgroup/covid-19-image-repository"
    for patient in range(32):
        finding = list(IEEE8023_FINDINGS)[patient % 8]
        finding = IEEE8023_FINDINGS[finding] if later else finding
        for image in range(2):
            name = f"1-s2.0-S{patient:03d}.pdf-fig{image}.png"
            view = ("AP", "AP Supine", "L", "?", "")[patient % 5] if image else "PA"
            row = dict.fromkeys(IEEE8023_COLUMNS.split(), "") | {"patientid": f"{patient // 2}{'ab'[patient % 2]}"}
            row |= {"sex": "FM"[image], "age": "65" if image else "", "finding": finding, "view": view}
            row |= {"modality": "X-ray", "folder": "images", "filename": name, "location": "Wuhan, Hubei, China"}
            row |= {"url": hannover if patient % 16 == 0 else "https://a.org/b,c", "clinical_notes": 'He said: "cough"'}
            rows.append(row | {"": "spilled, over" if patient == 3 else ""})
            write_image(root / "images" / name, draw_image(10 * patient + image))
            if patient < 3:
                mask = f"{Path(name).stem}_mask.png"
                write_image(root / "annotations" / "lungVAE-masks" / mask, draw_lungs())
    for name, view, folder in (
        ("ct-1.png", "Axial", "images"),
        ("ct-2.png", "Coronal", "images"),
        ("c.nii.gz", "Axial", "volumes"),
    ):
        rows.append(rows[0] | {"filename": name, "view": view, "folder": folder, "modality": "CT"})
        if folder == "images":
            write_image(root / folder / name, draw_image(0))
    write_csv(root / "metadata.csv", rows)
    return root


def write_covid_xray_5k_fake(root: Path, copies: int = 0, metadata: bool = True) -> Path:
    """The unpacked archive: other findings lie in folders of their own among the test images."""
    rows = []
    for split, series in (("train", range(8)), ("test", range(8, 12))):
        for number in series:
            for image in range(2):
                stem = f"covid-19-pneumonia-{number}-day{1 + 4 * image}"
                write_image(root / "data" / split / "covid" / f"{stem}.jpg", draw_image(10 * number + image))
                rows.append({"patientid": f"{number // 2}a", "finding": "COVID-19", "filename": f"{stem}.jpeg"})
        for number in range(12):
            finding = ("", "Edema", "Atelectasis")[number % 3] if split == "test" else ""
            patient = f"patient{number + (100 if split == 'test' else 0):05d}"
            name = f"{f'{finding}-' if finding else ''}{patient}-study1-view1_frontal.jpg"
            write_image(root / "data" / split / "non" / finding / name, draw_image(500 + number))
    for copy in range(copies):
        name = f"covid_original_covid-19-pneumonia-{copy % 8}-day1.jpg_{copy:08x}.jpg"
        write_image(root / "data" / "train" / "covid" / name, draw_image(10 * (copy % 8)))
    if metadata:
        write_csv(root / "metadata.csv", rows)
    return root


def write_covidx_ct2_fake(root: Path, version: str = "2A") -> Path:
    """The unpacked download: each kind of name in each split, boxes, and one slice that is larger than 512 x 512."""
    for place, split in enumerate(("train", "val", "test")):
        lines = []
        for number in range(10 * place, 10 * place + 3):
            uid = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:04d}"
            for name, label in {
                f"Normal_{number}_780_0024.png": 0,
                f"CP_{number}_3112_0032.png": 1,
                f"NCP_{number}_2577_0116.png": 2,
                f"normalcd3_patient{number}_SR_2_IM00029.png": 0,
                f"137covid_patient{number + 100}_SR_4_IM00024.png": 2,
                f"volume-covid19-A-{number:04d}_1_ct-0020.png": 2,
                f"volume-covid19-A-{number:04d}-0021.png": 2,
                f"coronacases_{number:03d}-0095.png": 2,
                f"radiopaedia_{number}_85703_0-0003.png": 2,
                f"radiopaedia-{number}-30-1-0005.png": 2,
                f"LIDC-IDRI-{number:04d}-{uid}-0104.png": 0,
            }.items():
                large = name == "CP_10_3112_0032.png"
                write_image(root / f"{version}_images" / name, draw_image(number, (540, 600) if large else SIZE))
                lines.append(f"{name} {label} {'10 20 600 540' if large else '2 4 30 39'}")
        (root / f"{split}_COVIDx_CT-{version}.txt").write_text("\n".join(lines) + "\n")
    columns = "patient id,source,country,sex,age,finding,verified finding,slice selection,view,modality"
    rows = ["NCP_0,CNCB,China,F,77,COVID-19,Yes,Expert,Axial,CT", "patient100,COVID-CTSet,Iran,M,,COVID-19,,,Axial,CT"]
    (root / "metadata.csv").write_text("\n".join((columns, *rows)) + "\n")
    return root


def write_covid_ct_ucsd_fake(root: Path) -> Path:
    """A clone of the repository with its archives unpacked: names hold dots and percent signs."""
    table = []
    for place, split in enumerate(("train", "val", "test")):
        names: dict[str, list[str]] = {"COVID": [], "NonCOVID": []}
        for number in range(10 * place, 10 * place + 6):
            article = f"2020.02.10.200{number:05d}" if number % 3 else f"PIIS01406736203{number:05d}"
            figures = ("-p6-52%0", "-p6-52%1") if number % 3 else ("_0%0", "_1")
            names["COVID"] += [f"{article}{figure}.png" for figure in figures]
            names["NonCOVID"] += [f"{number}%0.jpg", f"{number}%1.jpg", f"{number}.png", f"{number + 1000}.png"]
            for name in (f"{number}.png", f"{number + 1000}.png"):
                table.append({"": f"{len(table)}", "image name": name, "patient id": f"medpix_patient_{number}"})
        for label, images in names.items():
            for seed, name in enumerate(images):
                write_image(root / "Images-processed" / f"CT_{label}" / name, draw_image(100 * place + seed))
            path = root / "Data-split" / label / f"{split}CT_{label}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(images) + "\n")
    write_csv(root / "NonCOVID-CT-MetaInfo.csv", table)
    return root


def write_hannover_fake(root: Path) -> Path:
    """A clone of the repository: redacted ages, offsets below zero after admission, one image long before it."""
    columns = (
        "patient_id,image_id,sex,age,size,weight,admission_offset,icu_admission_offset,modality,projection,crp_val"
    )
    lines = [columns]
    for patient in range(10):
        for image in range(1 + patient % 4):
            name = f"{16 * patient + image:08x}"
            write_image(root / "png" / f"{name}.png", draw_image(16 * patient + image))
            offset = {(1, 1): 4, (2, 1): 10, (3, 1): 23}.get((patient, image), -3 * image)
            sex, view = "mf"[patient % 2], "ap" if image else "pa"
            lines.append(f"{patient:08x},{name},{sex},,,,{offset},,CR,{view},-inf")
    (root / "data.csv").write_text("\n".join(lines) + "\n")
    return root


def write_covid_cxnet_fake(root: Path, tabled: int = 28) -> Path:
    """A clone of the repository: numbered images of all endings, and a table that names them with other endings.

    Patients have one or two images. Only the first `tabled` images are in the table.
    """
    rows = []
    for image in range(28):
        ending = ("-.jpg", ".PNG", "p.jpeg", ".webp", ".jfif", ".png")[image % 6]
        folder = root / "chest_xray_images" / "covid19"
        write_image(folder / f"{260 + image}{ending}", draw_image(image))
        row = {"filename": f"{260 + image}{ending.lower().replace('webp', 'jpg')}", "patient_id": f"{image * 2 // 3}"}
        rows.append({**row, "sex": "female", "age": "63" if image % 2 else "", "view": ("AP", "", "PA")[image % 3]})
    write_csv(root / "metadata.csv", rows[:tabled] or [dict.fromkeys(rows[0], "9999")])
    return root


def write_manifest_fake(root: Path) -> Path:
    """A collection of several data sets in one table, with their masks; some of it is DarkCovidNet's."""
    rows = []
    sources = {"hannover": "covid19", "cxnet": "covid19", "nih": "normal", "ieee8023": "covid19", "shenzhen": "other"}
    for place, (source, label) in enumerate(sources.items()):
        for image in range(12):
            stem = f"{source}{image}"
            row = {"path": f"images/{source}/{stem}.jpg", "source": source, "label": label}
            row["label"] = "pneumonia" if source == "nih" and image % 2 else label
            row |= {"patient_id": f"{source}-{image // 2}", "view": "PA", "sex": "", "age": "50+"}
            row |= {"lung_mask": "", "infection_mask": ""}
            write_image(root / row["path"], draw_image(100 * place + image))
            if source in ("ieee8023", "shenzhen"):
                row["lung_mask"] = f"lung_masks/{source}/{stem}.png"
                write_image(root / row["lung_mask"], draw_lungs())
            if source == "ieee8023" and image < 4:
                row["infection_mask"] = f"infection_masks/{source}/{stem}.png"
                write_image(root / row["infection_mask"], draw_lungs())
            rows.append(row)
    write_csv(root / "manifest.csv", rows)
    ours = [
        row
        for row in rows
        if row["source"] == "nih" or (row["source"] == "ieee8023" and row["patient_id"] < "ieee8023-4")
    ]
    write_csv(root / "darkcovidnet_subset.csv", [{"path": row["path"], "label": row["label"]} for row in ours])
    return root


FINDINGS = ("Edema", "Fracture", "Pneumonia")
"""The findings of `write_findings_fake`."""


def write_findings_fake(root: Path, patients: int = 20) -> Path:
    """A table of findings as CheXpert's: 1.0, 0.0, empty, or -1.0 = uncertain; two images a patient."""
    rows = []
    for image in range(2 * patients):
        row = {"path": f"films/{image:02d}.png", "patient_id": f"{image // 2}"}
        write_image(root / row["path"], draw_image(image))
        row["Edema"] = ("1.0", "0.0", "", "-1.0")[image % 4]
        row["Fracture"] = ("1", "0", "0", "0", "0")[image % 5]
        row["Pneumonia"] = ("", "1", "0")[image % 3]
        rows.append(row)
    write_csv(root / "findings.csv", rows)
    return root


def write_xrv_covid_fake(root: Path) -> Path:
    """Images and table as TorchXRayVision's COVID19_Dataset reads them."""
    rows = []
    findings = ("Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial", "No Finding", "todo")
    for patient in range(16):
        for image in range(1 + patient % 3):
            name = f"film-{patient:02d}-{image}.png"
            write_image(root / "images" / name, draw_image(10 * patient + image))
            row = {
                "patientid": f"{patient}a",
                "offset": f"{image}",
                "sex": "FM "[patient % 3].strip(),
                "age": f"{40 + image}",
            }
            rows.append(
                {**row, "finding": findings[patient // 2 % 4], "view": ("PA", "AP", "L")[image], "filename": name}
            )
    write_csv(root / "metadata.csv", rows)
    return root


def write_xrv_chexpert_fake(root: Path, patients: int = 14) -> Path:
    """Images and table as TorchXRayVision's CheX_Dataset reads them, with gaps and uncertain labels."""
    rows = []
    for patient in range(patients):
        for image in range(1 + patient % 2):
            name = f"train/patient{patient:05d}/study1/view{image + 1}_frontal.png"
            write_image(root / name, draw_image(1000 + 10 * patient + image))
            row = {"Path": f"CheXpert-v1.0-small/{name}", "Sex": "Female", "Age": "60", "Frontal/Lateral": "Frontal"}
            row |= {"AP/PA": ("PA", "AP")[image], "No Finding": "1.0" if patient % 7 == 6 else ""}
            row |= {"Edema": ("1.0", "0.0", "", "-1.0")[patient % 4], "Fracture": ("0.0", "1.0")[patient % 2]}
            rows.append(row)
    write_csv(root / "train.csv", rows)
    return root


def write_xrv_nih_fake(root: Path, patients: int = 20) -> Path:
    """Images and table as TorchXRayVision's NIH_Dataset reads them; every third patient has an AP image besides."""
    rows = []
    for patient in range(patients):
        for image, view in enumerate(("PA", "AP")[: 1 + (patient % 3 == 0)]):
            row = {"Image Index": f"{patient + 1:08d}_{image:03d}.png", "Patient ID": f"{patient + 1}"}
            row["Finding Labels"] = ("No Finding", "Edema|Effusion", "Pneumonia", "Hernia")[patient % 4]
            rows.append({**row, "Patient Age": "50", "Patient Gender": "MF"[patient % 2], "View Position": view})
            write_image(root / "images" / row["Image Index"], draw_image(20 * patient + image))
    write_csv(root / "nih.csv", rows)
    return root


def write_covid_qu_ex_fake(root: Path, doubled: bool = True) -> Path:
    """Both parts of the download: 24 numbers for each class in the lung part, 20 in the infection part, 18 in both.

    Number 12 is for validation in the lung part and for training in the other. COVID-19 images 4, 10, 16 and 22 are
    lateral, 5, 11, 17 and 23 of BIMCV without a view.
    """
    splits = {
        "Lung": {"Train": range(12), "Val": range(12, 18), "Test": range(18, 24)},
        "Infection": {"Train": range(6, 13), "Val": range(13, 18), "Test": range(18, 26)},
    }
    for part, ranges in splits.items():
        name = f"{part} Segmentation Data"
        top = root / "COVID-QU-Ex_dataset" / name / (name if doubled else "")
        for split, number in ((split, number) for split, numbers in ranges.items() for number in numbers):
            view = {1: "_vp-ap", 2: "_vp-pa", 4: "_vp-ll"}.get(number % 6, "")
            bimcv = f"sub-S{number // 6:05d}_ses-E{number:05d}_run-1_bp-chest{view}_cr.png"
            images = {
                "COVID-19": bimcv if number % 3 else f"covid_{number}.png",
                "Non-COVID": f"{'N' if number == 1 else 'n'}on_COVID ({number}).png",
                "Normal": f"Normal ({number}).png",
            }
            for label, image in images.items():
                folder = top / split / label
                write_image(folder / "images" / image, draw_image(number))
                write_image(folder / "lung masks" / image, draw_lungs())
                if part == "Infection":
                    write_image(folder / "infection masks" / image, draw_lungs() & (label == "COVID-19"))
    return root


def write_covidx_cxr3_fake(root: Path, labels: str = "{split}.txt") -> Path:
    """The flat folders of Kaggle; a label file with COVIDx in its name also lists images that are not there.

    Args:
        root: Folder to write to.
        labels: Name of the label files.
    """
    study = "-01-03-1901-NA-{}-60204-{}.000000-{}-93499-1-1.jpg"
    train = [
        f"A{100000 + n // 2} A{100000 + n // 2}{study.format('CHEST_AP_PORT', n, 'AP')} positive" for n in range(16)
    ]
    train.append(f"A100000 A100000{study.format('CHEST_ROUTINE_PA_AP_AND_LATERAL', 1, 'PA')} positive")
    removed = [
        f"A100000 A100000{study.format(name, 1, view)} positive stonybrook"
        for name, view in (
            ("FLAT_PLATE_OF_ABDOMEN_PORTABLE", "AP"),
            ("ABD_SERIES_FLAT_AND_ERECT_PORTABLE", "AP"),
            ("CHEST_ROUTINE_PA_AP_AND_LATERAL", "LATERAL"),
        )
    ]
    lines = {
        "train": [
            *(f"{line} stonybrook" for line in train),
            *(f"{n:08x}-66c8 {n:08x}-66c8.png negative {'rnsa' if n < 3 else 'rsna'}" for n in range(16)),
            "900 covid-19-pneumonia-900-prior.jpg negative cohen",
            "900 covid-19-pneumonia-900-day-9.jpg positive cohen",
            "901 0a1b2c3d.jpg negative cohen",
            "902 4e5f6071.jpg negative cohen",
            "903 8293a4b5.jpg positive cohen",
            "904 90000_2_1.PNG negative cohen",
            "COVID 12 COVID(12).png positive sirm",
            "S90000 sub-S90000_ses-E90001_run-1_bp-chest_vp-pa_dx-corrected.png positive bimcv",
        ],
        "test": [
            *(f"SITE2-{n // 2:06d} MIDRC-RICORD-1C-SITE2-{n // 2:06d}-2144{n}-0.png positive ricord" for n in range(6)),
            *(f"{n:08x}-66c8 {n:08x}-66c8.png negative rsna" for n in range(20, 26)),
        ],
    }
    for split, found in lines.items():
        for number, line in enumerate(found):
            write_image(root / split / line.split()[-3], draw_image(number))
        path = root / labels.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = found + removed if split == "train" and "COVIDx" in labels else found
        path.write_text("".join(f"{line}\n" for line in listed))
    return root


def write_coronahack_fake(root: Path, metadata: bool = True) -> Path:
    """The download: child 1 has one image as virus in TEST, and another child 1 one as bacteria in TRAIN."""
    images = []
    for n in range(12):
        split, other = ("TEST", "TRAIN") if n < 4 else ("TRAIN", "TEST" if n > 8 else "TRAIN")
        images += [(f"person{n}_virus_{2 * n + image}.jpeg", "Pnemonia", split, "", "Virus") for image in range(2)]
        images.append((f"person{n}_bacteria_{n + 300}.jpeg", "Pnemonia", other, "", "bacteria"))
        images.append((f"IM-{n:04d}-0001.jpeg", "Normal", split, "", ""))
        images.append((f"NORMAL2-IM-{n:04d}-0001-0002.jpeg", "Normal", other, "", ""))
    series = [f"covid-19-pneumonia-{n}-day{day}" for n in range(7) for day in (1, 5)]
    images += [(f"{name}.jpg", "Pnemonia", "TRAIN", "COVID-19", "Virus") for name in series]
    images += [
        ("covid-19-pneumonia-faint.JPG", "Pnemonia", "TRAIN", "COVID-19", "Virus"),
        ("SARS-10.1000rg.1-g01mr01g01a-Fig1a-day17.jpeg", "Pnemonia", "TRAIN", "SARS", "Virus"),
        ("streptococcus-pneumonia-1-day2.png", "Pnemonia", "TRAIN", "Streptococcus", "bacteria"),
        ("respiratory-distress.jpg", "Pnemonia", "TRAIN", "ARDS", "Stress-Smoking"),
        ("00000000-0000-4000-AAAA-BBBBBBBBBBBB.jpeg", "Normal", "TRAIN", "", ""),
    ]
    columns = ("X_ray_image_name", "Label", "Dataset_type", "Label_2_Virus_category", "Label_1_Virus_category")
    rows = [{"": f"{3 * n}", **dict(zip(columns, image, strict=True))} for n, image in enumerate(images)]
    write_csv(root / "Chest_xray_Corona_Metadata.csv", rows)
    folder = root / "Coronahack-Chest-XRay-Dataset" / "Coronahack-Chest-XRay-Dataset"
    for number, (name, _, split, _, _) in enumerate((*images, ("unlisted.jpeg", "", "TRAIN", "", ""))):
        write_image(folder / split.lower() / name, draw_image(number))
    if metadata:
        known = [
            {"patientid": f"{n // 4}", "finding": "COVID-19", "filename": f"{name}.jpg"}
            for n, name in enumerate(series)
        ]
        write_csv(root / "metadata.csv", known)
    return root


RADIOGRAPHY_URLS = {
    "COVID": (
        "https://sirm.org/category/senza-categoria/covid-19/",
        "https://github.com/ml-workgroup/covid-19-image-repository/tree/master/png",
        "https://eurorad.org",
        "https://github.com/armiro/COVID-CXNet",
        "https://github.com/ieee8023/covid-chestxray-dataset",
        "https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/#1590858128006-9e640421-6711",
        "https://figshare.com/articles/COVID-19_Chest_X-Ray_Image_Repository/12580328",
    ),
    "Lung_Opacity": ("https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",),
    "Normal": (
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
        "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia",
    ),
    "Viral Pneumonia": ("https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia",),
}
"""Where the images of a class come from, as its workbook says; image n has URL n, then from the first again."""


def write_radiography_fake(root: Path, old: bool = False) -> Path:
    """The download of 2021: three-channel masks of another size than the images; or that of 2020, without masks."""
    from openpyxl import Workbook

    top = root / "COVID-19_Radiography_Dataset"
    for place, (label, urls) in enumerate(RADIOGRAPHY_URLS.items()):
        if old and label == "Lung_Opacity":
            continue
        book = Workbook()
        book.active.title = "Sheet1"
        book.active.append(["FILE NAME", "FORMAT", "SIZE", "URL"])
        folder = top / (label.upper() if old and label == "Normal" else label)
        for number in range(1, 9):
            name = f"{label} ({number}).png" if old else f"images/{label}-{number}.png"
            write_image(folder / name, draw_image(10 * place + number))
            if not old:
                mask = np.stack([draw_lungs((SIZE[0] // 2, SIZE[1] // 2))] * 3, axis=-1)
                write_image(folder / "masks" / f"{label}-{number}.png", mask)
            listed = f"{label.upper() if label == 'Normal' else label}-{number}"
            book.active.append([listed, "PNG", "256*256", urls[(number - 1) % len(urls)]])
        book.save(top / f"{label}.metadata.xlsx")
    (top / "README.md.txt").write_text("what is in here")
    return root
