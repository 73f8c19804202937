"""Preprocessing steps: each against another implementation, the contract of all, and inside a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import ndimage
from skimage.exposure import rescale_intensity
from skimage.filters import threshold_otsu, unsharp_mask
from torch import Tensor
from torch.nn.functional import interpolate

import covidcxr.transforms.preprocess as preprocess_module
from covidcxr.cli import main
from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.phantom import draw_phantom, write_dataset
from covidcxr.pipeline.parts import check_golden
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.registry import PREPROCESS_STEPS
from covidcxr.tasks import ClassificationTask
from covidcxr.transforms.preprocess import (
    Preprocess,
    binarize_image,
    crop_image,
    filter_median,
    moves_pixels,
    normalize_image,
    sharpen_image,
)

CHAIN = ["normalize", "sharpen", {"name": "median", "size": 3}, "binarize", "crop"]
STAYING = CHAIN[:-1]
SIZE = (64, 64)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def image(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))[None, None]


def array(image: Tensor) -> np.ndarray:
    return image[0, 0].numpy()


def chest(seed: int = 0, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    return draw_phantom(seed, size=size).image * 0.6 + 0.1


def slice_of_ct() -> np.ndarray:
    """A body with lungs; a letter and the table beside it are as bright."""
    rows, columns = np.indices((80, 100))
    ct = np.full((80, 100), 0.05)
    ct[((columns - 50) / 30) ** 2 + ((rows - 35) / 20) ** 2 <= 1] = 0.7
    ct[((columns - 40) / 8) ** 2 + ((rows - 35) / 12) ** 2 <= 1] = 0.2
    ct[((columns - 60) / 8) ** 2 + ((rows - 35) / 12) ** 2 <= 1] = 0.2
    ct[70:73, 5:95] = ct[3:9, 3:6] = 0.9
    return ct


IMAGES = {
    "noise": noise(40, 33),
    "chest": chest(),
    "CT": slice_of_ct(),
    "ramp": np.tile(np.linspace(0, 1, 50), (30, 1)),
}
each_image = pytest.mark.parametrize("name", IMAGES)

# --- steps


@each_image
@pytest.mark.parametrize(("low", "high"), [(1, 99), (0, 100), (12.5, 90)])
def test_normalize_agrees_with_numpy_and_skimage(name: str, low: float, high: float) -> None:
    ends = np.percentile(IMAGES[name], (low, high))
    wanted = rescale_intensity(IMAGES[name], in_range=tuple(ends), out_range=(0.0, 1.0))
    given = normalize_image(image(IMAGES[name]), low=low, high=high)
    np.testing.assert_allclose(array(given), wanted, atol=2e-6)


def test_equalized_greys_are_ranks() -> None:
    image = torch.rand(2, 1, 40, 50)
    equal = Preprocess(["equalize"])(image)
    share = torch.histc(equal[0], 10, 0, 1) / equal[0].numel()
    assert (share - 0.1).abs().max() < 0.03
    for change in (image**2, 0.2 + 0.5 * image, image.sqrt()):  # greys have 8 bits, so ranks are coarse
        assert (Preprocess(["equalize"])(change) - equal).abs().max() < 0.07
    image[:, :, :20] = 0
    kept = Preprocess([{"name": "equalize", "skip_black": True}])(image)
    assert kept[:, :, :20].eq(0).all()
    assert kept[:, :, 20:].mean() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(Preprocess(["equalize"])(torch.full((1, 1, 8, 8), 0.3)), torch.full((1, 1, 8, 8), 0.3))


def test_normalized_images_differ_no_more_in_exposure() -> None:
    bright, dark = (normalize_image(image(chest() * scale + shift)) for scale, shift in ((1, 0), (0.3, 0.2)))
    torch.testing.assert_close(bright, dark, atol=1e-5, rtol=0)
    stretched = normalize_image(image(chest()), low=0, high=100)
    torch.testing.assert_close(normalize_image(stretched, low=0, high=100), stretched)


def test_a_image_without_contrast_is_not_blown_up() -> None:
    faint = image(0.5 + noise(20, 20) / 300)
    assert torch.equal(normalize_image(faint), faint)
    assert normalize_image(image(0.5 + noise(20, 20) / 200)).max() == 1


@each_image
@pytest.mark.parametrize(("amount", "radius"), [(1.0, 1.0), (0.4, 2.0), (3.0, 0.5)])
def test_sharpen_agrees_with_skimage(name: str, amount: float, radius: float) -> None:
    far = 12  # so far from the border that it does not matter how skimage goes on beyond it
    wanted = unsharp_mask(np.pad(IMAGES[name], far, mode="edge"), radius, amount)[far:-far, far:-far]
    given = sharpen_image(image(IMAGES[name]), amount=amount, radius=radius)
    np.testing.assert_allclose(array(given), wanted, atol=2e-6 * (1 + amount))


@each_image
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_median_agrees_with_scipy(name: str, size: int) -> None:
    greys = IMAGES[name].astype(np.float32)
    assert np.array_equal(
        array(filter_median(image(greys), size=size)), ndimage.median_filter(greys, size, mode="nearest")
    )


def test_median_removes_specks_and_keeps_edges() -> None:
    edges = np.zeros((20, 20))
    edges[:, 9:] = 1
    specked = edges.copy()
    specked[2::5, 2::4] = 0.5
    assert np.array_equal(array(filter_median(image(specked))), edges)


@each_image
def test_binarize_agrees_with_skimage(name: str) -> None:
    greys = IMAGES[name].astype(np.float32)
    half_a_bin = np.ptp(greys) / 512  # skimage gives the middle of the last dark bin of its histogram
    wanted = greys >= threshold_otsu(greys) + half_a_bin
    mask = array(binarize_image(image(greys), keep="mask"))
    assert (mask != wanted).sum() <= 2, "a grey on the border of two bins may be rounded"
    assert np.array_equal(array(binarize_image(image(greys))), np.where(mask == 1, greys, 0))


def test_the_best_threshold_is_found() -> None:
    """Otsu's own words: of all cuts in two, the variance between the two is greatest."""
    greys = np.rint(chest() * 255) / 255
    greys[0, :2] = 0, 1
    bright = array(binarize_image(image(greys), keep="mask")) == 1
    between = {}
    for cut in np.unique(greys)[1:]:
        dark = greys < cut
        between[cut] = dark.mean() * (1 - dark.mean()) * (greys[dark].mean() - greys[~dark].mean()) ** 2
    assert np.array_equal(bright, greys >= max(between, key=lambda cut: between[cut]) - 1e-9)


