"""`efficientdet benchmark` measures what users run, in turns, and says what failed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from efficientdet.cli import app
from efficientdet.errors import ImageError, SettingError, UnknownNameError
from efficientdet.inference import benchmark as benchmarks
from efficientdet.inference.benchmark import PARTS, Row, Spread, benchmark, sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.inference.settings import BenchmarkSettings

QUICK = {"rounds": 2, "iterations": 2}
COLUMNS = ["model", "backend", "precision", "batch", "input", "images/s", "total ms", *PARTS, "x floor"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate([(80, 60), (60, 80)]):
        pixels = random.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_every_model_backend_and_batch_size_gets_a_row(images: Path) -> None:
    settings = BenchmarkSettings(backends=("eager",), batch_sizes=(1, 3), images=str(images), threads=1, **QUICK)
    lines: list[str] = []
    found = benchmark(["people", "lite0"], settings, lines.append, image_size=64, device="cpu")
    assert [(row.model, row.backend, row.batch_size) for row in found.rows] == [
        ("people", "eager", 1), ("people", "eager", 3), ("lite0", "eager", 1), ("lite0", "eager", 3),
    ]  # fmt: skip
    for row in found.rows:
        assert len(row.rounds) == 2 and tuple(row.parts) == PARTS
        assert row.input_size == (64, 64)
        assert row.images_per_second == pytest.approx(1000 * row.batch_size / row.total.median)
        assert row.over_floor is not None and row.over_floor > 1
        assert row.total.low <= min(row.rounds) <= row.total.median <= row.total.high
    assert found.notes == ["lite0: random weights that score like trained ones"]
    assert not found.failures
    assert len(lines) == 2 * len(found.rows)


def test_sides_take_turns_and_one_prediction_of_each_turn_is_not_counted(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    original = Detector.predict

    def predict(self: Detector, source: Any, **settings: Any) -> Any:
        seen.append((len(source) if isinstance(source, list) else 1, self.timer is not None))
        return original(self, source, **settings)

    monkeypatch.setattr(Detector, "predict", predict)
    settings = BenchmarkSettings(backends=("eager",), batch_sizes=(1, 2), images=str(images), **QUICK)
    benchmark(["people"], settings, image_size=64)
    opened, rounds = [(1, False), (2, False)], [(1, False), (1, True), (1, True), (2, False), (2, True), (2, True)]
    assert seen == opened + rounds * 2


def test_threads_are_as_before_also_after_an_error(images: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ImageError):
        benchmark(["people"], BenchmarkSettings(threads=before + 1, images=str(images / "none.jpg")))
    assert torch.get_num_threads() == before


def test_the_parts_of_images_that_run_side_by_side_are_not_longer_than_the_whole(images: Path) -> None:
    """Two threads that each take as long as the whole count as one."""
    detector = benchmarks.load("people", backend="eager", image_size=64)
    side = benchmarks._Side("people", detector, [str(path) for path in sorted(images.iterdir())])
    side.at_once = 2
    barrier = threading.Barrier(2)

    def one() -> None:
        assert detector.timer is not None
        with detector.timer("network"):
            barrier.wait(timeout=30)
            threading.Event().wait(0.05)

    def predict() -> None:
        threads = [threading.Thread(target=one) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

    detector.timer = None
    side._predict = lambda: None if detector.timer is None else predict()  # type: ignore[method-assign]
    side.measure(1)
    assert 50 <= side.times[0]["network"] <= side.times[0]["total"]


def test_a_backend_that_cannot_run_is_a_failure_and_the_others_go_on(images: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    settings = BenchmarkSettings(
        backends=("eager", "tensorrt"), precisions=("fp32", "bf16"), images=str(images), **QUICK
    )
    found = benchmark(["people", str(damaged)], settings, image_size=64, device="cpu")
    assert [(row.backend, row.precision) for row in found.rows] == [("eager", "fp32"), ("eager", "bf16")]
    assert "people: tensorrt does not offer bf16; left out" in found.notes
    assert any("people, tensorrt fp32: " in failure and "GPU" in failure for failure in found.failures)
    assert any("damaged.onnx" in failure for failure in found.failures)


def test_an_unknown_model_stops_before_anything_is_measured() -> None:
    with pytest.raises(UnknownNameError, match="people"):
        benchmark(["d99"])


def test_a_row_of_an_int8_file_has_no_floor() -> None:
    row = Row("a.xml", "openvino", "int8", 2, (64, 96), Spread(10, 9, 12), dict.fromkeys(PARTS, 1.0), None, [10.0])
    assert row.over_floor is None
    shown = row.table_row()
    assert list(shown) == COLUMNS
    assert (shown["total ms"], shown["images/s"], shown["input"], shown["x floor"]) == (
        "10.0 (9.0-12.0)",
        "200.0",
        "64x96",
        None,
    )


def test_the_sample_is_a_jpeg_with_and_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from efficientdet.errors import MissingExtraError

    def missing() -> Path:
        raise MissingExtraError("none")

    for _ in range(2):
        with Image.open(io.BytesIO(sample_jpeg())) as image:
            assert (image.format, image.size) == ("JPEG", (640, 480))
            assert np.asarray(image).std() > 20
        monkeypatch.setattr(benchmarks, "sample_image", missing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backends": ("onnxruntim",)}, "unknown backend 'onnxruntim'; did you mean 'onnxruntime'"),
        ({"precisions": ("int4",)}, "unknown precision 'int4'"),
        ({"batch_sizes": (1, 0)}, "batch_sizes is 0; it must be at least 1"),
        ({"backends": ()}, "backends is empty"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError if "unknown" in message else SettingError, match=message):
        BenchmarkSettings(**changes)


# ---- the command
def test_the_command_prints_the_table_and_writes_json(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = ["benchmark", "people", "--backends", "eager", "--image-size", "64", "--images", str(images)]
    command += ["--rounds", "1", "--iterations", "1", "--nms", "soft"]
    table = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert table.exit_code == 0, table.output
    header = next(line for line in table.stdout.splitlines() if "x floor" in line)
    assert all(column in header for column in COLUMNS)
    assert "cores" in table.stdout and f"torch {torch.__version__}" in table.stdout
    printed = CliRunner().invoke(app, [*command, "--json"])
    for content in (json.loads(printed.stdout), json.loads(out.read_text())):
        assert set(content) == {"hardware", "settings", "rows", "notes", "failures"}
        assert content["rows"][0]["total"]["median"] > 0
        assert content["hardware"]["versions"]["torch"] == torch.__version__


def test_the_command_ends_with_1_where_nothing_could_be_measured(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    done = CliRunner().invoke(app, ["benchmark", str(damaged), "--rounds", "1"])
    assert done.exit_code == 1
    assert "damaged.onnx" in done.stderr


def test_a_wrong_setting_is_refused() -> None:
    done = CliRunner().invoke(app, ["benchmark", "people", "--backends", "eagre"])
    assert isinstance(done.exception, UnknownNameError)
