"""Makes the pack, the demo code and the host importable, and starts the real server for tests.

The pack is loaded under the name `atelier`, as the host does it: by path. The repository root never goes
on `sys.path`, because the host has a top-level module called `nodes` too. `shapeworld` and
`comfy_api_client` are importable as in the demo's own scripts; `import atelier_demo` loads the demo's host
extension.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = {"atelier": REPO, "atelier_demo": REPO / "demo" / "extension"}
BASE = pytest.StashKey[str]()


class PathPackages(MetaPathFinder):
    """Finds the packages that live at a path of another name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = PACKAGES.get(fullname)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


class PlainRoot:
    """Keeps pytest from importing the pack's `__init__.py` as if the repository were a package of tests."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == REPO else None


def load_dev() -> ModuleType:
    """`dev.py` as a module."""
    spec = importlib.util.spec_from_file_location("atelier_dev", REPO / "dev.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["atelier_dev"] = module
    spec.loader.exec_module(module)
    return module


DEV = load_dev()
HOME = Path(os.environ.get("ATELIER_HOME") or REPO / ".atelier").resolve()
COMFYUI = Path(os.environ.get("ATELIER_COMFYUI") or HOME / "ComfyUI").resolve()


def make_base(base: Path) -> None:
    """A host base directory of its own that shares the assembled demo models."""
    models = HOME / "base" / "models"
    models.mkdir(parents=True, exist_ok=True)
    DEV.link(models, base / "models")
    DEV.make_base(base)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write the snapshots instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    if not (COMFYUI / "main.py").is_file():
        raise pytest.UsageError(f"There is no ComfyUI in {COMFYUI}. Run `python dev.py test`, or set ATELIER_COMFYUI.")
    config.pluginmanager.register(PlainRoot())
    sys.meta_path.insert(0, PathPackages())
    # `python -m pytest` puts the current folder there, and the pack's `training` would hide the demo's.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != REPO]
    sys.path.insert(0, str(COMFYUI))
    sys.path.append(str(REPO / "demo"))

    import torch
    from comfy.cli_args import args

    # Both are read when host modules are first imported.
    args.cpu = not torch.cuda.is_available()
    args.base_directory = config.stash[BASE] = tempfile.mkdtemp(prefix="atelier-tests-")
    make_base(Path(args.base_directory))
    config.pluginmanager.import_plugin("rating_stores")  # its fixtures; it needs all of the above


def pytest_unconfigure(config: pytest.Config) -> None:
    base = config.stash.get(BASE, None)
    if base is not None:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def fresh_memory() -> None:
    """No language model's answer or server is remembered from another test."""
    import llm_servers

    llm_servers.forget()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The real ComfyUI with the pack and the demo extension, in a base directory of its own.

    The object is a `ComfyClient` (`url`, `get`, `post`, `queue`, `upload`, `images`) with `log()`, the
    server's output so far, and `base`, its base directory.
    """
    import torch
    from comfy_api_client import ComfyClient

    class HostServer(ComfyClient):
        def __init__(self, url: str, base: Path, log: Path) -> None:
            super().__init__(url)
            self.base = base
            self.log_file = log

        def log(self) -> str:
            return self.log_file.read_text(encoding="utf-8", errors="replace")

    base = tmp_path_factory.mktemp("host")
    make_base(base)
    setup = DEV.Setup(home=HOME, comfyui=COMFYUI, python=Path(sys.executable))
    with DEV.server(setup, base, base / "server.log", cpu=not torch.cuda.is_available()) as url:
        yield HostServer(url, base, base / "server.log")
