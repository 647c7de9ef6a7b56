"""The benchmark measures what users run, in turns, and says what failed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientdet.errors import SettingError, UnknownNameError, WeightsError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import IMAGENET
from efficientdet.inference.detector import Detector
from efficientdet.research.benchmark import conversation
from efficientdet.research.benchmark.floors import multiply_adds, network_floors
from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.processes import SideError, Worker, take_turns
from efficientdet.research.benchmark.random_weights import PAIRS_ABOVE, random_model
from efficientdet.research.benchmark.results import Row, Spread, ratio
from efficientdet.research.benchmark.run import BenchmarkSettings, benchmark
from efficientdet.research.benchmark.sources import Model, default_picture, open_model, peer_python, peer_weights
from efficientdet.research.benchmark.steps import PARTS, input_batch, predict_in_steps, read_all

SIDE = """
import sys
sys.path.insert(0, {folder!r})
from conversation import serve

def make(case):
    if case.get("dies"):
        sys.exit("out of luck")
    if case.get("raises"):
        raise ValueError("no such thing")
    left = [case.get("lasts", 99)]

    def measure():
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("worn out")
        with open(case["log"], "a") as log:
            log.write(case["name"])
        print("libraries may print")
        return {{"total": 2.0, "network": 1.0}}

    return measure, {{"name": case["name"]}}

serve(make)
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    default_picture(path)
    return path


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "side.py"
    script.write_text(SIDE.format(folder=str(Path(conversation.__file__).parent)))
    return [sys.executable, "-S", str(script)]


# ---- what is measured is what users run
@pytest.mark.parametrize("is_rectangular", [False, True])
@pytest.mark.parametrize("reduces", [False, True])
def test_the_steps_find_what_the_detector_finds(
    picture: Path, tmp_path: Path, is_rectangular: bool, reduces: bool
) -> None:
    model, info = random_model("lite0", 256, picture)
    detector = Detector(
        model, info, device="cpu", backend="eager", rectangular=is_rectangular, reduced_decoding=reduces,
        score_threshold=0.05,
    )  # fmt: skip
    tall = tmp_path / "tall.jpg"
    Image.open(picture).rotate(90, expand=True).resize((300, 640)).save(tall)
    sources = [str(picture), str(tall)]
    found, milliseconds = predict_in_steps(detector, sources)
    expected = detector.predict(sources, batch_size=2)
    assert found.counts.tolist() == [len(one) for one in expected]
    assert found.counts.min() > 5
    for i, one in enumerate(expected):
        torch.testing.assert_close(found.boxes_xyxy[i, : len(one)], torch.from_numpy(one.boxes_xyxy), rtol=0, atol=0)
        torch.testing.assert_close(found.scores[i, : len(one)], torch.from_numpy(one.scores), rtol=0, atol=0)
    assert tuple(milliseconds) == PARTS
    assert min(milliseconds.values()) > 0


def test_random_weights_score_like_trained_ones_and_are_always_the_same(picture: Path) -> None:
    model, info = random_model("lite0", 256, picture)
    detector = Detector(model, info, device="cpu", backend="eager")
    pixels = input_batch(detector, read_all(detector, [str(picture)]))[0]
    with torch.no_grad():
        scores = torch.cat(model(pixels)[0], 1).sigmoid()
    for threshold, count in PAIRS_ABOVE.items():
        assert int((scores > threshold).sum()) == pytest.approx(count, rel=0.05)
    again = random_model("lite0", 256, picture)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_names_of_the_family_get_random_weights_and_others_their_own(picture: Path, tmp_path: Path) -> None:
    assert open_model("lite0", 64, str(picture), tmp_path).is_random
    people = open_model("people", 64, str(picture), tmp_path)
    assert (people.is_random, people.num_classes, people.image_size) == (False, 1, (64, 64))
    with pytest.raises(UnknownNameError, match="people"):
        open_model("d99", 64, str(picture), tmp_path)


