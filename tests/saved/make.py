"""Makes the saved things in this folder that `tests/test_saved.py` loads with the code of today.

They were made by covidcxr 0.1.0, commit b4ca5c4, and they stay as that version wrote them: a later version must go on
reading them. Run this script with that version only (it uses names that later versions moved), from anywhere:

    git worktree add OLD b4ca5c4
    PYTHONPATH=OLD/src python tests/saved/make.py --out NEW_FOLDER

Nothing here is of a patient: every image is drawn by `covidcxr.phantom`. All commands run in a scratch folder with
relative paths, so that no path of the machine gets into what is kept. Pictures of plots, HTML pages, logs and the
audit's cache (which names absolute paths) are left out: nothing needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import covidcxr.golden
import cv2
import httpx
import numpy as np
import torch
from covidcxr.orientation import ORIENTATIONS

import covidcxr
from covidcxr import (
    ClassificationModel,
    CSVDataModule,
    EnsembleModel,
    ModelConfig,
    MultiTask,
    Pipeline,
    Prediction,
    PreprocessConfig,
    SegmentationModel,
    read_image,
)
from covidcxr.cli import main as covidcxr_main
from covidcxr.phantom import draw_other, draw_phantom, write_dataset
from covidcxr.serve import ServeSettings
from covidcxr.serve.server import Server
from covidcxr.tasks import fit_boosting

HERE = Path(__file__).resolve().parent
CLASSES = ("covid19", "normal", "pneumonia")
TINY_RESNET: dict[str, Any] = {"channels": [4, 4, 8, 8], "stem_width": 4}
TINY_HOG: dict[str, Any] = {"side": 32, "cell": 8, "orientations": 4, "thumbnail": 0}
TINY_UNET: dict[str, Any] = {"encoder": "tu-test_resnet", "encoder_depth": 2, "decoder_channels": [4, 4]}
MASK_COLUMNS = '{"lung_field": "lung_field", "lung": "lung", "infection": "infection"}'
GOLDEN = tuple(f"pipeline/golden/film-{number}.png" for number in (3, 4, 5))
UPLOADED = "images/phantom-00003.png"
PREDICTED = ("images/phantom-00000.png", "images/phantom-00001.png")
DROPPED = ("*.html", "log.txt", "*.overlay.png", "fingerprints-*.npz")


def run(*words: str | Path) -> None:
    """Run a command of covidcxr, which must succeed."""
    sys.argv = ["covidcxr", *map(str, words)]  # which stands in a report as the command that made it
    code = covidcxr_main(sys.argv[1:])
    if code != 0:
        raise SystemExit(f"{' '.join(sys.argv)} ended with {code}.")


def classifier(
    network: str,
    network_args: dict[str, Any],
    seed: int,
    *,
    temperature: float = 1.0,
    **preprocess: Any,
) -> ClassificationModel:
    """Build a classifier with the weights of a seed."""
    torch.manual_seed(seed)
    settings = PreprocessConfig(**{"image_size": (32, 32), **preprocess})
    config = ModelConfig(
        "classification",
        network,
        CLASSES,
        network_args=network_args,
        preprocess=settings,
        temperature=temperature,
    )
    return ClassificationModel(config).eval()


def infection_segmenter() -> SegmentationModel:
    """Build a segmenter with the weights of a seed."""
    torch.manual_seed(2)
    config = ModelConfig(
        "segmentation",
        "smp:unet",
        ("infection",),
        "binary",
        TINY_UNET,
        PreprocessConfig(image_size=(32, 32)),
        thresholds={"infection": 0.505},
    )
    return SegmentationModel(config).eval()


def make_phantoms() -> None:
    """Draw the data set that all others are made from: `phantoms/`, 24 images of 64x64 with all masks."""
    write_dataset("phantoms", 24, seed=7, size=(64, 64))


def make_fit() -> None:
    """`covidcxr fit`: `fit/model/` (the model), `fit/config.yaml` (what LightningCLI wrote), `fit/last.pt`.

    The checkpoint is `last.ckpt` of the training, under a name that no `.gitignore` leaves out.
    """
    place = ("--trainer.logger", "false", "--trainer.default_root_dir", "fit")
    run("fit", "--config", "recipes/lungs.yaml", "--data.root", "phantoms", *place, "--output", "fit/model")
    shutil.move("fit/checkpoints/last.ckpt", "fit/last.pt")
    shutil.rmtree("fit/checkpoints")


def make_pipeline() -> None:
    """`Pipeline.save_pretrained` in half precision, with all four parts; what it says of images in `expected.json`.

    The gate and the lung segmenter (that of `fit/`) were trained. The golden images are drawn smaller than usual, and
    one of them lies on its side, one is inverted, and one is a page of text, as for every pipeline with a gate.
    """
    covidcxr.golden._films = small_golden_images
    place = ("--trainer.logger", "false", "--trainer.default_root_dir", "gate")
    run("fit", "--config", "recipes/gate.yaml", "--data.root", "phantoms", *place, "--output", "gate/model")
    pipeline = Pipeline(
        gate=ClassificationModel.from_pretrained("gate/model"),
        lung_segmenter=SegmentationModel.from_pretrained("fit/model"),
        infection_segmenter=infection_segmenter(),
        classifier=classifier("timm:test_resnet", TINY_RESNET, 1, region="lungs", lung_dilation=0.05, temperature=0.5),
        min_lung_area=0.05,
    )
    pipeline.save_pretrained("pipeline", dtype="float16")
    write_expected(Path("pipeline"))


def small_golden_images(*, gated: bool) -> list[np.ndarray]:
    """Draw the golden images of a pipeline with a gate, smaller than covidcxr does."""
    upright = [draw_phantom(seed, label=label, size=(64, 64)).image for seed, label in enumerate(CLASSES)]
    askew = [ORIENTATIONS[name].lay(draw_phantom(9, size=(80, 64)).image) for name in ("turned-90", "inverted")]
    return [*upright, *askew, draw_other(0, "text", size=(80, 64))]


def write_expected(folder: Path) -> None:
    """Write what the saved pipeline says of some of the drawn images."""
    pipeline = Pipeline.from_pretrained(folder)
    expected = {}
    for name in (*(f"phantoms/images/phantom-{number:05d}.png" for number in range(3)), *GOLDEN):
        prediction = pipeline(read_image(name))
        assert isinstance(prediction, Prediction)
        expected[name] = {
            "label": prediction.label,
            "probabilities": prediction.probabilities,
            "reasons": list(prediction.reasons),
            "notes": list(prediction.notes),
            "areas": {mask_class: int(mask.sum()) for mask_class, mask in prediction.masks.items()},
        }
    write_json(folder / "expected.json", expected)


def make_ensemble() -> None:
    """`EnsembleModel.save_pretrained`: three members of three kinds; what it says of images in `expected.json`."""
    data = CSVDataModule("phantoms", image_size=(32, 32))
    torch.manual_seed(3)
    settings = PreprocessConfig(image_size=(32, 32))
    boosted_args = {"backbone": "hog", "stages": 2, "depth": 2}
    boosted = ClassificationModel(
        ModelConfig("classification", "boosted", CLASSES, network_args=boosted_args, preprocess=settings)
    )
    members = {
        "linear": classifier("hog", TINY_HOG, 4, temperature=0.5),
        "small": classifier("timm:test_resnet", TINY_RESNET, 5, channels=3, fit="stretch", steps=("equalize",)),
        "boosted": fit_boosting(boosted, data, seed=0),
    }
    weights = {"linear": 1.0, "small": 2.0, "boosted": 1.0}
    EnsembleModel(members, weights=weights, temperature=0.8, thresholds=dict.fromkeys(CLASSES, 0.3)).save_pretrained(
        "ensemble", dtype="float16"
    )
    ensemble = Pipeline(classifier=EnsembleModel.from_pretrained("ensemble"))
    names = [f"images/phantom-{number:05d}.png" for number in range(4)]
    write_json(
        Path("ensemble/expected.json"),
        {name: ensemble(read_image(Path("phantoms") / name)).probabilities for name in names},
    )


def make_multitask() -> None:
    """The folder that `MultiTask.save_pretrained` writes where its models make no pipeline.

    A real one is above a megabyte, because no network whose encoder can be shared is small. So a real one is written,
    and two smaller models are laid out as it is.
    """
    masks = ModelConfig(
        "segmentation", "smp:unet", ("infection",), "binary", {"encoder": "tu-test_resnet"}, PreprocessConfig((32, 32))
    )
    labels = ModelConfig("classification", "timm:test_resnet", CLASSES, preprocess=PreprocessConfig((32, 32)))
    MultiTask(masks, labels).save_pretrained("multitask-real")
    infection_segmenter().save_pretrained("multitask/segmenter", dtype="float16")
    classifier("hog", TINY_HOG, 6).save_pretrained("multitask/classifier", dtype="float16")
    real, ours = (
        sorted(path.relative_to(folder) for path in Path(folder).rglob("*"))
        for folder in ("multitask-real", "multitask")
    )
    assert real == ours, (real, ours)


def make_prepared() -> None:
    """`covidcxr datasets prepare`: a compact copy at 32x32."""
    settings = ("--set", f"mask_columns={MASK_COLUMNS}")
    size = ("--image-size", "32", "32")
    run("datasets", "prepare", "csv", "--root", "phantoms", "--out", "prepared", *size, *settings)


def make_masks() -> None:
    """`covidcxr datasets masks`: the lungs of all images, drawn by the segmenter of `pipeline/`."""
    run("datasets", "masks", "csv", "--root", "phantoms", "--model", "pipeline", "--out", "masks")


def make_run() -> None:
    """`covidcxr recipes run`: one run, fitted and tested."""
    run("recipes", "run", "recipes/tiny.yaml", "--data.root", "phantoms", "--output", "run", "--model.lr", "0.005")


def make_sweep() -> None:
    """`covidcxr recipes run`: two variants compared."""
    run("recipes", "run", "recipes/sweep.yaml", "--data.root", "phantoms", "--output", "sweep")


def make_study() -> None:
    """`covidcxr tune`: two trials, and the study in SQLite."""
    words = ("--data.root", "phantoms", "--output", "study", "--trials", "2")
    run("tune", "recipes/search.yaml", *words)
    with closing(sqlite3.connect("study/study.db")) as database:
        database.execute("VACUUM")


def make_answers() -> None:
    """`covidcxr predict` of two images, named by their paths below the data set."""
    paths = [Path("phantoms") / name for name in PREDICTED]
    run("predict", *paths, "--root", "phantoms", "--model", "pipeline", "--out", "answers", "--num-workers", "0")
    summary = json.loads(Path("answers/summary.json").read_text(encoding="utf-8"))
    for key in ("page", "predictions"):  # absolute paths
        summary[key] = os.path.relpath(summary[key])
    write_json(Path("answers/summary.json"), summary)


def make_evaluation() -> None:
    """`covidcxr evaluate` of the run: every number, and the model card."""
    run("evaluate", "run", "--out", "evaluation", "--name", "tiny", "--resamples", "200")


def make_audit() -> None:
    """`covidcxr audit` of the drawn images."""
    run("audit", "--data", "csv", "--data.root", "phantoms", "--model", "pipeline", "--out", "audit", "--folds", "3")


def make_store() -> None:
    """The store of `covidcxr serve` after an upload, a corrected mask and a verdict with consent.

    `feedback/` is what `covidcxr feedback` exports from it.
    """
    server = Server(ServeSettings(model="pipeline", store="store", port=0, workers=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while client.get("/api/health").status_code == 503:
                time.sleep(0.05)
            give_feedback(client)
    finally:
        server.should_exit = True
        thread.join()
    assert [path.name for path in Path("store").iterdir()] == ["store.sqlite"], "the database was not closed"
    run("feedback", "store", "--out", "feedback")


def give_feedback(client: httpx.Client) -> None:
    """Upload an image, empty the upper quarter of a mask, and say what the image shows."""
    content = (Path("phantoms") / UPLOADED).read_bytes()
    response = client.post("/api/films", files={"file": ("drawn.png", content)})
    response.raise_for_status()
    place = f"/api/films/{response.json()['id']}"
    picture = client.get(f"{place}/masks/lung_field.png").raise_for_status().content
    mask = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    mask[:16] = 0
    corrected = cv2.imencode(".png", mask)[1].tobytes()
    client.put(f"{place}/masks/lung_field", content=corrected).raise_for_status()
    chances = {"covid19": 0.5, "normal": 0.3, "pneumonia": 0.2}
    client.put(f"{place}/prior", json={"probabilities": chances}).raise_for_status()
    verdict = {"label": "normal", "comment": "drawn, not a patient", "consent": True}
    client.put(f"{place}/verdict", json=verdict).raise_for_status()


def write_json(path: Path, data: Any) -> None:
    """Write JSON that people can read."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


