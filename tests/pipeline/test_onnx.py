"""Exported pipelines by ONNX Runtime: the same predictions, without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidcxr import ModelConfig, Pipeline, PreprocessConfig
from covidcxr.cli import main
from covidcxr.config import EnsembleConfig
from covidcxr.errors import ConfigError, CovidCXRError, PretrainedError
from covidcxr.io import fetch, read_json, write_image
from covidcxr.phantom import draw_other, draw_phantom
from covidcxr.pipeline import onnx as onnx_backend
from covidcxr.pipeline.parts import fingerprint
from covidcxr.pipeline.prediction import Prediction

onnx = pytest.importorskip("onnx", reason='needs pip install "covidcxr[onnx]"')
pytest.importorskip("onnxruntime", reason='needs pip install "covidcxr[onnx]"')

SIZE = (40, 40)
FULL = PreprocessConfig(image_size=SIZE)
LUNGS = ModelConfig("segmentation", "smp:fpn", ("lung_field", "infection"), "multilabel", preprocess=FULL)
LABELS = ModelConfig(
    "classification",
    "timm:resnet18",
    ("normal", "covid19"),
    "multiclass",
    preprocess=PreprocessConfig(image_size=SIZE, region="lungs"),
)


def write_file(path: Path, nodes: list[Any], constants: dict[str, Any], inputs: list[str], output: str) -> str:
    """Write a graph from images to `output`, and return its SHA-256."""
    grey = ["batch", 1, "height", "width"]
    given = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, grey) for name in inputs]
    result = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "drawn", given, [result], held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_export(folder: Path) -> dict[str, Any]:
    """Write an export whose lungs are what is dark, and whose class is said by the mean grey of the lungs."""
    folder.mkdir()
    node = onnx.helper.make_node
    segment = [
        node("Sub", ["half", "image"], ["dark"]),
        node("Mul", ["dark", "steep"], ["logits"]),
        node("Sigmoid", ["logits"], ["lungs"]),
        node("Mul", ["lungs", "part"], ["infection"]),
        node("Concat", ["lungs", "infection"], ["probabilities"], axis=1),
    ]
    numbers = {"half": np.float32(0.5), "steep": np.float32(20), "part": np.float32(0.6)}
    segmenter = write_file(folder / "lung_segmenter.onnx", segment, numbers, ["image"], "probabilities")
    classify = [
        node("Mul", ["image", "lungs"], ["seen"]),
        node("ReduceMean", ["seen", "axes"], ["mean"], keepdims=1),
        node("Reshape", ["mean", "shape"], ["column"]),
        node("Sub", ["one", "column"], ["rest"]),
        node("Concat", ["rest", "column"], ["probabilities"], axis=1),
    ]
    numbers = {"axes": np.array([2, 3]), "shape": np.array([-1, 1]), "one": np.float32(1)}
    classifier = write_file(folder / "classifier.onnx", classify, numbers, ["image", "lungs"], "probabilities")
    about = {
        "format_version": 1,
        "format": "onnx",
        "models": {
            "lung_segmenter": {
                "file": "lung_segmenter.onnx",
                "sha256": segmenter,
                "inputs": ["image"],
                "region": "full",
                "config": LUNGS.to_dict(),
            },
            "classifier": {
                "file": "classifier.onnx",
                "sha256": classifier,
                "inputs": ["image", "lungs"],
                "region": "lungs",
                "config": LABELS.to_dict(),
            },
        },
        "postprocess": [{"name": "fill_holes"}],
        "min_lung_area": 0.05,
        "infected_interval": {"coverage": 0.9, "upto": [1.0], "below": [0.1], "above": [0.2]},
    }
    (folder / "export.json").write_text(json.dumps(about))
    return about


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_export(tmp_path / "export")
    return tmp_path / "export"


def lungs(height: int = 60, width: int = 80) -> np.ndarray:
    """Two dark lungs on white."""
    image = np.full((height, width), 255, np.uint8)
    for left in (0.15, 0.6):
        image[height // 5 : -height // 5, round(left * width) : round((left + 0.25) * width)] = 30
    return image


def load(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, backend="onnx")


def test_files_are_run_between_the_steps_of_a_pipeline(export: Path) -> None:
    pipeline = load(export)
    assert pipeline.backend == "onnx"
    assert pipeline.mask_classes == ("lung_field", "infection")
    prediction = pipeline(lungs())
    assert prediction.label == "normal"
    assert 0 < prediction.probabilities["covid19"] < 0.2
    assert prediction.masks["lung_field"].shape == (60, 80)
    assert 0.2 < (prediction.lung_fraction or 0) < 0.4
    assert prediction.infected_fraction == pytest.approx(0.85, abs=0.1)  # the edges are soft, and count for less there
    assert prediction.infected_interval is not None
    assert prediction.overlay().shape == (60, 80, 3)
    assert "2.5" not in repr(pipeline)
    assert "MB of ONNX" in repr(pipeline)
    assert pipeline(np.full((50, 50), 255, np.uint8)).reasons == ("lungs-not-found",)


def test_an_image_is_answered_alike_alone_and_in_a_batch_of_several_threads(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    images = [lungs(height, 90) for height in (50, 70, 120, 60, 64)]
    pipeline = load(export)
    for image, together in zip(images, pipeline.predict(images, batch_size=4), strict=True):
        alone = pipeline(image)
        assert isinstance(together, Prediction)
        assert together.probabilities == alone.probabilities
        assert all(np.array_equal(together.masks[name], mask) for name, mask in alone.masks.items())


def test_the_file_of_an_ensemble_gets_whole_images(export: Path) -> None:
    about = read_json(export / "export.json")
    config = EnsembleConfig(("normal", "covid19"), "multiclass", members={"a": 1.0, "b": 2.0})
    about["models"]["classifier"]["config"] = config.to_dict()
    (export / "export.json").write_text(json.dumps(about))
    image = lungs()
    prediction = load(export)(image)
    seen = np.where(prediction.masks["lung_field"], image / 255, 0).mean()
    assert prediction.probabilities["covid19"] == pytest.approx(seen, abs=1e-6)


RUN = """
import sys
from covidcxr.cli import main
code = main(["predict", sys.argv[2], "--model", sys.argv[1], "--backend", "onnx", "--out", sys.argv[3], "--json"])
from covidcxr import Pipeline
pipeline = Pipeline.from_pretrained(sys.argv[1], backend="onnx")
(prediction, failed) = pipeline.predict([sys.argv[2], "missing.png"], on_error="return")
prediction.save(sys.argv[3] + "-one", overlay="jpg")
prediction._repr_html_(), prediction.to_dict(), failed.to_dict(), repr(pipeline), pipeline._repr_html_()
heavy = {"torch", "torchvision", "timm", "lightning", "scipy", "pandas", "matplotlib", "sklearn"} & set(sys.modules)
sys.exit(f"imported {heavy}, code {code}" if heavy or code else 0)
"""


def test_nothing_of_torch_is_imported_from_the_file_to_the_page(export: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", lungs())
    call = [sys.executable, "-c", RUN, str(export), str(tmp_path / "image.png"), str(tmp_path / "out")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] == "normal"
    assert (tmp_path / "out" / "index.html").is_file()
    assert (tmp_path / "out-one" / "image.lung_field.png").is_file()


def test_several_processes_share_the_images(export: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", lungs(60 + number))
    line = ["predict", str(tmp_path / "images"), "--model", str(export), "--backend", "onnx", "--processes", "2"]
    assert main([*line, "--batch-size", "1", "--out", str(tmp_path / "out")]) == 0
    answers = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [answer["height"] for answer in answers] == [60, 61, 62]
    assert {answer["label"] for answer in answers} == {"normal"}


def test_a_server_knows_what_it_runs(export: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from covidcxr.serve.engine import ModelFacts

    facts = ModelFacts.of("export", load(export))
    assert facts.classes == ("normal", "covid19")
    assert facts.components == ("lung_segmenter", "classifier")
    assert len(facts.sha256) == 64


def test_another_file_is_another_model(export: Path) -> None:
    before = fingerprint(load(export))
    about = read_json(export / "export.json")
    about["models"]["classifier"]["config"]["thresholds"] = {"normal": 0.9}
    (export / "export.json").write_text(json.dumps(about))
    assert fingerprint(load(export)) not in ("", before)


def change(export: Path, **changes: Any) -> None:
    (export / "export.json").write_text(json.dumps(read_json(export / "export.json") | changes))


def test_what_is_no_whole_export_is_one_error(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = read_json(export / "export.json")

    def refused(match: str, kind: type[CovidCXRError] = PretrainedError) -> None:
        with pytest.raises(kind, match=match) as error:
            load(export)
        assert "\n" not in str(error.value)
        write_file_back()

    def write_file_back() -> None:
        (export / "export.json").write_text(json.dumps(about))

    change(export, format="torch")
    refused("format 'torch'; the backend reads onnx")
    change(export, format_version=99)
    refused("newer than this release")
    change(export, models={})
    refused("lacks what a pipeline needs: export it anew")
    change(export, models={"nose": about["models"]["classifier"]})
    refused("lacks what a pipeline needs")
    change(export, models={"gate": about["models"]["lung_segmenter"]})
    refused("a model for segmentation cannot be this part")
    change(export, models={"classifier": about["models"]["classifier"]})
    refused("it needs a lung_segmenter", ConfigError)
    change(export, models={"lung_segmenter": about["models"]["lung_segmenter"] | {"file": "../away.onnx"}})
    refused("away.onnx", ConfigError)
    swapped = about["models"]["classifier"] | {
        key: about["models"]["lung_segmenter"][key] for key in ("file", "sha256")
    }
    change(export, models=about["models"] | {"classifier": swapped})
    refused(r"lung_segmenter.onnx: The ONNX file takes image: it is not what `covidcxr export` writes")
    content = (export / "classifier.onnx").read_bytes()
    (export / "classifier.onnx").write_bytes(content[:-1])
    refused("is not the file that was exported .* truncated or was altered")
    (export / "classifier.onnx").write_bytes(b"no graph")
    sha256 = hashlib.sha256(b"no graph").hexdigest()
    change(export, models=about["models"] | {"classifier": about["models"]["classifier"] | {"sha256": sha256}})
    refused("classifier.onnx: ONNX Runtime .* cannot read the file")
    with pytest.raises(PretrainedError, match=r"mini is no export, .* covidcxr export mini --out NEW"):
        Pipeline.from_pretrained("mini", backend="onnx")
    with pytest.raises(PretrainedError, match=r'is an export: Pipeline.from_pretrained\(..., backend="onnx"\)'):
        Pipeline.from_pretrained(export)
    with pytest.raises(ConfigError, match="backend must be one of torch, onnx, not 'jax'"):
        Pipeline.from_pretrained(export, backend="jax")  # type: ignore[arg-type]
    monkeypatch.setattr(onnx_backend, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(ConfigError, match=r'ONNX needs onnxruntime: pip install "covidcxr\[onnx\]"'):
        load(export)


def test_what_exported_files_cannot_do_is_one_error(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = load(export)
    assert pipeline.to("cpu") is pipeline
    with pytest.raises(ConfigError, match="runs on the CPU, not on cuda"):
        pipeline.to("cuda")
    with pytest.raises(ConfigError, match="exported files is not saved"):
        pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="exported classifier cannot be explained"):
        pipeline(lungs()).explain()
    write_image(tmp_path / "image.png", lungs())
    line = ["predict", str(tmp_path / "image.png"), "--model", str(export), "--out", str(tmp_path / "out")]
    assert main([*line, "--backend", "onnx", "--device", "cuda"]) == 2
    assert "runs on the CPU" in capsys.readouterr().err


START = """
import json, re, sys, time
from pathlib import Path
from covidcxr import Pipeline
pipeline = Pipeline.from_pretrained(sys.argv[1], backend="onnx")
started = time.process_time()
pipeline(sys.argv[2])
# Not ru_maxrss, which holds what the parent took before this program began.
most = re.search("VmHWM:.*?([0-9]+) kB", Path("/proc/self/status").read_text())
print(json.dumps([started, int(most[1]) / 1024, "torch" in sys.modules]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_mini_answers_alike_with_both_backends_and_starts_fast(exported_mini: Path) -> None:
    golden = sorted((fetch("mini") / "golden").glob("film-?.png"))
    drawn = [draw_phantom(seed, size=size).image for seed, size in enumerate([(256, 256), (300, 410), (2000, 1700)])]
    images = [*golden, *drawn, draw_other(0, "text", size=(300, 256))]
    given = load(exported_mini).predict(images)
    differences = []
    for wanted, own in zip(Pipeline.from_pretrained("mini").predict(images), given, strict=True):
        assert isinstance(wanted, Prediction)
        assert isinstance(own, Prediction)
        assert (own.label, own.reasons, own.notes) == (wanted.label, wanted.reasons, wanted.notes)
        # The step `equalize` looks at whole greys: of one between two, the last bit of a number decides.
        assert own.probabilities == pytest.approx(wanted.probabilities, abs=1e-3)
        differences += [abs(own.probabilities[name] - value) for name, value in wanted.probabilities.items()]
        assert own.masks.keys() == wanted.masks.keys()
        for name, mask in own.masks.items():
            assert np.mean(mask != wanted.masks[name]) < 1e-4
        assert own.finding_fractions == pytest.approx(wanted.finding_fractions, abs=1e-3)
        assert own.to_dict().keys() == wanted.to_dict().keys()
        np.testing.assert_array_equal(own.image, wanted.image)
    assert np.median(differences) < 1e-5
    done = subprocess.run(
        [sys.executable, "-c", START, str(exported_mini), str(golden[0])], capture_output=True, check=True
    )
    seconds, megabytes, with_torch = json.loads(done.stdout)
    assert not with_torch
    assert seconds < 1, "0.4 to 0.5 s of CPU time on the machine on which this was written"
    assert megabytes < 300, "190 MB on the machine on which this was written"


@pytest.mark.slow
def test_other_precisions_are_smaller_measured_and_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    from covidcxr import ClassificationModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = PreprocessConfig(image_size=(64, 64))
        config = ModelConfig("classification", "timm:test_resnet", ("normal", "covid19"), preprocess=settings)
        Pipeline(classifier=ClassificationModel(config)).save_pretrained(tmp_path / "model")
    images = tmp_path / "images"
    for seed in range(16):
        write_image(images / f"{seed}.png", draw_phantom(seed, size=(80, 80)).image)
    model, sizes = str(tmp_path / "model"), {}
    for name in ("float32", "float16", "int8"):
        out = tmp_path / name
        line = ["export", model, "--precision", name, "--out", str(out)]
        assert main(line if name == "float32" else [*line, "--calibrate", str(images)]) == 0
        about = read_json(out / "export.json")
        assert about["precision"] == name
        sizes[name] = (out / "classifier.onnx").stat().st_size
        assert load(out)(images / "0.png").probabilities.keys() == {"normal", "covid19"}
        if name != "float32":
            assert f"{name} against float32, on" in capsys.readouterr().out
            assert about["loss"]["images"] == {"float16": 16, "int8": 8}[name]
            assert 0 < about["loss"]["probability"]["mean"] < 0.02
    assert sizes["float16"] < 0.75 * sizes["float32"]
    assert sizes["int8"] < sizes["float16"]
    refused = tmp_path / "refused"
    line = ["export", model, "--precision", "int8", "--calibrate", str(images / "0.png"), "--out", str(refused)]
    assert main(line) == 2
    assert "int8 needs at least 16 images" in capsys.readouterr().err
    line = ["export", model, "--format", "torch", "--precision", "float16", "--calibrate", str(images)]
    assert main([*line, "--out", str(refused)]) == 2
    assert "The format torch has float32 only" in capsys.readouterr().err


def test_a_precision_that_loses_too_much_is_refused_unless_it_is_forced(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(path: Path) -> None:  # bright for dark
        model = onnx.load(path)
        for held in model.graph.initializer:
            if held.name == "steep":
                held.CopyFrom(onnx.numpy_helper.from_array(np.float32(-20), "steep"))
        onnx.save(model, path)

    about = read_json(export / "export.json")
    before = load(export)
    monkeypatch.setattr(onnx_backend, "_halve", spoil)
    forced = onnx_backend.reduce_precision(export, about, "float16", [lungs()], force=True)
    assert forced["loss"]["dice"]["lung_field"]["mean"] < 0.5
    assert forced["loss"] == onnx_backend.measure_loss(before, load(export), [lungs()])
    again = export.parent / "again"
    about = write_export(again)
    with pytest.raises(ConfigError, match=r"float16 loses too much .* the mask lung_field agrees .* --force"):
        onnx_backend.reduce_precision(again, about, "float16", [lungs()])
    assert not list(again.iterdir())


def test_weights_in_16_bits_are_computed_with_in_32(tmp_path: Path) -> None:
    held = onnx_backend._LEAST_WEIGHTS
    weights = np.linspace(0.1, 1, held, dtype=np.float32).reshape(1, 1, 1, held)
    node = onnx.helper.make_node
    nodes = [node("Mul", ["image", "weights"], ["probabilities"])]
    path = tmp_path / "halved.onnx"
    write_file(path, nodes, {"weights": weights}, ["image"], "probabilities")
    before = path.stat().st_size
    onnx_backend._halve(path)
    assert path.stat().st_size < 0.8 * before
    session = onnx_backend.start_session(path.read_bytes())
    (result,) = session.run(None, {"image": np.ones((1, 1, 1, held), np.float32)})
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, weights.astype(np.float16).astype(np.float32))
