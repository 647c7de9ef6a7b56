"""The web page in a browser: by mouse, by keyboard, with a camera, and when things go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load

pytest.importorskip("playwright.sync_api", reason="playwright is missing (dependency group dev)")
from playwright.sync_api import expect  # noqa: E402

PHOTO = sample_image()
expect.set_options(timeout=120_000)  # it is not the time that is tested
COUNT_COLOR = """(canvas, color) => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
        count += [0, 1, 2].every((channel) => Math.abs(data[i + channel] - color[channel]) < 5);
    }
    return count;
}"""
RASPBERRY = [220, 20, 76]
GIVE_FILE = """([kind, text, type]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "given.jpg", {type}));
    const options = {clipboardData: transfer, dataTransfer: transfer, bubbles: true, cancelable: true};
    document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
}"""


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load("people", backend="eager")


@pytest.fixture(scope="module")
def server(start_here: Callable[..., Any], detector: Detector) -> Any:
    return start_here(detector)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; afterwards there must have been no error in a script, and no request elsewhere."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_it(server: Any, width: int = 1280, scheme: str = "light", phone: bool = False) -> Any:
        size = {"width": width, "height": 900}
        contexts.append(
            chromium.new_context(
                viewport=size, color_scheme=scheme, permissions=["camera"], has_touch=phone, is_mobile=phone
            )
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("request", lambda one: problems.append(one.url) if not is_own(one.url, server) else None)
        page.goto(server.address)
        expect(page.locator("#about")).not_to_have_text("Loading…")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


def is_own(url: str, server: Any) -> bool:
    return url.startswith((f"{server.address}/", "blob:", "data:"))


def show(page: Any, file: Path | dict[str, Any] = PHOTO) -> None:
    page.locator("#file").set_input_files(file)
    expect(page.locator("#status")).to_contain_text("person")


def test_an_image_its_boxes_and_what_the_controls_do(
    open_page: Callable[..., Any], server: Any, detector: Detector
) -> None:
    page = open_page(server)
    expect(page.locator("#about")).to_have_text("Finds person.")
    show(page)
    everything = detector.predict(PHOTO, score_threshold=0.05)
    rows, likely = page.locator("#rows tr"), len(everything.filter(min_score=0.3))
    expect(rows).to_have_count(likely)
    expect(page.locator("#threshold-value")).to_have_text("30%")
    expect(page.locator("#status")).to_have_text(f"{likely} × person.")
    canvas = page.locator("#canvas")
    expect(canvas).to_have_attribute("aria-label", f"{PHOTO.name}: {likely} × person")
    height, width = everything.image_size
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [width, height]
    assert canvas.evaluate(COUNT_COLOR, RASPBERRY) > 500
    left, top, right, bottom = everything.boxes_xyxy[0]
    sides = [round(float(side)) for side in (left, top, right - left, bottom - top)]
    assert rows.nth(0).locator("td").all_inner_texts()[2:] == [str(side) for side in sides]

    page.locator("#threshold").fill("5")
    expect(rows).to_have_count(len(everything))
    assert len(everything) > likely
    page.locator("#threshold").fill("99")
    expect(page.locator("#nothing")).to_contain_text("Move the slider to the left")
    expect(page.locator("#status")).to_have_text("No objects with this score.")
    assert canvas.evaluate(COUNT_COLOR, RASPBERRY) < 50
    page.locator("#threshold").fill("30")
    page.get_by_role("checkbox", name="person").uncheck()
    expect(rows).to_have_count(0)
    page.get_by_role("checkbox", name="person").check()
    expect(rows).to_have_count(likely)


def test_downloads_are_what_is_shown(open_page: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    page = open_page(server)
    expect(page.get_by_role("button", name="Download JSON")).to_be_disabled()
    show(page)
    page.locator("#threshold").fill("20")
    shown = page.locator("#rows tr").count()
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download JSON").click()
    assert caught.value.suggested_filename == f"{PHOTO.stem}.json"
    content = json.loads(Path(caught.value.path()).read_text())
    assert (content["model"], content["source"]) == ("tiny", PHOTO.name)
    assert len(content["detections"]) == shown > 0
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download image").click()
    assert caught.value.suggested_filename == f"{PHOTO.stem}-annotated.png"
    with Image.open(caught.value.path()) as saved, Image.open(PHOTO) as original:
        assert saved.size == original.size
        assert RASPBERRY in [list(color) for _, color in saved.convert("RGB").getcolors(2**24)]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_that_is_dropped_or_pasted(kind: str, open_page: Callable[..., Any], server: Any) -> None:
    import base64

    page = open_page(server)
    page.evaluate(GIVE_FILE, [kind, base64.b64encode(PHOTO.read_bytes()).decode(), "image/jpeg"])
    expect(page.locator("#status")).to_contain_text("person")


def test_the_camera_live(open_page: Callable[..., Any], server: Any) -> None:
    page = open_page(server)
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.url) if "/v1/detect" in one.url else None)
    camera = page.get_by_role("button", name="Live camera")
    camera.click()
    expect(camera).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "camera.jpg: No objects with this score")
    first = page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
    page.wait_for_function("first => document.getElementById('canvas').toDataURL() !== first", arg=first)
    assert len(sent) > 1
    camera.click()
    expect(camera).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#error")).to_be_hidden()
    page.evaluate("void (navigator.mediaDevices.getUserMedia = async () => { throw {name: 'NotAllowedError'} })")
    camera.click()
    expect(page.locator("#error")).to_contain_text("The camera is not allowed.")


def test_a_file_that_is_no_image_and_one_that_browsers_cannot_show(open_page: Callable[..., Any], server: Any) -> None:
    page = open_page(server)
    page.locator("#file").set_input_files({"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"some notes"})
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("notes.jpg: not an image, damaged")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    file = BytesIO()
    with Image.open(PHOTO) as photo:
        photo.convert("RGB").save(file, "TIFF")
    show(page, {"name": "photo.tiff", "mimeType": "image/tiff", "buffer": file.getvalue()})
    expect(alert).to_be_hidden()
    expect(page.locator("#status")).to_contain_text(
        "This browser cannot show the image; its boxes are right all the same."
    )
    assert page.locator("#rows tr").count() > 0


def test_a_slow_server_and_one_that_is_gone(
    open_page: Callable[..., Any], server: Any, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, predict = threading.Event(), detector.predict

    def wait(*arguments: Any, **settings: Any) -> Any:
        assert go.wait(600)
        return predict(*arguments, **settings)

    page = open_page(server)
    monkeypatch.setattr(detector, "predict", wait)
    try:
        page.locator("#file").set_input_files(PHOTO)
        expect(page.locator("#status")).to_have_text("Detecting…")
        expect(page.locator("#stage")).to_have_attribute("aria-busy", "true")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_contain_text("Stopped.")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        page.locator("#file").set_input_files(PHOTO)
        expect(page.locator("#status")).to_have_text("Detecting…")
    finally:
        go.set()
    expect(page.locator("#status")).to_contain_text("person")
    page.route("**/v1/detect*", lambda route: route.abort())
    page.locator("#file").set_input_files(PHOTO)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/detect*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_contain_text("person")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_by_keyboard_alone(open_page: Callable[..., Any], server: Any) -> None:
    page = open_page(server)
    page.on("filechooser", lambda chooser: None)  # intercepted from now on, not only once the key is down already
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    assert page.locator("label:has(#file)").evaluate("label => getComputedStyle(label).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(PHOTO)
    expect(page.locator("#status")).to_contain_text("person")
    page.keyboard.press("Tab")
    expect(page.locator("#camera")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#threshold")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#threshold-value")).to_have_text("31%")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#rows tr")).to_have_count(0)
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    expect(page.locator("#table-scroll")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#rows button").first).to_have_attribute("aria-pressed", "true")
    for name in ("save-json", "save-image"):
        while page.evaluate("document.activeElement.closest('#rows') !== null"):
            page.keyboard.press("Tab")
        expect(page.locator(f"#{name}")).to_be_focused()
        page.keyboard.press("Tab")


def test_the_servers_key_and_several_models(
    start_here: Callable[..., Any], open_page: Callable[..., Any], detector: Detector
) -> None:
    server = start_here(detector, "secret", other=load("cells", backend="eager"))
    page = open_page(server)
    expect(page.get_by_role("alert")).to_contain_text("this server needs its key")
    for key in ("wrong", "secret"):
        page.get_by_label("This server needs its key").fill(key)
        with page.expect_response("**/v1/models"):
            page.keyboard.press("Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    show(page)
    page.get_by_label("Model").select_option("other")
    expect(page.locator("#about")).to_contain_text("Finds ")
    expect(page.locator("#about")).not_to_have_text("Finds person.")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_nothing_is_cut_off_and_everyone_can_use_it(
    width: int, scheme: str, open_page: Callable[..., Any], server: Any, look_at_states: Callable[..., None]
) -> None:
    page = open_page(server, width, scheme, phone=width < 500)
    expect(page.locator("#photo-choice")).to_be_visible(visible=width < 500)  # a mouse's file chooser has no camera
    look_at_states(page, show)


def test_the_page_cannot_load_or_connect_elsewhere(chromium: Any, server: Any) -> None:
    context = chromium.new_context()
    page = context.new_page()
    requests: list[str] = []
    page.goto(server.address)
    page.on("request", lambda one: requests.append(one.url))
    tried = page.evaluate("""async () => {
        const blocked = new Promise((done) => document.addEventListener("securitypolicyviolation", done));
        await fetch("http://127.0.0.1:9/x").catch(() => null);
        return (await blocked).blockedURI;
    }""")
    assert tried == "http://127.0.0.1:9/x"
    context.close()
