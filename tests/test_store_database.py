"""The ratings database: its schema, and files, servers and addresses that cannot be used."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import atelier.feedback.database as database_module
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoreError
from atelier.feedback.rows import add_images
from atelier.feedback.store import default_url, open_store
from atelier.feedback.tables import METADATA, VERSION_TABLE
from rating_stores import FEEDBACK, LOAD, PASSWORD, PostgresServer, both, digests, image, rated
from sqlalchemy import text

# Schema


@both
def test_the_migrations_make_the_tables(store: Store) -> None:
    options = {"version_table": VERSION_TABLE, "compare_type": True}
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []


@both
def test_an_older_database_is_upgraded_and_a_newer_one_is_left_alone(
    new_url: Callable, stores: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as old:
        picture = rated(old, 1)
    newer = tmp_path / "newer 100%"
    shutil.copytree(FEEDBACK / "migrations", newer)
    (newer / "versions" / "0003_next.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '0003', '0002'\n"
        "def upgrade():\n    op.add_column('atelier_ratings', sa.Column('comment', sa.Text))\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", newer)
        upgraded = stores(url)
        assert upgraded.feedback("s").liked == (picture,)
        upgraded.close()
    path = Path(url.removeprefix("sqlite:///"))
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=r"newer Atelier: its schema is 0003.*Update Atelier"):
        Store(url)
    assert before is None or path.read_bytes() == before


@both
def test_ratings_from_before_strengths_count_in_full(
    new_url: Callable, stores: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, picture = new_url(), image(1)
    shutil.copytree(FEEDBACK / "migrations", tmp_path / "first", ignore=shutil.ignore_patterns("0002*"))
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", tmp_path / "first")
        with contextlib.closing(Store(url)) as old, old._database.write() as connection:
            add_images(connection, [picture])
            columns = "uid, image_id, session, source, value, created"
            values = f"SELECT '{'0' * 32}', id, 's', 'user', 1, 0 FROM atelier_images"
            connection.execute(text(f"INSERT INTO atelier_ratings ({columns}) {values}"))
    assert [(rating.value, rating.strength) for rating in stores(url).ratings("s")] == [(1, 1.0)]


@both
def test_an_upgrade_that_fails_changes_nothing(
    new_url: Callable, stores: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as old:
        rated(old, 1)
    shutil.copytree(FEEDBACK / "migrations", tmp_path / "broken")
    (tmp_path / "broken" / "versions" / "0003_next.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '0003', '0002'\n"
        "def upgrade():\n    op.drop_table('atelier_scores')\n    op.execute('SELECT nonsense FROM nowhere')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", tmp_path / "broken")
        with pytest.raises(StoreError, match="nowhere"):
            Store(url)
    store = stores(url)
    assert store.prompt_values("aesthetic") == [] and store.revision("s") == 1


# Databases that cannot be used


def test_the_same_url_gives_the_same_store(file: Path) -> None:
    with contextlib.closing(open_store(f"sqlite:///{file}")) as store:
        assert open_store(f"sqlite:///{file}") is store


def test_sqlite_is_in_write_ahead_mode_and_checks_references(file: Path) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store, store._database.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_locked_file_is_waited_for_and_then_named(file: Path, impatient: None) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"locked by another program.*Nothing was saved.*try again"):
                store.rate(image(1).key, -1, session="s")
            assert len(store.feedback("s").liked) == 1  # readers do not wait
            threading.Timer(0.3, other.rollback).start()
            store.rate(image(1).key, -1, session="s")
        assert [rating.value for rating in store.ratings("s")] == [-1]


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_locked_server_is_waited_for_and_then_named(new_url: Callable, impatient: None) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as store, contextlib.closing(Store(url)) as other:
        store.register([image(1)])
        with other._database.write(), pytest.raises(StoreError, match=r"locked by another writer.*Nothing was saved"):
            store.rate(image(1).key, 1, session="s")
        store.rate(image(1).key, 1, session="s")
        assert store.revision("s") == 1


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Root may write everywhere; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(0o755)
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_read_only_file_can_be_read(
    file: Path, request: pytest.FixtureRequest, folder_too: bool, impatient: None
) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555 if folder_too else 0o777)
    request.addfinalizer(lambda: (file.parent.chmod(0o755), file.chmod(0o644)))
    before = file.read_bytes()
    request.getfixturevalue("unprivileged")
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        assert digests(store.feedback("s").liked) == [image(1).digest]
        with pytest.raises(StoreError, match=r"can be read but not written.*nothing was saved"):
            store.rate(image(1).key, -1, session="s")
    assert file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a writer who may do more than the reader")
def test_a_reader_without_rights_sees_what_another_writes(file: Path, request: pytest.FixtureRequest) -> None:
    file.parent.chmod(0o755)
    request.getfixturevalue("unprivileged")
    with contextlib.closing(Store(f"sqlite:///{file}")) as reader:
        assert len(reader.feedback("s").liked) == 1
        os.seteuid(0)
        with contextlib.closing(Store(f"sqlite:///{file}")) as writer:
            rated(writer, 2)
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        assert len(reader.feedback("s").liked) == 2


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_read_only_server_can_be_read(new_url: Callable, postgres_server: PostgresServer) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as store:
        rated(store, 1)
    postgres_server.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with contextlib.closing(Store(url)) as store:
        assert len(store.feedback("s").liked) == 1
        with pytest.raises(StoreError, match="can be read but not written"):
            store.rate(image(1).key, -1, session="s")


@pytest.mark.parametrize("damage", [lambda data: b"not a database " * 500, lambda data: data[: len(data) // 2]])
def test_a_damaged_file_is_named_and_left_as_it_is(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"ratings.sqlite3 is damaged.*left as it is"):
        Store(f"sqlite:///{file}").feedback("s")
    assert file.read_bytes() == before


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path}")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot make the folder"):
        Store(f"sqlite:///{tmp_path}/file/below/x.sqlite3")


def test_a_file_that_is_deleted_in_use_loses_no_rating_silently(file: Path) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        store.rate(image(1).key, -1, session="s")
        file.unlink()
        with pytest.raises(StoreError, match="deleted, moved or replaced"):
            store.rate(image(1).key, 1, session="s")
        assert not file.exists()


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_restarted_server_is_connected_to_again(new_url: Callable, postgres_server: PostgresServer) -> None:
    with contextlib.closing(Store(new_url())) as store:
        rated(store, 1)
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
            "backend_type = 'client backend'"
        )
        store.rate(image(1).key, -1, session="s")
        assert store.revision("s") == 2


def refused(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """The error's whole traceback and the log of opening this URL, which must not show the password."""
    caplog.set_level(0)
    with pytest.raises(StoreError) as caught:
        Store(url)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(caught.value)
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "ss/w@rd", "w@rd", "hunter2"):
        assert secret not in shown
    return str(caught.value)


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_no_password_is_shown_by_a_server_that_refuses(
    new_url: Callable, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert "does not exist" in refused(postgres_server.url("nothing"), caplog)
    assert "authentication failed" in refused(postgres_server.url("postgres", "hunter2"), caplog)
    assert f"127.0.0.1:{postgres_server.port}" in refused(postgres_server.url("postgres", "hunter2"), caplog)
    url = new_url()
    with contextlib.closing(Store(url)) as store:
        assert PASSWORD not in repr(store) and quote(PASSWORD, safe="") not in repr(store)


def test_no_password_is_shown_by_a_url_that_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        assert "Check that the server runs" in refused(f"postgresql://me:hunter2@{nobody}/x", caplog)
        assert "Check that the server runs" in refused(f"postgresql://{nobody}/x?password=hunter2", caplog)
    assert "more than one @" in refused(f"postgresql://me:{PASSWORD}@localhost/x", caplog)
    assert "cannot be read" in refused("postgresql://me:hunter2@localhost:port/x", caplog)
    assert "hunter2" not in refused("postgresql://me:hunter2@localhost/x?hunter2=1", caplog)
    for url in ("mysql://me:hunter2@localhost/x", "sqlite://", "sqlite:///:memory:", "hunter2", ""):
        assert "is no address" in refused(url, caplog)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert 'pip install "psycopg[binary]"' in refused("postgresql://me:hunter2@localhost/x", caplog)


@pytest.mark.parametrize("package", ["sqlalchemy", "alembic"])
def test_a_missing_package_is_named_when_a_store_is_opened(package: str, tmp_path: Path) -> None:
    script = f"""{LOAD}
sys.modules[{package!r}] = None
from any_name.store import StoreError, open_store
try:
    open_store("sqlite:///{tmp_path}/x.sqlite3")
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert f"need the package {package}" in done.stdout and "pip install" in done.stdout, done.stderr


def test_the_default_is_in_the_hosts_private_folder_unless_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import folder_paths

    monkeypatch.setenv("ATELIER_DATABASE_URL", " ")
    assert default_url() == f"sqlite:///{folder_paths.get_user_directory()}/__atelier/ratings.sqlite3"
    monkeypatch.setenv("ATELIER_DATABASE_URL", "postgresql://localhost/team")
    assert default_url() == "postgresql://localhost/team"
