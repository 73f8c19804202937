"""Reports: of rows made by hand, of folders of runs, of a pipeline on phantoms; pages that ask nobody for anything."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidcxr import ClassificationModel, CSVDataModule, ModelConfig, Pipeline, PreprocessConfig
from covidcxr.cli import main
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.metrics.weighted import stratified_auroc
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.predictions.run_pipeline import ImageLookup, open_pipeline, pipeline_rows, write_rows
from covidcxr.evaluation.report import Evidence, evaluate_rows, judge, score_groups, write_report
from covidcxr.evaluation.report.model_comparison import compare_regions
from covidcxr.evaluation.report.shortcuts import find_shortcuts
from covidcxr.evaluation.report.sources import read_sources, relate_sources, score_held_out
from covidcxr.io.image import read_image
from covidcxr.page import sections_of
from covidcxr.phantom import write_dataset

CLASSES = ("covid19", "normal")
HOSTILE = '$x_{$<script>alert("x")</script><img src=http://e.org/x onerror=alert(1)>'


def make_rows(
    patients: int = 90,
    *,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    skill: float = 1.3,
    source: str | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Images of patients with one label each; `source="label"` makes the source decide it, else it is drawn."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label = int(rng.integers(len(classes)))
        place = classes[label] + "-clinic" if source == "label" else source or str(rng.choice(["north", "south"]))
        traits = {"view": str(rng.choice(["PA", "AP"])), "sex": str(rng.choice(["F", "M"]))}
        for image in range(int(rng.integers(1, 4))):
            logits = rng.normal(size=len(classes))
            logits[label] += skill
            chances = np.exp(logits) / np.exp(logits).sum()
            rows.append(
                {
                    "image_id": f"p{patient}-{image}.png",
                    "patient_id": f"p{patient}",
                    "source": place,
                    **traits,
                    "age": float(rng.integers(20, 90)),
                    "label": classes[label],
                    **{f"probability_{name}": float(chance) for name, chance in zip(classes, chances, strict=True)},
                    **more,
                }
            )
    return rows


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value, value - 0.04 if low is None else low, value + 0.04 if high is None else high, 400, 200)


class Links(HTMLParser):
    """Collects whatever a page could ask somebody for, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def check_page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "iframe", "object", "form", "link-external"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    assert not re.search(r"url\(\s*['\"]?(?!data:)", text)
    return text


# --- from rows ---------------------------------------------------------------------------------------------------


def test_everything_is_written_and_every_number_is_in_the_json(tmp_path: Path) -> None:
    evaluation = evaluate_rows(
        make_rows(), validation=make_rows(seed=1), name="made", prevalence=0.05, positive="covid19", resamples=200
    )
    paths = write_report(evaluation, tmp_path)
    text = check_page(paths["html"])
    for title in ("What the data support", "Scores by class", "Operating point", "Groups of patients", "Errors"):
        assert f"<h2>{title}</h2>" in text
    found = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert found["classes"]["scores"]["macro_auroc"]["patients"] == 90
    assert found["point"]["point"]["chosen_on"] == "validation images"
    assert found["point"]["scores"]["ppv"]["value"] < found["classes"]["scores"]["precision_covid19"]["value"]
    assert sum(map(sum, found["classes"]["confusion"])) == found["films"] == len(evaluation.predictions)
    wrong = sum(row[i] for i, row in enumerate(found["classes"]["confusion"]))
    assert len(found["mistakes"]["mistakes"]) == found["films"] - wrong
    assert {"python", "torch", "numpy", "covidcxr"} <= found["lineage"]["versions"].keys()
    card = paths["card"].read_text(encoding="utf-8")
    assert "# Model card: made\n" in card
    assert "no medical device" in card
    assert "p3-0.png" not in card  # no image is named


