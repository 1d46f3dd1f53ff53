"""Edit data: triplets, the filter, shards that survive anything, workers, and the node over the API."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atelier.llm.backend import LLMAnswerError, LLMConnectionError
from atelier.nodes.train_data import dataset_folder, report
from atelier.training import edit_shards
from atelier.training.edit_data import NOT_FINITE, DrawTask, Pairs, Recipe, drawn_here, make_edits
from atelier.training.edit_filter import NOT_THE_BEST, Similarities, Thresholds, choose, measure
from atelier.training.edit_shards import (
    MANIFEST,
    Drawn,
    EditDataError,
    EditSample,
    Manifest,
    ShardWriter,
    read_edits,
    read_manifest,
)
from atelier.training.edit_sheet import PAIRS, draw_edit_sheet, one_of_each
from atelier.training.edit_triplets import (
    COLOURS,
    LONGEST_CAPTION,
    Triplet,
    ask_triplets,
    collect_triplets,
    read_captions,
    read_triplets,
    rule_triplets,
)
from comfy_api_client import ComfyClient, GraphError
from graphs import DEMO_CHECKPOINT, DEMO_SCORER
from PIL import Image
from scripted_llm import replying
from torch import Tensor

RED = Triplet("a red star", "turn the red star blue", "a blue star")


# --- triplets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_rules_change_one_thing_and_say_it(seed: int) -> None:
    colour, material, time_of_day, look = rule_triplets("A red car by a wooden house at noon", seed)
    word = colour.instruction.removeprefix("turn the red car ")
    article = "An" if word == "orange" else "A"
    assert colour.edited_caption == f"{article} {word} car by a wooden house at noon" and word in set(COLOURS) - {"red"}
    assert material.instruction.startswith("make the wooden house out of ")
    assert "A red car by a" in material.edited_caption and "wooden" not in material.edited_caption
    assert "noon" not in time_of_day.edited_caption
    assert time_of_day.edited_caption.startswith("A red car by a wooden house ")
    assert look.edited_caption.startswith("A red car by a wooden house at noon, as ")


def test_rules_leave_alone_what_they_do_not_understand() -> None:
    for caption in ("a red and white flag", "the colour is red", "a red", "redwood trees", "a blue green sea, red"):
        for edit in rule_triplets(caption, 0):
            assert edit.edited_caption.startswith(caption), edit
    assert not any("turn it into" in edit.instruction for edit in rule_triplets("an oil painting of a fox", 0))
    assert rule_triplets("a fox", 1) == rule_triplets("a fox", 1)
    assert len({tuple(rule_triplets("a red fox", seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "Line 2 of the triplets is not of the form"),
        ("[1]", "Line 2 of the triplets is not of the form"),
        ('{"input": "a", "edit": "b", "output": "c"}', "Line 2 of the triplets is not of the form"),
        ('{"caption": "a", "instruction": 3, "edited_caption": "c"}', "Line 2 of the triplets is not of the form"),
        ('{"caption": "a", "instruction": " ", "edited_caption": "c"}', "Line 2 .*: instruction is empty"),
        ('{"caption": "a", "instruction": "b", "edited_caption": "..."}', "Line 2 .*: edited_caption is empty"),
        ('{"caption": "A red star", "instruction": "b", "edited_caption": "a red star."}', "says the same"),
        ('{"caption": "a", "instruction": "' + 300 * "b" + '", "edited_caption": "c"}', "has 300 characters"),
    ],
)
def test_a_bad_line_of_triplets_is_named(line: str, message: str) -> None:
    good = json.dumps(
        {"caption": "a red star", "instruction": "turn the red star blue", "edited_caption": "a blue star"}
    )
    assert read_triplets(f"{good}\n\n{good}\n") == (RED,)
    with pytest.raises(EditDataError, match=message):
        read_triplets(f"{good}\n{line}")


def test_captions_are_lines() -> None:
    assert read_captions("a star\r\n\n  a heart \na star\n---\n") == ("a star", "a heart")
    with pytest.raises(EditDataError, match="There is no caption"):
        read_captions(" \n--- ")
    with pytest.raises(EditDataError, match=f"{LONGEST_CAPTION + 1} characters"):
        read_captions("x" * (LONGEST_CAPTION + 1))


def edit(instruction: str, caption: str) -> dict[str, str]:
    return {"instruction": instruction, "edited_caption": caption}


def test_a_language_model_writes_edits_and_bad_ones_are_left_out(fresh_memory: None) -> None:
    good = edit("turn the  red star blue", "a blue star")
    llm = replying({"edits": [edit("do nothing", "A red star"), good, good, edit("", "a heart"), edit("x", "y" * 999)]})
    assert ask_triplets(llm, "a red star") == [RED] and len(llm.asked) == 1
    assert "<caption>\na red star\n</caption>" in llm.asked[0].messages[1].content
    none = {"edits": [edit("do nothing", "a red star")]}
    again = replying(none, {"edits": []}, {"edits": [good]})
    assert ask_triplets(again, "a red star") == [RED]
    assert "says the same" in again.asked[1].messages[-1].content and "is empty" in again.asked[2].messages[-1].content
    with pytest.raises(LLMAnswerError, match="says the same"):
        ask_triplets(replying(none), "a red star")


def test_triplets_are_asked_for_once_whatever_happens(tmp_path: Path) -> None:
    file, captions, asked = tmp_path / "data" / "triplets.jsonl", ["one", "two", "three", "four"], []

    def write(caption: str) -> list[Triplet]:
        asked.append(caption)
        if caption == "two":
            raise LLMAnswerError("gave no usable answer")
        if caption == "three" and asked.count("three") == 1:
            raise LLMConnectionError("The server is gone.")
        return [Triplet(caption, "change it", f"another {caption}")]

    collect = partial(collect_triplets, file, {"llm": "m"}, captions, write)
    with pytest.raises(LLMConnectionError):
        collect()
    with file.open("a") as out:
        out.write('{"caption": "three", "edi')  # killed in the middle of a line
    found, without = collect()
    assert [triplet.caption for triplet in found] == ["one", "three", "four"] and without == 1
    assert asked == ["one", "two", "three", "three", "four"]
    assert collect() == (found, 1) and len(asked) == 5
    for source, others in (({"llm": "m2"}, captions), ({"llm": "m"}, ["one", "2"])):
        with pytest.raises(EditDataError, match="other captions or of another language model"):
            collect_triplets(file, source, others, write)
    with pytest.raises(EditDataError, match=r"no edit that can be used\. gave no usable"):
        collect_triplets(tmp_path / "t.jsonl", {}, ["two"], write)


# --- the filter --------------------------------------------------------------------------------------------


class Clip:
    """Sees the mean colour of a picture, and knows a few words."""

    name, version = "colours", "v1"
    words = {"a red star": (1.0, 0.0, 0.0), "a blue star": (0.0, 0.0, 1.0), "a star": (1.0, 1.0, 1.0)}

    def encode_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((1, 2)), dim=-1)

    def encode_text(self, text: str) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor(self.words[text]), dim=0)


def plain(*colours: Sequence[float]) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32)[:, None, None].expand(-1, 4, 4, 3)


def test_similarities_are_those_of_the_papers() -> None:
    pairs = measure(Clip(), plain((1, 0, 0), (1, 0, 0), (0, 0, 1)), plain((0, 0, 1), (1, 0, 0), (1, 0, 0)), RED)
    assert [vars(pair) for pair in pairs] == [
        pytest.approx(expected)
        for expected in (
            {"image_image": 0.0, "text_before": 1.0, "text_after": 1.0, "directional": 1.0},
            {"image_image": 1.0, "text_before": 1.0, "text_after": 0.0, "directional": 0.0},
            {"image_image": 0.0, "text_before": 0.0, "text_after": 0.0, "directional": -1.0},
        )
    ]
    (half,) = measure(Clip(), plain((1, 0, 0)), plain((0.6, 0, 0.8)), RED)
    assert half.directional == pytest.approx((0.4 + 0.8) / (0.4**2 + 0.8**2) ** 0.5 / 2**0.5)


@pytest.mark.parametrize("off", [(-1.0, 0.0, 0.0), (1.5, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_pictures_of_another_range_are_not_measured(off: Sequence[float]) -> None:
    for before, after in ((plain(off), plain((1, 0, 0))), (plain((1, 0, 0)), plain(off))):
        with pytest.raises(ValueError, match="from 0 to 1"):
            measure(Clip(), before, after, RED)


def test_the_best_that_pass_are_kept_and_the_others_counted() -> None:
    nan = float("nan")
    pairs = [
        Similarities(0.9, 0.3, 0.3, 0.3),
        Similarities(0.69, 0.3, 0.3, 0.9),
        Similarities(0.7, 0.2, 0.2, 0.2),
        Similarities(0.9, 0.19, 0.3, 0.9),
        Similarities(0.9, 0.3, 0.19, 0.9),
        Similarities(0.9, 0.3, 0.3, 0.19),
        Similarities(0.9, 0.3, 0.3, 0.5),
        Similarities(0.9, 0.3, 0.3, 0.3),
        Similarities(0.9995, 0.3, 0.3, 0.9),
        Similarities(nan, nan, nan, nan),
        Similarities(0.9, 0.3, 0.3, nan),
    ]
    dropped = {"image_image": 2, "image_text": 2, "directional": 2, "unchanged": 1}
    assert choose(pairs, Thresholds(), 4) == ([6, 0, 7, 2], dropped)
    assert choose(pairs, Thresholds(), 2) == ([6, 0], dropped | {NOT_THE_BEST: 2})
    assert choose([], Thresholds(), 4) == ([], {})


# --- shards ------------------------------------------------------------------------------------------------

SETTINGS = {"steps": 3, "thresholds": {"image_image": 0.7}}


def drawn(number: int) -> Drawn:
    """What became of a triplet: none to three samples of noise, or four pairs of which none was kept."""
    rng = np.random.default_rng(number)
    pictures = rng.integers(0, 256, (2, number % 4, 24, 16, 3), dtype=np.uint8)
    samples = [
        EditSample(f"{number:07d}-{i:04d}", before, after, "a ☆", "mach's blau", "another", 2**32 - i, 0.25, {"x": 0.5})
        for i, (before, after) in enumerate(zip(*pictures, strict=True))
    ]
    return Drawn(samples, 4, {"image_image": 4 - len(samples), "directional": 0})


def write(folder: Path, triplets: int = 12) -> Manifest:
    with ShardWriter(folder, SETTINGS, triplets) as writer:
        while not writer.manifest.complete:
            writer.add(drawn(writer.next))
        return writer.manifest


def content(folder: Path) -> dict[str, str]:
    """The names of the files, and their digests."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of few samples, and no waiting for the disk."""
    monkeypatch.setattr(edit_shards, "SHARD_SAMPLES", 5)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def whole(small_shards: None, tmp_path: Path) -> dict[str, str]:
    """The files of a data set that nothing interrupted."""
    write(tmp_path / "whole")
    return content(tmp_path / "whole")


