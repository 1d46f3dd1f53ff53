"""The connection to the ratings database: SQLite by file, or PostgreSQL by URL.

One writer at a time, in both: SQLite by its own lock, PostgreSQL by an advisory lock that every writing transaction
takes first. So row numbers come in the order of commits, and what was read up to a row number is complete. Whoever
waits longer than `BUSY_SECONDS` for the lock gets a `StoreError`.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from .address import PostgresAddress, SQLiteAddress, parse_address
from .records import StoreError
from .tables import VERSION_TABLE

BUSY_SECONDS = 30.0
"""SQLite's lock is not fair: on a busy machine, a writer beside one that never pauses has waited for over 5 s."""

CONNECT_SECONDS = 5
MIGRATIONS = Path(__file__).resolve().parent / "migrations"

_WRITE = "atelier_write"
_POSTGRES_LOCK = 0x6174656C696572  # any number that only this pack uses: "atelier"


class Database:
    """An engine whose schema is the one that this code knows.

    Raises:
        StoreError: The database cannot be reached, read or brought to this schema.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_address(url)
        self._identity: tuple[int, int] | None = None
        if isinstance(self._address, SQLiteAddress):
            engine = self._make_sqlite(self._address.path)
            self._reader, self._writer = engine, engine.execution_options(**{_WRITE: True})
        else:
            engine = self._make_postgres(self._address)
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
            self._writer = engine.execution_options(isolation_level="READ COMMITTED")
        self._bring_up_to_date()
        self._identity = self._file_identity()

    def __repr__(self) -> str:
        return f"Database({self._address.shown!r})"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._explained(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside. It is committed at the end, or undone by an exception."""
        with self._explained(), self._writer.begin() as connection:
            if isinstance(self._address, PostgresAddress):
                connection.execute(text(f"SET LOCAL lock_timeout = {int(BUSY_SECONDS * 1000)}"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})"))
            yield connection

    def close(self) -> None:
        self._reader.dispose()

    def _make_sqlite(self, path: Path) -> Engine:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Cannot make the folder {path.parent} for the ratings: {error.strerror}.") from None
        effective = os.access in os.supports_effective_ids
        # Where only others may write, each transaction looks anew whether they do; see `_open_sqlite`.
        pool = QueuePool if os.access(path.parent, os.W_OK, effective_ids=effective) else NullPool
        engine = create_engine("sqlite://", creator=functools.partial(_open_sqlite, path), poolclass=pool)

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # A writer locks at once: a lock that is taken after the first read can fail without waiting.
            write = connection.get_execution_options().get(_WRITE)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _make_postgres(self, address: PostgresAddress) -> Engine:
        try:
            return create_engine(address.url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})
        except ImportError as error:
            raise StoreError(
                f"{address.shown} needs the package psycopg ({error}): "
                'pip install "psycopg[binary]", or unset ATELIER_DATABASE_URL to keep ratings in a local file.'
            ) from None

    def _bring_up_to_date(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        script = ScriptDirectory.from_config(config)
        with self.read() as connection:
            current = self._check_revision(connection, script)
        if current == script.get_current_head():
            return
        if isinstance(self._address, SQLiteAddress) and current is None:
            with self._explained():
                _use_write_ahead_log(self._address.path)
        with self.write() as connection:
            self._check_revision(connection, script)
            config.attributes.update(connection=connection, version_table=VERSION_TABLE)
            command.upgrade(config, "head")

    def _check_revision(self, connection: Connection, script: ScriptDirectory) -> str | None:
        """The schema's revision in the database, None in a new one. Refuses one that this code does not know."""
        options = {"version_table": VERSION_TABLE}
        current = MigrationContext.configure(connection, opts=options).get_current_revision()
        if current is not None and current not in {step.revision for step in script.walk_revisions()}:
            raise StoreError(
                f"{self._address.shown} was made by a newer Atelier: its schema is {current}, this version knows "
                f"{script.get_current_head()}. Update Atelier, or set ATELIER_DATABASE_URL to another database. "
                "Nothing was changed."
            )
        return current

    def _file_identity(self) -> tuple[int, int] | None:
        if not isinstance(self._address, SQLiteAddress):
            return None
        try:
            state = self._address.path.stat()
        except OSError:
            return (0, 0)
        return state.st_dev, state.st_ino

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the driver's errors into `StoreError`. The original is left out: it may repeat the URL."""
        if self._identity is not None and self._file_identity() != self._identity:
            raise StoreError(
                f"{self._address.shown} was deleted, moved or replaced while it was in use. Put it back, or "
                "restart ComfyUI to go on with what is there now. Nothing was saved."
            )
        try:
            yield
        except (DBAPIError, PoolTimeout) as error:
            raise StoreError(self._address.explain(error, BUSY_SECONDS)) from None
        except sqlite3.Error as error:
            raise StoreError(self._address.explain(error, BUSY_SECONDS)) from None


def _open_sqlite(path: Path) -> sqlite3.Connection:
    """Open a SQLite file, for reading alone where nothing else is allowed.

    SQLite cannot read a write-ahead database in a folder that it may not write to, because it wants to make a lock file
    there. With no log beside it nobody has it open for writing, and it can be read as it is.
    """
    connection = _connect(path, "mode=rwc")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        connection.close()
        refused = "unable to open" in str(error) or "readonly" in str(error)
        if not refused or not path.is_file() or path.with_name(f"{path.name}-wal").exists():
            raise
        connection = _connect(path, "mode=ro&immutable=1")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _connect(path: Path, options: str) -> sqlite3.Connection:
    # isolation_level None: transactions are begun by the engine's event alone, so that they hold schema changes too.
    return sqlite3.connect(
        f"{path.as_uri()}?{options}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _use_write_ahead_log(path: Path) -> None:
    """Let readers and a writer work side by side. SQLite does not wait for others here, so this does."""
    patience = time.monotonic() + BUSY_SECONDS
    connection = _open_sqlite(path)
    try:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise
            time.sleep(0.05)
    finally:
        connection.close()
