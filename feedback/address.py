"""Where a ratings database is, and what its driver's errors mean to the person who uses it.

No password leaves this module but in `PostgresAddress.url`, which only the engine reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .records import StoreError

_ACCEPTED = "Use sqlite:///PATH/OF/FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE."


@dataclass(frozen=True)
class SQLiteAddress:
    """A file. `shown` names it in messages."""

    path: Path

    @property
    def shown(self) -> str:
        return f"The ratings database {self.path}"

    def explain(self, error: Exception, waited: float) -> str:
        """What happened and what to do."""
        said = str(getattr(error, "orig", error))
        if "locked" in said:
            return (
                f"{self.shown} is locked by another program for more than {waited:g} s. Nothing was saved. "
                "Close what holds it (a database browser, a backup, a stopped ComfyUI) and try again."
            )
        if "readonly" in said:
            return (
                f"{self.shown} can be read but not written, so nothing was saved. Allow this user to write "
                "the file and its folder, or set ATELIER_DATABASE_URL to another place."
            )
        if "not a database" in said or "malformed" in said:
            return (
                f"{self.shown} is damaged or is no SQLite file ({said}). It was left as it is. Move it away "
                "and start anew, then import your last export, or put a backup in its place."
            )
        if "is full" in said:
            return f"The disk of {self.path} is full. Nothing was saved. Free some space and try again."
        if "unable to open" in said:
            return f"{self.shown} cannot be opened. Is it a file, and may this user read and write it and its folder?"
        return f"{self.shown}: {said}"


@dataclass(frozen=True)
class PostgresAddress:
    """A server's database. `shown` names it in messages, without the password."""

    url: URL = field(repr=False)

    @property
    def shown(self) -> str:
        user = f"{self.url.username}@" if self.url.username else ""
        port = f":{self.url.port}" if self.url.port else ""
        return f"The ratings database postgresql://{user}{self.url.host or ''}{port}/{self.url.database or ''}"

    def explain(self, error: Exception, waited: float) -> str:
        """What happened and what to do."""
        cause = getattr(error, "orig", error)
        said, state = self._without_password(str(cause).strip()), getattr(cause, "sqlstate", None)
        if state == "55P03":
            return f"{self.shown} is locked by another writer for more than {waited:g} s. Nothing was saved. Try again."
        if state in ("25006", "42501"):
            return (
                f"{self.shown} can be read but not written ({said}), so nothing was saved. Grant the user INSERT and "
                "UPDATE on the tables and USAGE on the sequences atelier_*, or use another server."
            )
        if state is None or state[:2] in ("08", "28", "3D", "57"):
            return (
                f"{self.shown} cannot be used: {said}. Nothing was saved. Check that the server runs, and the "
                "address and the account in ATELIER_DATABASE_URL; unset it to keep ratings in a local file."
            )
        return f"{self.shown}: {said}"

    def _without_password(self, said: str) -> str:
        for secret in (self.url.password, self.url.query.get("password"), self.url.query.get("sslpassword")):
            if isinstance(secret, str) and secret:
                said = said.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return said


Address = SQLiteAddress | PostgresAddress


def parse_address(text: str) -> Address:
    """Read a database URL. After `sqlite:///` comes the path as it is, without any escapes or options.

    Raises:
        StoreError: It is no such URL. The message does not repeat it, because it may hold a password.
    """
    kind, mark, rest = text.strip().partition("://")
    if kind == "sqlite" and rest.startswith("/") and rest[1:] not in ("", ":memory:"):
        return SQLiteAddress(Path(rest[1:]).expanduser().resolve())
    if kind not in ("postgresql", "postgres", "postgresql+psycopg") or not mark:
        raise StoreError(f"ATELIER_DATABASE_URL is no address of a ratings database. {_ACCEPTED}")
    try:
        url = make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        raise StoreError(f"ATELIER_DATABASE_URL cannot be read. {_ACCEPTED}") from None
    if "@" in unquote(url.host or ""):
        raise StoreError(
            "ATELIER_DATABASE_URL has more than one @. Write @ in the user's name or password as %40, / as %2F."
        )
    return PostgresAddress(url)