# ---- processes
def test_sides_take_turns(command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [Worker(name, command, {"name": name, "log": str(log)}) for name in "ABC"]
    try:
        take_turns(workers, rounds=3, iterations=2)
    finally:
        for worker in workers:
            worker.close()
    assert log.read_text() == "AABBCC" * 3
    assert workers[1].facts == {"name": "B"}
    assert workers[0].times("network") == [1.0] * 6
    assert workers[0].round_medians() == [2.0] * 3


@pytest.mark.parametrize(
    ("case", "message"),
    [({"dies": True}, "A: its process ended with code 1:\nout of luck"), ({"raises": True}, "A: ValueError.*no such")],
)
def test_a_side_that_cannot_be_built_says_why(command: list[str], case: dict[str, bool], message: str) -> None:
    with pytest.raises(SideError, match=message):
        Worker("A", command, case)


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(SideError, match="A: cannot be started.*nowhere"):
        Worker("A", ["nowhere/python"], {})


def test_a_side_that_fails_leaves_the_others(command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    told = {"A": {"lasts": 1}, "B": {}}
    workers = [Worker(name, command, {"name": name, "log": str(log), **case}) for name, case in told.items()]
    failed: list[str] = []
    try:
        take_turns(workers, 3, 1, failed=lambda worker, error: failed.append(str(error)))
        assert [worker.label for worker in workers] == ["B"]
    finally:
        for worker in workers:
            worker.close()
    assert log.read_text() == "ABBB"
    assert len(failed) == 1 and "worn out" in failed[0]


# ---- the floors
def test_floors_grow_with_the_work() -> None:
    spec, measured = MODELS["d0"], {"fp32": 10.0, "bf16": 4.0, "copy": 100.0}
    arithmetic, memory = network_floors(spec, 90, 1, (512, 512), "fp32", measured)
    assert arithmetic == pytest.approx(24.9, abs=0.1)  # 2.49 GMAC
    # 3.9 million parameters, 3 x 512 x 512 of input, 49,104 anchors with 90 classes and 4 deltas.
    assert memory == pytest.approx(100 * 4 * (3.88e6 + 786432 + 49104 * 94) / 1e9, rel=0.01)
    assert network_floors(spec, 90, 2, (512, 512), "bf16", measured)[0] == pytest.approx(2 * 0.4 * arithmetic)
    assert network_floors(spec, 90, 1, (384, 512), "fp32", measured)[0] == pytest.approx(0.75 * arithmetic, rel=0.01)


def test_a_narrow_type_without_instructions_of_its_own_is_no_faster() -> None:
    slow = {"fp32": 10.0, "bf16": 40.0, "copy": 100.0}
    assert network_floors(MODELS["d0"], 90, 1, (512, 512), "bf16", slow)[0] == pytest.approx(24.9, abs=0.1)


def test_multiply_adds_are_those_of_the_size() -> None:
    spec = MODELS["d0"]
    assert multiply_adds(spec, 90, (1024, 1024)) == pytest.approx(4 * multiply_adds(spec, 90, (512, 512)), rel=0.01)


# ---- what is reported
def row(backend: str, rounds: list[float], parts: dict[str, float]) -> Row:
    return Row(
        "d0", backend, "fp32", 2, (512, 512), Spread.of(rounds), parts, Spread.of(rounds), 2000 / rounds[0], 100.0,
        5.0, rounds, rounds,
    )  # fmt: skip


def test_ratios_are_taken_round_by_round() -> None:
    # The machine slowed down threefold in the second round: the ratios do not show it.
    ours = row("auto", [10.0, 30.0, 10.0], dict.fromkeys(PARTS, 1.0))
    peer = row("effdet", [20.0, 60.0, 20.0], dict.fromkeys(PARTS, 1.0))
    found = ratio(ours, peer)
    assert found.whole == Spread(2.0, 2.0, 2.0)
    assert ratio(ours, row("file.onnx", [20.0, 60.0, 20.0], {"network": 1.0})).whole is None
    assert ours.over_floor == 2.0
    assert ours.table_row()["total ms"] == "10.0 (10.0-30.0)"


def test_the_hardware_says_when_it_was_busy() -> None:
    hardware = Hardware.read()
    idle = dataclasses.replace(hardware, load=0.0)
    busy = dataclasses.replace(hardware, load=hardware.cores * 1.0, cpu="Abacus")
    assert not idle.was_busy and "busy" not in idle.describe()
    assert busy.was_busy and "**the machine was busy" in busy.describe() and "Abacus" in busy.describe()
    assert json.loads(json.dumps(hardware.to_dict()))["versions"]["torch"] == torch.__version__


# ---- what is asked for
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backends": ("onxruntime",)}, "unknown backend 'onxruntime'; did you mean 'onnxruntime'"),
        ({"precisions": ("int4",)}, "unknown precision 'int4'"),
        ({"batch_sizes": (1, 0)}, "batch_sizes is 1, 0"),
        ({"models": ()}, "models is empty"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"peers": ("nowhere.onnx",)}, "peer 'nowhere.onnx' is neither"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError if "unknown" in message else SettingError, match=message):
        BenchmarkSettings(**{"models": ("people",), **changes})  # type: ignore[arg-type]


def test_a_missing_peer_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFICIENTDET_PEER_PYTHON", raising=False)
    with pytest.raises(SettingError, match=r"-m venv .*pip install effdet==0\.4\.1.*--peer-python"):
        peer_python(None)
    monkeypatch.setenv("EFFICIENTDET_PEER_PYTHON", sys.executable)
    assert peer_python(None) == str(Path(sys.executable).absolute())


def test_effdet_is_not_asked_for_what_it_does_not_have(tmp_path: Path) -> None:
    own = dataclasses.replace(MODELS["d0"], name="my-own")
    with pytest.raises(WeightsError, match="my-own.*effdet takes"):
        peer_weights(Model("my-own", "my-own.safetensors", own, 2, False, (512, 512), IMAGENET), tmp_path)


@pytest.mark.slow
def test_a_run_from_files_to_rows(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(random.integers(0, 255, (60, 80, 3), np.uint8)).save(pictures / f"{number}.jpg")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    found = benchmark(
        BenchmarkSettings(
            models=("lite0",), backends=("eager",), batch_sizes=(1, 3), image_size=64, pictures=str(pictures),
            rounds=2, iterations=1, threads=1, peers=(str(damaged),),
        )
    )  # fmt: skip
    assert [(one.backend, one.batch) for one in found.rows] == [("eager", 1), ("eager", 3)]
    for one in found.rows:
        assert len(one.rounds) == 2 and tuple(one.parts) == PARTS
        assert one.images_per_second == pytest.approx(1000 * one.batch / one.total.median)
        assert one.over_floor is not None and one.over_floor > 1
    assert any("random weights" in note for note in found.notes)
    assert len(found.failures) == 2 and all("damaged.onnx" in failure for failure in found.failures)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["total"]["median"] > 0
