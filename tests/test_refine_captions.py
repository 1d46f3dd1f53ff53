"""Refined captions: what is asked, what is refused, and that nothing is asked twice or lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
from atelier.llm.backend import LLMConnectionError, Request
from atelier.llm.refine_captions import LOG, CaptionFolderError, Entry, Outcome, Wanted, refine_folder, report
from comfy_api_client import GraphError
from PIL import Image
from scripted_llm import Said, Scripted, replying

pytestmark = pytest.mark.usefixtures("fresh_memory")

DENSE = "A large red circle lies in the upper left, and below it a small blue star touches a green square."
WANTED = Wanted(least=5, most=30)
ALL_SEEN = {"not_seen": []}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three pictures; the last one has no caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "green"), ("c.webp", "blue")):
        Image.new("RGB", (16, 16), colour).save(folder / name)
    (folder / "a.txt").write_text("\ufeffa red circle\n", encoding="utf-8")
    (folder / "b.txt").write_text("a green square", encoding="utf-8")
    (folder / "notes.md").write_text("mine")
    return folder


def model(caption: Callable[[], Said] | Said = DENSE, check: Said = ALL_SEEN, seed: int = 0) -> Scripted:
    """Answers both questions: with this caption, or what the function gives for one, and with this check."""
    asked: list[Request] = []

    def answer(options: dict[str, str], seed: int) -> Said:
        if "not_seen" in asked[-1].schema["properties"]:
            return check
        said = caption() if callable(caption) else caption
        return {"caption": said} if isinstance(said, str) else said

    return Scripted(answer, seed=seed, asked=asked)


def lines(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (target / LOG).read_text(encoding="utf-8").splitlines()]


def questions(llm: Scripted, key: str) -> list[Request]:
    return [request for request in llm.asked if key in request.schema["properties"]]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_picture_is_captioned_and_checked(source: Path, tmp_path: Path) -> None:
    before, target, llm = state(source), tmp_path / "out", model()
    outcome = refine_folder(source, target, llm, WANTED)
    assert (outcome.refined, outcome.kept, outcome.asked) == (3, 0, 3) and state(source) == before
    assert {path.name for path in target.iterdir()} == {"a.txt", "b.txt", "c.txt", LOG}
    assert (target / "c.txt").read_text(encoding="utf-8") == f"{DENSE}\n"
    assert [(line["picture"], line["original"], line["refined"], line["refused"]) for line in lines(target)] == [
        ("a.png", "a red circle", DENSE, None),
        ("b.jpg", "a green square", DENSE, None),
        ("c.webp", "", DENSE, None),
    ]
    first = questions(llm, "caption")[0].messages[1]
    assert "<caption>\na red circle\n</caption>" in first.content and "5 to 30" in first.content
    checked = questions(llm, "not_seen")[0].messages[1]
    assert f"<caption>\n{DENSE}\n</caption>" in checked.content and checked.picture == first.picture is not None
    shown = {request.messages[1].picture for request in questions(llm, "caption")}
    assert len(shown) == 3


def test_without_the_check_the_model_is_asked_once(source: Path, tmp_path: Path) -> None:
    llm = model(check={"not_seen": ["star"]})
    outcome = refine_folder(source, tmp_path / "out", llm, Wanted(5, 30, check=False))
    assert outcome.refined == 3 and len(llm.asked) == 3


REFUSED = [
    ("I'm sorry, but I can't help with identifying the people in this picture.", "refusal"),
    ("As an AI language model, I have no access to what the picture shows here.", "refusal"),
    ("Unfortunately no image was provided, so there is nothing to be described here.", "refusal"),
    ("I cannot view pictures, though I would describe this one in great detail.", "refusal"),
    ("", "empty"),
    ("<think>I see a circle. What else is there to be said of it?</think>", "empty"),
    ("<think>I see a circle. What else is there to be said of it? And so on", "no complete JSON object"),
    ("A red circle.", "3 words, and 5 to 30"),
    ("a red circle " * 20, "60 words, and 5 to 30"),
    ({"text": DENSE}, "missing keys: caption"),
]


@pytest.mark.parametrize(("said", "why"), REFUSED)
def test_what_is_no_caption_is_sent_back_and_then_refused(source: Path, tmp_path: Path, said: Said, why: str) -> None:
    target = tmp_path / "out"
    llm = model(said)
    outcome = refine_folder(source, target, llm, WANTED)
    assert (outcome.refined, outcome.kept) == (0, 2) and len(llm.asked) == 6
    assert all(why in (entry.refused or "") for entry in outcome.entries)
    assert (target / "a.txt").read_text(encoding="utf-8") == "a red circle\n" and not (target / "c.txt").exists()
    assert f"- a.png: {outcome.entries[0].refused}" in report(outcome, llm)
    assert "2 kept as they were, 1 pictures left without" in report(outcome, llm)


def test_a_raw_refusal_or_silence_is_refused(source: Path, tmp_path: Path) -> None:
    outcome = refine_folder(source, tmp_path / "out", replying("I'm sorry, I can't help with that.", ""), WANTED)
    assert outcome.refined == 0 and "the caption failed" in outcome.entries[0].refused


@pytest.mark.parametrize(
    "caption",
    [
        'A red poster reads "I am sorry, I cannot stay" in large white letters.',
        "A robot in an apron, unable to move, stands in a narrow kitchen.",
    ],
)
def test_a_caption_that_sounds_like_a_refusal_is_taken(caption: str) -> None:
    assert WANTED.problem(caption) is None


def test_a_second_try_may_succeed(source: Path, tmp_path: Path) -> None:
    said = iter(["A red circle.", DENSE, DENSE, DENSE])
    outcome = refine_folder(source, tmp_path / "out", model(lambda: next(said)), WANTED)
    assert outcome.refined == 3


def test_what_the_picture_does_not_show_refuses_the_caption(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    outcome = refine_folder(source, target, model(check={"not_seen": ["the star", "Squares"]}), WANTED)
    assert (outcome.refined, outcome.kept) == (0, 2)
    assert outcome.entries[0].refused == "it names what the picture does not show: the star, Squares"
    assert lines(target)[0]["refined"] == DENSE and (target / "a.txt").read_text() == "a red circle\n"


def test_a_check_that_speaks_of_other_things_refuses_nothing(source: Path, tmp_path: Path) -> None:
    outcome = refine_folder(
        source, tmp_path / "out", model(check={"not_seen": ["a dog", "", "the", "star fish"]}), WANTED
    )
    assert outcome.refined == 3


def test_a_check_that_fails_refuses_the_caption(source: Path, tmp_path: Path) -> None:
    outcome = refine_folder(source, tmp_path / "out", model(check="I do not know."), WANTED)
    assert outcome.refined == 0 and outcome.entries[0].refused.startswith("the check failed: ")


def test_a_broken_picture_or_caption_stops_nothing(source: Path, tmp_path: Path) -> None:
    (source / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (source / "b.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    target, llm = tmp_path / "out", model()
    outcome = refine_folder(source, target, llm, WANTED)
    a, b, c = outcome.entries
    assert "a.png is no picture" in a.refused and "b.txt is no UTF-8 text" in b.refused and c.refused is None
    assert len(llm.asked) == 2
    assert (target / "a.txt").read_text() == "a red circle\n" and not (target / "b.txt").exists()


# Going on


class Stop(BaseException):
    """What a host raises to interrupt."""


def test_an_interrupted_run_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    target, llm = tmp_path / "out", model()

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        refine_folder(source, target, llm, WANTED, interrupt)
    assert len(lines(target)) == 2 and len(llm.asked) == 4
    with (target / LOG).open("a") as log:
        log.write('{"picture": "c.webp", "key": "ab')  # cut off
    again, steps = model(), []
    outcome = refine_folder(source, target, again, WANTED, lambda *step: steps.append(step))
    assert (outcome.refined, outcome.asked, len(lines(target))) == (3, 1, 3) and len(again.asked) == 2
    assert steps == [(0, 3), (1, 3), (2, 3)]


def test_a_dead_server_stops_the_run_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    said = iter([DENSE])
    with pytest.raises(LLMConnectionError, match="gone"):
        refine_folder(source, target, model(lambda: next(said, LLMConnectionError("The server is gone."))), WANTED)
    assert [line["picture"] for line in lines(target)] == ["a.png"]
    assert refine_folder(source, target, model(), WANTED).asked == 2


@pytest.mark.parametrize("change", ["picture", "caption", "words", "check", "seed", "new"])
def test_what_changed_is_asked_again_and_nothing_else(source: Path, tmp_path: Path, change: str) -> None:
    target, wanted = tmp_path / "out", WANTED
    llm = model("one two three four five six", seed=int(change == "seed"))
    refine_folder(source, target, model(), WANTED)
    if change == "picture":
        Image.new("RGB", (16, 16), "black").save(source / "b.jpg")
    elif change == "caption":
        (source / "b.txt").write_text("a green triangle")
    elif change == "new":
        Image.new("RGB", (16, 16), "white").save(source / "d.png")
    elif change in ("words", "check"):
        wanted = Wanted(5, 31) if change == "words" else Wanted(5, 30, check=False)
    outcome = refine_folder(source, target, llm, wanted)
    again = 3 if change in ("words", "check", "seed") else 1
    assert outcome.asked == again == sum(entry.refined.startswith("one") for entry in outcome.entries)
    assert {path.stem: path.read_text() for path in target.glob("*.txt")} == {
        Path(entry.picture).stem: f"{entry.refined}\n" for entry in outcome.entries
    }
    assert refine_folder(source, target, llm, wanted).asked == 0


def test_a_caption_that_no_longer_holds_is_taken_away(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    refine_folder(source, target, model(), WANTED)
    refine_folder(source, target, model("I'm sorry, I cannot do that."), Wanted(5, 29))
    assert not (target / "c.txt").exists() and (target / "a.txt").read_text() == "a red circle\n"


def test_what_a_person_corrected_stays_and_what_was_deleted_comes_back(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    refine_folder(source, target, model(), WANTED)
    (target / "a.txt").write_text("corrected")
    (target / "b.txt").unlink()
    assert refine_folder(source, target, model(), WANTED).asked == 0
    assert (target / "a.txt").read_text() == "corrected" and (target / "b.txt").read_text() == f"{DENSE}\n"


# Folders


def test_source_captions_are_never_written_over(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source, target_is_directory=True)
    for log in (False, True):
        if log:
            (source / LOG).touch()
        for target in (source, link):
            with pytest.raises(CaptionFolderError, match="holds the captions to refine"):
                refine_folder(source, target, model(), WANTED)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    with pytest.raises(CaptionFolderError, match="other files"):
        refine_folder(source, other, model(), WANTED)
    assert (other / "a.txt").read_text() == "mine"


def test_folders_that_cannot_serve_are_told(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    for folder, why in ((tmp_path / "none", "There is no folder"), (tmp_path, "holds no picture")):
        with pytest.raises(CaptionFolderError, match=why):
            refine_folder(folder, target, model(), WANTED)
    Image.new("RGB", (4, 4)).save(source / "a.webp")
    with pytest.raises(CaptionFolderError, match=r"a\.png and a\.webp would share a\.txt"):
        refine_folder(source, target, model(), WANTED)
    (source / "a.webp").unlink()
    target.mkdir(exist_ok=True)
    (target / LOG).write_text("[]\n")
    with pytest.raises(CaptionFolderError, match="damaged"):
        refine_folder(source, target, model(), WANTED)
    with pytest.raises(ValueError, match="min_words"):
        Wanted(30, 20)


def test_a_report_does_not_list_without_end() -> None:
    entries = tuple(Entry(f"{at}.png", "", "", "", "it is empty") for at in range(500))
    text = report(Outcome(entries, 500), replying(""))
    assert "- and 480 more" in text and len(text) < 2000


# Over the API


def graph(url: str, folder: Path | str, **inputs: Any) -> dict[str, Any]:
    llm = {"base_url": url, "model": "m", "profile": "", "temperature": 0.0, "seed": 0, "timeout": 20.0}
    said = {"folder": str(folder), "llm": ["1", 0], "name": "", "check": True, "min_words": 5, "max_words": 30}
    return {
        "1": {"class_type": "AtelierLLMServer", "inputs": {**llm, "keep_alive": -1, "max_tokens": 100}},
        "2": {"class_type": "AtelierRefineCaptions", "inputs": {**said, **inputs}},
    } | {str(at + 3): {"class_type": "PreviewAny", "inputs": {"source": ["2", at]}} for at in range(4)}


def refined(server: Any, *arguments: Any, **inputs: Any) -> list[str]:
    outputs = server.queue(graph(*arguments, **inputs))["outputs"]
    return [outputs[str(at + 3)]["text"][0] for at in range(4)]


CAPTION, SEEN = fake.says(json.dumps({"caption": DENSE})), fake.says(json.dumps(ALL_SEEN))


def test_over_the_api(server: Any, source: Path, tmp_path: Path) -> None:
    pictures = server.base / "input" / "set" / tmp_path.name
    pictures.parent.mkdir(parents=True, exist_ok=True)
    source.rename(pictures)
    folder, name = f"set/{tmp_path.name}", f"{tmp_path.name}_refined"
    sorry = fake.says('{"caption": "I\'m sorry, I cannot describe this picture."}')
    with fake.scripted(CAPTION, SEEN, sorry, sorry, CAPTION, SEEN, CAPTION, SEEN) as chat:
        target, count, kept, text = refined(server, chat.url, folder)
        assert (Path(target), count, kept) == (server.base / "output" / name, "2", "1")
        assert "- b.jpg: the caption failed: caption: it is a refusal" in text
        assert (Path(target) / "b.txt").read_text() == "a green square\n"
        refined(server, chat.url, folder)
        assert len(chat.chats) == 6
        Image.new("RGB", (8, 8)).save(pictures / "d.png")
        assert refined(server, chat.url, folder)[1] == "3" and len(chat.chats) == 8
    bad = {
        "folder is empty": {"folder": " "},
        "There is no folder": {"folder": "nowhere"},
        "leads out|cannot name": {"name": "../x"},
        "min_words": {"min_words": 31},
    }
    for why, inputs in bad.items():
        with pytest.raises(GraphError, match=why):
            refined(server, "http://127.0.0.1:9/v1", **{"folder": folder, **inputs})
    with pytest.raises(GraphError, match="Nothing answers at"):
        refined(server, "http://127.0.0.1:9/v1", folder, name="new")


def test_interrupt_of_the_host_loses_nothing(server: Any, source: Path) -> None:
    def hangs(exchange: fake.Exchange) -> None:
        threading.Timer(0.3, lambda: server.post("/interrupt", {})).start()
        exchange.wait_for_hang_up()

    name = f"interrupted/{source.parent.name}"
    with fake.scripted(CAPTION, SEEN, hangs, CAPTION, SEEN, CAPTION, SEEN) as chat:
        with pytest.raises(GraphError, match=r"\(AtelierRefineCaptions\) was interrupted"):
            refined(server, chat.url, source, name=name)
        assert chat.hung_up.wait(2)
        target = server.base / "output" / name
        assert [line["picture"] for line in lines(target)] == ["a.png"] and (target / "a.txt").exists()
        assert refined(server, chat.url, source, name=name)[1:3] == ["3", "0"] and len(chat.chats) == 7
