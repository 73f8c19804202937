"""What an image costs, measured by `covidcxr benchmark`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from covidcxr.cli import benchmark
from covidcxr.cli.main import main


def test_every_competitor_answers_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def compare(competitors: dict[str, benchmark.Work], paths: list[Path]) -> dict[str, dict[str, float]]:
        def listening(name: str, work: benchmark.Work) -> benchmark.Work:
            return lambda path: (seen.setdefault(name, []).append(path.name), work(path))

        return real({name: listening(name, work) for name, work in competitors.items()}, paths)

    real = benchmark._compare
    monkeypatch.setattr(benchmark, "_compare", compare)
    monkeypatch.setattr(benchmark, "_memory", lambda model, path: None)
    results = benchmark.measure(size=96, images=2, peers=False)
    answering = results["answering"]
    assert sorted(answering) == ["mini without its classifier", "mini without its view check", "mini, whole"]
    assert all(seen[name] == ["0.jpg", "0.jpg", "1.jpg"] for name in answering)
    assert all(seen[name][3:6] == ["0.png", "0.png", "1.png"] for name in results["reading"]["png"])
    assert all(seen[name][-3:] == ["0.dcm", "0.dcm", "1.dcm"] for name in results["reading"]["dcm"])
    for rows in (answering, *results["reading"].values()):
        first = next(iter(rows.values()))
        assert first["ratio"] == 1
        assert all(row["ratio"] == pytest.approx(row["cpu_ms"] / first["cpu_ms"]) for row in rows.values())
    assert results["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_the_command_prints_numbers_or_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--images", "1", "--size", "96", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert any("DenseNet121" in name for name in results["answering"])
    assert results["memory_mb"] is None or results["memory_mb"]["peak"] > results["memory_mb"]["import_torch"]
    assert main(["benchmark", "--images", "1", "--size", "96", "--no-peers"]) == 0
    assert "mini without its classifier" in capsys.readouterr().out


def test_wrong_numbers_are_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--images", "0"]) == 2
    assert "images must be" in capsys.readouterr().err
