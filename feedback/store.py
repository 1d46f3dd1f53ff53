"""Opens the store of pictures and ratings, one `Store` for each database.

SQLAlchemy and alembic are imported when a store is first opened, so the pack loads without them.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .records import StoreError

if TYPE_CHECKING:
    from .ratings import Store

_open: dict[str, Store] = {}
_lock = threading.Lock()


def default_url() -> str:
    """`ATELIER_DATABASE_URL`, else a SQLite file in the host's user directory, which it does not serve over HTTP."""
    url = os.environ.get("ATELIER_DATABASE_URL", "").strip()
    if url:
        return url
    import folder_paths

    return "sqlite:///" + os.path.join(folder_paths.get_system_user_directory("atelier"), "ratings.sqlite3")


def open_store(url: str) -> Store:
    """The store of a database, made or upgraded if need be. The same URL gives the same object.

    `url` is sqlite:///PATH (the folder is made) or postgresql://USER:PASSWORD@HOST:PORT/DATABASE.

    Raises:
        StoreError: The database cannot be used, or a package is missing; the message says what to do.
    """
    try:
        from .ratings import Store
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("sqlalchemy", "alembic"):
            raise
        raise StoreError(
            f"Ratings need the package {package}, which ComfyUI 0.30 brings: pip install sqlalchemy alembic"
        ) from None
    with _lock:
        if url not in _open:
            _open[url] = Store(url)
        return _open[url]