def test_binarize_at_a_fixed_threshold() -> None:
    greys = image(np.array([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    assert binarize_image(greys, threshold=0.5).flatten().tolist() == [0, 0, 0.5, 0.75, 1]
    assert binarize_image(greys, threshold=0.5, keep="mask").flatten().tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(binarize_image(greys, keep="film"), binarize_image(greys, keep="image"))  # its name in 0.1.0
    once = binarize_image(image(chest()), threshold=0.4)
    assert torch.equal(binarize_image(once, threshold=0.4), once)
    mask = binarize_image(image(chest()), keep="mask")
    assert torch.equal(binarize_image(mask, keep="mask"), mask)
    assert torch.equal(binarize_image(mask), mask)


def test_crop_goes_to_the_body() -> None:
    ct = slice_of_ct()
    cropped = crop_image(image(ct), margin=0)
    wanted = interpolate(image(ct)[..., 15:56, 20:81], (80, 100), mode="bilinear", align_corners=False)
    assert torch.equal(cropped, wanted)
    assert torch.equal(crop_image(cropped, margin=0), cropped), "there is no more to cut"
    wider = interpolate(image(ct)[..., 11:60, 15:86], (80, 100), mode="bilinear", align_corners=False)
    assert torch.equal(crop_image(image(ct), margin=0.05), wider)
    with_table = interpolate(image(ct)[..., 3:73, 3:95], (80, 100), mode="bilinear", align_corners=False)
    assert torch.equal(crop_image(image(ct), largest=False, margin=0), with_table)
    bone = interpolate(image(ct)[..., 70:73, 5:95], (80, 100), mode="bilinear", align_corners=False)
    assert torch.equal(crop_image(image(ct), threshold=0.8, margin=0), bone)


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_part_agrees_with_scipy(seed: int) -> None:
    smooth = ndimage.gaussian_filter(noise(50, 70, seed=seed), (0.4, 0.8, 1.5)[seed % 3])
    bright = smooth > np.quantile(smooth, 0.6)
    parts, _ = ndimage.label(bright, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    largest = array(preprocess_module._largest_part(torch.from_numpy(bright)[None, None]))
    assert largest.sum() == areas.max()
    assert len(np.unique(parts[largest])) == 1


def test_a_long_winding_part_is_one() -> None:
    snake = np.zeros((41, 41), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    snake[20, 20] = False
    halves = array(preprocess_module._largest_part(torch.from_numpy(snake)[None, None]))
    assert halves.sum() == pytest.approx(snake.sum() / 2, abs=21)
    assert np.array_equal(
        halves, ndimage.label(snake, np.ones((3, 3)))[0] == ndimage.label(snake, np.ones((3, 3)))[0][halves][0]
    )


# --- the contract of every registered step


@pytest.mark.parametrize("name", list(PREPROCESS_STEPS))
def test_every_step_keeps_the_contract(name: str) -> None:
    step = PREPROCESS_STEPS.get(name)
    bare = [np.zeros((9, 7)), np.ones((9, 7)), np.full((9, 7), 0.3), np.eye(9), noise(1, 1), noise(2, 65), noise(65, 2)]
    for greys in (*bare, *IMAGES.values()):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            given = image(greys).to(dtype)
            before = given.clone()
            made = step(given)
            assert (made.shape, made.dtype) == (given.shape, dtype)
            assert 0 <= made.min() <= made.max() <= 1, "also tells NaN"
            assert torch.equal(given, before), "the images given stay as they are"


@pytest.mark.parametrize("name", list(PREPROCESS_STEPS))
def test_every_step_takes_each_image_by_itself(name: str) -> None:
    step = PREPROCESS_STEPS.get(name)
    batch = torch.cat([image(chest(seed)) for seed in range(3)] + [torch.full((1, 1, 96, 80), 0.5)])
    together = step(batch)
    assert torch.equal(together, torch.cat([step(one[None]) for one in batch]))
    for mixed in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=mixed):
            assert torch.equal(step(batch), together), "mixed precision is for the network"
    assert torch.equal(step(batch[..., ::2, :]), step(batch[..., ::2, :].contiguous()))


def test_all_steps_of_the_catalogue_are_registered() -> None:
    assert {"normalize", "sharpen", "median", "binarize", "crop"} <= set(PREPROCESS_STEPS)
    assert all(hasattr(preprocess_module, name) for name in preprocess_module.__all__)


# --- the chain


def test_chain_runs_in_order() -> None:
    given = image(chest())
    wanted = crop_image(binarize_image(filter_median(sharpen_image(normalize_image(given)))))
    assert torch.equal(Preprocess(CHAIN)(given), wanted)
    assert not torch.equal(Preprocess(CHAIN[::-1])(given), wanted)
    assert torch.equal(Preprocess()(given), given)
    assert Preprocess(CHAIN).moving == ("crop",)
    assert Preprocess(STAYING).moving == ()


def test_config_survives_json() -> None:
    chain = Preprocess(CHAIN)
    again = Preprocess.from_config(json.loads(json.dumps(chain.to_config())))
    assert again.to_config() == CHAIN
    assert again == chain
    assert hash(again) == hash(chain)
    assert again != Preprocess(STAYING)
    assert repr(chain) == f"Preprocess({CHAIN})"


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        (["medain"], UnknownNameError, "preprocessing step 'medain'.*'median'"),
        ([{"name": "median", "sise": 3}], ConfigError, "sise.*preprocessing step 'median'.*'size'"),
        ([{"name": "median", "size": 4}], ConfigError, "'median': size.*odd.*4"),
        ([{"name": "median", "size": 3.5}], ConfigError, "size.*odd"),
        ([{"name": "median", "size": 17}], ConfigError, "size"),
        ([{"name": "normalize", "low": 60, "high": 40}], ConfigError, "normalize.*low must be below high"),
        ([{"name": "normalize", "high": 101}], ConfigError, "high"),
        ([{"name": "sharpen", "amount": "much"}], ConfigError, "sharpen.*amount"),
        ([{"name": "sharpen", "radius": 0}], ConfigError, "radius"),
        ([{"name": "sharpen", "radius": float("nan")}], ConfigError, "radius"),
        ([{"name": "binarize", "keep": "picture"}], ConfigError, "binarize.*keep must be one of image, mask"),
        ([{"name": "binarize", "threshold": 128}], ConfigError, "threshold"),
        ([{"name": "crop", "margin": True}], ConfigError, "crop.*margin"),
        ([{"name": "crop", "largest": "yes"}], ConfigError, "largest"),
        (["median", {"size": 3}], ConfigError, "Preprocessing step 2.*name"),
        ("median", ConfigError, "Preprocessing steps must be a list"),
    ],
)
def test_wrong_chains_say_what_is_wrong(steps: Any, error: type[ConfigError], words: str) -> None:
    with pytest.raises(error, match=words):
        Preprocess(steps)


@pytest.fixture
def third_party_step() -> Iterator[str]:
    @PREPROCESS_STEPS.register("shift")
    @moves_pixels
    def shift(image: Tensor, *, rows: int) -> Tensor:
        return image.roll(rows, 2)

    yield "shift"
    del PREPROCESS_STEPS._entries["shift"]


def test_other_packages_add_steps(third_party_step: str) -> None:
    chain = Preprocess([{"name": third_party_step, "rows": 2}])
    assert torch.equal(chain(image(chest()))[..., 2:, :], image(chest())[..., :-2, :])
    assert chain.moving == ("shift",)
    with pytest.raises(ConfigError, match="rows"):
        Preprocess([third_party_step])


# --- inside a model


def classifier(**settings: Any) -> ClassificationModel:
    preprocess = PreprocessConfig(**{"image_size": SIZE, "steps": CHAIN, **settings})
    classes = ("covid19", "normal", "pneumonia")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClassificationModel(
            ModelConfig("classification", "timm:resnet10t", classes, preprocess=preprocess)
        ).eval()


def segmenter(steps: list[Any]) -> SegmentationModel:
    preprocess = PreprocessConfig(image_size=SIZE, steps=steps)  # type: ignore[arg-type]
    encoder = {"encoder": "tu-mobilenetv3_small_050"}
    return SegmentationModel(ModelConfig("segmentation", "smp:fpn", ("lung",), "binary", encoder, preprocess))


def test_a_model_applies_its_steps_at_its_size() -> None:
    model, given = classifier(), image(chest(size=(128, 128)))
    fitted = classifier(steps=[], mean=[0.0], std=[1.0]).preprocess(given)
    torch.testing.assert_close(model.preprocess(given), (Preprocess(CHAIN)(fitted) - 0.5) / 0.25)
    assert not torch.equal(model.predict(given), classifier(steps=[]).predict(given))


def test_a_saved_model_has_its_steps(tmp_path: Path) -> None:
    model, given = classifier(), image(chest())
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["preprocess"]["steps"] == CHAIN
    again = ClassificationModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again.predict(given), model.predict(given))

    del saved["preprocess"]["steps"]  # as it was saved before there were any
    (tmp_path / "model" / "config.json").write_text(json.dumps(saved))
    old = ClassificationModel.from_pretrained(tmp_path / "model")
    assert old.config.preprocess.steps == ()
    assert torch.equal(old.predict(given), classifier(steps=[]).predict(given))


def test_a_pipeline_keeps_its_golden_answers(tmp_path: Path) -> None:
    pipeline = Pipeline(classifier=classifier())
    answer = pipeline(chest())
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "pipeline"))
    assert again(chest()).probabilities == answer.probabilities
    assert check_golden(again, tmp_path / "pipeline" / "golden") == []