def test_the_same_rows_give_the_same_report() -> None:
    rows = make_rows(40)
    first, second = (evaluate_rows(rows, positive="covid19", resamples=100).to_dict() for _ in range(2))
    first["lineage"].pop("date")
    second["lineage"].pop("date")
    assert first == second
    shuffled = evaluate_rows(rows[::-1], positive="covid19", resamples=10).to_dict()["lineage"]["data"]
    assert shuffled == first["lineage"]["data"]  # the hash is of the rows, in any order
    other = evaluate_rows([{**rows[0], "label": "normal"}, *rows[1:]], positive="covid19", resamples=10).to_dict()[
        "lineage"
    ]["data"]
    assert rows[0]["label"] == "normal" or other != first["lineage"]["data"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows = make_rows(30, classes=("covid19", HOSTILE), source=HOSTILE)
    rows = [{**row, "image_id": HOSTILE + row["image_id"], "view": HOSTILE} for row in rows]
    text = check_page(
        write_report(evaluate_rows(rows, name=HOSTILE, positive="covid19", resamples=20), tmp_path)["html"]
    )
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "normal"}, "No image shows covid19"),
        ({"source": "north"}, "All images have the source north."),
        ({"patient_id": None}, "No patients are known"),
        ({"probability_covid19": float("nan")}, "there is nothing to score"),
        ({"label": ""}, "there is nothing to score"),
        ({"source": "", "view": None, "sex": float("nan"), "age": ""}, "The source is not known."),
    ],
    ids=["one class", "one source", "no patients", "no answers", "no labels", "no traits"],
)
def test_what_is_missing_is_said(change: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    evaluation = evaluate_rows([{**row, **change} for row in make_rows(25)], positive="covid19", resamples=20)
    paths = write_report(evaluation, tmp_path)
    assert said in check_page(paths["html"])
    assert "NaN" not in paths["json"].read_text(encoding="utf-8")


def test_one_image_is_no_crash(tmp_path: Path) -> None:
    write_report(evaluate_rows(make_rows(1)[:1], positive="covid19", resamples=10), tmp_path)


def test_findings_have_no_confusion_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": f"{image}.png",
            "patient_id": f"p{image // 2}",
            "source": "north",
            **{f"label_{name}": rng.choice([0.0, 1.0, float("nan")]) for name in ("effusion", "nodule")},
            **{f"probability_{name}": rng.uniform() for name in ("effusion", "nodule")},
        }
        for image in range(60)
    ]
    evaluation = evaluate_rows(rows, resamples=50)
    found = evaluation.to_dict()
    assert found["classes"]["confusion"] == []
    assert "reliability" not in found
    assert found["mistakes"]["mistakes"][0]["truth"] in ("effusion", "no effusion", "nodule", "no nodule")
    assert "Confusion matrix" not in check_page(write_report(evaluation, tmp_path)["html"])


def test_masks_alone_make_a_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": f"{n}.png", "patient_id": f"p{n}", "source": "ab"[n % 2], "dice_lung": d, "iou_lung": d / (2 - d)}
        for n, d in enumerate(rng.uniform(0.8, 1, 50).tolist())
    ]
    evaluation = evaluate_rows(rows, resamples=50)
    worst = evaluation.to_dict()["masks"]["worst"][0]
    assert worst["dice"] == min(row["dice_lung"] for row in rows)
    assert "Dice of: lung 0.9" in evaluation.verdict.sentence
    assert {"classes", "mistakes", "shortcuts"}.isdisjoint(evaluation.parts)
    check_page(write_report(evaluation, tmp_path)["html"])


# --- groups ------------------------------------------------------------------------------------------------------


def test_a_gap_between_groups_is_found_and_an_absent_one_is_not() -> None:
    rows = make_rows(120, skill=3.0) + [
        {**row, "patient_id": "q" + row["patient_id"], "image_id": "q" + row["image_id"], "source": "east"}
        for row in make_rows(120, seed=1, skill=0.2)
    ]
    groups = score_groups(PredictionTable.read(rows), positive=0, resamples=300)
    gaps = [(group.name, name) for group, name, _ in groups.clear_gaps]
    assert {("north", "auroc"), ("south", "auroc")} <= set(gaps)  # east is the largest: they are compared with it
    assert [(group, name) for group, name in gaps if group in ("F", "M") and name == "auroc"] == []
    east = next(group for group in groups.groups if group.name == "east")
    assert east.patients == 120
    assert sum(east.support.values()) == 120


