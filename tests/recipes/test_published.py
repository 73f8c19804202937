"""Every published system: its recipe holds what was published, and goes from fit to report on made-up images."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from counting import LIBRARY_COUNTS, count
from fakes import (
    draw_image,
    draw_lungs,
    write_coronahack_fake,
    write_covid_ct_ucsd_fake,
    write_covid_qu_ex_fake,
    write_covid_xray_5k_fake,
    write_covidx_ct2_fake,
    write_covidx_cxr3_fake,
    write_csv,
    write_ieee8023_fake,
    write_image,
    write_manifest_fake,
    write_radiography_fake,
    write_xrv_nih_fake,
)
from torch import nn
from torchvision.models import get_model_weights

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CovidxCXR3DataModule, find_leaks
from covidcxr.data.files import MASK_INDEX
from covidcxr.errors import ConfigError
from covidcxr.models import ClassificationModel, EnsembleModel, SegmentationModel, load_model
from covidcxr.pipeline.lung_masks import draw_masks
from covidcxr.recipes.sweep import run_recipe
from covidcxr.training.parser import open_data, parse_words
from covidcxr.training.recipe import Recipe, recipe_paths, write_yaml
from covidcxr.training.session import Session, check
from covidcxr.transforms.pyramid import CHILD, NOT_A_FRONTAL_IMAGE, ORIENTATIONS

ELSEWHERE = {"das2021-multitask": "tasks/test_multitask.py", "wali2021-next": "recipes/test_tune.py"}
"""Recipes with a test of their own, and where that is."""

LIGHT = ("Affine", "RandomBrightnessContrast")
DEFAULT = (*LIGHT, "RandomGamma", "GaussNoise")
STRONG_FLIP = (
    *("HorizontalFlip", "Affine", "ElasticTransform", "RandomBrightnessContrast", "RandomGamma"),
    *("CLAHE", "GaussianBlur", "GaussNoise", "CoarseDropout"),
)
KERAS = ("Affine", "HorizontalFlip", "MultiplicativeNoise")
IMAGENET, HALF, UNIT = ((0.449,), (0.226,)), ((0.5,), (0.5,)), ((0.0,), (1.0,))
COVID_QU_EX = ("COVID-19", "Non-COVID", "Normal")
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
REGIONS = {region: {"region": region} for region in ("full", "lungs", "background")}
BACKBONES = {
    "vgg16": {"network": "vgg16_head"},
    "mobilenet": {"network": "timm:mobilenetv1_100", "normalization": HALF},
    "resnet50": {"network": "timm:resnet50"},
    "densenet121": {"network": "timm:densenet121"},
}

AT_32 = ("--model.model.preprocess.image_size", "[32, 32]", "--data.image_size", "[32, 32]")
RESNET = (*AT_32, "--model.model.network", "timm:test_resnet")
NO_HEAD = (*RESNET, "--model.model.network_args", "{}")  # instead of those of vgg16_head
TINY = {
    "--trainer.max_epochs": "1",
    "--trainer.limit_train_batches": "2",
    "--trainer.log_every_n_steps": "1",
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--trainer.accelerator": "cpu",
    "--data.batch_size": "4",
    "--model.pretrained_backbone": "false",
}


@dataclass(frozen=True)
class System:
    """What a recipe must be.

    Attributes:
        fake: Writes its data set.
        facts: What must be in use, as `facts_of` tells it; what is not named is as in `COMMON`.
        variants: What else is in use in a variant.
        only: The run of a comparison that is trained.
        tiny: Words for a network or size that trains in seconds.
        words: Words that the fake needs; from the folder of the data.
        slow: Trained only where time is.
    """

    fake: Callable[[Path], Path]
    facts: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    tiny: Sequence[str] = RESNET
    words: Callable[[Path], list[str]] = lambda root: []
    slow: bool = False


COMMON: dict[str, Any] = {
    "mode": "multiclass",
    "size": (256, 256, 3),
    "fit": "letterbox",
    "region": "full",
    "steps": (),
    "normalization": IMAGENET,
    "augment": DEFAULT,
    "balance": "none",
    "copies": {},
    "masks": (),
    "loss": "CrossEntropyLoss",
    "optimizer": ("Adam", 0.0001),
    "momentum": None,
    "schedule": "cosine",
    "frozen": False,
    "start": True,
}
FROZEN: dict[str, Any] = {
    "classes": ("non", "covid"),
    "mode": "binary",
    "size": (224, 224, 3),
    "fit": "stretch",
    "augment": KERAS,
    "balance": "class",
    "loss": "BCELoss",
    "optimizer": ("Adam", 0.001),
    "schedule": "constant",
    "frozen": True,
    "epochs": 20,
}


def write_licensed_fake(root: Path) -> Path:
    """The table that `examples/mini_table.py` writes, on fakes, and lung masks drawn for all images."""
    write_manifest_fake(root)
    with (root / "manifest.csv").open(newline="") as file:
        rows = [row | {"terms": "open", "lung_field": "", "lung": "", "infection": ""} for row in csv.DictReader(file)]
    for row in rows:
        if row["source"] in ("nih", "shenzhen"):  # as rsna and montgomery, too
            other = {"nih": "rsna", "shenzhen": "montgomery"}[row["source"]]
            row["source"] = other if row["patient_id"][-1] in "14" else row["source"]
        row["lung_field" if row["source"] != "ieee8023" else "lung"] = row["lung_mask"]
        row["infection"] = row["infection_mask"] or row["lung_mask"]  # or none would validate
    rows[0]["terms"] = "restricted"
    kinds = ("child", "lateral_chest", "ct_slice", "hand", "limb", "mammogram", "abdomen_pelvis", "skull")
    for number, kind in enumerate([*kinds, *("child",) * 5]):
        path = f"others/{number}.png"
        write_image(root / path, draw_image(700 + number))
        terms = "open" if kind == "child" else "restricted"
        rows.append({"path": path, "label": kind, "source": "others", "patient_id": f"other-{number}", "terms": terms})
    for name in ("mini.csv", "mini-drawn.csv"):
        write_csv(root / name, [dict.fromkeys(rows[0], "") | row for row in rows])
    for row in rows:
        write_image(root / "drawn" / f"{row['path']}.lung_field.png", draw_lungs())
    areas = {row["path"]: float((draw_lungs() > 0).mean()) for row in rows}
    (root / "drawn" / MASK_INDEX).write_text(json.dumps({"areas": areas}))
    return root


MINI_LUNGS: dict[str, Any] = {
    "data": "CSVDataModule",
    "classes": ("lung_field", "lung", "infection"),
    "mode": "multilabel",
    "network": "smp:fpn",
    "size": (192, 192, 1),
    "normalization": ((0.5,), (0.27,)),
    "augment": STRONG_FLIP,
    "balance": "source",
    "masks": ("lung_field", "lung", "infection"),
    "loss": "DiceLoss + PixelBCELoss",
    "optimizer": ("AdamW", 0.001),
}


def write_base_fake(root: Path) -> Path:
    """The table that `packages/covidcxr-base/make_table.py` writes, on fakes."""
    write_licensed_fake(root)
    shutil.copy(root / "mini.csv", root / "base.csv")
    return root


def write_covidx_fake(root: Path) -> Path:
    """COVIDx CXR-3 with one positive image on which there are no lungs."""
    write_covidx_cxr3_fake(root)
    write_image(root / "train" / "COVID(12).png", draw_image(0).clip(180, 190))
    return root


def write_three_fakes(root: Path) -> Path:
    """The folders of the recipe multidataset."""
    write_covid_qu_ex_fake(root / "covid-qu-ex")
    write_radiography_fake(root / "radiography")
    write_ieee8023_fake(root / "ieee8023")
    return root


def lung_finder() -> SegmentationModel:
    """A segmenter that draws what is dark on the fakes' images: their lungs."""
    config = ModelConfig("segmentation", "residual_unet", ("lung_field",), "binary", {"width": 1, "depth": 1})
    model = SegmentationModel(
        replace(config, preprocess=PreprocessConfig(image_size=(40, 32), mean=(0.0,), std=(1.0,)))
    )
    model.network = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.network.weight, -80.0)
    nn.init.constant_(model.network.bias, 80.0 * 110 / 255)  # type: ignore[arg-type]
    return model