def test_the_box_around_the_lungs() -> None:
    box = {"name": "crop", "threshold": 0.01, "largest": False, "margin": 0.0}
    model = classifier(region="lungs", steps=[box], mean=[0.0], std=[1.0])
    given, lungs = image(noise(*SIZE) * 0.5 + 0.5), torch.zeros(1, 1, *SIZE)
    lungs[..., 10:40, 5:25] = lungs[..., 15:42, 35:60] = 1
    wanted = interpolate((given * lungs)[..., 10:42, 5:60], SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.preprocess(given, lungs), wanted)


@pytest.mark.parametrize("region", ["full", "box", "lungs", "background"])
def test_a_image_is_the_same_in_training_and_in_use(region: Any, phantoms: Path) -> None:
    """A data module blackens what is not of the region, a pipeline leaves that to the model."""
    masks = {"lung_field": "lung_field", "lung": "lung"}
    model = classifier(region=region, steps=CHAIN if region == "full" else STAYING)
    batches = [
        next(iter(_images(phantoms, mask_columns=masks, region=cut, mask_classes=("lung_field", "lung"))))
        for cut in (region, "full")
    ]
    assert torch.equal(batches[0]["image"], batches[1]["image"]) is (region == "full")
    seen = [model.preprocess(batch["image"], batches[0].get("lung_mask")) for batch in batches]
    assert torch.equal(*seen)


