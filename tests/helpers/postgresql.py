"""A PostgreSQL server of the tests' own, which they may stop and start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest


@dataclass(frozen=True)
class PostgreSQL:
    """A server on a port of its own, with its data in a folder of its own."""

    programs: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(
            "pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def create(self) -> None:
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "tester", "-A", "trust", "-E", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        log = self.folder.with_suffix(".out")
        with log.open("ab") as out:  # a pipe would stay open in the server that pg_ctl starts
            done = subprocess.run(
                [*user, str(self.programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                check=False,
                timeout=120,
            )
        assert done.returncode == 0, log.read_text(errors="replace")


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run a server; without the programs or the driver the test is skipped."""
    known = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(folder) for folder in os.get_exec_path())]
    programs = next((folder for folder in known if (folder / "initdb").is_file()), None)
    if programs is None or find_spec("psycopg") is None:
        pytest.skip('needs PostgreSQL (apt-get install postgresql) and its driver (pip install "psycopg[binary]")')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="covidcxr-postgresql-"))
    server = PostgreSQL(programs, folder, port)
    try:
        server.create()
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)
        folder.with_suffix(".out").unlink(missing_ok=True)
