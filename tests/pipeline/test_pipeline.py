"""Image in, answer out: every part of the pipeline, its saved form, and the bundled weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from covidcxr.config import FORMAT_VERSION, ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError, ImageReadError, PretrainedError, UnknownNameError
from covidcxr.io import pretrained, read_image, write_image
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.models.network import resize_images
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.folder import predict_folder
from covidcxr.pipeline.parts import check_golden
from covidcxr.pipeline.pipeline import FailedPrediction, Pipeline, Prediction
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.results import write_sheet
from covidcxr.transforms.overlay import mask_color

SIZE = (64, 64)
ENCODER = {"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
CLASSES = ("covid19", "pneumonia", "normal")


def segmenter(*classes: str, **preprocess: Any) -> SegmentationModel:
    torch.manual_seed(0)
    mode = "binary" if len(classes) == 1 else "multilabel"
    settings = PreprocessConfig(image_size=SIZE, **preprocess)
    return SegmentationModel(ModelConfig("segmentation", "smp:fpn", classes, mode, dict(ENCODER), settings))


def classifier(thresholds: dict[str, float] | None = None, **preprocess: Any) -> ClassificationModel:
    torch.manual_seed(1)
    settings = PreprocessConfig(image_size=SIZE, **preprocess)
    network = "timm:mobilenetv3_small_050"
    config = ModelConfig("classification", network, CLASSES, preprocess=settings, thresholds=thresholds or {})
    return ClassificationModel(config)


def picture(height: int = 90, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def half_segmenter(*classes: str, seed: int = 0) -> SegmentationModel:
    """A segmenter that gives each class about half of `picture()`."""
    model = segmenter(*classes)
    with torch.no_grad():
        for parameter in model.network.segmentation_head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    maps = model.predict(torch.from_numpy(picture())[None, None])[0]
    thresholds = {name: float(plane.median()) for name, plane in zip(classes, maps, strict=True)}
    model.config = dataclasses.replace(model.config, thresholds=thresholds)
    return model


def masks_of(model: SegmentationModel) -> dict[str, np.ndarray]:
    """What a segmenter itself draws on `picture()`."""
    image = picture()
    maps = model.predict_resized(*resize_images(model, [image], [{}]))
    return model.masks_of(maps, [image.shape])[0]


def same(first: Prediction, second: Prediction, tolerance: float = 0.0) -> bool:
    near = all(abs(first.probabilities[n] - second.probabilities[n]) <= tolerance for n in first.probabilities)
    masks = all(np.array_equal(mask, second.masks[name]) for name, mask in first.masks.items())
    return near and masks and (first.label, first.reasons) == (second.label, second.reasons)


@pytest.fixture(scope="module")
def small() -> Pipeline:
    return Pipeline(
        lung_segmenter=segmenter("lung_field", "lung"),
        infection_segmenter=segmenter("infection"),
        classifier=classifier(region="lungs", lung_dilation=0.05),
        min_lung_area=0.0,
    )


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def test_masks_have_the_images_own_size_and_infection_lies_in_the_lungs(small: Pipeline) -> None:
    prediction = small(picture(131, 77))
    assert set(prediction.masks) == {"lung_field", "lung", "infection"}
    assert all(mask.shape == (131, 77) and mask.dtype == bool for mask in prediction.masks.values())
    lungs = prediction.masks["lung_field"] | prediction.masks["lung"]
    assert not (prediction.masks["infection"] & ~lungs).any()
    assert prediction.lung_mask is prediction.masks["lung_field"]
    assert prediction.lung_fraction == pytest.approx(prediction.masks["lung_field"].mean())


def test_every_finding_is_kept_and_only_an_infection_is_cut_to_the_lungs(tmp_path: Path) -> None:
    findings = half_segmenter("infection", "effusion")
    lung_segmenter = half_segmenter("lung_field", seed=1)
    pipeline = Pipeline(lung_segmenter=lung_segmenter, infection_segmenter=findings, min_lung_area=0.0)
    assert pipeline.mask_classes == ("lung_field", "infection", "effusion")
    image = picture()
    whole = Pipeline(infection_segmenter=findings)(image).masks
    prediction = pipeline(image)
    assert prediction.findings == ("infection", "effusion")
    assert np.array_equal(prediction.masks["effusion"], whole["effusion"])
    assert np.array_equal(prediction.masks["infection"], whole["infection"] & prediction.masks["lung_field"])
    assert (whole["infection"] & ~prediction.masks["lung_field"]).any()
    lungs = prediction.masks["lung_field"]
    shares = {name: (prediction.masks[name] & lungs).sum() / lungs.sum() for name in prediction.findings}
    assert prediction.to_dict()["finding_fractions"] == pytest.approx(shares)
    assert prediction.infected_fraction == prediction.finding_fractions["infection"]
    prediction.save(tmp_path, "film")
    assert {path.name for path in tmp_path.glob("film.*.png")} == {
        f"film.{name}.png" for name in ("lung_field", "infection", "effusion", "overlay")
    }
    none = np.zeros(image.shape, bool)
    revised = pipeline.revise(image, {"effusion": none})
    assert not revised.masks["effusion"].any()
    assert np.array_equal(revised.masks["infection"], prediction.masks["infection"])
    entries = [{"name": "film", **prediction.to_dict()}]
    write_sheet(tmp_path / "index.html", entries, {"films": 1, "failed": 0, "answers": {}, "left_out": {}})
    page = (tmp_path / "index.html").read_text()
    assert f'<i style="background:rgb{mask_color("effusion")}"></i>effusion' in page
    assert f"effusion {prediction.finding_fractions['effusion']:.0%} of the lungs" in page


def test_one_model_of_lungs_and_findings_is_a_pipeline() -> None:
    both = half_segmenter("lung_field", "infection")
    prediction = Pipeline(lung_segmenter=both, min_lung_area=0.0)(picture())
    assert set(prediction.masks) == {"lung_field", "infection"}
    cut = masks_of(both)["infection"] & prediction.masks["lung_field"]
    assert np.array_equal(prediction.masks["infection"], cut)


@pytest.mark.parametrize("shared", [("lung_field",), ("infection",), ("lung_field", "infection")])
def test_of_a_class_that_both_segmenters_predict_the_lung_segmenters_mask_counts(
    shared: tuple[str, ...], tmp_path: Path
) -> None:
    lungs = half_segmenter(*dict.fromkeys(("lung_field", *shared)), seed=1)
    findings = half_segmenter(*dict.fromkeys((*shared, "infection")))
    pipeline = Pipeline(lung_segmenter=lungs, infection_segmenter=findings, min_lung_area=0.0)
    loaded = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    assert loaded.mask_classes == ("lung_field", "infection")
    alone = Pipeline(lung_segmenter=lungs, min_lung_area=0.0)(picture()).masks
    masks = loaded(picture()).masks
    assert all(np.array_equal(masks[name], alone[name]) for name in shared)
    assert not np.array_equal(masks["lung_field"], masks_of(findings).get("lung_field"))
    if "infection" not in shared:
        assert np.array_equal(masks["infection"], masks_of(findings)["infection"] & masks["lung_field"])


def test_lungs_of_the_infection_segmenter_are_kept_but_cut_nothing() -> None:
    lungs, findings = half_segmenter("lung_field", seed=1), half_segmenter("lung", "infection")
    parts = {"lung_segmenter": lungs, "classifier": classifier(region="background"), "min_lung_area": 0.0}
    both = Pipeline(infection_segmenter=findings, **parts)(picture())
    assert np.array_equal(both.masks["lung"], masks_of(findings)["lung"])
    assert np.array_equal(both.masks["infection"], masks_of(findings)["infection"] & both.masks["lung_field"])
    assert both.probabilities == Pipeline(**parts)(picture()).probabilities


def test_the_image_keeps_its_old_name(small: Pipeline) -> None:
    prediction = small(picture())
    assert prediction.film is prediction.image


def test_every_part_alone_is_a_pipeline() -> None:
    answers = Pipeline(classifier=classifier())(picture())
    assert answers.masks == {}
    assert answers.lung_fraction is None
    assert answers.infected_fraction is None
    assert answers.label == max(answers.probabilities, key=lambda name: answers.probabilities[name])
    assert sum(answers.probabilities.values()) == pytest.approx(1, abs=1e-6)
    lungs = Pipeline(lung_segmenter=segmenter("lung"))(picture())
    assert set(lungs.masks) == {"lung"}
    assert lungs.label is None
    assert lungs.probabilities == {}


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        Pipeline()
    with pytest.raises(ConfigError, match="lung_segmenter"):
        Pipeline(classifier=classifier(region="lungs"))
    with pytest.raises(ConfigError, match="lung_field or lung"):
        Pipeline(lung_segmenter=segmenter("infection"))
    with pytest.raises(ConfigError, match="infection"):
        Pipeline(infection_segmenter=segmenter("lung"))
    with pytest.raises(ConfigError, match="min_lung_area"):
        Pipeline(classifier=classifier(), min_lung_area=1.5)


def test_many_images_give_what_each_alone_gives(small: Pipeline) -> None:
    pictures = [picture(50 + 9 * n, 64, seed=n) for n in range(5)]
    for batch_size, workers in ((1, 0), (2, 0), (16, 2)):
        many = list(small.predict(pictures, batch_size=batch_size, num_workers=workers))
        assert [answer.image_id for answer in many] == [f"film-{n}" for n in range(5)]
        for one, answer in zip(pictures, many, strict=True):
            assert isinstance(answer, Prediction)
            assert same(small(one), answer, 1e-6)


def test_equal_encoders_become_one_on_loading_and_are_computed_once(small: Pipeline, tmp_path: Path) -> None:
    twin = segmenter("infection")
    assert small.lung_segmenter is not None
    twin.network.encoder.load_state_dict(small.lung_segmenter.network.encoder.state_dict())
    apart = Pipeline(lung_segmenter=small.lung_segmenter, infection_segmenter=twin, min_lung_area=0.0)
    loaded = Pipeline.from_pretrained(apart.save_pretrained(tmp_path / "saved"))
    assert loaded.lung_segmenter is not None
    assert loaded.infection_segmenter is not None
    assert loaded.lung_segmenter.network.encoder is loaded.infection_segmenter.network.encoder
    assert twin.network.encoder is not small.lung_segmenter.network.encoder
    calls = []
    loaded.lung_segmenter.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    pictures = [picture(seed=n) for n in range(3)]
    for one, other in zip(loaded.predict(pictures), apart.predict(pictures), strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert same(one, other)
    assert len(calls) == len(pictures), "one pass of the encoder an image, for both"
    seen = torch.from_numpy(pictures[0])[None, None]
    both = loaded.lung_segmenter.predict_resized_with(loaded.infection_segmenter, seen)
    for maps, model in zip(both, (small.lung_segmenter, twin), strict=True):
        # The hook keeps the networks of `loaded` from being fused, which rounds otherwise.
        torch.testing.assert_close(maps, model.predict_resized(seen), atol=1e-5, rtol=1e-5)
    again = Pipeline.from_pretrained(loaded.save_pretrained(tmp_path / "again"))
    assert same(again(pictures[0]), apart(pictures[0]))


@pytest.mark.parametrize("change", ["weights", "size", "stride"])
def test_unequal_encoders_stay_apart(change: str) -> None:
    lungs, infection = segmenter("lung_field"), segmenter("infection")
    if change == "weights":
        next(infection.network.encoder.parameters()).data[0] += 0.1
    elif change == "size":
        infection.config = dataclasses.replace(infection.config, preprocess=PreprocessConfig(image_size=(96, 96)))
    else:
        first = next(m for m in infection.network.encoder.modules() if isinstance(m, torch.nn.Conv2d))
        first.stride, first.padding = (1, 1), (3, 3)
    assert not lungs.merge_encoder(infection)
    assert not lungs.shares_encoder(infection)
    assert segmenter("lung").merge_encoder(segmenter("infection"))


def test_a_single_image_and_small_models_take_one_core(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    torch.set_num_threads(2)
    try:
        assert small.classifier is not None
        hook = small.classifier.network.register_forward_hook(lambda *_: counts.append(torch.get_num_threads()))
        small(picture())
        list(small.predict([picture(), picture(seed=1)]))
        monkeypatch.setattr(small, "_small", False)
        small(picture())
        assert counts == [1, 2, 2, 2], "one core for one image; two for the two of a batch and for large models"
        assert torch.get_num_threads() == 2
    finally:
        hook.remove()
        torch.set_num_threads(1)


def test_a_corrected_mask_changes_the_answer_and_is_not_doubted(small: Pipeline) -> None:
    image = picture()
    drawn = small(image)
    field = np.zeros(image.shape, dtype=bool)
    field[10:20, 10:20] = True
    revised = small.revise(image, {"lung_field": field})
    assert np.array_equal(revised.masks["lung_field"], field)
    assert revised.lung_mask is not None
    assert np.array_equal(revised.masks["lung"], drawn.masks["lung"])
    assert revised.reasons == ()
    assert revised.probabilities != drawn.probabilities
    infection = small.revise(image, {"infection": field}).masks["infection"]
    assert np.array_equal(infection, field)
    assert same(small.revise(image, {}), drawn)
    for wrong, message in (
        ({"heart": field}, "draws no mask 'heart'"),
        ({"lung": field[:5]}, "of the image's size"),
        ({"lung": ~field & field}, "not empty"),
        ({"lung": field.astype(np.uint8)}, "uint8"),
    ):
        with pytest.raises(ConfigError, match=message):
            small.revise(image, wrong)


def test_images_are_read_as_they_are_needed(small: Pipeline) -> None:
    drawn = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            drawn.append(1)
            yield picture()

    answers = small.predict(endless(), batch_size=3)
    next(answers)
    assert len(drawn) == 3


def test_a_bad_image_is_one_entry(small: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    good = picture()
    answers = list(small.predict([good, tmp_path / "text.png", good, tmp_path / "none.png"], on_error="return"))
    assert [type(answer) for answer in answers] == [Prediction, FailedPrediction, Prediction, FailedPrediction]
    assert isinstance(answers[1], FailedPrediction)
    assert "text.png" in str(answers[1].error)
    assert answers[1].to_dict()["kind"] == "ImageReadError"
    with pytest.raises(ImageReadError, match=r"text\.png"):
        list(small.predict([good, tmp_path / "text.png"]))
    with pytest.raises(ImageReadError, match=r"none\.png"):
        small(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("images", "settings"),
    [
        ("film.png", {}),
        (b"bytes", {}),
        (np.zeros((9, 9, 3)), {}),
        (torch.zeros(3, 9, 9), {}),
        (None, {}),
        ([], {"batch_size": 0}),
        ([], {"num_workers": -1}),
        ([], {"on_error": "skip"}),
    ],
)
def test_wrong_arguments_fail_at_the_call(small: Pipeline, images: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        small.predict(images, **settings)


def test_lungs_that_are_not_there_give_a_reason_and_no_answer() -> None:
    blind = segmenter("lung")
    with torch.no_grad():
        blind.network.segmentation_head[0].bias.fill_(-20.0)
    pipeline = Pipeline(lung_segmenter=blind, classifier=classifier(region="lungs"))
    prediction = pipeline(picture())
    assert prediction.label is None
    assert prediction.probabilities == {}
    assert prediction.reasons[0] == "lungs-not-found"
    assert all(in_words(reason).endswith(".") for reason in prediction.reasons)
    whole = Pipeline(lung_segmenter=blind, classifier=classifier())(picture())
    assert whole.label is None
    assert whole.probabilities, "a classifier of whole images is asked, but not believed"


def test_a_probability_set_with_more_or_less_than_one_class_cannot_say() -> None:
    shown = picture()
    assert Pipeline(classifier=classifier(dict.fromkeys(CLASSES, 0.0)))(shown).reasons == ("several-answers-plausible",)
    assert Pipeline(classifier=classifier(dict.fromkeys(CLASSES, 0.999)))(shown).reasons == ("no-answer-plausible",)
    sure = Pipeline(classifier=classifier({"covid19": 0.0, "pneumonia": 1.0, "normal": 1.0}))(shown)
    assert sure.label == "covid19"
    assert sure.reasons == ()


def test_a_saved_pipeline_gives_the_same_in_a_new_process(small: Pipeline, tmp_path: Path) -> None:
    folder = small.save_pretrained(tmp_path / "saved")
    shown = picture(120, 100)
    Image.fromarray((shown * 255).astype(np.uint8)).save(tmp_path / "film.png")
    here = small(tmp_path / "film.png")
    code = (
        "import json, socket, sys, numpy as np, torch\n"
        "def refuse(*_): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "torch.set_num_threads(1)\n"
        "from covidcxr import Pipeline\n"
        f"answer = Pipeline.from_pretrained({str(folder)!r})({str(tmp_path / 'film.png')!r})\n"
        f"np.savez({str(tmp_path / 'masks.npz')!r}, **answer.masks)\n"
        "assert not any(name.startswith('lightning') for name in sys.modules)\n"
        "print(json.dumps(answer.to_dict()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == here.to_dict()
    with np.load(tmp_path / "masks.npz") as masks:
        assert all(np.array_equal(masks[name], mask) for name, mask in here.masks.items())
    twice = Pipeline.from_pretrained(Pipeline.from_pretrained(folder).save_pretrained(tmp_path / "again"))
    assert same(here, twice(tmp_path / "film.png"))
    assert check_golden(twice, tmp_path / "again" / "golden") == []


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_folders_give_one_clear_error_each(small: Pipeline, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return small.save_pretrained(tmp_path / name)

    folder = fresh("truncated")
    weights = folder / "classifier" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match=r"model\.safetensors.*truncated or was altered"):
        Pipeline.from_pretrained(folder)
    folder = fresh("tampered")
    weights = folder / "classifier" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PretrainedError, match="altered"):
        Pipeline.from_pretrained(folder)
    folder = fresh("key")
    change_json(folder / "classifier" / "config.json", netwrk="x")
    with pytest.raises(ConfigError, match=r"netwrk.*network"):
        Pipeline.from_pretrained(folder)
    folder = fresh("index")
    change_json(folder / "pipeline.json", componentz=[])
    with pytest.raises(ConfigError, match=r"componentz.*components"):
        Pipeline.from_pretrained(folder)
    for part in ("pipeline.json", "lung_segmenter/config.json"):
        folder = fresh("newer" + part[:4])
        change_json(folder / part, format_version=FORMAT_VERSION + 1, from_the_future=1)
        with pytest.raises(PretrainedError, match=r"pip install --upgrade covidcxr"):
            Pipeline.from_pretrained(folder)
    folder = fresh("step")
    change_json(folder / "pipeline.json", postprocess=["fill_hols"])
    with pytest.raises(UnknownNameError, match="fill_holes"):
        Pipeline.from_pretrained(folder)
    folder = fresh("gone")
    (folder / "classifier" / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match="missing"):
        Pipeline.from_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"pipeline\.json is missing"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="mini"):
        Pipeline.from_pretrained("minni")


def test_a_missing_part_is_never_looked_for_on_the_hub(
    small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "classifier")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(PretrainedError, match=r"m/classifier is missing"):
        Pipeline.from_pretrained("m")


def test_saving_over_a_larger_pipeline_leaves_none_of_its_parts(small: Pipeline, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    Pipeline(lung_segmenter=small.lung_segmenter).save_pretrained(tmp_path)
    assert not (tmp_path / "classifier").exists()
    assert SegmentationModel.from_pretrained(tmp_path).config == small.lung_segmenter.config
    assert list(Pipeline.from_pretrained(tmp_path / "lung_segmenter").models()) == ["lung_segmenter"]


def test_saving_removes_no_folder_that_no_pipeline_named(small: Pipeline, tmp_path: Path) -> None:
    trained = classifier().save_pretrained(tmp_path / "classifier")
    Pipeline(lung_segmenter=small.lung_segmenter).save_pretrained(tmp_path)
    assert (trained / "model.safetensors").is_file()


def test_parts_of_the_wrong_kind_are_refused(small: Pipeline) -> None:
    with pytest.raises(ConfigError, match="classifier must be a ClassificationModel"):
        Pipeline(classifier=small.lung_segmenter)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="postprocess"):
        Pipeline(classifier=classifier(), postprocess=["fill_holes"])  # type: ignore[arg-type]


def test_findings_that_may_come_together_need_their_thresholds() -> None:
    torch.manual_seed(0)
    network = "timm:mobilenetv3_small_050"
    settings = PreprocessConfig(image_size=SIZE)
    config = ModelConfig("classification", network, ("effusion", "mass"), "multilabel", preprocess=settings)
    model = ClassificationModel(config)
    assert model.answer({"effusion": 1e-4, "mass": 1e-5}) == (None, ("no-answer-plausible",))
    assert model.answer({"effusion": 0.9, "mass": 1e-5}) == ("effusion", ())
    assert model.answer({"effusion": 0.9, "mass": 0.8}) == (None, ("several-answers-plausible",))


def test_golden_inputs_notice_another_model(small: Pipeline, tmp_path: Path) -> None:
    golden = small.save_pretrained(tmp_path) / "golden"
    assert check_golden(small, golden) == []
    other = Pipeline(lung_segmenter=segmenter("lung_field", "lung"), classifier=classifier(), min_lung_area=0.0)
    faults = check_golden(other, golden)
    assert any("probability" in fault for fault in faults)
    assert any("infection" in fault for fault in faults)


def test_push_to_hub_uploads_what_save_pretrained_writes(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            seen["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, **upload: Any) -> str:
            seen["files"] = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()}
            seen["upload"] = upload
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert small.push_to_hub("me/lungs", private=True, token="t", revision="v1") == "https://example.org/me/lungs"
    assert seen["repo"] == ("me/lungs", True, True)
    assert seen["token"] == "t"
    assert seen["upload"] == {"revision": "v1"}
    wanted = {"pipeline.json", "README.md", "classifier/config.json", "lung_segmenter/model.safetensors"}
    assert wanted | {"golden/golden.json"} <= seen["files"]


def test_a_prediction_is_saved_as_json_masks_and_overlay(small: Pipeline, tmp_path: Path) -> None:
    prediction = small(picture(80, 90))
    path = prediction.save(tmp_path, "film")
    assert json.loads(path.read_text()) == prediction.to_dict()
    for name, mask in prediction.masks.items():
        saved = Image.open(tmp_path / f"film.{name}.png")
        assert saved.mode == "1"
        assert np.array_equal(saved, mask)
    overlay = np.asarray(Image.open(tmp_path / "film.overlay.png"))
    assert overlay.shape == (80, 90, 3)
    assert np.array_equal(overlay, prediction.overlay())
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.label = "normal"  # type: ignore[misc]


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("label", ["normal", "covid19", "pneumonia"])
def test_mini_finds_the_lungs_of_phantoms(mini: Pipeline, label: Any, view: Any) -> None:
    phantom = draw_phantom(11, label=label, view=view)
    prediction = mini(phantom.image)
    for name in ("lung_field", "lung"):
        truth, drawn = phantom.masks[name], prediction.masks[name]
        assert 2 * (truth & drawn).sum() / (truth.sum() + drawn.sum()) > 0.8
    assert set(prediction.probabilities) == {"covid19", "pneumonia", "normal"}


def test_mini_gives_its_golden_answers(mini: Pipeline) -> None:
    assert check_golden(mini, pretrained.fetch("mini") / "golden") == []


def test_mini_is_small() -> None:
    files = [path for path in pretrained.fetch("mini").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6


def test_mini_models_load_alone() -> None:
    assert SegmentationModel.from_pretrained("mini").config.classes == ("lung_field", "lung", "infection")
    assert set(ClassificationModel.from_pretrained("mini").config.classes) == {"covid19", "pneumonia", "normal"}


def test_mini_refuses_what_shows_no_lungs(mini: Pipeline) -> None:
    for shown in (np.zeros((300, 300), np.float32), np.ones((300, 200), np.float32)):
        prediction = mini(shown)
        assert prediction.label is None
        assert prediction.reasons


@pytest.mark.real
def test_mini_reads_every_original_format(mini: Pipeline, real_data: Path) -> None:
    files = sorted((real_data / "originals").iterdir())
    answers = list(mini.predict(files))
    assert len(answers) == 13
    assert all(isinstance(answer, Prediction) for answer in answers)
    # One figure of a web page is no frontal image to the view check.
    assert sum(bool(answer.lung_fraction) for answer in answers) >= 12


def test_an_image_of_twelve_bits_in_sixteen_says_so_and_how_to_read_it(mini: Pipeline, tmp_path: Path) -> None:
    stored = np.rint(draw_phantom(0, label="normal").image * 4095).astype(np.uint16)
    path = tmp_path / "dark.png"
    Image.fromarray(stored).save(path)
    dark = mini(path)
    assert dark.label is None
    assert dark.reasons[-1] == "12-bits-in-16"
    assert "not-a-frontal-film" in dark.reasons
    assert "`covidcxr predict --bits 12`" in in_words(dark.reasons[-1])
    (cured,) = mini.predict([path], bits=12)
    assert not {"not-a-frontal-film", "12-bits-in-16"} & set(cured.reasons)
    assert mini(read_image(path, bits=12)).probabilities == cured.probabilities
    summary = predict_folder([path], tmp_path / "out", model=mini, bits=12, progress=False)
    assert "12-bits-in-16" not in json.dumps(summary)
    with pytest.raises(ConfigError, match="bits must be 8 to 16"):
        mini.predict([path], bits=20)


def test_open_files_and_numbers_of_numpy(small: Pipeline, tmp_path: Path) -> None:
    prediction = small(picture())
    write_image(tmp_path / "a.png", picture())
    content = (tmp_path / "a.png").read_bytes()
    streams = [BytesIO(content), bytearray(content), BytesIO(b"no image")]
    results = list(small.predict(streams, batch_size=np.int64(2), num_workers=np.int32(1), on_error="return"))
    assert [type(result) for result in results] == [Prediction, Prediction, FailedPrediction]
    written = small(tmp_path / "a.png").probabilities
    assert all(result.probabilities == pytest.approx(written) for result in results[:2])  # type: ignore[union-attr]
    assert prediction.probabilities.keys() == written.keys()
    with pytest.raises(ConfigError, match="for one image call pipeline"):
        small.predict(BytesIO(content))
    for size in (True, 2.0, "2"):
        with pytest.raises(ConfigError, match="batch_size must be 1 or more"):
            small.predict([], batch_size=size)  # type: ignore[arg-type]


def test_a_file_is_no_saved_pipeline_and_its_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(PretrainedError, match=r"is a file\. Give the folder of the saved model"):
        Pipeline.from_pretrained(tmp_path / "pipeline.json")
