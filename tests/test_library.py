"""The model library: what is known of the installed models, from which source, and what bad files do to it."""

from __future__ import annotations

import json
import os
import struct
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.llm import library_cache
from atelier.llm.families import family_of, fit, known_family
from atelier.llm.headers import LARGEST_HEADER, Header
from atelier.llm.library import fingerprint, record, scan
from atelier.llm.library_cache import CACHE_FILE, open_cache
from atelier.llm.library_edits import EDITS_FILE
from atelier.llm.records import Library, ModelRecord, name_in_words
from atelier.llm.sidefiles import LARGEST_FILE, SideText, plain_text
from safetensors.numpy import save_file


class Place:
    """A models folder and a user's folder of their own."""

    def __init__(self, base: Path) -> None:
        self.models, self.user = base / "models", base / "user"
        self.models.mkdir()

    def model(self, name: str, header: dict[str, str] | None = None, **tensors: tuple[int, ...]) -> Path:
        """A safetensors file. Of `tensors`, names are given with `__` for a dot."""
        path = self.models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = {key.replace("__", "."): shape for key, shape in tensors.items()} or {"weight": (4,)}
        save_file({key: np.zeros(shape, np.float16) for key, shape in shapes.items()}, path, metadata=header)
        return path

    def beside(self, name: str, content: Any) -> Path:
        """A side file: bytes as they are, anything else as JSON."""
        path = self.models / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def edits(self, content: Any) -> Path:
        self.user.mkdir(exist_ok=True)
        path = self.user / EDITS_FILE
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def names(self) -> list[str]:
        """As the host lists them: it follows links to folders."""
        found = []
        for folder, _, files in os.walk(self.models, followlinks=True):
            found += [os.path.relpath(os.path.join(folder, file), self.models) for file in files]
        return [name for name in found if name.endswith((".safetensors", ".ckpt", ".gguf"))]

    def locate(self, name: str) -> str | None:
        """As the host finds a file."""
        path = self.models / name.replace("\\", "/")
        return str(path) if os.path.lexists(path) else None

    def scan(self, kind: str = "checkpoint", names: list[str] | None = None) -> Library:
        return scan(self.names() if names is None else names, self.locate, kind, self.user)

    def one(self, kind: str = "checkpoint") -> ModelRecord:
        found = self.scan(kind)
        assert len(found.models) == 1, found.skipped
        return found.models[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


CIVITAI = {
    "name": "v2.0",
    "baseModel": "SDXL 1.0",
    "trainedWords": ["chalk style, on a board", "dusty", "chalk style"],
    "description": "<p>Fixed a bug.</p>",
    "model": {
        "name": "Chalk & Board",
        "type": "LORA",
        "tags": ["style", "Chalk", "landscape"],
        "description": "<h1>Chalk</h1><p>On a <b>black</b>board &amp; slates.</p><script>steal()</script><p>Dusty.",
    },
    "images": [
        {"url": "x", "meta": {"prompt": "a fox, chalk style <lora:chalk:0.8>", "negativePrompt": "photo"}},
        {"url": "y", "meta": None},
        {"url": "z", "meta": {"prompt": "a (red:1.2) house", "negativePrompt": "blurry"}},
        {"url": "z", "meta": {"prompt": "a boat", "negativePrompt": "blurry"}},
    ],
}
WEB_UI = {
    "description": "My own words",
    "sd version": "Unknown",
    "activation text": "my chalk, <lora:chalk:1>",
    "preferred weight": 0.7,
    "negative text": "colour",
    "notes": "Use few words",
}
MANAGER = {
    "file_name": "chalk",
    "model_name": "Chalk by a manager",
    "base_model": "Pony",
    "tags": ["drawing"],
    "notes": "",
    "usage_tips": '{"strength": 0.65}',
    "civitai": {"trainedWords": ["managed"], "images": [{"meta": {"prompt": "a managed fox"}}]},
    "modelDescription": "Managed &lt;words&gt;",
}

# Sources


def test_civitai_info(place: Place) -> None:
    place.model("chalk.safetensors")
    place.beside("chalk.civitai.info", CIVITAI)
    place.beside("chalk.preview.PNG", b"")
    found = place.one("lora")
    assert found == ModelRecord(
        name="chalk.safetensors",
        title="Chalk & Board",
        description="Chalk\nOn a blackboard & slates.\nDusty.",
        subject_tags=("landscape",),
        style_tags=("chalk",),
        trigger_words=("chalk style", "on a board", "dusty"),
        example_prompts=("a fox, chalk style", "a (red:1.2) house", "a boat"),
        kind="lora",
        family="sdxl",
        tags=("style", "chalk", "landscape"),
        negative="blurry",
        preview=str(place.models / "chalk.preview.PNG"),
    )


def test_web_ui_json(place: Place) -> None:
    place.model("chalk.safetensors")
    place.beside("chalk.json", WEB_UI)
    found = place.one("lora")
    assert (found.description, found.usage_hint) == ("My own words", "Use few words")
    assert (found.trigger_words, found.strength, found.negative) == (("my chalk",), 0.7, "colour")
    assert (found.family, found.notes) == ("", ())
    assert place.scan("checkpoint").models[0].strength is None


def test_lora_manager(place: Place) -> None:
    place.model("chalk.safetensors")
    place.beside("chalk.metadata.json", MANAGER)
    found = place.one("lora")
    assert (found.title, found.family, found.strength) == ("Chalk by a manager", "pony", 0.65)
    assert (found.tags, found.trigger_words) == (("drawing",), ("managed",))
    assert (found.description, found.example_prompts) == ("Managed <words>", ("a managed fox",))


def test_text_files_hold_descriptions(place: Place) -> None:
    place.model("a.safetensors")
    place.model("b.safetensors")
    place.beside("a.txt", "Fog over hills ☁".encode())
    place.beside("b.description.txt", "Snow".encode("utf-16"))
    assert [model.description for model in place.scan().models] == ["Fog over hills ☁", "Snow"]


def test_side_files_have_an_order(place: Place) -> None:
    place.model("chalk.safetensors")
    for name, content in {"json": WEB_UI, "metadata.json": MANAGER, "civitai.info": CIVITAI}.items():
        place.beside(f"chalk.{name}", content)
    place.beside("chalk.txt", b"Least of all")
    found = place.one("lora")
    assert (found.description, found.trigger_words, found.strength) == ("My own words", ("my chalk",), 0.7)
    assert (found.title, found.tags, found.family) == ("Chalk by a manager", ("drawing",), "pony")
    assert (found.negative, found.example_prompts) == ("colour", ("a managed fox",))


HEADER = {
    "modelspec.title": "Header title",
    "modelspec.description": "Header <i>words</i>",
    "modelspec.tags": "style:neon, subject:signs",
    "modelspec.trigger_phrase": "neon sign",
    "modelspec.usage_hint": "At night",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "atelier.example_prompts": '["a neon star"]',
    "ss_output_name": "last-000010",
}


def test_the_header_comes_before_side_files(place: Place) -> None:
    place.model("chalk.safetensors", HEADER)
    place.beside("chalk.json", WEB_UI)
    place.beside("chalk.civitai.info", CIVITAI)
    found = place.one("lora")
    assert (found.title, found.description, found.usage_hint) == ("Header title", "Header words", "At night")
    assert (found.style_tags, found.subject_tags, found.tags) == (("neon",), ("signs",), ("neon", "signs"))
    assert (found.trigger_words, found.example_prompts) == (("neon sign",), ("a neon star",))
    assert (found.strength, found.negative) == (0.7, "colour")


def test_the_users_edits_come_first(place: Place) -> None:
    place.model("neon/chalk v1.5.safetensors", HEADER)
    place.beside("neon/chalk v1.5.json", WEB_UI)
    edit = {"title": "Mine", "tags": ["Style:ink", "fish"], "family": "SD 1.5", "strength": 0.3, "negative": ""}
    place.edits({"lora": {"neon\\chalk v1.5.safetensors": edit}, "checkpoint": {}})
    found = place.one("lora")
    assert (found.title, found.family, found.strength, found.negative) == ("Mine", "sd15", 0.3, "")
    assert (found.tags, found.style_tags, found.subject_tags) == (("ink", "fish"), ("ink",), ("fish",))
    assert (found.trigger_words, found.usage_hint) == (("neon sign",), "At night")
    assert place.one("checkpoint").title == "Header title"
    place.edits({"lora": {"neon/chalk v1.5.safetensors": {"trigger_words": [], "strength": None}}})
    found = place.one("lora")
    assert (found.title, found.trigger_words, found.strength) == ("Header title", (), None)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ([1], "not a JSON object"),
        ({"loras": {}}, '"loras" is not an object named checkpoint, diffusion_model, lora'),
        ({"lora": [1]}, '"lora" is not an object'),
        ({"lora": {"a.safetensors": 3}}, "lora a.safetensors: Input should be"),
        ({"lora": {"a.safetensors": {"strenght": 1}}}, "lora a.safetensors: strenght: Extra inputs"),
        ({"lora": {"a.safetensors": {"strength": "NaN"}}}, "strength: Input should be a finite number"),
        ({"lora": {"a.safetensors": {"strength": 99}}}, "strength: Input should be less than or equal to 10"),
        ({"lora": {"a.safetensors": {"tags": "ink"}}}, "tags: Input should be a valid list"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_edit_is_noted_and_does_not_count(place: Place, content: Any, note: str) -> None:
    place.model("a.safetensors")
    place.edits(content)
    found = place.scan("lora")
    assert found.models[0] == record("a.safetensors", "lora", Header(), SideText(), None)
    assert len(found.notes) == 1 and note in found.notes[0]


def test_one_bad_edit_leaves_the_others(place: Place) -> None:
    place.model("a.safetensors")
    place.edits({"checkpoint": {"b.safetensors": {"x": 1}, "a.safetensors": {"title": "Mine"}}})
    found = place.scan()
    assert found.models[0].title == "Mine" and "b.safetensors" in found.notes[0]


def test_titles_and_training_tags_rank_below_side_files(place: Place) -> None:
    counts = json.dumps({"10_x": {"1girl": 9, "a girl who stands in front of a wall": 20}})
    header = {"ss_output_name": "myChalk_v2", "ss_tag_frequency": counts}
    place.model("file.safetensors", header)
    found = place.one()
    assert (found.title, found.tags) == ("my Chalk v2", ("1girl",))
    place.beside("file.civitai.info", CIVITAI)
    found = place.one()
    assert (found.title, found.tags) == ("Chalk & Board", ("style", "chalk", "landscape"))


# Families


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("stable-diffusion-v1", "sd15"),
        ("stable-diffusion-v1-lora", "sd15"),
        ("sd_v1", "sd15"),
        ("SD 1.5 LCM", "sd15"),
        ("SD1", "sd15"),
        ("stable-diffusion-v2-768-v", "sd2"),
        ("SD 2.1", "sd2"),
        ("stable-diffusion-xl-v1-base/lora", "sdxl"),
        ("sdxl_base_v1-0", "sdxl"),
        ("SDXL Lightning", "sdxl"),
        ("stable-diffusion-3-m", "sd3"),
        ("SD 3.5 Large Turbo", "sd3"),
        ("flux-1-dev/lora", "flux"),
        ("Flux.1 Kontext", "flux"),
        ("flux2_klein_9b", "flux2"),
        ("Flux.2 D", "flux2"),
        ("Pony", "pony"),
        ("Pony V7", "auraflow"),
        ("Illustrious", "illustrious"),
        ("NoobAI", "noobai"),
        ("Wan Video 2.2 I2V-A14B", "wan"),
        ("Hunyuan Video", "hunyuan-video"),
        ("ZImageTurbo", "z-image"),
        ("Qwen", "qwen-image"),
        ("Brand New 2/lora", "brand new 2"),
        ("Other", ""),
        ("Unknown", ""),
        ("", ""),
    ],
)
def test_a_familys_many_names(text: str, family: str) -> None:
    assert family_of(text) == family