def test_small_groups_are_told_as_too_few() -> None:
    rows = make_rows(60)
    rows[0]["source"] = "tiny"
    groups = score_groups(PredictionTable.read(rows), positive=0, resamples=50)
    tiny = next(group for group in groups.groups if group.name == "tiny")
    assert tiny.too_few["accuracy"] == 1
    assert tiny.cell("accuracy") == "too few (1 patient)"
    assert tiny.cell("auroc") == "none of a kind"


def test_age_bands_and_many_sources() -> None:
    rows = [{**row, "source": f"s{number % 30}"} for number, row in enumerate(make_rows(80))]
    rows[0]["age"], rows[1]["age"], rows[2]["age"], rows[3]["age"] = "early 40s", "75+", "", 39.9
    answers = PredictionTable.read(rows)
    assert answers.trait("age")[:4].tolist() == ["40 to 59", "60 and over", "not stated", "under 40"]
    groups = score_groups(answers, resamples=10)
    sources = [group for group in groups.groups if group.trait == "source"]
    assert len(sources) == 12
    assert sources[-1].name == "19 smaller ones"
    assert sum(group.images for group in sources) == len(rows)


# --- shortcuts and verdict ---------------------------------------------------------------------------------------


def test_within_a_source_the_source_gains_nothing() -> None:
    """A model that recognises sources alone scores by them over all images, and nothing within one."""
    rng = np.random.default_rng(0)
    strata = np.repeat(["north", "south"], 200)
    truth = np.where(strata == "north", rng.uniform(size=400) < 0.85, rng.uniform(size=400) < 0.15).astype(float)
    score = (strata == "north") * 0.5 + rng.uniform(0, 0.01, 400)
    ones = np.ones((1, 400))
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in range(400)
        for j in range(400)
        if truth[i] == 1 and truth[j] == 0 and strata[i] == strata[j]
    ]
    within = stratified_auroc(ones, score, truth, strata)[0]
    assert within == pytest.approx(np.mean(pairs))
    assert abs(within - 0.5) < 0.1
    assert stratified_auroc(ones, score, truth, np.repeat("x", 400))[0] > 0.75


def test_a_source_that_decides_the_label_is_said_first() -> None:
    evaluation = evaluate_rows(make_rows(source="label"), positive="covid19", resamples=100)
    assert "the source alone decides the label of every image" in evaluation.verdict.sentence
    shortcuts = evaluation.to_dict()["shortcuts"]
    assert shortcuts["guesses"]["source"]["covid19"]["value"] == 1
    assert shortcuts["one_label"]["source"] == [2, 2]
    assert shortcuts["within"]["source"]["covid19"]["value"] is None


@pytest.mark.parametrize("seed", range(5))
def test_without_a_shortcut_no_guess_is_called_one(seed: int) -> None:
    shortcuts = find_shortcuts(PredictionTable.read(make_rows(150, seed=seed)), positive=0, resamples=100)
    assert shortcuts is not None
    assert all(
        guess.low < 0.5 or guess.value < 0.6 for guesses in shortcuts.guesses.values() for guess in guesses.values()
    )
    verdict = evaluate_rows(make_rows(150, seed=seed), positive="covid19", resamples=50).verdict
    assert [one for one in verdict.findings if one.weight == "against"] == []


