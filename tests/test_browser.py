"""Rating in the real front end: a headless Chromium opens the template, in both ways of drawing nodes.

Skipped without playwright (`pip install playwright`) or without a Chromium on the PATH or of playwright's own.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from comfy_api_client import ComfyClient

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
PATIENCE = 60
"""Seconds: the front end starts slowly on a busy machine."""

expect = sync_api.expect
expect.set_options(timeout=PATIENCE * 1000)

SMALL = {
    "ckpt_name": "shapeworld-base.safetensors", "width": 128, "height": 128, "batch_size": 2, "cfg": 4.0, "steps": 2,
}  # fmt: skip
SHOWN = "atelier_pictures"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox", "--disable-gpu"])
        except sync_api.Error as error:
            pytest.skip(f"needs Chromium: playwright install chromium ({error.message.splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[[], Any]]:
    """Opens a page of a browser of its own; what goes wrong in the page fails the test."""
    contexts, errors = [], []

    def make() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []


def ask(server: ComfyClient, path: str, body: object = None) -> Any:
    """GET or POST. The client's own calls need an event loop, and playwright's is running here."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(server.url + path, data)) as answer:
        return json.loads(answer.read() or "null")


def use_nodes(server: ComfyClient, kind: str) -> None:
    ask(server, "/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": kind == "vue"})


def wait_for_graph(page: Any) -> None:
    """Until the front end shows a graph with a Rate Images node, and then bring that node into view."""
    page.wait_for_function("window.app?.graph?._nodes?.some(node => node.type === 'AtelierRateImages')")
    page.evaluate(
        """() => {
            const { graph, canvas } = window.app;
            const node = graph._nodes.find((node) => node.type === "AtelierRateImages");
            canvas.ds.scale = 1;
            canvas.ds.offset = [100 - node.pos[0], 120 - node.pos[1]];
            canvas.setDirty(true, true);
        }"""
    )


def open_template(page: Any, server: ComfyClient, session: str) -> None:
    """Open the template, small enough for a test, in a session of its own."""
    page.goto(f"{server.url}/?template=rate_and_refine&source=atelier", wait_until="domcontentloaded")
    wait_for_graph(page)
    page.evaluate(
        """(values) => {
            for (const node of window.app.graph._nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in values) {
                        widget.value = values[widget.name];
                        widget.callback?.(widget.value);
                    }
        }""",
        SMALL | {"session": session},
    )


def runs(server: ComfyClient, session: str) -> list[dict[str, Any]]:
    """The finished runs of a session, oldest first: report of Feedback, kinds of the nodes that were not run again."""
    found = []
    for entry in sorted(ask(server, "/history").values(), key=lambda entry: entry["prompt"][0]):
        graph = entry["prompt"][2]
        if not any(node["inputs"].get("session") == session for node in graph.values()):
            continue
        assert entry["status"]["status_str"] == "success", entry["status"]
        cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
        report = next((output["text"][0] for output in entry["outputs"].values() if "text" in output), None)
        found.append({"report": report, "cached": {graph[node]["class_type"] for node in cached if node in graph}})
    return found


def wait_for_runs(page: Any, server: ComfyClient, session: str, count: int) -> dict[str, Any]:
    """The newest of `count` runs."""
    deadline = time.monotonic() + PATIENCE
    while len(found := runs(server, session)) < count:
        assert time.monotonic() < deadline, server.log()[-2000:]
        page.wait_for_timeout(100)
    return found[-1]


def values(page: Any) -> list[str]:
    return page.locator(".atelier-rate-card").evaluate_all("cards => cards.map(card => card.dataset.value)")


def shown(page: Any) -> list[list[str]]:
    """The keys of the pictures that each Rate Images node shows."""
    return page.locator(".atelier-rate-grid").evaluate_all(
        "grids => grids.map(grid => [...grid.children].map(card => card.dataset.image))"
    )


def wait_until_stored(page: Any, keys: list[str]) -> None:
    """Until the front end has written the open graph to where a reload takes it from."""
    page.wait_for_function(
        """(keys) => {
            const texts = [localStorage, sessionStorage].flatMap((store) => Object.values({ ...store }));
            return keys.every((key) => texts.some((text) => text.includes(key)));
        }""",
        arg=keys,
    )


