"""The live demo in a browser: the boxes are Python's, nothing leaves the machine, and everyone can use it."""

from __future__ import annotations

import base64
import functools
import http.server
import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from efficientdet.boxes import pairwise_iou
from efficientdet.detections import Detections
from efficientdet.errors import WeightsError
from efficientdet.exporting.export import export
from efficientdet.images.find import sample_image
from efficientdet.images.letterbox import letterbox_bytes
from efficientdet.inference.detector import Detector, load

pytest.importorskip("playwright.sync_api", reason="playwright is missing (dependency group dev)")
from playwright.sync_api import expect  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PHOTO = sample_image()
LETTERBOX = """async ([text, height, width, size]) => {
    const {letterbox} = await import(new URL("letterbox.js", location.href));
    const pixels = Uint8ClampedArray.from(atob(text), (letter) => letter.charCodeAt(0));
    const half = Math.ceil(height / 2);  // two strips, or one
    function* strips() {
        yield [0, half, pixels.subarray(0, 4 * half * width)];
        if (half < height) yield [half, height - half, pixels.subarray(4 * half * width)];
    }
    return [...letterbox({height, width, strips}, size)];
}"""
DROP = """([text, name]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name));
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
}"""
MISSING = "This copy of the site was built without the live demo: no connection"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """It is not the time that is tested."""
    expect.set_options(timeout=120_000)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture(scope="module")
