"""Many people rate at once and the server is killed. `python dev.py bench ratings` does it with more of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage
from conftest import COMFYUI, DEV, HOME, REPO, make_base


@pytest.mark.skipif(os.name == "nt", reason="kills the server with a signal")
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_ratings", REPO / "bench" / "ratings.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    make_base(tmp_path)
    setup = DEV.Setup(home=HOME, comfyui=COMFYUI, python=Path(sys.executable))
    store = Store(f"sqlite:///{tmp_path}/user/__atelier/ratings.sqlite3")
    found = bench.kill_in_the_middle(DEV, setup, tmp_path, store, StoredImage, raters=10, each=20)
    assert found["refused"] == [] and 100 <= found["acknowledged"] <= 110
    assert found["lost"] == 0 and found["invented"] == 0 and found["kept"] <= found["sent"]
