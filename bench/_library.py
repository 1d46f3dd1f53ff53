"""How long the model library takes to read many files: `scan_2000_s` and what goes with it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from _figures import Figure, single
from safetensors.numpy import save

FILES = 2000


def make_library(folder: Path, count: int) -> list[str]:
    """Write `count` LoRAs in folders of 100, as a collection from Civitai looks: names of the files, relative.

    Each has 512 tensors, about as many as a LoRA for SD 1.5, training metadata of 20 kB, a `.civitai.info` with ten
    example pictures and a preview; every other one has a `.json` of the web UI. The tensors are small: a scan reads
    none.
    """
    blocks = [
        f"lora_unet_{side}_blocks_{i}_attentions_{j}" for side in ("down", "up") for i in range(4) for j in (0, 1)
    ]
    tensors = {
        f"{block}_transformer_blocks_{k}_attn2_to_k.lora_{way}.weight": np.zeros((1, 768), np.float16)
        for block in blocks
        for k in range(16)
        for way in ("down", "up")
    }
    names = []
    for i in range(count):
        place = folder / f"set {i // 100}"
        place.mkdir(parents=True, exist_ok=True)
        stem = f"model {i}.v1"
        counts = {f"tag {i} {j}": j for j in range(1000)}
        header = {"ss_tag_frequency": json.dumps({"10_a": counts}), "ss_base_model_version": "sd_v1"}
        (place / f"{stem}.safetensors").write_bytes(save(tensors, metadata=header))
        (place / f"{stem}.civitai.info").write_text(json.dumps(_civitai(i)), encoding="utf-8")
        (place / f"{stem}.preview.png").write_bytes(b"")
        if i % 2:
            (place / f"{stem}.json").write_text(json.dumps({"preferred weight": 0.8}), encoding="utf-8")
        names.append(f"{place.name}/{stem}.safetensors")
    return names


def _civitai(i: int) -> dict[str, object]:
    """A model version of Civitai's API, about 10 kB."""
    prompts = [f"picture {i} {j} of a thing, " + "very detailed, " * 40 for j in range(10)]
    return {
        "name": "v1",
        "baseModel": "SD 1.5",
        "trainedWords": [f"trigger {i}"],
        "description": "<p>What is new in this version.</p>",
        "model": {"name": f"Model {i}", "type": "LORA", "tags": ["style", "anime", f"thing {i % 50}"]},
        "images": [{"meta": {"prompt": text, "negativePrompt": "blurry, " * 20}} for text in prompts],
    }


def scan_figures(count: int = FILES) -> dict[str, Figure]:
    """Seconds of one scan: `scan_2000_s` in a fresh process's state with the cache file there, `_cold_s` with none,
    `_memory_s` for the next scan of the same process. The files have just been written, so the disk's cache is warm.

    With another count the keys have that number in them.
    """
    from atelier.llm.library import scan
    from atelier.llm.library_cache import open_cache

    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as temporary:
        models, user = Path(temporary) / "models", Path(temporary) / "user"
        names = make_library(models, count)

        def seconds() -> float:
            start = time.perf_counter()
            library = scan(names, lambda name: str(models / name), "lora", user)
            passed = time.perf_counter() - start
            if len(library.models) != count:
                raise AssertionError(f"{len(library.models)} of {count} models were read: {library.skipped}")
            return passed

        open_cache.cache_clear()
        cold = seconds()
        open_cache.cache_clear()
        warm = seconds()
        memory = seconds()
    values = {"s": warm, "cold_s": cold, "memory_s": memory}
    return {f"scan_{count}_{key}": single(value, "s", count) for key, value in values.items()}