def test_a_known_family_may_stand_anywhere() -> None:
    assert known_family("ponyDiffusionV6XL_v6.safetensors") == "pony"
    assert known_family("juggernaut.safetensors") == ""


@pytest.mark.parametrize(
    ("tensor", "shape", "family"),
    [
        ("model__diffusion_model__input_blocks__1__1__transformer_blocks__0__attn2__to_k__weight", (8, 768), "sd15"),
        ("model__diffusion_model__input_blocks__4__1__transformer_blocks__0__attn2__to_k__weight", (8, 2048), "sdxl"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k__lora_down__weight", (4, 2048), "sdxl"),
        ("unet__up_blocks__1__attentions__0__transformer_blocks__0__attn2__to_k__lora_A__weight", (4, 1024), "sd2"),
        ("transformer__transformer_blocks__0__attn2__to_k__lora_A__weight", (4, 2048), ""),
        ("lora_unet_double_blocks_0_img_attn_qkv__lora_down__weight", (4, 3072), "flux"),
        ("transformer__single_transformer_blocks__0__attn__to_k__lora_A__weight", (4, 3072), "flux"),
        ("model__diffusion_model__joint_blocks__0__x_block__attn__qkv__weight", (4, 4), "sd3"),
        ("distilled_guidance_layer__in_proj__weight", (4, 4), "chroma"),
    ],
)
def test_tensors_tell_the_family(place: Place, tensor: str, shape: tuple[int, ...], family: str) -> None:
    place.model("m.safetensors", **{tensor: shape})
    assert place.one("lora").family == family


XL = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k__lora_down__weight": (4, 2048)}


def test_a_header_names_the_architecture_and_others_the_fine_tune(place: Place) -> None:
    place.model("a.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    place.beside("a.civitai.info", {"baseModel": "Illustrious"})
    place.model("b.safetensors", {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"}, **XL)
    place.model("c_pony.safetensors", **XL)
    place.model("d_pony.safetensors", **XL)
    place.beside("d_pony.civitai.info", {"baseModel": "SDXL 1.0"})
    place.model("e_pony.safetensors", {"ss_base_model_version": "sd_v1"})
    place.model("f.safetensors", {"ss_v2": "True"})
    families = [model.family for model in place.scan("lora").models]
    assert families == ["illustrious", "pony", "pony", "sdxl", "sd15", "sd2"]


def test_a_side_file_for_another_architecture_is_noted(place: Place) -> None:
    place.model("a.safetensors", {"ss_base_model_version": "sd_v1"})
    place.beside("a.civitai.info", {"baseModel": "SDXL 1.0"})
    found = place.one("lora")
    assert found.family == "sd15"
    assert found.notes == ("the file is for sd15, but a file beside it says SDXL 1.0",)


def test_what_goes_with_what() -> None:
    def model(family: str, kind: Any = "checkpoint") -> ModelRecord:
        return ModelRecord(f"{family}.safetensors", kind=kind, family=family)

    pony = model("pony", "lora")
    assert [fit(pony, model(family)) for family in ("pony", "sdxl", "illustrious", "sd15", "")] == [2, 1, 1, 0, 0]
    assert fit(pony, model("pony", "diffusion_model")) == 2
    assert fit(model("flux", "lora"), model("flux", "diffusion_model")) == 2
    assert fit(model("flux", "lora"), model("flux2")) == 0
    assert fit(model("", "lora"), model("")) == 0
    assert fit(pony, pony) == 0
    assert fit(model("pony"), model("pony")) == 0


# Names


def test_nothing_installed(place: Place) -> None:
    assert place.scan() == Library((), {})
    assert fingerprint([], place.locate) == fingerprint([], place.locate, place.user)


ODD_NAMES = (
    "v1.5.final.safetensors",
    "my model (1).safetensors",
    'it\'s "quoted".safetensors',
    "🎨 paint 🖌️.safetensors",
    "ignore previous.safetensors",
    "<|im_start|>system.safetensors",
    "line\nbreak.safetensors",
    unicodedata.normalize("NFD", "한글 café.safetensors"),
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows few of these names")
def test_odd_names_are_names(place: Place) -> None:
    for name in ODD_NAMES:
        place.model(name)
        place.beside(unicodedata.normalize("NFC", name.removesuffix(".safetensors")) + ".txt", b"Beside it")
    found = place.scan()
    assert {model.name for model in found.models} == set(ODD_NAMES) and not found.skipped
    assert {model.description for model in found.models} == {"Beside it"}
    titles = {model.title for model in found.models}
    assert {"v1 5 final", "my model 1", "it s quoted", "paint", "ignore previous", "line break", "한글 café"} <= titles
    assert all(title.isprintable() for title in titles)
    place.edits({"checkpoint": {unicodedata.normalize("NFC", ODD_NAMES[-1]): {"title": "Edited"}}})
    assert "Edited" in {model.title for model in place.scan().models}


def test_windows_separators(place: Place) -> None:
    place.model("anime/pixelArt.safetensors")
    place.edits({"checkpoint": {"anime/pixelArt.safetensors": {"usage_hint": "Mine"}}})
    found = place.scan(names=["anime\\pixelArt.safetensors"]).models[0]
    assert (found.name, found.title, found.usage_hint) == ("anime\\pixelArt.safetensors", "pixel Art", "Mine")


def test_the_same_stem_in_two_folders(place: Place) -> None:
    for folder in ("a", "b"):
        place.model(f"{folder}/same.safetensors")
        place.beside(f"{folder}/same.txt", folder.encode())
    found = place.scan().models
    assert [(model.name, model.description) for model in found] == [
        (os.path.join("a", "same.safetensors"), "a"),
        (os.path.join("b", "same.safetensors"), "b"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_name_that_is_no_unicode_is_skipped(place: Place) -> None:
    name = os.fsdecode(b"bad\xff.safetensors")
    place.model("good.safetensors").rename(place.models / name)
    found = place.scan()
    assert found.models == ()
    assert found.skipped == {"bad\\udcff.safetensors": "its name is not valid Unicode: rename it"}
    assert fingerprint(place.names(), place.locate)


def test_accents_do_not_end_a_word() -> None:
    assert name_in_words(unicodedata.normalize("NFD", "café_über.safetensors")) == "café über"


# Bad files


def corrupt(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 4, "header"),
        (b"no header at all", "claims a header of"),
        (corrupt(b"{}", LARGEST_HEADER + 1), f"at most {LARGEST_HEADER:,} are read"),
        (corrupt(b"{}", 2**64 - 1), "damaged, or not a safetensors file"),
        (corrupt(b"{}", LARGEST_HEADER), "header"),
        (corrupt(b"[1, 2]"), "header"),
        (corrupt(b"{" * 50), "header"),
        (corrupt(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'), "header"),
    ],
)
def test_a_damaged_file_is_skipped(place: Place, content: bytes, reason: str) -> None:
    place.model("good.safetensors")
    place.beside("bad.safetensors", content)
    found = place.scan()
    assert [model.name for model in found.models] == ["good.safetensors"]
    assert list(found.skipped) == ["bad.safetensors"] and reason in found.skipped["bad.safetensors"]
    assert str(place.models) not in found.skipped["bad.safetensors"]


def test_a_large_header_is_not_parsed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.llm import headers

    place.beside("bad.safetensors", corrupt(b"{}", LARGEST_HEADER + 1))
    monkeypatch.setattr(headers, "safe_open", lambda *_, **__: pytest.fail("parsed"))
    assert "bad.safetensors" in place.scan().skipped


def test_a_truncated_file_is_skipped(place: Place) -> None:
    path = place.model("a.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert "a.safetensors" in place.scan().skipped


def test_folders_links_and_files_that_are_gone(place: Place) -> None:
    (place.models / "folder.safetensors").mkdir()
    os.symlink("loop.safetensors", place.models / "loop.safetensors")
    os.symlink("nowhere", place.models / "dangling.safetensors")
    names = ["folder.safetensors", "loop.safetensors", "dangling.safetensors", "gone.safetensors", "nul\0.safetensors"]
    found = place.scan(names=names)
    assert found.models == () and set(found.skipped) == set(names)
    assert found.skipped["folder.safetensors"] == "it is a folder or a device, not a file"
    assert found.skipped["loop.safetensors"] == "Too many levels of symbolic links"
    assert found.skipped["dangling.safetensors"] == found.skipped["gone.safetensors"] == "the file is gone"
    assert fingerprint(names, place.locate)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(place: Place) -> None:
    os.mkfifo(place.models / "pipe.safetensors")
    assert "not a file" in place.scan().skipped["pipe.safetensors"]
    place.model("a.safetensors")
    os.mkfifo(place.models / "a.json")
    assert place.scan().models[0].notes == ("a.json: is not a file",)


def test_a_folder_that_links_to_itself(place: Place) -> None:
    place.model("sub/a.safetensors")
    os.symlink(place.models / "sub", place.models / "sub" / "again")
    names = place.names()
    assert len(names) > 10
    found = place.scan()
    first = os.path.join("sub", "a.safetensors")
    assert [model.name for model in found.models] == [first]
    assert len(found.skipped) == len(names) - 1
    assert set(found.skipped.values()) == {f"it is the same file as {first}"}


def test_a_file_deleted_between_looking_and_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.llm import library, library_files

    path, side = place.model("a.safetensors"), place.beside("b.txt", b"words")
    place.model("b.safetensors")
    look = library_files.Folders.look

    def look_and_lose(self: Any, name: str) -> Any:
        found = look(self, name)
        path.unlink(missing_ok=True)
        side.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(library.Folders, "look", look_and_lose)
    found = place.scan(names=["a.safetensors", "b.safetensors"])
    assert found.skipped == {"a.safetensors": "the file is gone"}
    assert [(model.name, model.description, model.notes) for model in found.models] == [("b.safetensors", "", ())]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.json", b"<html>", "a.json: is not JSON"),
        ("a.json", b'"text"', "a.json: is not a JSON object"),
        ("a.json", b"[" * 100_000, "a.json: is not JSON"),
        ("a.json", b'{"description": "\xe9"}', "a.json: is not UTF-8; save it as UTF-8"),
        ("a.txt", b"\xe9t\xe9", "a.txt: is not UTF-8; save it as UTF-8"),
        ("a.txt", b"x" * (LARGEST_FILE + 1), f"a.txt: is larger than {LARGEST_FILE:,} bytes and was not read"),
        ("a.json", {"preferred weight": "much"}, "a.json: preferred weight is not a number"),
        ("a.json", {"preferred weight": True}, "a.json: preferred weight is not between -10 and 10"),
        ("a.json", b'{"preferred weight": NaN}', "a.json: preferred weight is not between -10 and 10"),
        ("a.json", b'{"preferred weight": 1' + b"0" * 400 + b"}", "a.json: preferred weight is not between"),
        ("a.json", {"description": ["x"]}, "a.json: description is not a text"),
        ("a.civitai.info", {"trainedWords": {}}, "a.civitai.info: trainedWords is not a text or a list"),
        ("a.civitai.info", {"images": "none"}, "a.civitai.info: images is not a list"),
        ("a.civitai.info", {"model": []}, "a.civitai.info: model is not an object"),
        ("a.metadata.json", {"usage_tips": "strong"}, "a.metadata.json: usage_tips is not an object"),
    ],
)
def test_a_bad_side_file_is_noted(place: Place, name: str, content: Any, note: str) -> None:
    place.model("a.safetensors")
    place.beside(name, content)
    place.beside("a.description.txt", b"Still read")
    found = place.one("lora")
    assert len(found.notes) == 1 and found.notes[0].startswith(note)
    assert (found.description, found.strength) == ("Still read", None)


def test_side_files_that_say_nothing_are_no_mistake(place: Place) -> None:
    place.model("a.safetensors")
    for name in ("a.json", "a.civitai.info", "a.txt"):
        place.beside(name, b"")
    place.beside("a.metadata.json", {"tags": None, "usage_tips": "{}", "civitai": None})
    assert place.one("lora") == ModelRecord("a.safetensors", title="a", kind="lora")


def test_wrong_items_in_lists_are_left_out(place: Place) -> None:
    place.model("a.safetensors")
    images = [3, None, {"meta": "x"}, {"meta": {"prompt": 3}}, {"meta": {"prompt": "a fox"}}]
    place.beside("a.civitai.info", {"images": images, "trainedWords": [1, None, "fox"], "tags": [{"name": "Ink"}, {}]})
    found = place.one("lora")
    assert (found.example_prompts, found.trigger_words, found.tags) == (("a fox",), ("fox",), ("ink",))


def test_a_folder_in_the_place_of_a_side_file(place: Place) -> None:
    place.model("a.safetensors")
    (place.models / "a.json").mkdir()
    os.symlink("a.civitai.info", place.models / "a.civitai.info")
    found = place.one()
    assert found.notes[0] == "a.json: is not a file"
    assert found.notes[1].startswith("a.civitai.info: Too many levels of symbolic links")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("plain, a < b & c > d", "plain, a < b & c > d"),
        ("<p>one</p><p>two <em>three</em></p>", "one\ntwo three"),
        ("<ul><li>a<li>b</ul>", "a\nb"),
        ("a&nbsp;b &lt;script&gt;", "a b <script>"),
        ("<style>p { }</style><script>x < y</script>seen", "seen"),
        ("<p title='<b>'>never closed", "never closed"),
        ("<![foo[ x ]]> seen</p>", "seen"),
        ("<!-- hidden --><p>seen<", "seen<"),
        ("a\u202eb\x00\x1b[31mc\ud800d", "ab[31mcd"),
    ],
)
def test_markup_is_dropped(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_a_long_description_is_cut_and_quick(place: Place) -> None:
    place.model("a.safetensors", {"modelspec.description": "<p>" + "<" * 500_000 + "word " * 100_000})
    assert len(place.one().description) <= 1000


def test_what_strangers_write_can_be_saved(place: Place) -> None:
    place.model("a.safetensors")
    place.beside("a.civitai.info", b'{"model": {"name": "x\\ud800y\\u0000"}, "trainedWords": ["\\udfff"]}')
    found = place.one()
    assert (found.title, found.trigger_words) == ("xy", ())
    json.dumps(vars(found), ensure_ascii=False).encode()


# The cache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose header was read."""
    from atelier.llm import library

    seen: list[str] = []
    read: Callable[[str], Any] = library.read_header
    monkeypatch.setattr(library, "read_header", lambda path: (seen.append(os.path.basename(path)), read(path))[1])
    return seen


def restart() -> None:
    """What is in memory is forgotten."""
    open_cache.cache_clear()


def test_an_unchanged_file_is_read_once(place: Place, reads: list[str]) -> None:
    place.model("a.safetensors", HEADER)
    place.beside("a.civitai.info", CIVITAI)
    first = place.scan("lora")
    assert place.scan("lora") == first and reads == ["a.safetensors"]
    restart()
    assert place.scan("lora") == first and reads == ["a.safetensors"]
    assert place.scan("checkpoint").models[0].kind == "checkpoint"
    assert place.scan("lora") == first


def test_the_cache_follows_the_files(place: Place, reads: list[str]) -> None:
    path = place.model("a.safetensors", {"modelspec.title": "one"})
    assert place.one().title == "one"
    place.model("a.safetensors", {"modelspec.title": "two"})
    os.utime(path, ns=(0, 1))
    assert place.one().title == "two"
    side = place.beside("a.txt", b"one")
    assert place.one().description == "one"
    side.write_bytes(b"two")
    os.utime(side, ns=(0, 1))
    assert place.one().description == "two"
    side.unlink()
    assert place.one().description == ""
    assert place.one().preview is None
    place.beside("a.png", b"")
    assert place.one().preview == str(place.models / "a.png")
    assert len(reads) == 6


def test_edits_are_never_cached(place: Place) -> None:
    place.model("a.safetensors")
    edits = place.edits({"checkpoint": {"a.safetensors": {"title": "Mine"}}})
    assert place.one().title == "Mine"
    edits.unlink()
    assert place.one().title == "a"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: b"\xff" + text,
        lambda text: b"[]",
        lambda text: text.replace(b'"kind":"checkpoint"', b'"kind":"toaster"'),
        lambda text: text.replace(b'"made_by":"', b'"made_by":"older'),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(place: Place, reads: list[str], damage: Any) -> None:
    place.model("a.safetensors")
    first = place.scan()
    cache = place.user / CACHE_FILE
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    assert cache.read_bytes() != whole
    restart()
    assert place.scan() == first and len(reads) == 2
    assert cache.read_bytes() == whole


def test_two_servers_share_a_cache(place: Place, reads: list[str]) -> None:
    place.model("a.safetensors")
    place.model("b.safetensors")
    here, there = library_cache.Cache(place.user), library_cache.Cache(place.user)
    for cache, name in ((here, "a"), (there, "b")):
        path = str(place.models / f"{name}.safetensors")
        cache.put(library_cache.cache_key("checkpoint", path), "state", ModelRecord(f"{name}.safetensors"))
        cache.save()
    both = library_cache.Cache(place.user)
    for name in ("a", "b"):
        key = library_cache.cache_key("checkpoint", str(place.models / f"{name}.safetensors"))
        assert both.get(key, "state") == ModelRecord(f"{name}.safetensors")
        assert both.get(key, "other state") is None
    assert [path.name for path in place.user.iterdir()] == [CACHE_FILE]


def test_two_servers_writing_at_once_never_leave_half_a_file(place: Place) -> None:
    import threading

    path = place.model("a.safetensors")
    key = library_cache.cache_key("checkpoint", str(path))

    def write(server: int) -> None:
        cache = library_cache.Cache(place.user)
        for i in range(20):
            cache.put(key, f"state {server} {i}", ModelRecord("a.safetensors", description="long " * 20_000))
            cache.save()

    servers = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for server in servers:
        server.start()
    seen = 0
    while any(server.is_alive() for server in servers):
        if (place.user / CACHE_FILE).exists():
            assert json.loads((place.user / CACHE_FILE).read_bytes())["entries"][key]["record"]["name"] == path.name
            seen += 1
    assert seen
    assert [file.name for file in place.user.iterdir()] == [CACHE_FILE]


def test_models_that_are_gone_leave_the_cache(place: Place) -> None:
    path = place.model("a.safetensors")
    place.scan()
    path.unlink()
    place.model("b.safetensors")
    place.scan()
    assert "a.safetensors" not in (place.user / CACHE_FILE).read_text()


def test_a_cache_that_cannot_be_written_is_no_error(place: Place, reads: list[str]) -> None:
    place.model("a.safetensors")
    place.user.write_bytes(b"a file in the place of the folder")
    assert len(place.scan().models) == 1
    assert len(place.scan().models) == 1 and len(reads) == 1


def test_a_crash_while_writing_leaves_the_old_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.model("a.safetensors")
    place.scan()
    before = (place.user / CACHE_FILE).read_bytes()
    place.model("b.safetensors")
    monkeypatch.setattr(library_cache.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    assert len(place.scan().models) == 2
    assert [path.read_bytes() for path in place.user.iterdir()] == [before]


def test_the_fingerprint_follows_everything(place: Place) -> None:
    def now() -> str:
        return fingerprint(place.names(), place.locate, place.user)

    path = place.model("a.safetensors")
    seen = [now()]
    assert now() == seen[0]
    os.utime(path, ns=(0, 1))
    seen.append(now())
    side = place.beside("a.txt", b"one")
    seen.append(now())
    os.utime(side, ns=(0, 1))
    seen.append(now())
    place.edits({"checkpoint": {"a.safetensors": {"title": "Mine"}}})
    seen.append(now())
    place.model("b.safetensors")
    seen.append(now())
    path.unlink()
    seen.append(now())
    assert len(set(seen)) == len(seen) == 7


def test_many_files_are_read_quickly(place: Place, reads: list[str]) -> None:
    """The benchmark measures 2,000 files against 5 s. Here a tenth of them get 1 s of processor time."""
    import time

    for i in range(200):
        place.model(f"{i // 50}/m{i}.safetensors", HEADER)
        place.beside(f"{i // 50}/m{i}.civitai.info", CIVITAI)
    place.scan()
    restart()
    start = time.process_time()
    assert len(place.scan().models) == 200 and len(reads) == 200
    assert time.process_time() - start < 1