KINDS: dict[str, Callable[[], None]] = {
    "phantoms": make_phantoms,
    "fit": make_fit,
    "pipeline": make_pipeline,
    "ensemble": make_ensemble,
    "multitask": make_multitask,
    "prepared": make_prepared,
    "masks": make_masks,
    "run": make_run,
    "sweep": make_sweep,
    "study": make_study,
    "answers": make_answers,
    "evaluation": make_evaluation,
    "audit": make_audit,
    "store": make_store,
}


def keep(folder: Path, out: Path) -> None:
    """Move what was made into the folder of saved things, without what nothing reads."""
    for pattern in DROPPED:
        for path in folder.rglob(pattern):
            path.unlink()
    if folder.name in ("run", "sweep", "study", "evaluation", "audit"):  # plots
        for path in folder.rglob("*.png"):
            path.unlink()
    shutil.rmtree(out / folder.name, ignore_errors=True)
    shutil.copytree(folder, out / folder.name)


def make(out: Path) -> None:
    """Make all kinds in a scratch folder, and put them into `out`."""
    if not Path(covidcxr.__file__).with_name("golden.py").is_file():
        raise SystemExit("These are things that covidcxr 0.1.0 (commit b4ca5c4) saved; this is a later version.")
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        shutil.copytree(HERE / "recipes", "recipes")
        for make_kind in KINDS.values():
            make_kind()
        for name in (*KINDS, "feedback", "recipes"):
            if (Path(name).resolve() != out / name) and not (name == "recipes" and out == HERE):
                keep(Path(name), out)
        os.chdir(HERE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the saved things with covidcxr 0.1.0.")
    parser.add_argument("--out", type=Path, default=HERE, help="where they go (the folder of this script)")
    make(parser.parse_args().out)
