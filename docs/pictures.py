"""Makes the pictures of the docs that show what the bundled detectors find, anew: `python docs/pictures.py [NAME ...]`.

Run it when the weights or the pages change, and look at what it has made. It needs Chromium, the extras `demo`, `video`
and `serve`, and the dependency group `dev`.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import live_demo
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import efficientdet as ed
from efficientdet.images.find import sample_image

DOCS = Path(__file__).resolve().parent
ASSETS = DOCS / "assets"


def demo() -> None:
    """What `efficientdet demo` writes."""
    detections = ed.load("people").predict(sample_image(), score_threshold=0.5)
    detections.draw().save(ASSETS / "demo.jpg", quality=90)


def tiles() -> None:
    """The image of tiles.md, made by the code that stands there."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "tiles.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(block.replace("photo.jpg", str(sample_image())), names)
    detector, crowd = names["detector"], names["crowd"]
    whole, detections = (detector.predict(crowd, score_threshold=0.5, tiles=side) for side in (None, 640))
    assert (len(whole), len(detections)) == (0, 40), "tiles.md and the README say so"
    detections.draw().resize((800, 450), Image.Resampling.LANCZOS).save(ASSETS / "tiles.jpg", quality=88)


def track() -> None:
    """The animation that video.md's commands make: a third of the frames, at their own speed."""
    with tempfile.TemporaryDirectory() as folder:
        clip = str(Path(folder, "clip.mp4"))
        subprocess.run([sys.executable, DOCS.parent / "examples" / "moving_portraits.py", clip], check=True)
        options = "--track bytetrack --line 320,0,320,360 --threshold 0.5 --out".split()
        command = [sys.executable, "-m", "efficientdet", "predict", clip, *options, folder + "/out"]
        subprocess.run(command, check=True)
        with av.open(folder + "/out/clip.mp4") as video:
            frames = [frame.to_image().resize((400, 225), Image.Resampling.LANCZOS) for frame in video.decode(video=0)]
    first, *others = [frame.quantize(128, dither=Image.Dither.NONE) for frame in frames[::3]]
    first.save(ASSETS / "track.gif", save_all=True, append_images=others, duration=200, loop=0)


def serving() -> None:
    """The server's page, and how it looks on a phone."""
    command = [sys.executable, "-m", "efficientdet", "serve", "--weights", "people", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        take(address[0], "serving.png", {"width": 1180, "height": 800}, full_page=True)
        take(address[0], "serving-phone.png", {"width": 390, "height": 844}, scheme="dark")
        server.terminate()


def live() -> None:
    """The live demo, as the site has it."""
    with tempfile.TemporaryDirectory() as folder:
        missing = live_demo.build(Path(folder))
        assert missing is None, missing
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/live-demo/"
            take(address, "live-demo.png", {"width": 1080, "height": 800}, full_page=True)
            server.shutdown()


def take(address: str, name: str, size: dict[str, int], scheme: str = "light", full_page: bool = False) -> None:
    """A screenshot of the page that detects, with the portrait."""
    with open_page(address, size, scheme) as page:
        page.locator("#file").set_input_files(sample_image())
        expect(page.locator("#status")).to_contain_text("person", timeout=120_000)
        page.locator("#threshold").fill("50")  # at less the flag is a person too, as for `efficientdet demo`
        expect(page.locator("#status")).to_contain_text("1 × person")
        page.locator("#threshold").blur()
        page.screenshot(path=ASSETS / name, full_page=full_page)
    with Image.open(ASSETS / name) as image:
        small = image.convert("RGB").quantize(256)
    small.save(ASSETS / name, optimize=True)


@contextlib.contextmanager
def open_page(address: str, size: dict[str, int], scheme: str) -> Iterator[Page]:
    """A page in Chromium; narrow ones are those of a phone."""
    is_phone = size["width"] < 500
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(viewport=size, color_scheme=scheme, is_mobile=is_phone, has_touch=is_phone)
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#about")).not_to_have_text("Loading…", timeout=120_000)
        yield page
        browser.close()


PICTURES: dict[str, Callable[[], None]] = {one.__name__: one for one in (demo, tiles, track, serving, live)}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or PICTURES:
        PICTURES[chosen]()