def with_drawn_masks(root: Path) -> list[str]:
    out = root.parent / "drawn"
    draw_masks(CovidxCXR3DataModule(root), out, model=lung_finder())
    return ["--data.drawn_masks", str(out), "--data.min_lung_area", "0.15"]


SYSTEMS = {
    "long2024-infection": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": ("infection",),
            "mode": "binary",
            "network": "residual_unet",
            "size": (256, 256, 1),
            "normalization": UNIT,
            "augment": LIGHT,
            "masks": ("infection",),
            "optimizer": ("Adam", 0.001),
            "epochs": 50,
            "start": False,
        },
        {
            "bce": {"loss": "PixelBCELoss"},
            "dice": {"loss": "DiceLoss"},
            "bce_dice": {"loss": "PixelBCELoss + DiceLoss"},
            "focal": {"loss": "PixelFocalLoss"},
            "tversky": {"loss": "TverskyLoss"},
            "focal_tversky": {"loss": "FocalTverskyLoss"},
            "jaccard": {"loss": "JaccardLoss"},
            "lovasz": {"loss": "LovaszLoss"},
            "combo": {"loss": "DiceLoss + PixelBCELoss + PixelFocalLoss"},
        },
        only=("focal_tversky",),
        tiny=(*AT_32, "--model.model.network_args", "{width: 2, depth: 2}"),
    ),
    "long2024-xception": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": COVID_QU_EX,
            "network": "timm:legacy_xception",
            "normalization": HALF,
            "epochs": 30,
        },
        slow=True,
    ),
    "loan2022-lungs": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": ("lung_field",),
            "mode": "binary",
            "network": "smp:fpn",
            "size": (256, 256, 1),
            "normalization": "computed",
            "augment": ("HorizontalFlip", "ElasticTransform", "Rotate", "RandomBrightnessContrast"),
            "masks": ("lung_field",),
            "loss": "DiceLoss + PixelBCELoss + PixelFocalLoss",
            "optimizer": ("AdamW", 0.0005),
            "epochs": 30,
        },
        tiny=(*AT_32, "--model.model.network_args", "{encoder: tu-test_resnet}"),
    ),
    "loan2022-classify": System(
        write_covidx_fake,
        {
            "data": "CovidxCXR3DataModule",
            "classes": ("negative", "positive"),
            "normalization": "computed",
            "optimizer": ("AdamW", 0.0001),
            "epochs": 10,
        },
        {
            **REGIONS,
            "resnet18": {"network": "timm:resnet18"},
            "resnet50": {"network": "timm:resnet50"},
            "resnet152": {"network": "timm:resnet152"},
            "vgg19_bn": {"network": "timm:vgg19_bn"},
            "efficientnet_b7": {"network": "timm:tf_efficientnet_b7.aa_in1k"},
            "inception_resnet_v2": {"network": "timm:inception_resnet_v2"},
        },
        only=("background+resnet18",),
        words=with_drawn_masks,
    ),
    "loan2022-normalize": System(
        write_covidx_fake,
        {
            "data": "CovidxCXR3DataModule",
            "classes": ("negative", "positive"),
            "network": "timm:resnet50",
            "optimizer": ("AdamW", 0.0001),
            "epochs": 10,
        },
        {
            "grey": {"size": (256, 256, 1)},
            "rgb": {},
            "imagenet": {},
            "published": {"normalization": ((0.5002,), (0.2079,))},
            "computed": {"normalization": "computed"},
            "none": {"normalization": UNIT},
        },
        only=("grey+published",),
        slow=True,
    ),
    "tahir2021-detect": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": ("other", "COVID-19"),
            "mode": "binary",
            "network": "timm:densenet121",
            "loss": "BCELoss",
            "epochs": 15,
        },
        REGIONS,
        only=("lungs",),
        slow=True,
    ),
    "bolhassani2021-findings": System(
        write_xrv_nih_fake,
        {
            "data": "XRayVisionDataModule",
            "classes": FINDINGS,
            "mode": "multilabel",
            "network": "timm:resnet50",
            "size": (224, 224, 3),
            "loss": "BCELoss",
            "optimizer": ("Adam", 0.001),
            "schedule": "plateau",
            "epochs": 10,
        },
        words=lambda root: ["--data.dataset_args.csvpath", "nih.csv"],
    ),
    "bolhassani2021-chexnet": System(
        write_xrv_nih_fake,
        {
            "data": "XRayVisionDataModule",
            "classes": FINDINGS,
            "mode": "multilabel",
            "network": "timm:densenet121",
            "size": (224, 224, 3),
            "loss": "BCELoss",
            "optimizer": ("Adam", 0.001),
            "schedule": "plateau",
            "epochs": 10,
        },
        words=lambda root: ["--data.dataset_args.csvpath", "nih.csv"],
        slow=True,
    ),
    "bolhassani2021": System(
        write_coronahack_fake,
        {
            "data": "CoronaHackDataModule",
            "network": "timm:resnet50",
            "size": (224, 224, 3),
            "balance": "class",
            "epochs": 20,
            "start": "runs/bolhassani2021-findings/model",
        },
        {
            "three": {"classes": ("Normal", "Pneumonia", "COVID-19")},
            "two": {"classes": ("other", "COVID-19")},
            "cross_entropy": {},
            "focal": {"loss": "FocalLoss"},
            "resnet50": {},
            "densenet121": {"network": "timm:densenet121", "start": "runs/bolhassani2021-chexnet/model"},
        },
        only=("two+focal+resnet50",),
        words=lambda root: ["--model.init_from", "null"],
    ),
    "song2023-cnn19": System(
        write_radiography_fake,
        {"data": "Covid19RadiographyDataModule", "augment": LIGHT, "epochs": 30},
        {
            "three": {"classes": ("Viral Pneumonia", "Normal", "COVID")},
            "four": {"classes": ("Lung_Opacity", "Normal", "COVID", "Viral Pneumonia")},
            "cnn19": {"network": "cnn19", "start": False},
            "inception_v3": {"network": "timm:inception_v3", "normalization": HALF},
            "alexnet": {"network": "torchvision:alexnet"},
            "resnet50": {"network": "timm:resnet50"},
            "squeezenet": {"network": "torchvision:squeezenet1_1"},
            "vgg19": {"network": "timm:vgg19"},
        },
        only=("four+cnn19",),
        tiny=(*AT_32, "--model.model.network_args", "{width: 2}"),
    ),
    "gurpur2024-ensemble": System(
        write_covidx_ct2_fake,
        {
            "data": "CovidxCT2DataModule",
            "classes": ("Normal", "Pneumonia", "COVID-19"),
            "size": (224, 224, 3),
            "steps": ("normalize", "sharpen", "median", "binarize", "crop"),
            "augment": LIGHT,
            "epochs": 10,
        },
        {"resnet18": {"network": "timm:resnet18"}, "resnet50": {"network": "timm:resnet50"}},
        slow=True,
    ),
    "multidataset": System(
        write_three_fakes,
        {
            "data": "CombinedDataModule",
            "classes": ("normal", "pneumonia", "covid19"),
            "network": "timm:densenet121",
            "size": (224, 224, 3),
            "normalization": "computed",
            "balance": "class+source",
            "optimizer": ("AdamW", 0.0001),
            "epochs": 10,
        },
        words=lambda root: ["--data.near_duplicates", "false"],  # a test of its own looks for all copies
        slow=True,
    ),
    "das2021-cnn": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": COVID_QU_EX,
            "network": "cnn19",
            "size": (256, 256, 1),
            "normalization": ((0.5,), (0.25,)),
            "optimizer": ("Adam", 0.001),
            "epochs": 30,
            "start": False,
        },
        tiny=(*AT_32, "--model.model.network_args", "{width: 2}"),
        slow=True,
    ),
    "das2021-vit": System(
        write_covid_qu_ex_fake,
        {
            "data": "CovidQUExDataModule",
            "classes": COVID_QU_EX,
            "network": "timm:vit_small_patch16_224",
            "size": (224, 224, 3),
            "normalization": HALF,
            "optimizer": ("AdamW", 0.00005),
            "epochs": 20,
        },
        tiny=(*AT_32, "--model.model.network", "timm:test_vit"),
        slow=True,
    ),
    "covidcnn2021-small": System(
        write_covid_xray_5k_fake,
        {
            "data": "CovidXray5kDataModule",
            "classes": ("non", "covid"),
            "mode": "binary",
            "network": "covidcnn2021",
            "fit": "stretch",
            "normalization": UNIT,
            "augment": KERAS,
            "copies": {"covid": 242},
            "loss": "BCELoss",
            "optimizer": ("Adam", 0.001),
            "schedule": "constant",
            "epochs": 100,
            "start": False,
        },
        tiny=(),  # the real one, for an epoch
    ),
    "covidcnn2021-frozen": System(
        write_covid_xray_5k_fake, FROZEN | {"data": "CovidXray5kDataModule"}, BACKBONES, only=("mobilenet",)
    ),
    "covidcnn2021-frozen-covid_chestxray": System(
        write_ieee8023_fake,
        FROZEN | {"data": "Ieee8023DataModule"},
        BACKBONES,
        only=("vgg16",),
        tiny=NO_HEAD,
        slow=True,
    ),
    "covidcnn2021-frozen-coronahack": System(
        write_coronahack_fake,
        FROZEN | {"data": "CoronaHackDataModule"},
        BACKBONES,
        only=("vgg16",),
        tiny=NO_HEAD,
        slow=True,
    ),
    "covidcnn2021-frozen-covidx_ct2": System(
        write_covidx_ct2_fake,
        FROZEN | {"data": "CovidxCT2DataModule"},
        BACKBONES,
        only=("vgg16",),
        tiny=NO_HEAD,
        slow=True,
    ),
    "covidcnn2021-frozen-covid_ct": System(
        write_covid_ct_ucsd_fake,
        FROZEN | {"data": "CovidCTDataModule"},
        BACKBONES,
        only=("vgg16",),
        tiny=NO_HEAD,
        slow=True,
    ),
    "wali2021-vgg16": System(
        write_radiography_fake,
        {
            "data": "Covid19RadiographyDataModule",
            "classes": ("negative", "positive"),
            "mode": "binary",
            "network": "vgg16_head",
            "fit": "stretch",
            "augment": (),
            "loss": "BCELoss",
            "schedule": "constant",
            "epochs": 20,
        },
        {
            "sgd": {"momentum": 0.0},
            "adam": {},
            **{f"sgd+{lr}": {"optimizer": ("SGD", lr)} for lr in (0.01, 0.1)},
            **{f"adam+{lr}": {"optimizer": ("Adam", lr)} for lr in (0.01, 0.1)},
            **{f"{lr}": {} for lr in (0.01, 0.1)},
        },
        only=("sgd+0.01",),
        tiny=AT_32,
        slow=True,
    ),
    "base-segmenter": System(
        write_base_fake,
        {**MINI_LUNGS, "fit": "stretch", "normalization": HALF, "balance": "none", "epochs": 8},
        tiny=AT_32,
        words=lambda root: ["--data.fractions", "[0.5, 0.2]"],
        slow=True,
    ),
    "mini-gate": System(
        write_licensed_fake,
        {
            "data": "GateDataModule",
            "classes": (*ORIENTATIONS, CHILD, NOT_A_FRONTAL_IMAGE),
            "network": "timm:mobilenetv3_small_050",
            "size": (96, 96, 1),
            "normalization": ((0.5,), (0.27,)),
            "augment": STRONG_FLIP[1:],
            "optimizer": ("AdamW", 0.003),
            "epochs": 5,
            "start": False,
        },
        tiny=AT_32,
        words=lambda root: ["--data.drawn", "10"],
        slow=True,
    ),
    **{
        name: System(
            write_licensed_fake,
            MINI_LUNGS | {"epochs": 5 if start is True else 14, "start": start},
            tiny=AT_32,
            # Or one patient tests; the first segmenter is a recipe of its own.
            words=lambda root: ["--data.fractions", "[0.5, 0.2]", "--model.init_from", "null"],
            slow=True,
        )
        for name, start in {
            "mini-lungs": "runs/mini/first-pipeline",
            "mini-lungs-first": True,
            "mini-infection": "runs/mini/first-pipeline",
        }.items()
    },
    "mini-classifier": System(
        write_licensed_fake,
        {
            "data": "CSVDataModule",
            "classes": ("covid19", "pneumonia", "normal"),
            "network": "stage_pool",
            "size": (256, 256, 1),
            "region": "box",
            "steps": ("crop", "equalize"),
            "normalization": HALF,
            "augment": ("HorizontalFlip", "Affine", "RandomBrightnessContrast", "RandomGamma", "GaussNoise"),
            "balance": "class",
            "momentum": 0.9,
            "frozen": True,
            "optimizer": ("SGD", 0.02),
            "epochs": 8,
        },
        tiny=AT_32,
        words=lambda root: ["--data.drawn_masks", str(root / "drawn")],
        slow=True,
    ),
}


