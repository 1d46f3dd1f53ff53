"""Ratings that are lost when the server is killed while many people rate, and how fast ratings are taken.

Raters post through the route of a real ComfyUI, each to pictures of its own, liking and disliking in turn. When about
half of the ratings are acknowledged, the server is killed without warning. Then the database is read.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
PICTURES = 2
"""Pictures of each rater."""


class Raters:
    """People who rate at the same time. `acknowledged` and `sent` count ratings by picture."""

    def __init__(self, url: str, keys: list[list[str]], each: int) -> None:
        self.url, self.keys, self.each = url, keys, each
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        self.refused: list[str] = []

    async def rate(self, process: subprocess.Popen[bytes]) -> None:
        """Until all is sent, or the server is gone: it is killed at half of the ratings."""
        enough = len(self.keys) * self.each // 2
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(keys: list[str]) -> None:
                for number in range(self.each):
                    key, value = keys[number % PICTURES], 1 - 2 * (number // PICTURES % 2)
                    self.sent[key] += 1
                    try:
                        async with session.post(
                            f"{self.url}/atelier/ratings", json={"image": key, "value": value}
                        ) as answer:
                            body = await answer.json()
                            if answer.status != 200:
                                self.refused.append(body["error"])
                                continue
                    except (aiohttp.ClientError, OSError):
                        return
                    self.acknowledged[key] += 1
                    if self.acknowledged.total() == enough:
                        process.kill()

            await asyncio.gather(*map(one, self.keys))


def kill_in_the_middle(
    dev: ModuleType, setup: Any, base: Path, store: Any, record: type, raters: int, each: int
) -> dict[str, Any]:
    """Run the raters against a server of their own in the base directory `base`, and count what became of it.

    `store` is that server's ratings store, `record` the class `StoredImage`.
    """
    images = []
    for number in range(raters * PICTURES):
        digest = f"{number:064x}"
        (base / "output" / "atelier_rated").mkdir(parents=True, exist_ok=True)
        name = f"atelier_rated/{digest}.png"
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(base / "output" / name)
        images.append(record(digest, "p", "load", files=(f"{name} [output]",)))
    store.register(images)
    store.close()
    keys = [[image.key for image in images[at : at + PICTURES]] for at in range(0, len(images), PICTURES)]
    port, log = dev.free_port(), base / "load.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            dev.server_command(setup, base, port, cpu=True), stdin=subprocess.PIPE, stdout=output, stderr=output,
            cwd=base, env=setup.environment,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        dev.wait_until_ready(process, url, log, 600)
        people, start = Raters(url, keys, each), time.perf_counter()
        asyncio.run(people.rate(process))
        seconds = time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
    store.export_file(base / "ratings.jsonl")
    lines = [json.loads(line) for line in (base / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = Counter(line["image"] for line in lines if line["type"] == "rating")
    return {
        "acknowledged": people.acknowledged.total(),
        "sent": people.sent.total(),
        "kept": kept.total(),
        "lost": sum((people.acknowledged - kept).values()),
        "invented": sum((kept - people.sent).values()),
        "refused": people.refused,
        "per_s": people.acknowledged.total() / seconds,
    }


def measure(quick: bool) -> dict[str, Any]:
    """Figures: ratings that are lost, and ratings a second, of 50 raters with 200 ratings each."""
    from _figures import single
    from _world import HOME, pack, start_host

    start_host()
    pack()
    records = importlib.import_module("atelier.feedback.records")
    ratings = importlib.import_module("atelier.feedback.ratings")
    spec = importlib.util.spec_from_file_location("atelier_dev", REPO / "dev.py")
    dev = sys.modules["atelier_dev"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    import comfy

    setup = dev.Setup(home=HOME, comfyui=Path(comfy.__path__[0]).parent, python=Path(sys.executable))
    raters, each = (10, 20) if quick else (50, 200)
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as folder:
        base = Path(folder)
        dev.make_base(base)
        store = ratings.Store(f"sqlite:///{base}/user/__atelier/ratings.sqlite3")
        found = kill_in_the_middle(dev, setup, base, store, records.StoredImage, raters, each)
    if found["refused"] or found["invented"]:
        raise RuntimeError(f"{len(found['refused'])} ratings were refused, {found['invented']} came from nowhere.")
    return {
        "store_lost_ratings": single(found["lost"], "ratings", found["acknowledged"]),
        "store_ratings_per_s": single(found["per_s"], "1/s", found["acknowledged"]),
    }


def main() -> None:
    from _figures import save, show

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    quick = parser.parse_args().quick
    figures = measure(quick)
    show(figures)
    if not quick:
        print(f"wrote {save('ratings', figures)}")


if __name__ == "__main__":
    main()
