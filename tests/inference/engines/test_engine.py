"""Every engine gives what the network gives, from any thread, at any size; what it builds is kept and found again."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError
from efficientdet.family import ModelSpec
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines import engine as engines
from efficientdet.inference.engines.engine import Engine, Outputs, SessionByShape, choose_backend, open_engine
from efficientdet.inference.engines.session import Session
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.info import CheckpointInfo

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def spec(shapes: ModuleType) -> ModelSpec:
    return dataclasses.replace(shapes.TINY, image_size=128, fusion="fast")


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> EfficientDet:
    torch.manual_seed(0)
    model = EfficientDet(spec, 3).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One folder for the module, so that each graph is written once."""
    folder = tmp_path_factory.getbasetemp() / "engines-cache"
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(folder))
    return folder


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch + height))


def check(outputs: Outputs, expected: Outputs, tolerance: float) -> None:
    assert all(x.dtype == torch.float32 for x in outputs[1])
    for ours, theirs in zip(outputs, expected, strict=True):
        assert [x.shape for x in ours] == [x.shape for x in theirs]
        for a, b in zip(ours, theirs, strict=True):
            if tolerance < 0.01:
                assert a.dtype == torch.float32
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
            assert (a - b).abs().mean() < tolerance


def libraries_of(backend: str) -> None:
    for name in engines.LIBRARIES.get(backend, ()):
        pytest.importorskip(name)


@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [
        ("eager", "fp32", 1e-4), ("onnxruntime", "fp32", 1e-4), ("openvino", "fp32", 1e-4), ("eager", "bf16", 0.1),
        ("openvino", "bf16", 0.1),
    ],
)  # fmt: skip
def test_the_same_outputs(model: EfficientDet, backend: str, precision: str, tolerance: float) -> None:
    libraries_of(backend)
    engine = open_engine(model, backend, precision)
    assert str(engine) == f"{backend} {precision} on cpu"
    for shape in ((1, 128, 128), (2, 128, 128), (1, 256, 128), (1, 100, 72)):
        pixels = images(*shape)
        with torch.no_grad():
            expected = model(pixels)
        check(engine.run(pixels), expected, tolerance)
        for streams in (1, 2, 4) if engine.shared is not None else ():
            check(engine.shared(streams)(pixels), expected, tolerance)


def test_eager_computes_on_the_cores_that_are_free(model: EfficientDet, monkeypatch: pytest.MonkeyPatch) -> None:
    free, used = iter([2, 1, 2]), list[int]()

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> Outputs:
            used.append(torch.get_num_threads())
            return [images], [images]

    monkeypatch.setattr(engines, "fold", lambda model: Network())
    monkeypatch.setattr(engines, "FreeCores", lambda: free.__next__)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = open_engine(model, "eager")
        for _ in range(3):
            engine.run(images(1, 128, 128))
    finally:
        torch.set_num_threads(before)
    assert used == [2, 1, 2]