@pytest.mark.parametrize("steps", [["crop"], ["normalize", {"name": "crop", "margin": 0.1}]])
def test_what_moves_pixels_is_not_for_masks(steps: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"'crop' moves pixels.*only classifiers"):
        segmenter(steps)
    assert segmenter(STAYING).predict(image(chest())).shape == (1, 1, 96, 80)


def test_wrong_steps_of_a_config() -> None:
    for steps in ("median", 3, [3], [["median"]], [{"name": "median", "size": {1}}], [{"size": float("nan")}]):
        with pytest.raises(ConfigError, match="steps"):
            PreprocessConfig.from_dict({"steps": steps})
    with pytest.raises(UnknownNameError, match="'median'"):
        classifier(steps=["medain"])


def test_plain_data_is_the_callers_own() -> None:
    steps = [{"name": "median", "size": 3}]
    config = ModelConfig("classification", "any", ("a", "b"), preprocess=PreprocessConfig(steps=steps))  # type: ignore[arg-type]
    steps[0]["size"] = 5
    config.to_dict()["preprocess"]["steps"][0]["size"] = 7
    assert config.preprocess.steps == ({"name": "median", "size": 3},)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# --- training


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), 12, seed=3, size=(96, 96)).parent


def _images(folder: Path, **settings: Any) -> Any:
    images = CSVDataModule(folder, image_size=SIZE, batch_size=4, augment=None, **settings)
    images.setup()
    return images.val_dataloader()