STRONG = Evidence("separates covid19 from normal", estimate(0.93), 600, 120)


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (STRONG, "Open is whether it uses the lungs"),
        (replace(STRONG, score=estimate(0.53, 0.45, 0.6)), "not shown that this model separates"),
        (replace(STRONG, rarest=12), "on few patients (12 of the rarer kind)"),
        (replace(STRONG, patients_known=False), "unknown patients"),
        (
            replace(STRONG, probe=("border", estimate(0.95))),
            "not show that it uses the lungs: a probe that sees no lung",
        ),
        (replace(STRONG, probe=("border", estimate(0.7))), "a part of this may come from elsewhere than the lungs"),
        (
            replace(STRONG, background=estimate(0.92), lungs_add=estimate(0.01, -0.01, 0.03)),
            "with the lungs removed it scores 0.92",
        ),
        (replace(STRONG, background=estimate(0.75), lungs_add=estimate(0.18)), "it still scores 0.75"),
        (replace(STRONG, held_out=estimate(0.52)), "on sources that it never saw it scores 0.52"),
        (
            replace(STRONG, held_out=estimate(0.7), held_out_loss=estimate(0.23)),
            "on sources that it never saw it falls to 0.70",
        ),
        (
            replace(
                STRONG,
                probe=("border", estimate(0.52)),
                background=estimate(0.53),
                lungs_add=estimate(0.4),
                held_out=estimate(0.9),
                held_out_loss=estimate(0.03),
            ),
            "every control supports it",
        ),
    ],
)
def test_the_verdict_of_made_cases(evidence: Evidence, said: str) -> None:
    verdict = judge(evidence)
    assert said in verdict.sentence
    assert verdict.sentence.endswith(".")
    assert verdict.sentence.count(". ") <= 1


# --- models beside one another -----------------------------------------------------------------------------------


def test_regions_are_compared_with_the_image_without_lungs() -> None:
    runs = {
        "full": make_rows(skill=2.5),
        "lungs": make_rows(skill=2.0),
        "background": make_rows(skill=0.0),
    }
    (control,) = compare_regions(runs, resamples=200)
    assert control.lungs_add is not None
    assert control.lungs_add.low > 0
    assert "The lungs add something" in str(sections_of(control))
    assert compare_regions({"full": runs["full"], "other": runs["lungs"]}) == []
    (same,) = compare_regions({"full+net": runs["full"], "background+net": runs["full"]}, resamples=50)
    assert same.name == "net"
    assert "do not show that the prediction needs the lungs" in str(sections_of(same))


def held_out_rows(skill: float, seed: int = 0) -> list[dict[str, Any]]:
    return [{**row, "fold": f"without-{row['source']}"} for row in make_rows(skill=skill, seed=seed)]


def test_held_out_sources_stand_beside_the_mixed_test() -> None:
    held = score_held_out(held_out_rows(0.3), make_rows(skill=2.5), resamples=200)
    assert set(held.sources) == {"north", "south"}
    assert held.losses["macro_auroc"].low > 0
    assert "From the mixed test" in str(sections_of(held))
    alone = score_held_out(held_out_rows(0.3), resamples=20)
    assert "No mixed test" in str(sections_of(alone))


def write_run(folder: Path, rows: Sequence[Mapping[str, Any]], *parts: str) -> None:
    write_rows(rows, folder / "predictions.csv")
    for part in parts or ("",):
        model = folder / part / "model"
        model.mkdir(parents=True)
        epochs = [
            {"epoch": n, "train/loss": 1 / (n + 1), "val/loss": 1 / (n + 2), "val/accuracy": 0.5} for n in range(3)
        ]
        (model / "history.json").write_text(json.dumps(epochs), encoding="utf-8")
        if part:
            write_rows([row for row in rows if row["fold"] == part], folder / part / "predictions.csv")
    (folder / "config.yaml").write_text("seed_everything: 3\nmodel: {init_args: {lr: 0.1}}\n", encoding="utf-8")