@pytest.mark.slow
def test_compiled_gives_the_same(model: EfficientDet) -> None:
    pixels = images(1, 128, 128)
    with torch.no_grad():
        check(open_engine(model, "compile").run(pixels), model(pixels), 1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_one_graph_serves_all_regular_sizes_and_is_found_again(
    model: EfficientDet, backend: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries_of(backend)
    open_engine(model, backend).run(images(1, 128, 128))
    written = sorted(path.name for path in (cache / "engines").glob("*-any.onnx"))
    assert len(written) == 1

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the graph is in the cache")

    monkeypatch.setattr(engines, "write_onnx_network", refuse)
    open_engine(model, backend).run(images(1, 256, 384))
    changed = EfficientDet(model.spec, 3)  # other weights are another graph
    with pytest.raises(AssertionError, match="in the cache"):
        open_engine(changed, backend).run(images(1, 128, 128))


@pytest.mark.parametrize("backend", [pytest.param("onnxruntime", marks=pytest.mark.slow), "openvino"])
def test_a_damaged_graph_in_the_cache_is_written_again(
    model: EfficientDet, backend: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries_of(backend)
    pixels = images(1, 128, 128)
    expected = [[output.clone() for output in part] for part in open_engine(model, backend).run(pixels)]
    (graph,) = (cache / "engines").glob("*-any.onnx")
    whole = graph.read_bytes()
    at = len(whole) // 2
    graph.write_bytes(whole[:at] + bytes(1000) + whole[at + 1000 :])  # weights that are 0: a valid file
    capsys.readouterr()
    check(open_engine(model, backend).run(pixels), expected, 1e-6)
    assert capsys.readouterr().err == f"efficientdet: {graph} is damaged and is made again\n"


def test_what_openvino_compiled_is_verified(
    model: EfficientDet, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenVINO runs a damaged file of its own cache, and gives other boxes."""
    libraries_of("openvino")
    pixels = images(1, 128, 128)
    expected = [[output.clone() for output in part] for part in open_engine(model, "openvino").run(pixels)]
    for blob in (cache / "engines" / "openvino").glob("*-any/*.blob"):
        assert blob.stat().st_mode & 0o777 == blob.parent.stat().st_mode & 0o666
        whole = blob.read_bytes()
        at = len(whole) // 2
        blob.write_bytes(whole[:at] + bytes(1000) + whole[at + 1000 :])
    capsys.readouterr()
    check(open_engine(model, "openvino").run(pixels), expected, 1e-6)
    assert ".blob is damaged and is made again" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "openvino"])
def test_threads_do_not_disturb_each_other(model: EfficientDet, backend: str) -> None:
    libraries_of(backend)
    engine = open_engine(model, backend)
    batches = [images(1, 128, 128) + i for i in range(6)]
    run = engine.shared(3) if engine.shared else engine.run

    def copies(pixels: torch.Tensor) -> Outputs:
        classes, boxes = run(pixels)
        return [x.clone() for x in classes], [x.clone() for x in boxes]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(copies, batches))
    with torch.no_grad():
        for outputs, pixels in zip(found, batches, strict=True):
            check(outputs, model(pixels), 1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_detector_finds_the_same_with_it(model: EfficientDet, backend: str) -> None:
    libraries_of(backend)
    info = CheckpointInfo(model.spec, ("a", "b", "c"), (1, 2, 3), LITE)
    pictures = [
        np.random.default_rng(i).integers(0, 256, (90 + 10 * i, 140 - 5 * i, 3), dtype=np.uint8) for i in range(5)
    ]
    settings = {"score_threshold": 0.0, "max_detections": 20}
    expected = Detector(model, info, backend="eager", **settings).predict(pictures)
    detector = Detector(model, info, backend=backend, **settings)
    assert detector.warmup() is detector.engine
    for found, wanted in zip(detector.predict(pictures), expected, strict=True):
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        assert found.image_size == wanted.image_size


def test_rectangular_inputs_are_the_smallest_multiples_that_hold_the_picture(model: EfficientDet) -> None:
    seen = []

    def run(pixels: torch.Tensor) -> Outputs:
        seen.append(tuple(pixels.shape))
        with torch.no_grad():
            outputs: Outputs = model(pixels)
        return outputs

    info = CheckpointInfo(dataclasses.replace(model.spec, image_size=512), ("a", "b", "c"), (1, 2, 3), LITE)
    detector = Detector(model, info, backend="eager", rectangular=True, score_threshold=0.0)
    detector._engine = Engine("eager", "fp32", run)
    for height, width in ((480, 640), (640, 300), (100, 640), (512, 512)):
        detector.predict(np.zeros((height, width, 3), np.uint8))
    assert seen == [(1, 3, 384, 512), (1, 3, 512, 256), (1, 3, 128, 512), (1, 3, 512, 512)]
    # In a batch too each image has its own size, and finds what it finds alone.
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    mixed = [noise[:480], noise[:, :300], noise[160:]]
    many = detector.predict(mixed)
    assert seen[-2:] == [(2, 3, 384, 512), (1, 3, 512, 256)]
    for found, image in zip(many, mixed, strict=True):
        np.testing.assert_allclose(found.boxes_xyxy, detector.predict(image).boxes_xyxy, atol=0.01)


def test_sessions_of_shapes_that_came_long_ago_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def open_session(shape: tuple[int, ...]) -> Session:
        opened.append(shape[2])
        return lambda pixels: [pixels, pixels]

    monkeypatch.setattr(engines, "MOST_SESSIONS", 2)
    run = SessionByShape(open_session)
    for height in (1, 2, 1, 3, 1, 2):
        assert run(torch.zeros(1, 3, height, 4))[0][0].shape == (1, 3, height, 4)
    assert opened == [1, 2, 3, 2]


def test_reduced_decoding_keeps_the_pictures_own_pixels(model: EfficientDet, tmp_path: Path) -> None:
    from PIL import Image

    info = CheckpointInfo(model.spec, ("a", "b", "c"), (1, 2, 3), LITE)
    path = tmp_path / "large.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1601, 1201), Image.Resampling.BICUBIC).save(path, quality=95)
    settings = {"backend": "eager", "score_threshold": 0.0, "max_detections": 5}
    whole = Detector(model, info, **settings).predict(path)
    reduced = Detector(model, info, reduced_decoding=True, **settings).predict(path)
    assert reduced.image_size == whole.image_size == (1201, 1601) and reduced.image is None
    np.testing.assert_allclose(reduced.scores, whole.scores, atol=0.02)
    assert reduced.draw().size == (1601, 1201)


# ---- choices
def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown backend 'onxruntime'; did you mean 'onnxruntime'\?"):
        choose_backend("onxruntime", "fp32", CPU)
    with pytest.raises(UnknownNameError, match="unknown precision 'int4'"):
        choose_backend("eager", "int4", CPU)


@pytest.mark.parametrize(
    ("backend", "precision", "device", "words"),
    [
        ("onnxruntime", "bf16", "cpu", "does not offer precision bf16; these do: eager, compile, openvino"),
        ("eager", "fp16", "cpu", "needs a GPU"),
        ("openvino", "fp32", "cuda", "runs on the CPU here"),
        ("tensorrt", "fp32", "cpu", "needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(backend: str, precision: str, device: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        choose_backend(backend, precision, torch.device(device))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.LIBRARIES, "openvino", ("a_library_that_is_not_there",))
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[export\]'"):
        choose_backend("openvino", "fp32", CPU)


def test_auto_takes_the_variable_then_the_best_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_BACKEND", "compile")
    assert choose_backend("auto", "fp32", CPU) == "compile"
    monkeypatch.delenv("EFFICIENTDET_BACKEND")
    assert choose_backend("auto", "bf16", torch.device("cuda")) == "eager"
    for backend in ("openvino", "onnxruntime"):
        libraries_of(backend)
    assert choose_backend("auto", "fp32", CPU) == "openvino"
    monkeypatch.setitem(engines.LIBRARIES, "openvino", ("a_library_that_is_not_there",))
    assert choose_backend("auto", "fp32", CPU) == "onnxruntime"
    monkeypatch.setitem(engines.LIBRARIES, "onnxruntime", ("a_library_that_is_not_there",))
    assert choose_backend("auto", "fp32", CPU) == "eager"
