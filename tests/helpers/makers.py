"""One small data module of each registered data set."""

from __future__ import annotations

from pathlib import Path

from fakes import (
    MASK_COLUMNS,
    write_coronahack_fake,
    write_covid_ct_ucsd_fake,
    write_covid_cxnet_fake,
    write_covid_qu_ex_fake,
    write_covid_xray_5k_fake,
    write_covidx_ct2_fake,
    write_covidx_cxr3_fake,
    write_darkcovidnet_fake,
    write_folder_fake,
    write_hannover_fake,
    write_ieee8023_fake,
    write_radiography_fake,
    write_table_fake,
    write_xrv_covid_fake,
)

from covidcxr.data import (
    CombinedDataModule,
    CoronaHackDataModule,
    Covid19RadiographyDataModule,
    CovidCTDataModule,
    CovidCXNetDataModule,
    CovidQUExDataModule,
    CovidxCT2DataModule,
    CovidxCXR3DataModule,
    CovidXray5kDataModule,
    CSVDataModule,
    CXRDataModule,
    DarkCovidNetDataModule,
    FolderDataModule,
    GateDataModule,
    HannoverDataModule,
    Ieee8023DataModule,
    XRayVisionDataModule,
)

SMALL = {"image_size": (24, 24), "batch_size": 4}


def make_folder(root: Path) -> CXRDataModule:
    return FolderDataModule(write_folder_fake(root), patient_pattern="p([0-9]+)_", **SMALL)


def make_table(root: Path) -> CXRDataModule:
    return CSVDataModule(write_table_fake(root), mask_columns=MASK_COLUMNS, **SMALL)


def make_darkcovidnet(root: Path) -> CXRDataModule:
    return DarkCovidNetDataModule(write_darkcovidnet_fake(root), **SMALL)


def make_ieee8023(root: Path) -> CXRDataModule:
    return Ieee8023DataModule(write_ieee8023_fake(root), **SMALL)


def make_covid_xray_5k(root: Path) -> CXRDataModule:
    return CovidXray5kDataModule(write_covid_xray_5k_fake(root), **SMALL)


def make_covidx_ct2(root: Path) -> CXRDataModule:
    return CovidxCT2DataModule(write_covidx_ct2_fake(root), **SMALL)


def make_covid_ct_ucsd(root: Path) -> CXRDataModule:
    return CovidCTDataModule(write_covid_ct_ucsd_fake(root), **SMALL)


def make_hannover(root: Path) -> CXRDataModule:
    return HannoverDataModule(write_hannover_fake(root), **SMALL)


def make_covid_cxnet(root: Path) -> CXRDataModule:
    return CovidCXNetDataModule(write_covid_cxnet_fake(root), **SMALL)


def make_xrayvision(root: Path) -> CXRDataModule:
    paths = {"imgpath": "images", "csvpath": "metadata.csv"}
    return XRayVisionDataModule(write_xrv_covid_fake(root), dataset="COVID19_Dataset", dataset_args=paths, **SMALL)


def make_covid_qu_ex(root: Path) -> CXRDataModule:
    return CovidQUExDataModule(write_covid_qu_ex_fake(root), **SMALL)


def make_covidx_cxr3(root: Path) -> CXRDataModule:
    return CovidxCXR3DataModule(write_covidx_cxr3_fake(root), **SMALL)


def make_coronahack(root: Path) -> CXRDataModule:
    return CoronaHackDataModule(write_coronahack_fake(root), official_split=False, **SMALL)


def make_covid19_radiography(root: Path) -> CXRDataModule:
    return Covid19RadiographyDataModule(write_radiography_fake(root), **SMALL)


def make_combined(root: Path) -> CXRDataModule:
    write_folder_fake(root / "ward", ("covid19", "normal"), patients=10)
    write_table_fake(root / "city", patients=24)
    members = {
        "ward": {"name": "folder", "root": "ward", "patient_pattern": "p([0-9]+)_"},
        "city": {"name": "csv", "root": "city", "label_map": {"pneumonia": None, "other": None}},
    }
    return CombinedDataModule(root, datasets=members, duplicates="ignore", **SMALL)


def make_gate(root: Path) -> CXRDataModule:
    return GateDataModule(write_table_fake(root), drawn=10, **SMALL)


MAKERS = {
    "combined": make_combined,
    "gate": make_gate,
    "folder": make_folder,
    "csv": make_table,
    "darkcovidnet": make_darkcovidnet,
    "hannover": make_hannover,
    "covid_cxnet": make_covid_cxnet,
    "torchxrayvision": make_xrayvision,
    "covid_qu_ex": make_covid_qu_ex,
    "covidx_cxr3": make_covidx_cxr3,
    "coronahack": make_coronahack,
    "covid19_radiography": make_covid19_radiography,
    "ieee8023_covid_chestxray": make_ieee8023,
    "covid_xray_5k": make_covid_xray_5k,
    "covidx_ct2": make_covidx_ct2,
    "covid_ct_ucsd": make_covid_ct_ucsd,
}