def test_a_task_trains_with_the_chain(phantoms: Path, tmp_path: Path) -> None:
    images = CSVDataModule(phantoms, image_size=SIZE, batch_size=4)
    task = ClassificationTask(classifier().config, lr=1e-3)
    assert task.hparams["model"]["preprocess"]["steps"] == CHAIN
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", **quiet)
    trainer.fit(task, images)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    rows = [row for batch in trainer.predict(task, _images(phantoms)) or [] for row in batch]
    predicted = torch.tensor([[row[f"probability_{name}"] for name in task.model.config.classes] for row in rows])
    again = ClassificationModel.from_pretrained(task.save_pretrained(tmp_path / "model"))
    batches = [batch["image"] for batch in _images(phantoms)]
    assert torch.equal(predicted, torch.cat([again.predict(images) for images in batches]))


def test_the_command_line_takes_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path, phantoms: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"""
model:
  class_path: ClassificationTask
  init_args:
    model:
      task: classification
      network: timm:resnet10t
      classes: [covid19, normal, pneumonia]
      preprocess: {{image_size: [64, 64], steps: [normalize, {{name: median, size: 3}}]}}
data:
  class_path: CSVDataModule
  init_args: {{root: {phantoms}, image_size: [64, 64]}}
trainer: {{accelerator: cpu, logger: false}}
""")
    fit = ["fit", "--config", str(config)]
    with pytest.raises(SystemExit):
        main([*fit, "--print_config"])
    printed = capsys.readouterr().out
    assert "- normalize\n" in printed
    assert "- name: median\n" in printed
    assert main([*fit, "--compute_mean_std", "true"]) != 0
    assert "preprocess.steps" in capsys.readouterr().err
    assert main([*fit, "--model.model.preprocess.steps", "[medain]"]) != 0
    assert "Did you mean 'median'" in capsys.readouterr().err
