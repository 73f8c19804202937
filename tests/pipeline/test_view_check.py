"""The gate: how images lie, what is drawn to be refused, what is admitted, corrected and refused, and the pipeline."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig, read_image
from covidcxr.data.datasets.view_check import GateDataModule, _cut_out, _shuffle_tiles
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.phantom import OTHERS, draw_other, draw_phantom, write_dataset
from covidcxr.pipeline.parts import check_golden
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.results import write_sheet
from covidcxr.pipeline.view_check import ViewCheck, check_view_model, check_views
from covidcxr.transforms.pyramid import CHILD, NOT_A_FRONTAL_IMAGE, ORIENTATIONS, UPRIGHT, Orientation

CLASSES = (*ORIENTATIONS, NOT_A_FRONTAL_IMAGE)


def marked(strength: float = 0.4, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """An upright image in the eyes of `edge_gate`: its upper edge is brighter than the rest."""
    picture = np.full(size, 0.3, np.float32)
    picture[:10] += strength
    return picture


def edge_gate(thresholds: dict[str, float] | None = None, classes: tuple[str, ...] = CLASSES) -> ClassificationModel:
    """A gate that looks for the edge that differs; as sure as it differs; without one, it is no image."""
    settings = PreprocessConfig(image_size=(48, 48), fit="stretch")
    gate = ClassificationModel(
        ModelConfig(
            "classification", "timm:mobilenetv3_small_050", classes, preprocess=settings, thresholds=thresholds or {}
        )
    )

    def predict(image: torch.Tensor, lung_mask: torch.Tensor | None = None) -> torch.Tensor:
        rows = []
        for picture in image[:, 0].numpy():
            middle = np.median(picture)
            edges = [
                picture[:6].mean(),
                picture[:, -6:].mean(),
                picture[-6:].mean(),
                picture[:, :6].mean(),
            ]  # clockwise
            away = np.array(edges) - middle
            turns = int(np.abs(away).argmax())
            sure = min(1.0, abs(away[turns]) / 0.4)
            name = Orientation(turns, bool(away[turns] < 0)).name if sure > 0.1 else NOT_A_FRONTAL_IMAGE
            chances = dict.fromkeys(classes, (1 - sure) / (len(classes) - 1))
            rows.append([chances[one] if one != name else (sure if sure > 0.1 else 1.0) for one in classes])
        return torch.tensor(rows)

    gate.predict = predict
    return gate


def test_there_are_eight_orientations_and_turns_are_clockwise() -> None:
    assert len(ORIENTATIONS) == 8
    assert next(iter(ORIENTATIONS)) == UPRIGHT.name == "frontal"
    picture = np.zeros((3, 2), np.float32)
    picture[0, 0] = 1  # the upper left corner
    assert ORIENTATIONS["turned-90"].lay(picture).tolist() == [[0, 0, 1], [0, 0, 0]]
    assert ORIENTATIONS["turned-180"].lay(picture)[2, 1] == 1
    assert ORIENTATIONS["inverted"].lay(picture).tolist() == (1 - picture).tolist()
    assert ORIENTATIONS["inverted-turned-270"].faults == ("inverted", "turned-270")


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_image_and_its_masks_come_back_as_they_were(name: str) -> None:
    way, rng = ORIENTATIONS[name], np.random.default_rng(0)
    picture, mask = rng.random((30, 20), np.float32), {"lung": rng.random((30, 20)) > 0.5}
    np.testing.assert_allclose(way.correct(way.lay(picture)), picture, atol=1e-7)
    assert np.array_equal(way.correct_masks(way.lay_masks(mask))["lung"], mask["lung"])
    assert way.lay_masks(mask)["lung"].shape == way.lay(picture).shape


@pytest.mark.parametrize("kind", OTHERS)
def test_other_pictures_are_drawn_alike_from_one_seed_and_differ_between_seeds(kind: Any) -> None:
    picture = draw_other(1, kind, size=(96, 128))
    assert picture.shape == (96, 128)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() <= picture.max() <= 1
    assert np.array_equal(picture, draw_other(1, kind, size=(96, 128)))
    assert len({draw_other(seed, kind, size=(64, 64)).tobytes() for seed in range(8)}) > 6


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(ConfigError, match="kind must be one of ct, lateral"):
        draw_other(0, "cat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed"):
        draw_other(-1, "ct")
    with pytest.raises(ConfigError, match="size"):
        draw_other(0, "ct", size=(10, 10))


def test_a_image_passes_corrected_or_is_named_and_all_else_is_refused() -> None:
    gate = edge_gate()
    for way in ORIENTATIONS.values():
        assert check_views(gate, [way.lay(marked())]) == [ViewCheck(way)]
        (weak,) = check_views(gate, [way.lay(marked(0.15))])  # probable, but not surely enough to be corrected
        named = ("film-inverted",) * way.inverted + ("film-turned",) * bool(way.turns)
        assert weak == (ViewCheck() if way == UPRIGHT else ViewCheck(way, named))
    assert check_views(gate, [np.full((40, 40), 0.5, np.float32)]) == [ViewCheck(reasons=(NOT_A_FRONTAL_IMAGE,))]
    mixed = [marked(), ORIENTATIONS["turned-90"].lay(marked()), np.zeros((40, 40), np.float32)]
    assert [bool(one.reasons) for one in check_views(gate, mixed)] == [False, False, True]
    assert check_views(gate, []) == []


def test_thresholds_of_the_gate_count() -> None:
    askew = ORIENTATIONS["turned-270"].lay(marked(0.3))  # 0.75
    assert check_views(edge_gate(), [askew])[0].reasons == ()
    assert check_views(edge_gate({"turned-270": 0.8}), [askew])[0].reasons == ("film-turned",)
    assert check_views(edge_gate({"frontal": 0.8}), [askew])[0].reasons == (
        "film-turned",
    )  # the corrected image must count
    assert check_views(edge_gate({"frontal": 0.01}), [askew])[0] == ViewCheck()  # "frontal" counts already


def test_a_corrected_image_that_looks_like_none_is_refused_as_none() -> None:
    gate = edge_gate()
    first = gate.predict

    def predict(image: torch.Tensor, lung_mask: torch.Tensor | None = None) -> torch.Tensor:
        found = first(image, lung_mask)
        upright = found[:, 0] > 0.5
        found[upright] = torch.eye(len(CLASSES))[-1]
        return found

    gate.predict = predict
    assert check_views(gate, [ORIENTATIONS["inverted"].lay(marked())]) == [ViewCheck(reasons=(NOT_A_FRONTAL_IMAGE,))]


def test_a_model_that_is_no_gate_is_refused() -> None:
    check_view_model(edge_gate(classes=("frontal", NOT_A_FRONTAL_IMAGE)))
    for classes in (("normal", "covid19"), ("turned-90", NOT_A_FRONTAL_IMAGE), ("frontal", "sideways")):
        with pytest.raises(ConfigError, match="gate must have exclusive classes"):
            check_view_model(ClassificationModel(ModelConfig("classification", "timm:mobilenetv3_small_050", classes)))
    settings = PreprocessConfig(region="lungs")
    config = ModelConfig("classification", "timm:mobilenetv3_small_050", CLASSES, preprocess=settings)
    with pytest.raises(ConfigError, match="full"):
        Pipeline(gate=ClassificationModel(config))


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def gated(mini: Pipeline, gate: ClassificationModel) -> Pipeline:
    return Pipeline(gate=gate, lung_segmenter=mini.lung_segmenter, classifier=mini.classifier)


def framed(seed: int = 0) -> np.ndarray:
    """A drawn chest that `edge_gate` takes for an upright image."""
    picture = draw_phantom(seed, size=(288, 256)).image * 0.5
    picture[:40] = 1
    return picture.astype(np.float32)


@pytest.mark.parametrize("name", ["turned-90", "turned-180", "inverted-turned-270"])
def test_masks_lie_on_the_image_as_it_was_given(mini: Pipeline, name: str) -> None:
    way, pipeline, picture = ORIENTATIONS[name], gated(mini, edge_gate()), framed()
    upright, askew = pipeline(picture), pipeline(way.lay(picture))
    assert upright.notes == ()
    assert askew.notes == tuple(f"{fault}-corrected" for fault in way.faults)
    assert askew.to_dict()["notes"] == list(askew.notes)
    assert askew.image.shape == way.lay(picture).shape
    for mask_class, mask in askew.masks.items():
        expected = way.lay_masks(upright.masks)[mask_class]
        assert upright.masks[mask_class].any()
        assert (mask != expected).mean() < 1e-3  # an inverted image loses its last bit
    assert askew.probabilities == pytest.approx(upright.probabilities, abs=1e-3)
    heat, seen = askew.explain("normal").heat, upright.explain("normal").heat
    assert heat.shape == askew.image.shape
    assert np.abs(heat - way.turn(seen)).mean() < 0.02


def test_what_is_refused_is_shown_to_no_other_model(mini: Pipeline, tmp_path: Path) -> None:
    pipeline = gated(mini, edge_gate())
    plain = np.full((256, 256), 0.5, np.float32)
    answers = list(pipeline.predict([framed(), plain, ORIENTATIONS["turned-90"].lay(framed()), plain]))
    assert [one.reasons == (NOT_A_FRONTAL_IMAGE,) for one in answers] == [False, True, False, True]
    for answer in (answers[1], answers[3]):
        assert (answer.label, answer.probabilities, answer.masks, answer.notes) == (None, {}, {}, ())
        assert answer.overlay().shape == (256, 256, 3)
        with pytest.raises(ConfigError, match="does not look like a frontal chest radiograph"):
            answer.explain()
    entries = [{"name": f"film-{number}", **answer.to_dict()} for number, answer in enumerate(answers)]
    write_sheet(
        tmp_path / "index.html", entries, {"films": 4, "failed": 0, "answers": {}, "reasons": {}, "left_out": {}}
    )
    page = (tmp_path / "index.html").read_text()
    assert in_words(NOT_A_FRONTAL_IMAGE) in page
    assert in_words("turned-90-corrected") in page


def test_a_image_whose_masks_somebody_drew_is_corrected_but_not_refused(mini: Pipeline) -> None:
    pipeline = gated(mini, edge_gate())
    plain = np.full((256, 256), 0.5, np.float32)
    mask = np.zeros((256, 256), bool)
    mask[60:200, 30:110] = mask[60:200, 150:230] = True
    answer = pipeline.revise(plain, {"lung_field": mask})
    assert NOT_A_FRONTAL_IMAGE not in answer.reasons
    assert answer.probabilities
    way = ORIENTATIONS["turned-90"]
    upright, drawn = framed(), pipeline(framed()).masks
    askew = pipeline.revise(way.lay(upright), way.lay_masks({"lung_field": drawn["lung_field"]}))
    assert np.array_equal(askew.masks["lung_field"], way.turn(drawn["lung_field"]))
    again = pipeline.revise(upright, {"lung_field": drawn["lung_field"]})
    assert askew.probabilities == pytest.approx(again.probabilities, abs=1e-5)


def test_a_pipeline_keeps_its_gate_and_older_ones_have_none(mini: Pipeline, tmp_path: Path) -> None:
    assert mini.gate is None or isinstance(mini.gate, ClassificationModel)
    torch.manual_seed(0)
    config = ModelConfig("classification", "timm:mobilenetv3_small_050", CLASSES, thresholds={"frontal": 0.0})
    pipeline = gated(mini, ClassificationModel(config))
    pipeline.save_pretrained(tmp_path / "gated")
    again = Pipeline.from_pretrained(tmp_path / "gated")
    assert again.gate is not None
    assert again.gate.config == config
    assert again(framed()).probabilities == pytest.approx(pipeline(framed()).probabilities)
    assert check_golden(again, tmp_path / "gated" / "golden") == []
    assert ClassificationModel.from_pretrained(tmp_path / "gated" / "gate").config == config
    assert ClassificationModel.from_pretrained(tmp_path / "gated").config.classes == mini.classifier.config.classes
    again.gate = None
    again.save_pretrained(tmp_path / "gated")
    assert not (tmp_path / "gated" / "gate").exists()
    assert Pipeline.from_pretrained(tmp_path / "gated").gate is None


def test_golden_inputs_tell_that_a_gate_is_another(mini: Pipeline, tmp_path: Path) -> None:
    pipeline = gated(mini, edge_gate())
    pipeline.save_pretrained(tmp_path)
    pictures = json.loads((tmp_path / "golden" / "golden.json").read_text())["films"]
    assert len(pictures) == 6
    assert check_golden(pipeline, tmp_path / "golden") == []
    pictures[0]["notes"] = ["turned-90-corrected"]
    pictures[1]["reasons"] = [] if NOT_A_FRONTAL_IMAGE in pictures[1]["reasons"] else [NOT_A_FRONTAL_IMAGE]
    (tmp_path / "golden" / "golden.json").write_text(json.dumps({"films": pictures}))
    faults = check_golden(pipeline, tmp_path / "golden")
    assert any("film-0: corrected" in fault for fault in faults)
    assert any("film-1: it is rejected" in fault for fault in faults)


@pytest.mark.parametrize("name", ["frontal", "inverted", "turned-90"])
def test_a_child_is_named_however_the_image_lies(name: str) -> None:
    gate = edge_gate(classes=(*ORIENTATIONS, CHILD, NOT_A_FRONTAL_IMAGE))
    first, calls = gate.predict, []

    def predict(image: torch.Tensor, lung_mask: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(len(image))
        probabilities = first(image, lung_mask)
        upright = probabilities[:, 0] > 0.5
        probabilities[upright] = torch.eye(len(gate.config.classes))[-2]
        return probabilities

    check_view_model(gate)
    gate.predict = predict
    assert check_views(gate, [ORIENTATIONS[name].lay(marked())]) == [ViewCheck(reasons=(CHILD,))]
    assert calls == [1] * (1 if name == "frontal" else 2)
    assert "child" in in_words(CHILD)


def test_every_id_has_words() -> None:
    notes = {f"{fault}-corrected" for way in ORIENTATIONS.values() for fault in way.faults}
    for name in (NOT_A_FRONTAL_IMAGE, "film-inverted", "film-turned", *notes):
        assert in_words(name).endswith(".")
        assert in_words(name) != name


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_dataset(folder, 12, size=(80, 64), patients=6)
    return folder


def test_images_come_in_every_orientation_and_spoilt_among_what_is_drawn(table: Path) -> None:
    data = GateDataModule(table, drawn=10, image_size=(48, 48), augment=None)
    assert data.classes == CLASSES
    assert len(data.records) == 12 * (8 + 2) + 10 * (8 + len(OTHERS))
    splits: dict[str, set[str | None]] = {}
    for record in data.records:
        splits.setdefault(record.patient, set()).add(record.split)
        assert (record.label == NOT_A_FRONTAL_IMAGE) == (record.source in (*OTHERS, "cut-out", "shuffled"))
    assert all(len(found) == 1 for found in splits.values())
    assert all(set(counts) == set(CLASSES) for counts in data.counts().values())
    by_id = {record.image_id: record for record in data.records}
    picture = data.load_image(by_id["frontal/images/phantom-00003.png"])
    for name, way in ORIENTATIONS.items():
        assert np.array_equal(data.load_image(by_id[f"{name}/images/phantom-00003.png"]), way.lay(picture))
    assert np.prod(data.load_image(by_id["cut-out/images/phantom-00003.png"]).shape) < 0.2 * picture.size
    chest = data.load_image(by_id["frontal/drawn/chest-00001"])
    assert np.array_equal(data.load_image(by_id["turned-180/drawn/chest-00001"]), np.rot90(chest, 2))
    other = data.load_image(by_id["hand/drawn/00002"])
    assert np.array_equal(other, GateDataModule(table, drawn=10).load_image(by_id["hand/drawn/00002"]))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[1:] == (1, 48, 48)


def test_images_of_children_are_a_class_of_their_own(table: Path) -> None:
    data = GateDataModule(table, child_label="normal", drawn=10, augment=None)
    assert data.classes == (*ORIENTATIONS, CHILD, NOT_A_FRONTAL_IMAGE)
    with (table / "manifest.csv").open(newline="") as file:
        children = {f"{CHILD}/{row['path']}" for row in csv.DictReader(file) if row["label"] == "normal"}
    assert children
    assert {record.image_id for record in data.records if record.label == CHILD} == children
    assert len(data.records) == (12 - len(children)) * (8 + 2) + len(children) + 10 * (8 + len(OTHERS))
    record = next(record for record in data.records if record.label == CHILD)
    assert np.array_equal(data.load_image(record), read_image(record.image_path))


def test_the_images_keep_their_own_split(table: Path) -> None:
    with (table / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    barred = rows[0]["patient_id"]
    data = GateDataModule(table, films={"test_only": {"patient_id": barred}}, drawn=10)
    own = [record for record in data.records if record.patient_id == barred]
    assert own
    assert {record.split for record in own} == {"test"}


def test_a_missing_image_and_a_wrong_setting_are_told(table: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, 6, size=(64, 64))
    (tmp_path / "images" / "phantom-00002.png").unlink()
    with pytest.raises(DatasetError, match="phantom-00002"):
        GateDataModule(tmp_path, drawn=10).setup()
    with pytest.raises(ConfigError, match="drawn must be"):
        GateDataModule(table, drawn=3)
    with pytest.raises(ConfigError, match="refuses its settings"):
        GateDataModule(table, films={"tables": "x.csv"})


def test_spoilt_images_are_parts_of_the_image() -> None:
    picture = np.random.default_rng(0).random((90, 60), np.float32)
    for seed in range(20):
        piece = _cut_out(picture, np.random.default_rng(seed))
        assert all(0.14 <= part / whole <= 0.41 for part, whole in zip(piece.shape, picture.shape, strict=True))
        assert np.isin(piece, picture).all()
        tiles = _shuffle_tiles(picture, np.random.default_rng(seed))
        assert np.isin(tiles, picture).all()
        assert tiles.shape != picture.shape or not np.array_equal(tiles, picture)
