"""Ratings stores for tests: pictures, an encoder, and databases on SQLite and on a real PostgreSQL server.

The fixtures here are known to every test; `conftest.py` registers this module. The PostgreSQL server is started by the
first test that needs it, where its programs are installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import atelier.feedback.database as database_module
import numpy as np
import pytest
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage

FEEDBACK = Path(__file__).resolve().parents[1] / "feedback"
PASSWORD = "pa:ss/w@rd%1"

LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "any_name", r"{FEEDBACK / "__init__.py"}", submodule_search_locations=[r"{FEEDBACK}"]
)
sys.modules["any_name"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["any_name"])
"""
"""Makes `feedback/` importable in a plain process, under another name and without the rest of the pack."""


def image(number: int, prompt: str = "a cat", session: str = "s", **fields: object) -> StoredImage:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return StoredImage(digest, prompt, session, **{"checkpoint": "base", "seed": number, **fields})


def rated(store: Store, number: int, value: int = 1, session: str = "s", **fields: object) -> StoredImage:
    """Register and rate a picture."""
    picture = image(number, session=session, **fields)
    store.register([picture])
    store.rate(picture.key, value, session=session)
    return picture


def digests(images: Sequence[StoredImage]) -> list[str]:
    return [picture.digest for picture in images]


class Table:
    """An encoder that looks vectors up, or makes one from the text's hash."""

    def __init__(self, vectors: dict[str, Sequence[float]] | None = None, name: str = "table", width: int = 2) -> None:
        self.vectors, self.name, self.width = vectors or {}, name, width
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return np.asarray(self.vectors.get(text, np.random.default_rng(seed).normal(size=self.width)), np.float32)


class PostgresServer:
    """A server of our own in a temporary folder, on a free port of this machine."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        login = ["-U", "atelier", "--pwfile", str(folder / "password"), "--auth=scram-sha-256"]
        self._run("initdb", "-D", str(folder / "data"), *login, "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-p {self.port} -k {folder} -h 127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start")

    def _run(self, program: str, *arguments: str) -> None:
        # The group and the folder too: PostgreSQL looks at what it may do with them.
        group = None if self._user is None else pwd.getpwnam(self._user).pw_gid
        extra = None if self._user is None else []
        log = self._folder.with_suffix(".log")
        with log.open("wb") as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                cwd="/",
                user=self._user,
                group=group,
                extra_groups=extra,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {log.read_text(errors='replace')}")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://atelier:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg")
    found = shutil.which("initdb")
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("PostgreSQL's initdb is neither on PATH nor in /usr/lib/postgresql/*/bin")
    user = None
    if os.geteuid() == 0:  # initdb refuses root
        known = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")]
        if not known:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
        user = max(known)
    folder = Path(tempfile.mkdtemp(prefix="atelier-pg-"))
    try:
        server = PostgresServer(places[-1].parent, folder, user)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of another empty database."""
    kind, made = request.param, iter(range(100))
    server = request.getfixturevalue("postgres_server") if kind == "postgres" else None

    def new() -> str:
        if server is None:
            return f"sqlite:///{tmp_path}/new folder/50% of #{next(made)}.sqlite3"
        name = f"t{hashlib.sha256(str((tmp_path, next(made))).encode()).hexdigest()[:16]}"
        server.execute(f"CREATE DATABASE {name}")
        return server.url(name)

    return new


both = pytest.mark.parametrize("new_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def stores(new_url: Callable[[], str]) -> Iterator[Callable[..., Store]]:
    """Opens the store of a new database, or another one of a URL; closes them at the end."""
    with contextlib.ExitStack() as stack:

        def new(url: str | None = None) -> Store:
            return stack.enter_context(contextlib.closing(Store(url or new_url())))

        yield new


@pytest.fixture
def store(stores: Callable[..., Store]) -> Store:
    return stores()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a SQLite store with one liked picture, closed."""
    path = tmp_path / "ratings.sqlite3"
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        rated(store, 1)
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 1.0)
