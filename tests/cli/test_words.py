"""One vocabulary for all verbs: spellings, nearest names, default folders, loudness, completion."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes import write_table_fake

from covidcxr.cli.main import _parser, _spell_data, _take_loudness, main
from covidcxr.io.folders import next_folder
from covidcxr.phantom import write_dataset
from covidcxr.utils.console import show_progress
from covidcxr.utils.threads import QUIET


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("datasets check csv --data.root D --data.fold 1", "datasets check csv --data.root D --set fold=1"),
        ("datasets stats csv --data.fold=1 --json", "datasets stats csv --set fold=1 --json"),
        ("datasets stats csv --root D --set fold=1", "datasets stats csv --root D --set fold=1"),
        ("fit --root D --set fold=1 --out X", "fit --data.root D --data.fold=1 --out X"),
        ("audit --data csv --root=D --set=fold=1", "audit --data csv --data.root=D --data.fold=1"),
        ("evaluate run --root D", "evaluate run --data.root D"),
        ("predict images --root D --out X", "predict images --root D --out X"),
    ],
)
def test_settings_of_a_data_set_are_spelled_as_the_verb_reads_them(given: str, spelled: str) -> None:
    assert list(_spell_data(given.split())) == spelled.split()


def test_both_spellings_give_the_same_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(write_table_fake(tmp_path / "table", patients=8))
    said = []
    old = ["--root", root, "--set", "fractions=[0.5, 0.2]"]
    for words in (old, ["--data.root", root, "--data.fractions", "[0.5, 0.2]"]):
        assert main(["datasets", "stats", "csv", "--no-pixels", "--json", *words]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("predct images", "There is no verb 'predct'. Did you mean 'predict'?"),
        ("datasets chek csv", "There is no verb 'chek'. Did you mean 'check'?"),
        ("predict images --modle mini", "There is no flag --modle. Did you mean '--model'?"),
        ("datasets check csv --decoed", "There is no flag --decoed. Did you mean '--decode'?"),
        ("tune wali2021-next --sampler tpee", "There is no choice of --sampler 'tpee'. Did you mean 'tpe'?"),
        ("explain", "the following arguments are required: PATH"),
    ],
)
def test_a_wrong_word_is_told_with_the_nearest(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Help: covidcxr" in error


def test_results_go_to_a_numbered_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert next_folder("predict") == Path("runs/predict-1")
    Path("runs/predict-1").mkdir(parents=True)
    assert next_folder("predict") == Path("runs/predict-2")
    write_dataset(Path("drawn"), 1)
    assert main(["predict", "drawn/images", "--quiet"]) == 0
    assert Path("runs/predict-2/predictions.jsonl").is_file()


def test_the_demo_says_that_its_images_are_drawn_and_what_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path), "--no-open", "--json"]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(summary["drawn"]) == set(summary["labels"])
    assert set(summary["drawn"].values()) == {"covid19", "pneumonia", "normal"}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "These images are drawn (phantoms)" in page
    assert all(f"drawn as {label}" in page for label in summary["drawn"].values())


def test_loudness_is_taken_from_any_place_but_not_from_a_setting() -> None:
    assert _take_loudness(["predict", "--quiet", "x"]) == (["predict", "x"], True, False)
    assert _take_loudness(["--verbose", "doctor"]) == (["doctor"], False, True)
    words = ["test", "--verbose", "true"]
    assert _take_loudness(words) == (words, False, False)
    assert _take_loudness([]) == ([], False, False)


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    token = QUIET.set(True)
    try:
        with show_progress("images") as progress:
            progress(1, 2)
    finally:
        QUIET.reset(token)
    assert capsys.readouterr().err.strip() == ""


def test_verbose_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "no-such", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["recipes", "show", "no-such"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_fit_begins_with_what_people_change(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "mini-lungs", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 70
    assert "--trainer.max_epochs" in text
    assert "--help-all" in text


def test_the_shell_completes_verbs_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "covidcxr.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    ask = "source {}; COMP_WORDS=(covidcxr {}); COMP_CWORD={}; COMP_LINE='covidcxr {}'; {}; echo ${{COMPREPLY[@]}}"
    for words, expected in (("pred", "predict"), ("fit --trainer.max", "--trainer.max_epochs")):
        line = ask.format(script, words, len(words.split()), words, "_shtab_covidcxr covidcxr")
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert expected in done.stdout.split()


def test_every_verb_that_writes_takes_out() -> None:
    verbs = next(action for action in _parser()._actions if action.dest == "==SUPPRESS==").choices
    assert isinstance(verbs, dict)
    writers = ("predict", "demo", "fit", "test", "assemble", "evaluate", "audit", "explain", "tune", "feedback")
    assert all("--out" in verbs[verb]._option_string_actions for verb in writers)