@pytest.mark.slow
def test_folders_of_runs_are_related(tmp_path: Path) -> None:
    folds = [{**row, "fold": f"fold-{n % 3}"} for n, row in enumerate(make_rows(skill=2.5))]
    for name, rows in {"background": make_rows(skill=0.0), "full": folds, "lungs": make_rows(skill=2.0)}.items():
        write_run(tmp_path / "mixed" / name, rows, *({"full": ("fold-0", "fold-1", "fold-2")}.get(name, ())))
    write_run(tmp_path / "sources", held_out_rows(0.5), "without-north", "without-south")
    sources = read_sources([str(tmp_path / "mixed"), str(tmp_path / "sources")])
    assert [one.name for one in sources] == ["mixed/background", "mixed/full", "mixed/lungs", "sources"]
    chosen, parts = relate_sources(sources, resamples=100)
    assert chosen.name == "mixed/full"
    assert parts.keys() == {"regions", "held_out", "learning"}
    evaluation = evaluate_rows(chosen.rows, parts=parts, name="run", positive="covid19", resamples=100)
    assert {"fold-0", "fold-1", "fold-2"} <= {group.name for group in score_groups(evaluation.predictions).groups}
    text = check_page(write_report(evaluation, tmp_path / "out")["html"])
    assert "With and without the lungs" in text
    assert "3 trainings, a thin line each" in text
    assert "Held-out sources" in text
    assert "on sources that it never saw it falls to" in evaluation.verdict.sentence


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    write_rows(make_rows(10), tmp_path / "fold-0" / "predictions.csv")
    with pytest.raises(ConfigError, match="not finished"):
        read_sources([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"holds no predictions\.csv"):
        read_sources([str(write_dataset(tmp_path / "films", 2, size=(64, 64)).parent)])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a saved model, .* covidcxr evaluate --model .*model --data NAME"):
        read_sources([str(tmp_path / "model")])


# --- a model asked about images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 18, size=(96, 96), patients=15)
    return folder


def open_phantoms(folder: Path) -> CSVDataModule:
    return CSVDataModule(folder, mask_columns={"lung": "lung", "lung_field": "lung_field"})


def test_a_pipeline_is_asked_and_its_masks_are_scored(phantoms: Path, tmp_path: Path) -> None:
    data = open_phantoms(phantoms)
    pipeline = Pipeline.from_pretrained("mini")
    broken = data.records[0]
    data.load_image = lambda record: open_image(record, broken)  # type: ignore[method-assign]
    rows = pipeline_rows(pipeline, data, None)
    assert [row["image_id"] for row in rows] == [record.image_id for record in data.records]
    assert rows[0]["error"]
    assert rows[0]["reasons"] == "cannot-be-read"
    assert all(0 <= row["dice_lung"] <= 1 and row["hd95_lung"] >= 0 for row in rows[1:])
    assert {"view", "sex", "age"} <= rows[1].keys()
    for row in rows[1:]:
        assert bool(row["answer"]) == (not row["reasons"])
        assert row["answer"] in ("", *row["plausible"].split(";"))
    lookup = ImageLookup(data, lambda row: pipeline)
    evaluation = evaluate_rows(rows, lookup=lookup, resamples=50)
    found = evaluation.to_dict()
    assert found["answers"]["films"] == 18
    assert found["answers"]["errors"].keys() == {broken.image_id}
    assert len(found["gallery"]["masks"]) == 6
    assert found["gallery"]["mistakes"]
    assert "<h2>The worst masks</h2>" in check_page(write_report(evaluation, tmp_path)["html"])


def test_coverage_is_shown_for_each_class_and_source() -> None:
    rows = make_rows(120)
    for row in rows:
        held = {row["label"]} if row["label"] == "covid19" or row["image_id"].endswith("-0.png") else {"covid19"}
        row |= {"answer": "", "plausible": ";".join(held)}
    evaluation = evaluate_rows(rows, positive="covid19", coverage=0.9, resamples=200)
    answers = evaluation.parts["answers"]
    assert answers.kept["covid19"].value == 1
    assert answers.kept["normal"].high < 0.9
    (warning,) = [note for note in evaluation.notes if "promised 90%" in note]
    assert "normal 0." in warning
    assert "covid19" not in warning
    (section,) = [part for part in sections_of(answers) if part.title == "Coverage"]
    kept = {row[0]: row[-1] for row in section.blocks[0].rows}  # type: ignore[union-attr]
    assert kept["covid19"] == "yes"
    assert kept["normal"] == "no"
    assert "source north" in kept


def open_image(record: Any, broken: Any) -> Any:
    if record == broken:
        raise ImageReadError("a broken image")
    return read_image(record.image_path)


def test_a_single_model_is_asked_as_a_pipeline(phantoms: Path, tmp_path: Path) -> None:
    preprocess = PreprocessConfig(image_size=(64, 64), region="background")
    config = ModelConfig("classification", "timm:mobilenetv3_small_050", ("a", "b"), preprocess=preprocess)
    ClassificationModel(config).save_pretrained(tmp_path / "model")
    pipeline = open_pipeline(tmp_path / "model")
    assert pipeline.lung_segmenter is not None
    with pytest.raises(ConfigError, match=r"knows a, b, the images are labelled .*label_map"):
        pipeline_rows(pipeline, open_phantoms(phantoms), "test")


# --- the verb ----------------------------------------------------------------------------------------------------


def test_the_verb_takes_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, skill in (("ours", 2.0), ("theirs", 0.5), ("val", 2.0)):
        write_rows(make_rows(40, skill=skill), tmp_path / f"{name}.csv")
    tables = [str(tmp_path / f"{name}.csv") for name in ("ours", "theirs")]
    validation = ["--validation", str(tmp_path / "val.csv"), "--sensitivity", "0.9", "--prevalence", "0.1"]
    out = tmp_path / "report"
    assert (
        main(["evaluate", *tables, *validation, "--positive", "covid19", "--resamples", "50", "--out", str(out)]) == 0
    )
    assert "separates covid19 from normal" in capsys.readouterr().out
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["compared"]["differences"]["theirs"]["macro_auroc"]["value"] < 0
    assert found["point"]["prevalence"] == 0.1
    assert found["name"] == "ours"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Say what to evaluate"),
        (["x.csv", "--model", "mini"], "not both"),
        (["--model", "mini"], "Say which data set is meant"),
        (["here.csv", "--audit"], "An audit needs the images"),
        (["here.csv", "--nonsense"], "knows no --nonsense"),
    ],
)
def test_the_verb_refuses_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(make_rows(5), tmp_path / "here.csv")
    assert main(["evaluate", *words, "--out", "report"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_folder_of_a_data_set_is_no_path(phantoms: Path, tmp_path: Path) -> None:
    """A flag of the data set and its value may stand anywhere, with blanks in the value too."""
    out = tmp_path / "report"
    words = ["--data.root", str(phantoms), "--data.mask_columns", "{lung: lung, lung_field: lung_field}"]
    rest = ["--model", "mini", "--data", "csv", "--no-audit", "--no-attention", "--resamples", "20", "--out", str(out)]
    assert main(["evaluate", *words, *rest]) == 0
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["lineage"]["data"]["counts"]["test"]["films"] == found["films"]
    assert found["lineage"]["model"]["sha256 of the weights"]
    assert found["point"]["point"] is not None  # validation images chose it
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == found["films"]
    check_page(out / "report.html")


@pytest.mark.slow
def test_the_page_opens_in_a_browser_and_asks_nobody(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    rows = make_rows(60, classes=("covid19", HOSTILE))
    page = write_report(evaluate_rows(rows, validation=rows, name=HOSTILE, positive="covid19", resamples=50), tmp_path)[
        "html"
    ]
    log = tmp_path / "net.json"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'b'}",
    ]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    done = subprocess.run(
        [browser, *flags, *quiet, f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "What the data support" in done.stdout
    assert "CONSOLE" not in done.stderr
    asked = set(re.findall(r'"url":"((?:https?|ftp|ws)s?://[^"]+)', log.read_text(encoding="utf-8")))
    assert {url for url in asked if "e.org" in url} == set()


@pytest.mark.real
def test_the_source_is_found_in_real_predictions(real_data: Path) -> None:
    """A model that knows only the source scores on these images, and its report says so."""
    from covidcxr.data import DarkCovidNetDataModule

    records = DarkCovidNetDataModule(real_data).records
    rows = []
    for record in records:
        sick = 0.9 if record.source == "ieee8023" else 0.1
        rest = {"probability_covid19": sick, "probability_rest": 1 - sick}
        label = "covid19" if record.label == "covid19" else "rest"
        rows.append(
            {"image_id": record.image_id, "patient_id": record.patient, "source": record.source, "label": label}
        )
        rows[-1] |= rest
    evaluation = evaluate_rows(rows, positive="covid19", resamples=50)
    assert (
        "the source alone" in evaluation.verdict.sentence
        or "source holds images of both" in evaluation.verdict.sentence
    )
