"""Files, names and answers from strangers: only the package's own errors, no case over 5 s, no growth over 1 GB.

Each target takes something valid, damages it (bytes anywhere, or values in its structure), and reads it. Short by
default, and the same every time. `pytest -m fuzz tests/fuzz` takes $EFFICIENTDET_FUZZ_SECONDS a target.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import shutil
import signal
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from efficientdet.data.coco import read_coco
from efficientdet.data.csv_file import read_csv
from efficientdet.data.parquet import read_parquet
from efficientdet.data.voc import read_voc
from efficientdet.data.yolo import read_yolo
from efficientdet.errors import EfficientDetError
from efficientdet.images.read import image_size, read, read_reduced
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines import metadata as metadata_module
from efficientdet.network.graph_file import read_graph
from efficientdet.weights import checkpoint
from efficientdet.weights import download as download_module
from efficientdet.weights.convert import convert_file
from efficientdet.weights.create import create_model
from efficientdet.weights.download import download
from efficientdet.weights.imagenet_backbone import load_folded_backbone
from efficientdet.weights.info import METADATA_KEY, CheckpointInfo, default_preprocessing
from efficientdet.weights.names import find_weights

SECONDS = float(os.environ.get("EFFICIENTDET_FUZZ_SECONDS", "600"))
LONGEST_CASE = 5.0  # seconds of computing
MOST_GROWTH = 2**30  # bytes
# After so many seconds a case is ended: of computing, and by the clock, which a busy machine lets run.
HANGS, HANGS_BY_THE_CLOCK = 20, 1200

# ---- What damages


class Damage(NamedTuple):
    """A change of some bytes: where, as a fraction of a million; how; and with which bytes."""

    where: int
    how: str
    what: bytes


HOWS = ("set", "insert", "delete", "flip", "cut", "repeat")
DAMAGES = st.lists(
    st.builds(
        Damage,
        st.one_of(st.integers(0, 999_999), st.integers(0, 3_000)),
        st.sampled_from(HOWS),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from(
                [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b'"', b"[" * 3000, b"{", b"\n"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, damages: list[Damage]) -> bytes:
    for where, how, what in damages:
        at = where * len(data) // 1_000_000
        head, tail = data[:at], data[at:]
        if how == "set":
            data = head + what + tail[len(what) :]
        elif how == "insert":
            data = head + what + tail
        elif how == "delete":
            data = head + tail[len(what) :]
        elif how == "flip":
            data = head + bytes(byte ^ 1 << (what[0] & 7) for byte in tail[:1]) + tail[1:]
        elif how == "cut":
            data = head
        else:
            data = head + tail[:64] * 8 + tail
    return data


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD_VALUES = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", " ", "1", "nan",
    "1e999", "１２", "x" * 300, "x" * 70_000, "../up", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "\x1b[31m", "[bold]",
    "<b>", "a\nb", [], {}, [None], {"id": []}, nested(150),
]  # fmt: skip
VALUES = st.one_of(st.sampled_from(ODD_VALUES), st.integers(), st.floats(), st.text(max_size=8))
# Places in a document, counted through all its values, and what to put there; DELETE takes the value away.
DELETE = "delete"
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.one_of(st.just(DELETE), VALUES)), min_size=1, max_size=3)


def edited(document: Any, edits: list[tuple[int, Any]]) -> Any:
    """A copy of a document of lists and dicts with some of its values replaced or taken away."""
    holder = [copy.deepcopy(document)]
    for where, value in edits:
        places = list(_places(holder))
        if not places:
            break
        parent, key = places[where % len(places)]
        if value == DELETE and parent is not holder:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(value)
    return holder[0]


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """The holder and the key of every value in a document, however deep it is."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, item in items:
            yield holder, key
            waiting.append(item)


# Either kind of damage, for formats that have a structure.
EITHER = st.one_of(st.tuples(st.just([]), DAMAGES), st.tuples(EDITS, st.just([])))


def json_case(document: Any, case: tuple[list[Any], list[Damage]]) -> bytes:
    edits, damages = case
    return damaged(json.dumps(edited(document, edits)).encode(), damages)


# ---- What holds of every case


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Only the package's own errors, in time, without more memory."""
    _set_timers(HANGS, HANGS_BY_THE_CLOCK)
    memory, start = peak_memory(), time.process_time()
    try:
        yield
    except EfficientDetError as error:
        assert str(error), "an error without a message"
        assert len(str(error)) < 21_000, "an error's message without bounds"
    finally:
        _set_timers(0, 0)
    spent, growth = time.process_time() - start, peak_memory() - memory
    assert spent < LONGEST_CASE, f"{spent:.1f} s"
    assert growth < MOST_GROWTH, f"{growth / 2**20:.0f} MiB more"