def live_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("live_demo", ROOT / "docs" / "live_demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def empty(live_demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder with the demo's page, without network and runtime."""
    site = tmp_path_factory.mktemp("empty") / "some" / "project"
    live_demo.write_page(site / "live-demo")
    (site / "live-demo" / "site.json").write_text(json.dumps({"missing": MISSING}))
    return site


@pytest.fixture(scope="module")
def whole(live_demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder with the demo as it is published; skips where npm's package cannot be had."""
    site = tmp_path_factory.mktemp("whole") / "some" / "project"
    (site / "live-demo").mkdir(parents=True)
    try:
        live_demo.write_runtime(site / "live-demo" / "runtime")
    except WeightsError as error:
        pytest.skip(str(error))
    assert live_demo.build(site) is None
    return site


@pytest.fixture(scope="module")
def detector(live_demo: ModuleType) -> Detector:
    return load("people", backend="eager", image_size=live_demo.IMAGE_SIZE, score_threshold=0.05)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Serves a site's folder below a path, as static files; returns the demo's address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(site: Path, headers: dict[str, str] | None = None) -> str:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def end_headers(self) -> None:
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                super().end_headers()

        handler = functools.partial(Quiet, directory=str(site.parents[1]))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/some/project/live-demo/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address; afterwards there must have been no error in a script, and no request to another site."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_it(address: str, width: int = 1280, scheme: str = "light", script: str = "") -> Any:
        phone = width < 500
        contexts.append(
            chromium.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["camera"],
                has_touch=phone, is_mobile=phone,
            )
        )  # fmt: skip
        contexts[-1].on("request", lambda one: problems.append(one.url) if not is_own(one.url, address) else None)
        contexts[-1].on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.add_init_script(script)
        page.goto(address)
        expect(page.locator("#about")).not_to_have_text("Loading…")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


def is_own(url: str, address: str) -> bool:
    return url.startswith((address.partition("?")[0], "blob:", "data:"))


def profile_with_red_and_blue_exchanged() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")


def show(page: Any, file: Path | dict[str, Any] = PHOTO) -> None:
    page.locator("#file").set_input_files(file)
    expect(page.locator("#status")).to_contain_text("ms.")


def found_in(page: Any, path: Path) -> dict[str, Any]:
    """What the page finds in an image, as it is downloaded."""
    show(page, path)
    return downloaded(page, path)


def downloaded(page: Any, path: Path) -> dict[str, Any]:
    """What is shown, down to the lowest score."""
    page.locator("#threshold").fill("5")
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download JSON").click()
    content: dict[str, Any] = json.loads(Path(caught.value.path()).read_text())
    assert content["source"] == path.name
    return content


def assert_equal(content: dict[str, Any], expected: Detections, threshold: float = 0.3) -> int:
    """Each detection over the threshold is one of the other side, if it need not be over it there; their number."""
    assert tuple(content["image_size"]) == expected.image_size
    there = content["detections"]
    boxes = torch.tensor([one["box_xyxy"] for one in there]).reshape(-1, 4)
    scores = np.array([one["score"] for one in there])
    iou = pairwise_iou(boxes[None], torch.from_numpy(expected.boxes_xyxy)[None])[0].numpy()
    labels = np.array([one["label"] for one in there])
    apart = abs(boxes[:, None].numpy() - expected.boxes_xyxy).max(2)  # a box in the padding has no area, and no IoU
    is_same = (abs(scores[:, None] - expected.scores) <= 0.01) & (labels[:, None] == expected.labels)
    fits = is_same & ((iou >= 0.99) | (apart <= 0.5))
    assert fits.any(1)[scores >= threshold].all() and fits.any(0)[expected.scores >= threshold].all()
    return int((expected.scores >= threshold).sum())


# Without the runtime


CASES = [
    ((606, 512), (320, 320)), ((37, 1000), (320, 320)), ((1000, 37), (128, 320)), ((320, 320), (320, 320)),
    ((100, 320), (320, 320)), ((20, 30), (320, 320)), ((1, 700), (64, 64)), ((1, 1), (32, 32)),
    ((333, 501), (320, 320)),
]  # fmt: skip


def test_images_are_resized_to_the_bytes_that_python_gives(
    open_page: Callable[..., Any], serve: Callable[..., str], empty: Path
) -> None:
    page = open_page(serve(empty))
    for image_size, size in CASES:
        image = np.random.default_rng(0).integers(0, 256, (*image_size, 4), np.uint8)
        image[: image_size[0] // 3] //= 128
        image[: image_size[0] // 3] *= 255  # black and white
        given = [base64.b64encode(image.tobytes()).decode(), *image_size, size]
        found = np.array(page.evaluate(LETTERBOX, given), np.uint8).reshape(*size, 3)
        expected = letterbox_bytes(np.ascontiguousarray(image[:, :, :3]), size)
        # Pillow 13 resizes the height first where that shrinks by over twice as many pixels as the width.
        most = 1 if image_size[0] > 2 * image_size[1] else 0
        np.testing.assert_allclose(found.astype(int), expected.astype(int), rtol=0, atol=most, err_msg=str(image_size))


def test_a_site_that_was_built_without_it_says_why(
    open_page: Callable[..., Any], serve: Callable[..., str], empty: Path
) -> None:
    page = open_page(serve(empty))
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(MISSING)
    page.locator("#file").set_input_files(PHOTO)
    expect(alert).to_have_text(MISSING)
    expect(page.locator("#status")).to_be_empty()
    for place, page_of_the_site in (("efficientdet", "/some/project/index.html"), ("how", "/live-demo.html")):
        assert page.get_by_role("link", name=place).evaluate("link => link.href").endswith(page_of_the_site)


def test_a_browser_without_webassembly(open_page: Callable[..., Any], serve: Callable[..., str], empty: Path) -> None:
    page = open_page(serve(empty), script="delete globalThis.WebAssembly")
    expect(page.get_by_role("alert")).to_contain_text("This browser has no WebAssembly")


@pytest.mark.parametrize("content", [b"no package", None], ids=["another file", "no connection"])
def test_what_is_missing_is_said_and_the_rest_is_built(
    content: bytes | None, live_demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(url: str, path: Path, sha256: str) -> None:
        if content is None:
            raise WeightsError(f"{url} cannot be downloaded")
        path.write_bytes(content)

    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(live_demo, "download", pretend)
    monkeypatch.setattr(live_demo, "write_model", lambda path: None)
    missing = live_demo.build(tmp_path)
    assert live_demo.PACKAGE in missing and ("digest" in missing) == (content is not None)
    assert missing in json.loads((tmp_path / "live-demo" / "site.json").read_text())["missing"]
    assert (tmp_path / "live-demo" / "index.html").is_file() and not list((tmp_path / "cache").rglob("*.tgz"))


# With it


@pytest.mark.slow
def test_the_boxes_of_ten_photographs_are_those_of_python(
    open_page: Callable[..., Any], serve: Callable[..., str], whole: Path, detector: Detector, shared_data: Path
) -> None:
    page = open_page(f"{serve(whole)}?device=wasm")
    paths = sorted((shared_data / "people" / "images").glob("*.jpg"))[:10]
    assert sum(assert_equal(found_in(page, path), detector.predict(path), 0.06) for path in paths) > 100


@pytest.mark.slow
def test_the_boxes_of_odd_images_are_those_of_python(
    open_page: Callable[..., Any], serve: Callable[..., str], whole: Path, detector: Detector, tmp_path: Path
) -> None:
    """On its side by EXIF, half transparent, gray, with a color profile, larger than a strip."""
    page = open_page(f"{serve(whole)}?device=wasm")
    with Image.open(PHOTO) as photo:
        portrait = photo.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    portrait.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    half = portrait.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    half.save(tmp_path / "transparent.png")
    portrait.convert("L").save(tmp_path / "gray.jpg", quality=95)
    portrait.save(tmp_path / "profile.png", icc_profile=profile_with_red_and_blue_exchanged())
    portrait.resize((2048, 2424)).save(tmp_path / "large.webp", quality=90)
    for path in sorted(tmp_path.glob("*.*")):
        assert assert_equal(found_in(page, path), detector.predict(path)) > 0, path


@pytest.mark.slow
def test_threads_where_the_page_is_isolated(
    open_page: Callable[..., Any], serve: Callable[..., str], whole: Path, detector: Detector
) -> None:
    page = open_page(f"{serve(whole, ISOLATED)}?device=wasm")
    cores = page.evaluate("crossOriginIsolated ? navigator.hardwareConcurrency : 0")
    words = "one thread" if cores == 1 else f"{min(cores, 4)} threads"
    expect(page.locator("#about")).to_contain_text(f"{words} (WebAssembly)")
    assert assert_equal(found_in(page, PHOTO), detector.predict(PHOTO)) > 0


@pytest.mark.slow
def test_the_boxes_on_webgpu_are_those_of_python(
    chromium: Any, serve: Callable[..., str], whole: Path, detector: Detector
) -> None:
    """On a GPU that Chromium emulates."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    emulated = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader"]
    features = ["--enable-features=Vulkan,WebGPU", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    browser = chromium.browser_type.launch(executable_path=program, args=["--no-sandbox", *emulated, *features])
    page = browser.new_page()
    page.set_default_timeout(600_000)
    page.goto(serve(whole))
    if not page.evaluate("navigator.gpu ? navigator.gpu.requestAdapter().then(Boolean) : false"):
        pytest.skip("this Chromium emulates no WebGPU")
    expect(page.locator("#about")).to_contain_text("on the GPU (WebGPU)", timeout=600_000)
    page.locator("#file").set_input_files(PHOTO)
    expect(page.locator("#status")).to_contain_text("ms.", timeout=600_000)
    assert assert_equal(downloaded(page, PHOTO), detector.predict(PHOTO), 0.06) > 0
    browser.close()


@pytest.mark.slow
def test_a_model_of_the_reader(
    open_page: Callable[..., Any], serve: Callable[..., str], whole: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is missing (extra export)")
    cells = load("cells", backend="eager", score_threshold=0.1)
    export(cells, tmp_path / "mine.onnx", end_to_end=True)
    export(cells, tmp_path / "raw.onnx")
    page = open_page(serve(whole))
    show(page)
    (tmp_path / "none.onnx").write_bytes(b"something")
    torn = onnx.load(tmp_path / "mine.onnx")
    torn.ClearField("graph")
    onnx.save(torn, tmp_path / "torn.onnx")
    for name, text in (
        ("raw", "decoding and NMS are not in the file"),
        ("none", "no ONNX file of efficientdet"),
        ("torn", "torn.onnx: is damaged, or cannot run in this browser"),
    ):
        content = base64.b64encode((tmp_path / f"{name}.onnx").read_bytes()).decode()
        page.evaluate(DROP, [content, f"{name}.onnx"])
        expect(page.get_by_role("alert")).to_contain_text(text)
    page.locator("#own-model").set_input_files(tmp_path / "mine.onnx")
    expect(page.locator("#about")).to_contain_text(f"Finds {cells.class_names[0]}")
    expect(page.locator("#model")).to_have_value("mine")
    assert_equal(found_in(page, PHOTO), cells.predict(PHOTO), 0.15)
    page.locator("#model").select_option("people")
    expect(page.locator("#status")).to_contain_text("person")


@pytest.mark.slow
def test_camera_bad_file_and_cancel(open_page: Callable[..., Any], serve: Callable[..., str], whole: Path) -> None:
    page = open_page(serve(whole))
    camera, alert = page.get_by_role("button", name="Live camera"), page.get_by_role("alert")
    camera.click()
    expect(camera).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("camera.jpg: "))
    first = page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
    page.wait_for_function("first => document.getElementById('canvas').toDataURL() !== first", arg=first)
    page.get_by_role("button", name="Cancel").click()
    expect(camera).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#status")).to_have_text("Stopped.")
    page.evaluate("void (navigator.mediaDevices.getUserMedia = async () => { throw {name: 'NotAllowedError'} })")
    camera.click()
    expect(alert).to_contain_text("The camera is not allowed.")
    page.locator("#file").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"some notes"})
    expect(alert).to_contain_text("x.jpg: not an image, damaged, or of a format that this browser does not read.")
    page.context.set_offline(True)
    show(page)
    expect(alert).to_be_hidden()


@pytest.mark.slow
def test_a_browser_without_webgpu(open_page: Callable[..., Any], serve: Callable[..., str], whole: Path) -> None:
    page = open_page(f"{serve(whole)}?device=webgpu")  # of which Chromium has none without a switch
    expect(page.get_by_role("alert")).to_have_text("This browser has no WebGPU. Load the page without ?device=webgpu.")


@pytest.mark.slow
def test_by_keyboard_alone(open_page: Callable[..., Any], serve: Callable[..., str], whole: Path) -> None:
    page = open_page(serve(whole))
    page.on("filechooser", lambda chooser: None)  # intercepted from now on, not only once the key is down already
    for place in ("a.skip", "#own-model", "#file"):
        page.keyboard.press("Tab")
        expect(page.locator(place)).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(PHOTO)
    expect(page.locator("#status")).to_contain_text("person")
    for place in ("#camera", "#threshold"):
        page.keyboard.press("Tab")
        expect(page.locator(place)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#rows tr")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("No objects with this score")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_cut_off_and_everyone_can_use_it(
    width: int, scheme: str, open_page: Callable[..., Any], serve: Callable[..., str], whole: Path,
    look_at_states: Callable[..., None],
) -> None:  # fmt: skip
    page = open_page(serve(whole), width, scheme)
    look_at_states(page, show)
