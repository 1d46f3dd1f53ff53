"""Pictures in questions: what each kind of language model is shown, and what those say that cannot see."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
from atelier.llm.ask import ask
from atelier.llm.backend import LLMSetupError, Message, Picture, Request
from atelier.llm.local import LocalLLM
from atelier.llm.pictures import LONGEST_SIDE, read_picture
from atelier.llm.prompts import Question
from llm_servers import Colour, server_llm
from PIL import Image
from test_llm_clip import host_clip

pytestmark = pytest.mark.usefixtures("fresh_memory")


def picture_of(colour: str) -> Picture:
    data = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(data, "JPEG")
    return Picture(data.getvalue())


RED, BLUE = picture_of("red"), picture_of("blue")
QUESTION = Question("Which colour is it?", "look", RED)


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.jpeg)).convert("RGB")


def test_a_picture_is_read_upright_on_white_and_not_too_large(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (3000, 1000), (255, 0, 0, 0))
    wide.save(tmp_path / "a.png")
    shown = opened(read_picture(tmp_path / "a.png"))
    assert shown.size == (LONGEST_SIDE, 341) and shown.getpixel((5, 5)) == (255, 255, 255)
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    turned.save(tmp_path / "b.jpg", exif=exif)
    assert opened(read_picture(tmp_path / "b.jpg")).size == (20, 40)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png is no picture that can be read"):
        read_picture(tmp_path / "a.png")


def test_a_server_gets_the_picture_and_each_picture_is_asked_once() -> None:
    with fake.scripted(fake.says('{"choice": "red"}'), fake.says('{"choice": "blue"}')) as server:
        llm = server_llm(server)
        asked = [ask(llm, Question("s", "u", picture), Colour).choice for picture in (RED, BLUE, RED, BLUE)]
    assert asked == ["red", "blue", "red", "blue"] and len(server.chats) == 2
    for body, picture in zip(server.chats, (RED, BLUE), strict=True):
        shown, text = body["messages"][1]["content"]
        kind, data = shown["image_url"]["url"].split(",")
        assert (shown["type"], kind, text) == ("image_url", "data:image/jpeg;base64", {"type": "text", "text": "u"})
        assert base64.b64decode(data) == picture.jpeg
        assert isinstance(body["messages"][0]["content"], str)


def test_a_retry_still_shows_the_picture() -> None:
    with fake.scripted(fake.says("hm"), fake.says('{"choice": "red"}')) as server:
        ask(server_llm(server), QUESTION, Colour)
    parts = [isinstance(message["content"], list) for message in server.chats[1]["messages"]]
    assert parts == [False, True, False, False]


def test_a_server_that_refuses_pictures_says_what_to_do() -> None:
    why = pytest.raises(LLMSetupError, match=r"not supported.*take a model that can see")
    with fake.scripted(fake.error(400, "image input is not supported")) as server, why:
        ask(server_llm(server), QUESTION, Colour)


def test_a_local_model_refuses_pictures_before_it_is_loaded() -> None:
    def ready() -> Any:
        raise AssertionError("it was loaded")

    with pytest.raises(LLMSetupError, match=r"reads text only.*LLM Server"):
        ask(LocalLLM(Path("qwen3"), "", ready), QUESTION, Colour)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny Qwen3-VL of random weights with the real vocabulary."""
    from comfy.text_encoders import qwen3vl

    small = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "deepstack_visual_indexes": [0]}
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", small)
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION_COMMON, "num_heads", 4)
    tiny = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model, tokenizer = qwen3vl.te(model_type="qwen3vl_4b"), qwen3vl.tokenizer("qwen3vl_4b")
    return host_clip(model, tokenizer, qwen3vl_4b_model_config=tiny)


def test_a_text_encoder_that_sees_is_shown_the_picture(seeing: Any) -> None:
    from atelier.llm.from_clip import ClipLLM, encode_chat, find_generator

    turns = (Message("system", "s"), Message("user", "what <is> (this:1.2)?", RED))
    tokens = [item[0] for item in next(iter(encode_chat(seeing, turns).values()))[0]]
    shown = [at for at, token in enumerate(tokens) if isinstance(token, dict)]
    assert len(shown) == 1 and tuple(tokens[shown[0]]["data"].shape) == (1, 32, 64, 3)
    assert tokens[shown[0]]["data"][0, 9, 9].tolist() == pytest.approx([254 / 255, 0, 0])
    decode = seeing.tokenizer.qwen3vl_4b.tokenizer.decode
    assert decode(tokens[: shown[0]]).endswith("<|im_start|>user\n<|vision_start|>")
    assert decode(tokens[shown[0] + 1 :]).startswith("<|vision_end|>what <is> (this:1.2)?<|im_end|>")

    looked: list[Any] = []
    generator = find_generator(seeing)
    see = generator.preprocess_embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "preprocess_embed", lambda embed, device: looked.append(embed) or see(embed, device))
        reply = ClipLLM(seeing, max_tokens=3).complete(Request(turns, {}))
    assert len(looked) == 1 and reply.tokens_out == 3