def _set_timers(computing: float, by_the_clock: float) -> None:
    if hasattr(signal, "setitimer"):
        for kind, number, seconds in (
            (signal.ITIMER_PROF, signal.SIGPROF, computing), (signal.ITIMER_REAL, signal.SIGALRM, by_the_clock),
        ):  # fmt: skip
            signal.signal(number, _hang)
            signal.setitimer(kind, seconds)


def _hang(signal_number: int, frame: object) -> None:
    raise AssertionError(f"still running after {HANGS} s of computing, or {HANGS_BY_THE_CLOCK} s by the clock")


def peak_memory() -> int:
    """Most bytes that this process has held; 0 where that cannot be asked."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- Targets: a strategy of cases, and a function that reads one in a folder


class Target(NamedTuple):
    """What is read, and how often.

    Attributes:
        cases: what may be damaged.
        read: reads a case.
        examples: cases of a short run.
        document: what `EDITS` count the places of; each odd value is put into each of them. None for none.
        case: makes a case of edits.
    """

    cases: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    examples: int
    document: Any = None
    case: Callable[[list[Any]], Any] = lambda edits: (edits, [])


def images_target(folder: Path) -> Target:
    pixels = np.arange(48 * 40 * 3, dtype=np.uint8).reshape(40, 48, 3)
    seeds = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "DDS", "SGI"):
        file = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # a format that this Pillow was built without
            Image.fromarray(pixels).save(
                file, kind, **({"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"} if kind == "JPEG" else {})
            )
            seeds.append(file.getvalue())

    def read_image(case: tuple[bytes, list[Damage]]) -> None:
        data = damaged(*case)
        for reader in (read, image_size, lambda data: read_reduced(data, (16, 16))):
            with contextlib.suppress(EfficientDetError):
                reader(data)

    return Target(st.tuples(st.sampled_from(seeds), DAMAGES), read_image, 150)


COCO = {
    "images": [{"id": number, "file_name": f"{number}.png", "width": 48, "height": 40} for number in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 20.5, 10], "area": 205, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 48, 40], "area": 1920, "iscrowd": 1,
         "segmentation": {"counts": [0, 1920], "size": [40, 48]}},
    ],
    "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}],
}  # fmt: skip


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        Image.new("RGB", (48, 40)).save(folder / f"{number}.png")


def coco_target(folder: Path) -> Target:
    write_images(folder / "images")

    def read_case(case: Any) -> None:
        (folder / "train.json").write_bytes(json_case(COCO, case))
        read_coco(folder / "train.json")

    return Target(EITHER, read_case, 150, COCO)


VOC = (
    "<annotation><filename>1.png</filename><size><width>48</width><height>40</height><depth>3</depth></size><object>"
    "<name>disc</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30.5</ymax></bndbox>"
    "</object></annotation>"
)


def voc_target(folder: Path) -> Target:
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()

    def read_case(case: tuple[list[tuple[int, Any]], list[Damage]]) -> None:
        root = ElementTree.fromstring(VOC)
        elements = list(root.iter())
        for where, value in case[0]:
            element = elements[where % len(elements)]
            if value == DELETE:
                element.clear()
            elif isinstance(value, list):
                element.extend(copy.deepcopy(elements[1:]))
            else:
                element.text = str(value)
        data = ElementTree.tostring(root, "unicode").encode("utf-8", "surrogatepass")
        (folder / "Annotations" / "1.xml").write_bytes(damaged(data, case[1]))
        read_voc(folder)

    return Target(EITHER, read_case, 150, list(ElementTree.fromstring(VOC).iter()))


CSV = [
    ["image", "xmin", "ymin", "xmax", "ymax", "class", "ignored", "split"],
    ["1.png", 1, 2, 20, 30.5, "disc", 0, "train"],
    ["2.png", "", "", "", "", "", "", ""],
    ["2.png", 0, 0, 48, 40, "", 1, "train"],
]


def csv_target(folder: Path) -> Target:
    write_images(folder / "images")

    def read_case(case: tuple[list[Any], list[Damage]]) -> None:
        rows, text = edited(CSV, case[0]), io.StringIO()
        rows = [row if isinstance(row, list) else [row] for row in rows] if isinstance(rows, list) else [[rows]]
        csv.writer(text).writerows([[str(value) for value in row] for row in rows])
        data = text.getvalue().encode("utf-8", "surrogatepass")
        (folder / "boxes.csv").write_bytes(damaged(data, case[1]))
        read_csv(folder / "boxes.csv", "train")

    return Target(EITHER, read_case, 150, CSV)


def parquet_target(folder: Path) -> Target:
    """Parquet, and the Arrow streams of `datasets`, damaged byte by byte: pyarrow reads them in C++."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_images(folder / "images")
    objects = {"bbox": [[1.0, 2.0, 20.0, 10.0]], "category": ["disc"]}
    rows = [{"image": f"images/{n}.png", "image_id": n, "objects": objects} for n in (1, 2)]
    table, stream = pyarrow.Table.from_pylist(rows), io.BytesIO()
    parquet.write_table(table, folder / "x.parquet")
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    whole = {"x.parquet": (folder / "x.parquet").read_bytes(), "x.arrow": stream.getvalue()}

    def read_case(case: tuple[str, list[Damage]]) -> None:
        name, damages = case
        (folder / name).write_bytes(damaged(whole[name], damages))
        read_parquet(folder / name)

    return Target(st.tuples(st.sampled_from(list(whole)), DAMAGES), read_case, 150)