def test_every_recipe_has_its_test() -> None:
    assert recipe_paths().keys() - ELSEWHERE.keys() == SYSTEMS.keys() | {"loan2022-masks"}
    for name in recipe_paths().keys() & ELSEWHERE.keys():
        assert name in (Path(__file__).parents[1] / ELSEWHERE[name]).read_text(encoding="utf-8")


# --- what is in use ------------------------------------------------------------------------------------------------


def facts_of(session: Session, config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run, described by the objects that were built."""
    task, data, model = session.task, session.data, session.task.model.config
    preprocess, settings = model.preprocess, config["model"]["init_args"]
    configured: Any = task.configure_optimizers()
    optimizer: torch.optim.Optimizer = configured["optimizer"]
    group = optimizer.param_groups[0]
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    losses = getattr(task.loss, "losses", [task.loss])
    transforms = data.augment._compose.transforms if data.augment else ()
    return {
        "data": type(data).__name__,
        "classes": model.classes,
        "mode": model.mode,
        "network": model.network,
        "size": (*preprocess.image_size, preprocess.channels),
        "fit": preprocess.fit,
        "region": preprocess.region,
        "steps": tuple(step if isinstance(step, str) else step["name"] for step in preprocess.steps),
        "normalization": "computed" if session.settings.compute_mean_std else (preprocess.mean, preprocess.std),
        "augment": tuple(type(step).__name__ for step in transforms),
        "balance": data.balance,
        "copies": data.augmented_copies,
        "masks": data.mask_classes,
        "loss": " + ".join(type(loss).__name__ for loss in losses),
        "optimizer": (type(optimizer).__name__, group.get("initial_lr", group["lr"])),
        "momentum": group.get("momentum"),
        "schedule": task.hparams["schedule"],
        "frozen": trained == count(answer(task.model.network)),
        "epochs": session.trainer.max_epochs,
        "start": settings.get("init_from") or settings.get("pretrained_backbone", False),
    }


def answer(network: nn.Module) -> nn.Module:
    """The last layer."""
    if hasattr(network, "get_classifier"):
        return network.get_classifier()  # type: ignore[operator]
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


COUNTS = LIBRARY_COUNTS | {
    "timm:vit_small_patch16_224": 22_050_664,  # DeiT-S
    "timm:mobilenetv3_small_100": 2_542_856,  # torchvision's mobilenet_v3_small
    "timm:mobilenetv3_small_050": 1_593_224,  # 1.59 million in timm's own table
}
PUBLISHED = {"covidcnn2021": 422_177}
VGG16_FEATURES = 14_714_688


def parameters(config: ModelConfig, network: nn.Module) -> int:
    """The number of parameters that a network must have, by its publication or its own library."""
    name, channels = config.network.partition(".")[0], config.preprocess.channels
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name == "vgg16_head":  # with the published head 48,795,457
        rows, columns = (side // 32 for side in config.preprocess.image_size)
        widths = (512 * rows * columns, *config.network_args.get("hidden", (1024, 512)), config.outputs)
        return VGG16_FEATURES + sum((a + 1) * b for a, b in pairwise(widths))
    if name == "cnn19":
        widths = [channels, *(width for width in (16, 32, 64, 128, 256, 256) for _ in range(3))]
        return sum(9 * a * b + 2 * b for a, b in pairwise(widths)) + 257 * config.outputs
    if name == "hog":  # blocks of 2 x 2 cells of 9 directions at 7 x 7 places, and a thumbnail of 32 x 32
        return (4 * 9 * 7 * 7 + 32 * 32 + 1) * config.outputs
    if name == "stage_pool":  # the means of 40, 112 and 320 channels
        return count(timm.create_model("tf_efficientnet_lite0", features_only=True, in_chans=1)) + 473 * config.outputs
    if name == "residual_unet":
        return residual_unet(channels, config.outputs, **config.network_args)
    if name == "smp:fpn":
        arguments = {
            key.replace("encoder", "encoder_name", key == "encoder"): v for key, v in config.network_args.items()
        }
        return count(smp.FPN(**arguments, encoder_weights=None, in_channels=channels, classes=config.outputs))
    features = answer(network).weight[0].numel()  # type: ignore[index]
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return COUNTS[name] - (1000 - config.outputs) * (features + 1) - (3 - channels) * first.weight[:, 0].numel()


def residual_unet(channels: int, outputs: int, width: int, depth: int) -> int:
    widths = [width * 2**level for level in range(depth + 1)]
    encoder = pairwise([width, *widths])
    blocks = [*encoder, *((3 * made, made) for made in widths[:-1])]
    inside = sum(2 * a + 9 * a * b + 2 * b + 9 * b * b + a * b + b for a, b in blocks)
    return 9 * channels * width + inside + 2 * width + (width + 1) * outputs


def check_weights(config: ModelConfig, normalization: Any) -> None:
    """Weights that a recipe names exist, are ImageNet's, and get images as they had them."""
    library, _, name = config.network.rpartition(":")
    encoder = config.network_args.get("backbone", config.network_args.get("encoder", ""))
    if name == "stage_pool" or encoder.startswith("tu-"):
        library, name = "timm", encoder.removeprefix("tu-")
    if library == "timm":
        weights = timm.models.get_pretrained_cfg(name)
        assert weights.has_weights
        assert "in1k" in weights.tag
        assert "jft" not in weights.tag
        if normalization in (IMAGENET, HALF):
            assert normalization == (IMAGENET if weights.mean[0] == 0.485 else HALF)
    elif library == "smp":
        assert "imagenet" in smp.encoders.encoders[encoder]["pretrained_settings"]
    else:
        assert get_model_weights({"vgg16_head": "vgg16"}.get(name, name)).DEFAULT.meta["num_params"]


@pytest.mark.filterwarnings("ignore:The official split of:UserWarning")
@pytest.mark.parametrize("name", SYSTEMS)
def test_it_holds_what_was_published(name: str, tmp_path: Path) -> None:
    recipe, system = Recipe.read(name), SYSTEMS[name]
    root = system.fake(tmp_path / "data")
    words = ["--data.root", str(root), *system.words(root), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    used = set()
    for run, config in recipe.runs():
        path = write_yaml(tmp_path / "config.yaml", config)
        with torch.device("cpu" if system.facts.get("steps") else "meta"):  # the real network, without its memory
            session = check(parse_words(["--config", str(path), *words, "--model.pretrained_backbone", "false"]))
        expected = COMMON | system.facts
        for variant in (*run.split("+"), run) if run else ():
            expected = expected | system.variants.get(variant, {})
            used.add(variant)
        assert facts_of(session, config) == expected, run
        model = session.task.model
        assert count(model.network) == parameters(model.config, model.network), run
        if expected["start"] is True:
            check_weights(model.config, expected["normalization"])
    assert used >= system.variants.keys()
    assert used - system.variants.keys() <= set(dict(recipe.runs()))


def test_infection_is_learnt_from_images_of_covid19_patients_alone(tmp_path: Path) -> None:
    root = write_covid_qu_ex_fake(tmp_path)
    data = open_data(Recipe.read("long2024-infection").base(), ["--data.root", str(root)])
    assert {record.label for record in data.records} == {"COVID-19"}
    assert all("infection" in record.mask_paths for record in data.records)


def test_multidataset_aligns_labels_and_splits_patients_anew(tmp_path: Path) -> None:
    root = write_three_fakes(tmp_path)
    data = open_data(Recipe.read("multidataset").base(), ["--data.root", str(root)])
    for split, labels in data.counts().items():
        assert labels.keys() == set(data.classes), split
    members = {record.image_id.partition("/")[0] for record in data.train_dataset.records}
    assert members == {"covid-qu-ex", "radiography", "ieee8023"}
    assert not find_leaks(data.records)


# --- fit, test, report ---------------------------------------------------------------------------------------------


def check_report(folder: Path) -> None:
    """Model, curves, scores with intervals, rows and pictures of a run."""
    model = load_model(folder / "model")
    scores = json.loads((folder / "scores.json").read_text())["all"]
    sure = [score for score in scores.values() if score["low"] is not None]  # more than one patient
    assert sure
    assert [score for score in sure if not score["low"] <= score["value"] <= score["high"]] == []
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= max(score["count"] for score in scores.values())
    pictures = {path.stem for path in folder.glob("*.png") if path.stat().st_size > 5000}
    if model.task == "segmentation":
        assert scores.keys() >= {
            f"{s}_{c}" for s in ("dice", "iou", "precision", "recall") for c in model.config.classes
        }
    elif model.config.mode != "multilabel":
        names = ("sensitivity", "specificity", "precision", "f1", "auroc")
        assert scores.keys() >= {f"{score}_{c}" for score in names for c in model.config.classes}
        assert pictures >= {"confusion", "roc", "precision_recall"}
    if (folder / "model" / "history.json").is_file():  # boosted trees and ensembles have no epochs
        (epoch,) = json.loads((folder / "model" / "history.json").read_text())
        assert {"train/loss", "val/loss"} <= epoch.keys()
        assert "learning_curves" in pictures


def run_tiny(name: str, tmp_path: Path, *, recipe: Recipe | None = None, words: Sequence[str] | None = None) -> Path:
    """Run a recipe at a tiny size, on a fake of its data set that may be there, and check all that it reports."""
    system, root, out = SYSTEMS[name], tmp_path / "data", tmp_path / "out"
    if not root.exists():
        system.fake(root)
    words = system.words(root) if words is None else words
    tiny = [word for pair in TINY.items() for word in pair]
    recipe = recipe or Recipe.read(name)
    comparison = run_recipe(recipe, out, ["--data.root", str(root), *system.tiny, *tiny, *words], system.only)
    assert not comparison.failed
    for run in comparison.runs:
        check_report(run.folder)
    if recipe.compare:
        table = json.loads((out / "comparison.json").read_text())
        assert list(table["runs"]) == [run.name for run in comparison.runs]
        assert len((out / "comparison.md").read_text().splitlines()) == 2 + len(comparison.runs)
        assert (out / "comparison.png").stat().st_size > 5000
        assert (out / "curves.png").stat().st_size > 5000
        assert len((out / "epochs.md").read_text().splitlines()) >= 3
        classes = [load_model(run.folder / "model").config.classes for run in comparison.runs]
        rows = [each for names in classes if len(names) > 2 for each in names]
        table_of_classes = out / "comparison_classes.md"
        lines = table_of_classes.read_text().splitlines()[2:] if table_of_classes.is_file() else []
        assert [line.split(" | ")[1] for line in lines] == rows
    return out


PLAIN = SYSTEMS.keys() - {"loan2022-classify", "bolhassani2021", "gurpur2024-ensemble"}


@pytest.mark.filterwarnings("ignore:The official split of:UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * SYSTEMS[name].slow) for name in sorted(PLAIN)]
)
def test_it_goes_from_fit_to_report(name: str, tmp_path: Path) -> None:
    run_tiny(name, tmp_path)


def test_loan2022_masks_are_drawn_and_cleaned_and_small_lungs_told(tmp_path: Path) -> None:
    root, recipe = write_covidx_fake(tmp_path / "data"), Recipe.read("loan2022-masks")
    assert recipe.masks is not None
    assert recipe.masks["postprocess"] == ["remove_small_objects", "remove_small_holes"]
    run_recipe(replace(recipe, masks={**recipe.masks, "model": lung_finder()}), tmp_path, ["--data.root", str(root)])
    records = CovidxCXR3DataModule(root).records
    assert all((tmp_path / "masks" / f"{record.image_id}.lung_field.png").is_file() for record in records)
    with (tmp_path / "masks" / "small.csv").open(newline="") as file:
        assert [(row["image_id"], row["label"]) for row in csv.DictReader(file)] == [
            ("train/COVID(12).png", "positive")
        ]


def test_loan2022_classify_draws_its_masks_first_and_leaves_small_lungs_out(tmp_path: Path) -> None:
    recipe = Recipe.read("loan2022-classify")
    assert recipe.masks is not None
    assert recipe.masks["min_lung_area"] == 0.15
    recipe = replace(recipe, masks={**recipe.masks, "model": lung_finder()})
    out = run_tiny("loan2022-classify", tmp_path, recipe=recipe, words=[])
    images = CovidxCXR3DataModule(tmp_path / "data", drawn_masks=out / "masks", min_lung_area=0.15)
    assert len(images.records) == len(CovidxCXR3DataModule(tmp_path / "data").records) - 1
    preprocess = load_model(out / "background+resnet18" / "model").config.preprocess
    assert preprocess.region == "background"
    assert preprocess.mean != PreprocessConfig().mean, "normalised by what was computed"


def test_bolhassani2021_says_which_recipe_to_run_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_coronahack_fake(tmp_path / "data")
    for network, first in (("resnet50", "findings"), ("densenet121", "chexnet")):
        message = f"Run it first: covidcxr recipes run bolhassani2021-{first};"
        with pytest.raises(ConfigError, match=message):
            run_recipe(Recipe.read("bolhassani2021"), tmp_path / "out", ["--data.root", str(root)], [network])
    assert not list(tmp_path.glob("out/*/checkpoints"))


def test_bolhassani2021_starts_from_what_the_findings_taught(tmp_path: Path) -> None:
    findings = ModelConfig(
        "classification",
        "timm:test_resnet",
        FINDINGS,
        "multilabel",
        preprocess=PreprocessConfig(image_size=(32, 32), channels=3),
    )
    torch.manual_seed(0)
    first = ClassificationModel(findings)
    first.save_pretrained(tmp_path / "findings")
    words = ["--model.init_from", str(tmp_path / "findings"), "--model.lr", "0"]
    second = load_model(run_tiny("bolhassani2021", tmp_path, words=words) / "two+focal+resnet50" / "model")
    assert second.config.classes == ("other", "COVID-19")
    assert isinstance(second, ClassificationModel)
    assert torch.equal(second.network.conv1[0].weight, first.network.conv1[0].weight)  # type: ignore[index, union-attr]


@pytest.mark.filterwarnings("ignore:The official split of:UserWarning")
@pytest.mark.slow
def test_gurpur2024_combines_two_networks_and_boosted_trees(tmp_path: Path) -> None:
    recipe = Recipe.read("gurpur2024-ensemble")
    assert recipe.ensemble is not None
    assert recipe.ensemble["boosting"]["network_args"]["backbone"] == "timm:mobilenetv2_100"
    boosting = {"network_args": {"backbone": "timm:test_resnet", "stages": 3, "depth": 2}}
    recipe = replace(recipe, ensemble={**recipe.ensemble, "boosting": boosting})
    out = run_tiny("gurpur2024-ensemble", tmp_path, recipe=recipe)
    ensemble = load_model(out / "ensemble" / "model")
    assert isinstance(ensemble, EnsembleModel)
    assert list(ensemble.config.members) == ["resnet18", "resnet50", "boosting"]