@pytest.mark.parametrize("kind", ["classic", "vue"])
def test_a_thumb_steers_the_next_run_and_survives_a_reload(
    kind: str, server: ComfyClient, new_page: Callable[[], Any]
) -> None:
    session = f"browser-{kind}"
    use_nodes(server, kind)
    page = new_page()
    open_template(page, server, session)
    cards, status = page.locator(".atelier-rate-card"), page.locator(".atelier-rate-status")
    page.keyboard.press("Control+Enter")
    expect(cards).to_have_count(2)
    assert wait_for_runs(page, server, session, 1)["report"].startswith("0 liked, 0 disliked")

    # One by mouse, one by keyboard; the key that queues works from inside the grid.
    cards.nth(0).get_by_role("button", name="Like picture 1", exact=True).click()
    expect(cards.nth(0)).to_have_attribute("data-value", "1")
    cards.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(cards.nth(1)).to_have_attribute("data-value", "-1")
    expect(status).to_have_text("1 liked, 1 disliked of 2")
    (first,) = shown(page)
    page.keyboard.press("Control+Enter")
    second = wait_for_runs(page, server, session, 2)
    assert second["report"].startswith("1 liked, 1 disliked")
    assert {"CheckpointLoaderSimple", "CLIPTextEncode"} <= second["cached"]
    assert not second["cached"] & {"AtelierFeedback", "AtelierFabric", "KSampler", "AtelierRateImages"}
    expect(status).to_have_text("0 liked, 0 disliked of 2")
    assert not set(first) & set(shown(page)[0])

    # Without a new thumb, Feedback does not run again.
    cards.nth(0).focus()
    page.keyboard.press("Control+Enter")
    third = wait_for_runs(page, server, session, 3)
    assert "AtelierFeedback" in third["cached"] and "KSampler" not in third["cached"]
    expect(status).to_have_text("0 liked, 0 disliked of 2")

    cards.nth(1).get_by_role("button", name="Dislike picture 2", exact=True).click()
    expect(cards.nth(1)).to_have_attribute("data-value", "-1")
    (before,) = shown(page)
    wait_until_stored(page, before)
    page.reload(wait_until="domcontentloaded")
    wait_for_graph(page)
    expect(cards).to_have_count(2)
    assert (shown(page), values(page)) == ([before], ["0", "-1"])
    cards.nth(1).focus()
    page.keyboard.press("Backspace")
    expect(cards.nth(1)).to_have_attribute("data-value", "0")
    page.wait_for_function(
        "[...document.querySelectorAll('.atelier-rate img')].every(image => image.naturalWidth === 128)"
    )

    for file in (server.base / "temp").rglob("*.png"):
        file.unlink()
    cards.nth(0).get_by_role("button", name="Like picture 1", exact=True).click()
    expect(status).to_contain_text("This picture is gone")
    assert values(page) == ["0", "0"]


def test_two_browsers_see_each_others_thumbs(server: ComfyClient, new_page: Callable[[], Any]) -> None:
    session = "browser-two"
    use_nodes(server, "vue")
    one, two = new_page(), new_page()
    open_template(one, server, session)
    one.keyboard.press("Control+Enter")
    mine = one.locator(".atelier-rate-card")
    expect(mine).to_have_count(2)
    open_template(two, server, session)  # the node has shown nothing yet, so it shows the session's newest batch
    theirs = two.locator(".atelier-rate-card")
    expect(theirs).to_have_count(2)
    assert shown(one) == shown(two)
    mine.nth(0).get_by_role("button", name="Like picture 1", exact=True).click()
    expect(theirs.nth(0)).to_have_attribute("data-value", "1")
    theirs.nth(0).get_by_role("button", name="Dislike picture 1", exact=True).click()
    expect(mine.nth(0)).to_have_attribute("data-value", "-1")
    theirs.nth(0).get_by_role("button", name="Take back").click()
    expect(mine.nth(0)).to_have_attribute("data-value", "0")
    one.evaluate(
        """() => {
            const node = window.app.graph._nodes.find((node) => node.type === "AtelierRateImages");
            const widget = node.widgets.find((widget) => widget.name === "session");
            widget.value = "browser-unused";
            widget.callback(widget.value);
        }"""
    )
    expect(mine).to_have_count(0)
    expect(theirs).to_have_count(2)


def test_two_nodes_of_one_session_keep_their_own_pictures(server: ComfyClient, new_page: Callable[[], Any]) -> None:
    use_nodes(server, "vue")
    page = new_page()
    graph: dict[str, Any] = {}
    for number, colour in enumerate((0xC03020, 0x2040C0)):
        size = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
        graph[f"{2 * number + 1}"] = {"class_type": "EmptyImage", "inputs": size}
        graph[f"{2 * number + 2}"] = {
            "class_type": "AtelierRateImages",
            "inputs": {"images": [f"{2 * number + 1}", 0], "session": "browser-nodes", "strength": 1.0},
        }
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function("window.app?.extensionManager && window.app.graph?._nodes.length")
    page.evaluate("graph => window.app.loadApiJson(graph, 'two nodes')", graph)
    wait_for_graph(page)
    page.evaluate("window.app.queuePrompt(0, 1)")
    cards = page.locator(".atelier-rate-card")
    expect(cards).to_have_count(2)
    before = shown(page)
    assert before[0] != before[1]
    wait_until_stored(page, [key for keys in before for key in keys])
    page.reload(wait_until="domcontentloaded")
    wait_for_graph(page)
    expect(cards).to_have_count(2)
    assert sorted(shown(page)) == sorted(before)