YAML_TEXTS = [
    "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "names: !!python/object/apply:os.getcwd []\n",
    "? [a, b]\n: c\nnames: [x]\n", "names: !odd [x]\n", "names: [x]\nnames: [y]\n", "names: {0: x, '0': y}\n",
    "names: " + "[" * 3000, "names: 2001-02-30\n", "names: &a {x: *a}\n", "--- 1\n--- 2\n", "names: [x, 1e400, .nan]\n",
]  # fmt: skip


def yaml_case(document: Any, case: tuple[list[Any], list[Damage]] | str) -> bytes:
    return case.encode() if isinstance(case, str) else json_case(document, case)  # JSON is YAML


def yolo_target(folder: Path) -> Target:
    write_images(folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    config = {"path": ".", "train": "images/train", "val": "images/train", "nc": 2, "names": ["disc", "square"]}
    labels = "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.05 0.1\n"

    def read_case(case: tuple[Any, list[Damage]]) -> None:
        (folder / "data.yaml").write_bytes(yaml_case(config, case[0]))
        (folder / "labels" / "train" / "1.txt").write_bytes(damaged(labels.encode(), case[1]))
        read_yolo(folder)

    of_config = st.tuples(st.one_of(EITHER, st.sampled_from(YAML_TEXTS)), st.just([]))
    cases = st.one_of(of_config, st.tuples(st.just(([], [])), DAMAGES))
    return Target(cases, read_case, 150, config, lambda edits: ((edits, []), []))


def graph_target(folder: Path) -> Target:
    nodes = [{"name": f"out{level}", "level": level, "inputs": ["in3", "in4"]} for level in (3, 4)]
    graph = {"name": "mine", "nodes": nodes}

    def read_case(case: Any) -> None:
        (folder / "graph.yaml").write_bytes(yaml_case(graph, case))
        read_graph(folder / "graph.yaml", (3, 4))

    return Target(st.one_of(EITHER, st.sampled_from(YAML_TEXTS)), read_case, 150, graph)


def tiny_checkpoint(folder: Path, shapes: ModuleType) -> Path:
    torch.manual_seed(0)
    info = CheckpointInfo(shapes.TINY, ("disc", "square"), (3, 7), default_preprocessing(shapes.TINY))
    path = folder / "tiny.safetensors"
    checkpoint.save_checkpoint(path, create_model(shapes.TINY, 2).state_dict(), info)
    return path


def checkpoint_target(folder: Path, shapes: ModuleType) -> Target:
    path = tiny_checkpoint(folder, shapes)
    data, tensors = path.read_bytes(), load_file(path)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")[METADATA_KEY])

    def signed(fields: Any) -> Any:
        """Facts with their checksum, as a stranger would write them too."""
        fields = json.loads(json.dumps(fields))
        if isinstance(fields, dict):
            fields.pop("sha256", None)
            fields["sha256"] = checkpoint._checksum(fields, tensors)
        return fields

    def read_case(case: tuple[str, Any]) -> None:
        part, damage = case
        if part == "bytes":
            changed = damaged(data, damage)
        else:
            fields = edited(facts, damage) if part == "facts" else facts
            places = edited(header, damage) if part == "header" else header
            if isinstance(places, dict):
                places = {**places, "__metadata__": {METADATA_KEY: json.dumps(signed(fields))}}
            text = json.dumps(places).encode()
            changed = struct.pack("<Q", len(text)) + text + data[8 + length :]
        (folder / "damaged.safetensors").write_bytes(changed)
        checkpoint.load_checkpoint(folder / "damaged.safetensors")

    parts = (("bytes", DAMAGES), ("facts", EDITS), ("facts", EDITS), ("header", EDITS))
    cases = st.one_of(*(st.tuples(st.just(part), damage) for part, damage in parts))
    return Target(cases, read_case, 60, facts, lambda edits: ("facts", edits))


def pickle_target(folder: Path, shapes: ModuleType) -> Target:
    state = {"a.weight": torch.ones(4, 3), "b": {"bias": torch.zeros(2, dtype=torch.float16)}, "epoch": 3, "name": "x"}
    seeds = []
    for is_zip in (True, False):
        torch.save(state, folder / "seed.pth", _use_new_zipfile_serialization=is_zip)
        seeds.append((folder / "seed.pth").read_bytes())

    def read_case(case: tuple[bytes, list[Damage]]) -> None:
        (folder / "damaged.pth").write_bytes(damaged(*case))
        convert_file(folder / "damaged.pth")

    return Target(st.tuples(st.sampled_from(seeds), DAMAGES), read_case, 100)


def npz_target(folder: Path, shapes: ModuleType) -> Target:
    backbone = create_model(shapes.TINY, 2).backbone
    seeds = []
    for save in (np.savez, np.savez_compressed):
        save(
            folder / "seed.npz",
            **{"conv_stem.weight": np.ones((32, 3, 3, 3), np.float16), "conv_stem.bias": np.ones(32)},
        )
        seeds.append((folder / "seed.npz").read_bytes())

    def read_case(case: tuple[bytes, list[Damage]]) -> None:
        (folder / "damaged.npz").write_bytes(damaged(*case))
        load_folded_backbone(backbone, folder / "damaged.npz", [])

    return Target(st.tuples(st.sampled_from(seeds), DAMAGES), read_case, 100)


def onnx_target(folder: Path, shapes: ModuleType) -> Target:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from efficientdet.exporting.export import export

    export(Detector(*checkpoint.load_checkpoint(tiny_checkpoint(folder, shapes)), device="cpu"), folder / "seed.onnx")
    data = (folder / "seed.onnx").read_bytes()
    model = onnx.load_from_string(data)
    facts = {one.key: json.loads(one.value) for one in model.metadata_props if one.value.startswith("{")}

    def read_case(case: tuple[list[Any], list[Damage]]) -> None:
        edits, damages = case
        changed = damaged(data, damages)
        if edits:
            metadata = edited(facts, edits)
            del model.metadata_props[:]
            for key, value in metadata.items() if isinstance(metadata, dict) else ():
                model.metadata_props.add(key=key, value=json.dumps(value))
            changed = model.SerializeToString()
        (folder / "damaged.onnx").write_bytes(changed)
        if edits and metadata_module.CHECKSUM in changed:
            metadata_module.add_checksum(folder / "damaged.onnx")  # as a stranger would; damage is caught by it
        load(folder / "damaged.onnx", backend="onnxruntime").predict(np.zeros((40, 48, 3), np.uint8))

    return Target(EITHER, read_case, 25)


def names_target(folder: Path) -> Target:
    odd = [
        "hf://", "hf://a", "hf://a/b@", "hf://a--b/c", "hf://../x", "hf://.a/b.", "hf://a/" + "b" * 300, "a" * 300,
        "a/" + "b" * 5000, "a\0b", "~", ".", "/", "\ud800.safetensors", "d0@x", "hf://a/b@" + "c" * 300, "con",
    ]  # fmt: skip
    names = st.one_of(
        st.sampled_from(odd),
        st.text(max_size=20).filter(lambda text: bool(text.strip("./\\"))),
        st.from_regex(r"hf://[\w.-]{1,8}/[\w.-]{1,100}(@[\w./-]{1,8})?", fullmatch=True),
    )
    return Target(names.filter(lambda name: not _is_released(name)), find_weights, 150)


def _is_released(name: str) -> bool:
    """Whether a name would be downloaded."""
    from efficientdet.weights.names import bundled_names, find_known

    try:
        return find_known(name) not in bundled_names()
    except EfficientDetError:
        return False


class Answer(NamedTuple):
    """What a server sends: a line of status, headers, a body."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


def download_target(folder: Path) -> Target:
    current: list[Answer] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            status, headers, body = current[0]
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            with contextlib.suppress(OSError):
                self.wfile.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("utf-8", "surrogatepass") + body)

    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/file"
    status = st.sampled_from(
        [
            "200 OK",
            "206 Partial Content",
            "404 Not Found",
            "416 Range",
            "429 Slow",
            "500 Broken",
            "302 Found",
            "204 None",
            "999 Odd",
            "abc",
            "",
            "200",
            "301 Moved",
        ]  # fmt: skip
    )
    names = st.sampled_from(["Content-Length", "Content-Range", "ETag", "Location", "Retry-After", "Transfer-Encoding"])
    odd = [
        "0", "5", "-1", "10" * 30, "chunked", "bytes 0-4/5", "bytes 9-1/0", "bytes */5", "W/x", "\r\n", "é", "/file",
        "ftp://127.0.0.1/x", "file:///etc/passwd", "http://[", "x" * 70_000,
    ]  # fmt: skip
    headers = st.lists(st.tuples(names, st.one_of(st.sampled_from(odd), st.text(max_size=10))), max_size=3)
    body = st.one_of(st.binary(max_size=40), st.just(b"hello"))
    answers = st.builds(Answer, status, headers, body)

    def read_case(answer: Answer) -> None:
        current[:] = [answer]
        (folder / "file").unlink(missing_ok=True)
        try:
            download(url, folder / "file", "2cf24dba")
        finally:
            left = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert left in ({}, {"file": b"hello"})

    return Target(answers, read_case, 60)


def resume_target(folder: Path, shapes: ModuleType) -> Target:
    pytest.importorskip("lightning")
    from efficientdet.training.run import train

    data = shapes.write_shapes(folder / "data", {"train": 4})
    chosen = {**shapes.SETTINGS, "epochs": 2, "save_every": 1, "batch_size": 4}
    train(shapes.TINY, data, out=folder / "seed", **chosen)
    state, config = (folder / "seed" / "resume.ckpt").read_bytes(), (folder / "seed" / "config.json").read_text()

    def read_case(case: tuple[str, Any]) -> None:
        part, damage = case
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "seed", run)
        if part == "state":
            (run / "resume.ckpt").write_bytes(damaged(state, damage))
        else:
            (run / "config.json").write_bytes(json_case(json.loads(config), damage))
        train(shapes.TINY, data, out=run, resume=True, **chosen)

    cases = st.one_of(st.tuples(st.just("state"), DAMAGES), st.tuples(st.just("config"), EITHER))
    return Target(cases, read_case, 6)


TARGETS: dict[str, Callable[..., Target]] = {
    "images": images_target, "coco": coco_target, "voc": voc_target, "yolo": yolo_target, "csv": csv_target,
    "parquet": parquet_target,
    "graph": graph_target,
    "checkpoint": checkpoint_target, "pickle": pickle_target, "npz": npz_target, "onnx": onnx_target,
    "names": names_target, "download": download_target, "resume": resume_target,
}  # fmt: skip
NEED_SHAPES = ("checkpoint", "pickle", "npz", "onnx", "resume")


@pytest.fixture
def target(
    request: pytest.FixtureRequest, tmp_path: Path, shapes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Target:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "ATTEMPTS", 2)
    monkeypatch.setattr(download_module, "BACKOFF", 0.0)
    monkeypatch.setattr(download_module, "TIMEOUT", 2.0)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "target"
    folder.mkdir()
    return TARGETS[request.param](*([folder, shapes] if request.param in NEED_SHAPES else [folder]))


def run(target: Target, examples: int, is_repeatable: bool) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=is_repeatable, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def check(case: Any) -> None:
        with limits():
            target.read(case)

    check()


@pytest.mark.filterwarnings("ignore")  # a library may warn of what it reads
@pytest.mark.parametrize("target", TARGETS, indirect=True)
def test_a_few_cases(target: Target) -> None:
    run(target, target.examples, is_repeatable=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "target", ["coco", "voc", "yolo", "csv", "graph", pytest.param("checkpoint", marks=pytest.mark.slow)], indirect=True
)
def test_every_odd_value_in_every_place(target: Target) -> None:
    failures: dict[str, str] = {}
    for where in range(len(list(_places([target.document])))):
        for value in (DELETE, *ODD_VALUES):
            try:
                with limits():
                    target.read(target.case([(where, value)]))
            except Exception as error:
                failures.setdefault(f"{type(error).__name__}: {error}"[:200], f"place {where}, {repr(value)[:80]}")
    if failures:
        pytest.fail("\n".join(f"{place}: {error}" for error, place in failures.items()))


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS, indirect=True)
def test_as_many_cases_as_the_time_allows(target: Target) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        run(target, target.examples, is_repeatable=False)
