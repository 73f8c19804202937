"""Collections of 16-bit pictures that hold fewer bits: said once at set-up and by the check, and read by `bits`."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from images import encode

from covidcxr.cli.main import main
from covidcxr.data import CombinedDataModule, FolderDataModule
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.phantom import draw_phantom

SETTINGS = {"image_size": (48, 48), "augment": None, "patient_pattern": r"(.+)_1\."}


def write_folder(root: Path, bits: int, kind: str = "PNG", shift: int = 0, dtype: type = np.uint16) -> Path:
    for number in range(12):
        label = ("covid19", "normal")[number % 2]
        pixels = np.rint(draw_phantom(number, label=label, size=(90, 80)).image * (2**bits - 1)).astype(dtype) << shift
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{number:02d}_1.{kind.lower()}").write_bytes(encode(pixels, kind))
    return root


@pytest.mark.parametrize(("bits", "kind"), [(12, "PNG"), (10, "TIFF"), (14, "PNG")])
def test_it_is_said_once_and_the_cure_works(bits: int, kind: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path, bits, kind)
    data = FolderDataModule(root, **SETTINGS)
    with pytest.warns(UserWarning, match=f"8 of 8 images of 16 bits.*only {bits} seem.*`bits: {bits}`") as caught:
        data.setup()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")
        assert data.train_dataset[0]["image"].max() < 0.3
        cured = FolderDataModule(root, **SETTINGS, bits=bits)
        image = cured.train_dataset[0]["image"]
    assert image.max() > 0.9
    assert pickle.loads(pickle.dumps(cured)).train_dataset[0]["image"].equal(image)
    sharp = FolderDataModule(write_folder(tmp_path / "eight", 8, dtype=np.uint8), **SETTINGS)
    assert (sharp.train_dataset[0]["image"] - image).abs().max() < 2 / 255


@pytest.mark.parametrize(("bits", "shift", "dtype"), [(12, 4, np.uint16), (16, 0, np.uint16), (8, 0, np.uint8)])
def test_nothing_is_said_of_other_collections(bits: int, shift: int, dtype: type, tmp_path: Path) -> None:
    data = FolderDataModule(write_folder(tmp_path, bits, shift=shift, dtype=dtype), **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup()
    assert data.train_dataset[0]["image"].max() > 0.9
    assert not any("16 bits" in note for note in check_dataset(data).notes)


def test_the_check_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path, 12)
    assert main(["datasets", "check", "folder", "--root", str(root), "--json"]) == 0
    (note,) = [note for note in json.loads(capsys.readouterr().out)["notes"] if "16 bits" in note]
    assert note.startswith("8 of 8 images of 16 bits that were looked at")
    assert not any("16 bits" in note for note in check_dataset(FolderDataModule(root, bits=12)).notes)


def test_an_image_that_holds_more_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 12)
    (root / "normal" / "bright_1.png").write_bytes(encode(np.full((90, 80), 65535, np.uint16), "PNG"))
    report = check_dataset(FolderDataModule(root, bits=12), decode=True)
    (fault,) = report.faults
    assert "bright_1.png" in fault
    assert "bits=16" in fault


def test_one_unreadable_image_does_not_end_set_up(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 12)
    broken = root / "covid19" / "00_1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = FolderDataModule(root, **SETTINGS)
    with pytest.warns(UserWarning, match="7 of 8"):
        data.setup()
    with pytest.raises(ImageReadError, match=r"00_1\.png"):
        data.load_image(next(record for record in data.records if record.image_path == broken))


def test_a_compact_copy_keeps_what_it_was_read_with(tmp_path: Path) -> None:
    root, copy = write_folder(tmp_path / "origin", 12), tmp_path / "copy"
    prepare_dataset(FolderDataModule(root, **SETTINGS, bits=12), copy)
    data = FolderDataModule(copy, **SETTINGS, bits=12)
    assert data.train_dataset[0]["image"].max() > 0.9
    with pytest.raises(ConfigError, match="bits=12, not None"):
        FolderDataModule(copy, **SETTINGS).setup()


def test_members_of_a_combined_data_set_have_bits_of_their_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "twelve", 12)
    write_folder(tmp_path / "eight", 8, dtype=np.uint8)
    pattern = SETTINGS["patient_pattern"]
    members = {
        name: {"name": "folder", "root": str(tmp_path / name), "patient_pattern": pattern, **bits}
        for name, bits in (("twelve", {"bits": 12}), ("eight", {}))
    }
    data = CombinedDataModule(tmp_path, datasets=members, duplicates="ignore")
    assert min(data.load_image(record).max() for record in data.records) > 0.9
    with pytest.raises(ConfigError, match="set bits for its members"):
        CombinedDataModule(tmp_path, datasets=members, duplicates="ignore", bits=12)
