"""Archives: what is good is unpacked whole, what is not leaves nothing behind."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from covidcxr.errors import DatasetError
from covidcxr.io import archives
from covidcxr.io.archives import unpack

FILES = {"data/train/a.png": b"film a", "data/train/b.png": b"film b" * 1000, "data/labels.txt": b"a 0\nb 1\n"}
SAFE = hasattr(tarfile, "data_filter")
TAR = pytest.mark.skipif(not SAFE, reason="Python before 3.11.4 unpacks no tar safely: it is refused")
PACKINGS = ("zip", *(pytest.param(kind, marks=TAR) for kind in ("tar", "tar.gz", "tar.bz2", "tar.xz")))


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def write_tar(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], packing: str = "") -> Path:
    with tarfile.open(path, f"w:{packing}") as archive:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each, io.BytesIO(bytes(each.size)))
            else:
                archive.addfile(member(each[0], size=len(each[1])), io.BytesIO(each[1]))
    return path


def pack(folder: Path, kind: str, files: dict[str, bytes] = FILES) -> Path:
    path = folder / f"download.{kind}"
    if kind == "zip":
        return write_zip(path, files)
    return write_tar(path, list(files.items()), kind.removeprefix("tar").removeprefix("."))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestGoodArchives:
    @pytest.mark.parametrize("kind", PACKINGS)
    def test_every_packing(self, tmp_path, kind):
        path, told = pack(tmp_path, kind), []
        path = path.rename(tmp_path / "download")  # the content tells what it is
        unpack(path, tmp_path / "new" / "root", progress=lambda done, total: told.append((done, total)))
        assert contents(tmp_path / "new") == {f"root/{name}": content for name, content in FILES.items()}
        assert told == sorted(told)
        assert told[-1] == (path.stat().st_size, path.stat().st_size)

    def test_folders_that_are_there_already_are_filled(self, tmp_path):
        root = tmp_path / "root"
        (root / "data" / "train").mkdir(parents=True)
        (root / "data" / "train" / "c.png").write_bytes(b"film c")
        (root / "data" / "train" / "a.png").write_bytes(b"film a")  # the same as in the archive
        unpack(pack(tmp_path, "zip"), root)
        assert contents(root) == FILES | {"data/train/c.png": b"film c"}
        unpack(pack(tmp_path, "zip"), root)
        assert contents(root) == FILES | {"data/train/c.png": b"film c"}

    @pytest.mark.parametrize("there", ["a file", "a folder", "a link"])
    def test_nothing_that_is_there_is_overwritten(self, tmp_path, there):
        root = tmp_path / "root"
        (root / "data").mkdir(parents=True)
        place = root / "data" / "labels.txt"
        if there == "a file":
            place.write_bytes(b"my notes")
        elif there == "a folder":
            place.mkdir()
        else:
            place.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DatasetError, match=r"labels\.txt"):
            unpack(pack(tmp_path, "zip"), root)
        assert not (tmp_path / "elsewhere").exists()
        assert contents(root) == ({"data/labels.txt": b"my notes"} if there == "a file" else {})
        assert [path.name for path in root.iterdir()] == ["data"]

    @TAR
    def test_links_become_files(self, tmp_path):
        links = [
            member("data/l.png", tarfile.SYMTYPE, "train/a.png"),
            member("h.png", tarfile.LNKTYPE, "data/train/a.png"),
        ]
        path = write_tar(tmp_path / "a.tar", [*FILES.items(), *links])
        unpack(path, tmp_path / "root")
        assert contents(tmp_path / "root") == FILES | {"data/l.png": b"film a", "h.png": b"film a"}
        assert not any(path.is_symlink() for path in (tmp_path / "root").rglob("*"))

    @TAR
    def test_an_interrupted_one_is_begun_anew(self, tmp_path, monkeypatch):
        path, root = pack(tmp_path, "tar.gz"), tmp_path / "root"
        root.mkdir()
        (root / ".download.tar.gz.unpacking" / "data").mkdir(parents=True)  # as a killed run leaves it
        (root / ".download.tar.gz.unpacking" / "data" / "train").write_bytes(b"half an image")

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(archives, "_merge", killed)
            with pytest.raises(KeyboardInterrupt):
                unpack(path, root)
        assert not any(root.iterdir())
        unpack(path, root)
        assert contents(root) == FILES


def device(path: Path) -> Path:
    return write_tar(path, [("a.png", b"a"), member("null", tarfile.CHRTYPE)])


ATTACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip slip": (lambda path: write_zip(path, {"a.png": b"", "../evil": b"!"}), r"'../evil' would lie outside"),
    "zip slip within": (lambda path: write_zip(path, {"x/../../evil": b"!"}), "would lie outside"),
    "zip, absolute": (lambda path: write_zip(path, {str(path.parent / "evil"): b"!"}), "would lie outside"),
    "zip, backslash": (lambda path: write_zip(path, {"..\\evil": b"!"}), "would lie outside"),
    "zip, drive": (lambda path: write_zip(path, {"C:/evil": b"!"}), "would lie outside"),
    "tar slip": (lambda path: write_tar(path, [("a.png", b""), ("../evil", b"!")]), "outside"),
    "tar, absolute": (lambda path: write_tar(path, [(str(path.parent / "evil"), b"!")]), "outside"),
    "symlink out": (lambda path: write_tar(path, [member("l", tarfile.SYMTYPE, ".."), ("l/evil", b"!")]), "outside"),
    "symlink, absolute": (lambda path: write_tar(path, [member("l", tarfile.SYMTYPE, "/etc/passwd")]), "absolute"),
    "symlink to a folder": (
        lambda path: write_tar(path, [("d/a.png", b""), member("l", tarfile.SYMTYPE, "d"), ("l/../evil", b"!")]),
        "outside",
    ),
    "write through a symlink": (
        lambda path: write_tar(path, [("d/a.png", b""), member("l", tarfile.SYMTYPE, "d"), ("l/evil", b"!")]),
        "in one place",
    ),
    "chain of symlinks": (
        lambda path: write_tar(
            path, [member("d/b", tarfile.SYMTYPE, ".."), member("a", tarfile.SYMTYPE, "d/b/../evil"), ("x", b"")]
        ),
        "no file of the archive",
    ),
    "hard link out": (lambda path: write_tar(path, [member("h", tarfile.LNKTYPE, "../secret")]), "outside"),
    "hard link to a symlink": (
        lambda path: write_tar(
            path, [("a", b""), member("s", tarfile.SYMTYPE, "a"), member("h", tarfile.LNKTYPE, "s")]
        ),
        "no file of the archive",
    ),
    "device": (device, "null"),
    "fifo": (lambda path: write_tar(path, [member("pipe", tarfile.FIFOTYPE)]), "pipe"),
    "twice": (lambda path: write_tar(path, [("a.png", b"a"), ("./a.png", b"b")]), "in one place"),
    "two cases": (lambda path: write_zip(path, {"d/a.png": b"a", "d/A.PNG": b"b"}), "in one place"),
    "two cases of a folder": (lambda path: write_zip(path, {"d/a.png": b"a", "D/b.png": b"b"}), "in one place"),
    "two forms of a letter": (lambda path: write_zip(path, {"\u00e9": b"a", "e\u0301": b"b"}), "in one place"),
    "a file as folder": (lambda path: write_zip(path, {"a": b"a", "a/b.png": b"b"}), "in one place"),
    "a folder as file": (lambda path: write_zip(path, {"a/b.png": b"b", "a": b"a"}), "in one place"),
    "claims a petabyte": (lambda path: claiming(path, 10**15), "bytes or more, and there is room for"),
    "bomb": (lambda path: write_tar(path, [member("zeros", size=101_000_000)], "gz"), "as if made to fill the disk"),
    "zip bomb": (lambda path: zip_bomb(path), "as if made to fill the disk"),
    "huge header": (lambda path: huge_header(path), "impossible size"),
    "no archive": (lambda path: wrote(path, b"<html>Sign in</html>"), "no zip or tar"),
    "empty": (lambda path: wrote(path, b""), "no zip or tar"),
    "packed, but no tar": (lambda path: wrote(path, b"\x1f\x8b\x08" + bytes(99)), "no zip or tar"),
    "locked": (lambda path: locked(path), "password"),
}


def wrote(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def claiming(path: Path, size: int) -> Path:
    """A tar whose one file is larger, by its header, than any disk."""
    return wrote(path, member("a.png", size=size).tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def huge_header(path: Path) -> Path:
    """A tar with a header of names that would be read into memory whole."""
    return wrote(
        path, member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**40).tobuf(tarfile.GNU_FORMAT) + bytes(512)
    )


def zip_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as file:
        for _ in range(101):
            file.write(bytes(1_000_000))
    return path


def locked(path: Path) -> Path:
    content = bytearray(write_zip(path, {"a.png": b"a"}).read_bytes())
    content[6] |= 1  # the flag in the entry and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return wrote(path, bytes(content))


class TestAttacks:
    @pytest.mark.parametrize("attack", ATTACKS)
    @pytest.mark.parametrize("filled", [False, True])
    def test_is_refused_and_leaves_nothing(self, tmp_path, attack, filled):
        home = tmp_path / "home"
        home.mkdir()
        root = home / "root"
        if filled:
            (root / "sub").mkdir(parents=True)
        write, message = ATTACKS[attack]
        path = write(tmp_path / "archive")
        if not SAFE and not zipfile.is_zipfile(path):
            message = r"Python 3\.11\.4"
        with pytest.raises(DatasetError, match=message) as caught:
            unpack(path, root)
        assert str(path) in str(caught.value)
        assert sorted(found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")) == (
            ["archive", "home", "home/root", "home/root/sub"] if filled else ["archive", "home"]
        )

    def test_a_zip_with_a_link_or_device(self, tmp_path):
        for mode in (0o120777, 0o020666):
            info = zipfile.ZipInfo("l")
            info.external_attr = mode << 16
            with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
                archive.writestr(info, "/etc/passwd")
            with pytest.raises(DatasetError, match="link or a device"):
                unpack(tmp_path / "a.zip", tmp_path / "root")

    @pytest.mark.parametrize("kind", PACKINGS)
    def test_cut_short(self, tmp_path, kind):
        path = pack(tmp_path, kind, {f"{i}.png": bytes(range(256)) * 40 for i in range(9)})
        content = path.read_bytes()
        for share in (0.3, 0.6, 0.9):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(DatasetError, match=r"Download it again|another size"):
                unpack(path, tmp_path / "root")
            assert not (tmp_path / "root").exists()

    @pytest.mark.parametrize("kind", ["zip", "tar.gz"])
    def test_flipped_bytes_never_end_in_a_foreign_error(self, tmp_path, kind):
        path = pack(tmp_path, kind)
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
            root = tmp_path / f"root{place}"
            try:
                unpack(path, root)
            except DatasetError:
                assert not root.exists()

    @TAR
    def test_limits_can_be_set(self, tmp_path):
        path = pack(tmp_path, "tar.gz")
        with pytest.raises(DatasetError, match="there is room for 5,000"):
            unpack(path, tmp_path / "root", max_size=5000)
        bomb = write_tar(tmp_path / "bomb.tar.gz", [member("zeros", size=101_000_000)], "gz")
        unpack(bomb, tmp_path / "root", max_ratio=2000)
        assert (tmp_path / "root" / "zeros").stat().st_size == 101_000_000

    @TAR
    def test_hard_links_count_as_what_they_become(self, tmp_path):
        links = [member(f"l{i}", tarfile.LNKTYPE, "a") for i in range(20)]
        path = write_tar(tmp_path / "a.tar", [member("a", size=10_000), *links])
        with pytest.raises(DatasetError, match="room for"):
            unpack(path, tmp_path / "root", max_size=100_000)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DatasetError, match=r"no archive .*a\.zip"):
            unpack(tmp_path / "a.zip", tmp_path / "root")