def test_what_is_written_is_read(small_shards: None, tmp_path: Path) -> None:
    manifest = write(tmp_path)
    assert (manifest.drawn, manifest.kept, manifest.dropped, manifest.settings) == (
        48,
        18,
        {"image_image": 30},
        SETTINGS,
    )
    assert [shard.samples for shard in manifest.shards] == [6, 6, 6] and read_manifest(tmp_path) == manifest
    wanted = [sample for number in range(12) for sample in drawn(number).samples]
    for one, other in zip(read_edits(tmp_path), wanted, strict=True):
        assert np.array_equal(one.before, other.before) and np.array_equal(one.after, other.after)
        assert {**vars(one), "before": 0, "after": 0} == {**vars(other), "before": 0, "after": 0}


def test_a_shard_is_a_tar_of_the_webdataset_layout(small_shards: None, tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "edits-000000.tar", "r|") as tar:
        names = [(member.name, member.mode & 0o444) for member in tar]
    assert names[:3] == [(f"0000001-0000.{end}", 0o444) for end in ("source.png", "target.png", "json")]
    assert len(names) == 18


def test_the_webdataset_library_reads_it(small_shards: None, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(tmp_path)
    urls = [str(file) for file in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    for one, other in zip(samples, read_edits(tmp_path), strict=True):
        assert one["__key__"] == other.key and one["json"]["instruction"] == other.instruction
        assert np.array_equal(one["source.png"], other.before) and np.array_equal(one["target.png"], other.after)


def test_a_run_killed_anywhere_goes_on(whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state that the folder was ever in, between any two changes of a file, is a place to go on from."""
    folder, states = tmp_path / "data", []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            if folder.exists() and len(states) < 1000:
                state = {file.name: file.read_bytes() for file in folder.iterdir()}
                states.extend([state] if not states or states[-1] != state else [])
            return result

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((Path, "replace"), (Path, "unlink"), (edit_shards, "_add_sample"), (edit_shards, "_sync")):
        watch(owner, name)
    write(folder)
    monkeypatch.undo()
    monkeypatch.setattr(edit_shards, "SHARD_SAMPLES", 5)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    assert content(folder) == whole and len(states) > 60
    for number, state in enumerate(states):
        place = tmp_path / "again"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in state.items():
            (place / name).write_bytes(data)
        write(place)
        assert content(place) == whole, f"state {number}: {sorted(state)}"


def test_a_cut_journal_or_shard_costs_no_sample(whole: dict[str, str], tmp_path: Path) -> None:
    """After a power loss the end of a file may be gone, or be longer than what was written."""
    damages = [(end, cut, b"") for end in (".part", ".journal") for cut in (1, 7, 10_000)]
    damages += [
        (".part", 0, b"\0" * 700),
        (".part", 0, b"torn" * 20_000),
        (".journal", 0, b'{"byt'),
        (".journal", 9, b"torn"),
    ]
    for end, cut, longer in damages:
        place = tmp_path / uuid.uuid4().hex
        with ShardWriter(place, SETTINGS, 12) as writer:
            for number in range(7):
                writer.add(drawn(number))
        file = next(place.glob(f"*{end}"))
        data = file.read_bytes()
        file.write_bytes(data[: max(0, len(data) - cut)] + longer)
        write(place)
        assert content(place) == whole, (end, cut, longer)


def test_what_is_in_a_part_is_not_read(small_shards: None, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, SETTINGS, 12) as writer:
        writer.add(drawn(3))
        with pytest.raises(EditDataError, match="no complete shard yet"):
            list(read_edits(tmp_path))
        for number in (3, 2, 1):
            writer.add(drawn(number))
    assert list(tmp_path.glob("*.part")) and len(list(read_edits(tmp_path))) == 6
    with pytest.raises(EditDataError, match="There is no data set in"):
        list(read_edits(tmp_path / "elsewhere"))


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_shard_is_named(small_shards: None, tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    file = tmp_path / "edits-000001.tar"
    data = bytearray(file.read_bytes())
    data[3000] ^= 1
    file.write_bytes(data if damage == "bit" else data[:-2000])
    if damage == "gone":
        file.unlink()
    samples = read_edits(tmp_path)
    assert len(list(itertools.islice(samples, 6))) == 6
    with pytest.raises(EditDataError, match=r"edits-000001\.tar (is damaged|cannot be read).* make the data set again"):
        next(samples)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "settings": {}, "shards": [3]}', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    for act in (lambda: list(read_edits(tmp_path)), lambda: write(tmp_path)):
        with pytest.raises(EditDataError, match=r"manifest\.json cannot be read"):
            act()


def test_another_data_set_is_neither_mixed_in_nor_written_over(whole: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    with pytest.raises(EditDataError, match=r"other settings \(cfg, steps\)"):
        ShardWriter(folder, SETTINGS | {"steps": 4, "cfg": 7}, 12)
    with pytest.raises(EditDataError, match=r"other settings \(triplets\)"):
        ShardWriter(folder, SETTINGS, 13)
    assert write(folder).complete and content(folder) == whole
    (folder / MANIFEST).unlink()
    with pytest.raises(EditDataError, match=r"holds shards and no manifest\.json"):
        ShardWriter(folder, SETTINGS, 12)


def test_a_full_disk_keeps_the_complete_shards(whole: dict[str, str], tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk's: the system refuses the write in the middle of a shard."""
    folder, soft = tmp_path / "data", resource.getrlimit(resource.RLIMIT_FSIZE)
    with ShardWriter(folder, SETTINGS, 12) as writer:
        for number in range(5):
            writer.add(drawn(number))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, soft[1]))
            with pytest.raises(EditDataError, match=r"is full\. Complete shards are kept \(1\).* Make room and queue"):
                for number in (5, 6, 7):
                    writer.add(drawn(number))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert sorted(content(folder)) == ["edits-000000.tar", MANIFEST] and len(list(read_edits(folder))) == 6
    write(folder)
    assert content(folder) == whole


# --- the run -----------------------------------------------------------------------------------------------

RECIPE = Recipe()
TRIPLETS = tuple(Triplet("a red star", f"edit {number}", "a blue star") for number in range(6))


def paint(triplet: Triplet, seeds: Sequence[int], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Red pictures that turn the bluer the smaller the share is; a pair of an odd edit and a great share is broken."""
    level = torch.tensor([(seed % 200) / 255 + 0.2 for seed in seeds])[:, None, None, None].expand(-1, 8, 8, 1)
    blue = (1 - torch.tensor(shares, dtype=torch.float32))[:, None, None, None].expand_as(level) * level
    before = torch.cat([level, level * 0, level * 0], -1)
    after = torch.cat([level - blue, level * 0, blue], -1)
    broken = torch.tensor(shares) > (0.8 if triplet.instruction[-1] in "135" else 2)
    after[broken, 0, 0, 0] = float("nan")
    return before, after


def run(folder: Path, recipe: Recipe = RECIPE, clip: Clip | None = None, **more: Any) -> Manifest:
    engine = more.pop("engine", None) or drawn_here(DrawTask(TRIPLETS, recipe, paint))
    return make_edits(folder, TRIPLETS, recipe, {"steps": 3}, engine, clip, **more)


def test_each_pair_has_its_own_seed_and_share() -> None:
    recipe = Recipe(samples_per_edit=500, seed=3)
    starts = [start for number in range(4) for start in recipe.starts(number)]
    shares = np.array([share for _, share in starts])
    assert len({seed for seed, _ in starts}) == 2000
    assert 0.1 <= shares.min() < 0.105 and 0.895 < shares.max() < 0.9
    assert np.abs(np.histogram(shares, 4, (0.1, 0.9))[0] / 500 - 1).max() < 0.2
    assert Recipe(samples_per_edit=5, seed=3).starts(2) == recipe.starts(2)[:5]
    assert Recipe(seed=4).starts(2) != Recipe(seed=3).starts(2)


def test_the_best_pairs_of_each_edit_are_written(tmp_path: Path) -> None:
    manifest = run(tmp_path, clip=Clip())
    samples = list(read_edits(tmp_path))
    assert (manifest.drawn, manifest.kept) == (48, len(samples)) and manifest.kept + sum(
        manifest.dropped.values()
    ) == 48
    assert (
        manifest.settings["filter"] == "colours v1" and manifest.dropped[NOT_FINITE] and manifest.dropped["image_image"]
    )
    for number in range(6):
        mine = [sample for sample in samples if sample.key.startswith(f"{number:07d}-")]
        directions = [sample.similarities["directional"] for sample in mine]
        assert 0 < len(mine) <= 4 and directions == sorted(directions, reverse=True)
        assert min(sample.similarities["image_image"] for sample in mine) >= 0.7
    for sample in samples:
        number, pair = map(int, sample.key.split("-"))
        seed, share = Recipe().starts(number)[pair]
        assert (sample.seed, sample.share) == (seed, pytest.approx(share, abs=1e-6))
        before, after = paint(TRIPLETS[number], [seed], [share])
        assert np.array_equal(sample.before, (before[0].clamp(0, 1) * 255).round().numpy())
        assert np.array_equal(sample.after, (after[0].clamp(0, 1) * 255).round().numpy())


def test_without_a_scorer_every_pair_of_numbers_is_kept(tmp_path: Path) -> None:
    manifest = run(tmp_path)
    assert manifest.kept + manifest.dropped[NOT_FINITE] == 48 and list(manifest.dropped) == [NOT_FINITE]
    assert manifest.settings["filter"] == "nothing is filtered: no scorer"


def test_an_interrupted_run_and_pairs_at_once_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", clip=Clip())
    for stop in range(7):

        def progress(done: int, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"{stop}", clip=Clip(), progress=progress)
        run(tmp_path / f"{stop}", clip=Clip())
        assert content(tmp_path / f"{stop}") == content(tmp_path / "whole")
    one = Recipe(pairs_at_once=1)
    run(tmp_path / "one", one, clip=Clip())
    assert (tmp_path / "one/edits-000000.tar").read_bytes() == (tmp_path / "whole/edits-000000.tar").read_bytes()


def test_a_fault_of_the_drawing_stops_the_run_without_loss(tmp_path: Path) -> None:
    def fail(number: int) -> Pairs:
        if number == 3:
            raise RuntimeError("out of memory")
        return DrawTask(TRIPLETS, Recipe(), paint)(number)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "a", engine=drawn_here(fail))
    numbers = []
    run(
        tmp_path / "a",
        engine=lambda wanted: drawn_here(DrawTask(TRIPLETS, Recipe(), paint))(numbers.append(n) or n for n in wanted),
    )
    run(tmp_path / "b")
    assert numbers == [3, 4, 5] and content(tmp_path / "a") == content(tmp_path / "b")


def test_the_sheet_shows_a_pair_of_each_edit(tmp_path: Path) -> None:
    run(tmp_path)
    shown = one_of_each(read_edits(tmp_path))
    assert [sample.key[:7] for sample in shown] == [f"{number:07d}" for number in range(6)]
    assert len(one_of_each(drawn(3).samples * 9)) == 3 - 2 and PAIRS >= 6
    sheet = draw_edit_sheet(shown)
    blank = draw_edit_sheet([])
    assert sheet.height > blank.height and len(sheet.getcolors(2**20)) > 10 < len(blank.getcolors(2**20))


# --- workers -----------------------------------------------------------------------------------------------


def deadly_task(marks: str) -> Callable[[int], Pairs]:
    """A task that kills its process on the first try of triplet 2, and raises on that of triplet 4."""

    def task(number: int) -> Pairs:
        mark = Path(marks, str(number))
        if number in (2, 4) and not mark.exists():
            mark.touch()
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a fault that passes")
        return DrawTask(TRIPLETS, Recipe(), paint)(number)

    return task


def hopeless_task() -> Callable[[int], Pairs]:
    def task(number: int) -> Pairs:
        raise RuntimeError(f"{number} will never be")

    return task


@pytest.fixture
def pickled_here() -> Iterator[Any]:
    """Ray, with the functions of this file sent to the workers as they are, which could not import it."""
    ray = pytest.importorskip("ray")
    this = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(this)
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(this)


def test_a_killed_worker_costs_no_sample(pickled_here: Any, tmp_path: Path) -> None:
    from atelier.training.edit_ray import drawn_by_ray

    marks = tmp_path / "marks"
    marks.mkdir()
    run(tmp_path / "ray", engine=drawn_by_ray(partial(deadly_task, str(marks)), 2))
    run(tmp_path / "here")
    assert sorted(file.name for file in marks.iterdir()) == ["2", "4"]
    assert content(tmp_path / "ray") == content(tmp_path / "here")
    with pytest.raises(EditDataError, match=r"Triplet 0 could not be drawn by a worker .*0 will never be"):
        run(tmp_path / "none", engine=drawn_by_ray(hopeless_task, 2))


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.training.edit_ray import drawn_by_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EditDataError, match="pip install ray"):
        drawn_by_ray(hopeless_task, 2)


# --- over the API ------------------------------------------------------------------------------------------

STEPS, CFG_SCALE, SIZE = 3, 4.0, 128
LINES = [
    {"caption": "a red star", "instruction": "make it night", "edited_caption": "a red star, night background"},
    {"caption": "a green circle", "instruction": "turn it yellow", "edited_caption": "a yellow circle"},
]


def graph(name: str, **inputs: Any) -> dict[str, Any]:
    values = {
        "captions": "", "triplets": "\n".join(map(json.dumps, LINES)), "samples_per_edit": 5, "keep": 4,
        "steps": STEPS, "cfg": CFG_SCALE, "size": SIZE, "seed": 7, "name": name, **inputs,
    }  # fmt: skip
    return {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": DEMO_CHECKPOINT}},
        "make": {
            "class_type": "AtelierMakeEditDataset",
            "inputs": {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], **values},
        },
        "scorer": {"class_type": "AtelierLoadScorer", "inputs": {
            "scorer": "relevance to the prompt", "clip_model": DEMO_SCORER}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["make", 2]}},
        "sheet": {"class_type": "PreviewImage", "inputs": {"images": ["make", 1]}},
    }  # fmt: skip


def test_the_node_draws_what_the_stock_sampler_draws(server: ComfyClient) -> None:
    """The picture before is the stock sampler's of the sample's seed; the one after shares its noise."""
    name = uuid.uuid4().hex
    entry = server.queue(graph(f"tests/{name}", triplets=json.dumps(LINES[0])))
    folder = server.base / "output" / "tests" / name
    samples = list(read_edits(folder))
    assert len(samples) == 5 and "5 kept in 1 shards" in entry["outputs"]["report"]["text"][0]
    assert server.images(entry, "sheet")[0].width > 2 * 192
    for sample in (samples[0], samples[4]):  # of two batches
        stock = {
            "load": graph("x")["load"],
            "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": sample.caption}},
            "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
            "size": {"class_type": "EmptyLatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
            "sample": {"class_type": "KSampler", "inputs": {
                "model": ["load", 0], "positive": ["positive", 0], "negative": ["negative", 0],
                "latent_image": ["size", 0], "seed": sample.seed, "steps": STEPS, "cfg": CFG_SCALE,
                "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
            "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
            "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
        }  # fmt: skip
        picture = np.asarray(server.images(server.queue(stock), "show")[0].convert("RGB"), np.int16)
        assert np.abs(picture - sample.before).max() <= 2
        assert np.abs(sample.after.astype(np.int16) - sample.before).max() > 40


def test_the_same_settings_end_at_once_and_others_are_refused(server: ComfyClient) -> None:
    name = uuid.uuid4().hex
    first = graph(name, captions="a red star", triplets="", samples_per_edit=2, keep=1)
    first["make"]["inputs"]["scorer"] = ["scorer", 0]
    text = server.queue(first)["outputs"]["report"]["text"][0]
    folder = server.base / "output" / name
    before, manifest = content(folder), read_manifest(folder)
    assert "3 edits of 1 captions by rules." in text and f"Filter: {DEMO_SCORER}" in text
    assert manifest.complete and manifest.drawn == 6 and manifest.kept <= 3
    assert manifest.kept + sum(manifest.dropped.values()) == 6
    server.post("/free", {"free_memory": True, "unload_models": True})
    assert server.queue(first)["outputs"]["report"]["text"][0] == text and content(folder) == before
    first["make"]["inputs"]["min_direction"] = 0.9
    with pytest.raises(GraphError, match=r"other settings \(thresholds\). Give this one another name"):
        server.queue(first)
    assert content(folder) == before


def test_an_interrupted_node_goes_on_without_loss(server: ComfyClient) -> None:
    whole, cut = uuid.uuid4().hex, uuid.uuid4().hex
    lines = "\n".join(json.dumps(LINES[0] | {"instruction": f"make it night {i}"}) for i in range(5))
    settings = {"triplets": lines, "samples_per_edit": 2}
    server.queue(graph(whole, **settings))
    folder = server.base / "output" / cut

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(file.read_bytes().count(b"\n") >= 2 for file in folder.glob("*.journal")):
                server.post("/interrupt", {})
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(GraphError, match="was interrupted"):
        server.queue(graph(cut, **settings))
    watcher.join()
    assert not read_manifest(folder).complete and list(folder.glob("*.part"))
    server.queue(graph(cut, **settings))
    assert content(folder) == content(server.base / "output" / whole)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"triplets": ""}, "There is no caption. Write captions"),
        ({"triplets": "turn it blue"}, "Line 1 of the triplets is not of the form"),
        ({"captions": "x" * 500}, "500 characters; 400 are the most"),
        ({"name": "../elsewhere"}, "cannot name a data set"),
        ({"name": "/tmp/elsewhere"}, "cannot name a data set"),
        ({"name": "  "}, "cannot name a data set"),
        ({"samples_per_edit": 0}, "samples_per_edit"),
        ({"steps": 0}, "steps"),
        ({"scorer": ["target", 0]}, "reads no captions"),
        ({"workers": 2, "model": ["lora", 0]}, "must all come from one Load Checkpoint"),
    ],
)
def test_bad_input_is_refused(server: ComfyClient, inputs: dict[str, Any], message: str) -> None:
    wrong = graph(uuid.uuid4().hex)
    wrong["make"]["inputs"] |= inputs
    name = server.upload(Image.new("RGB", (16, 16)), f"{uuid.uuid4().hex}.png")
    wrong["picture"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    wrong["target"] = {"class_type": "AtelierLoadScorer", "inputs": {
        "scorer": "similarity to a target", "clip_model": DEMO_SCORER, "target": ["picture", 0]}}  # fmt: skip
    wrong["lora"] = {"class_type": "ModelMergeSimple", "inputs": {
        "model1": ["load", 0], "model2": ["load", 0], "ratio": 0.5}}  # fmt: skip
    with pytest.raises(GraphError, match=message):
        server.queue(wrong)


@pytest.mark.parametrize("name", ["", ".", "..", "a/../../b", "a//b", "C:\\x", "a/", "a.", "\0", "x" * 101, "-a", "~"])
def test_a_name_stays_in_the_output_folder(name: str) -> None:
    with pytest.raises(EditDataError, match="cannot name a data set"):
        dataset_folder(name)
    assert dataset_folder(" pets/first v1.2 ").parts[-2:] == ("pets", "first v1.2")


def test_a_report_of_nothing_says_what_to_do() -> None:
    nothing = Manifest({"filter": "c v1"}, 2, 2, 8, 0, {"image_image": 5, NOT_THE_BEST: 3})
    text = report(Path("/x"), nothing, ["remark"])
    assert text.startswith("remark\n2 edits, 8 pairs drawn, 0 kept") and "lower the thresholds" in text
    assert "5 dropped: the two pictures differ too much (image_image)." in text
