"""show, scale, explain, report and ablate, as a user types them."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from efficientdet.research import ablation, report
from efficientdet.research.settings import ReportSettings
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing

Command = Callable[..., Any]


# ---- show
@pytest.mark.parametrize("what", ["bifpn", "file", "checkpoint"])
def test_show_draws_names_files_and_checkpoints(command: Command, checkpoint: Path, tmp_path: Path, what: str) -> None:
    graph = tmp_path / "mine.yaml"
    rows = [f"  - {{name: out{level}, level: {level}, inputs: [in{level}]}}\n" for level in range(3, 8)]
    graph.write_text("name: mine\nnodes:\n" + "".join(rows))
    out = tmp_path / "drawing.svg"
    done = command("show", {"bifpn": "bifpn", "file": graph, "checkpoint": checkpoint}[what], "--out", out)
    assert done.code == 0, done.err
    assert ET.parse(out).getroot().tag.endswith("svg")


def test_show_of_an_unknown_network_lists_them(command: Command, tmp_path: Path) -> None:
    done = command("show", "bipfn", "--out", tmp_path / "x.svg")
    assert done.code == 2
    assert "did you mean 'bifpn'" in done.err
    assert not (tmp_path / "x.svg").exists()


def test_show_of_a_faulty_file_names_the_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nnodes:\n  - {name: out3, level: 3, inputs: [in9]}\n")
    done = command("show", tmp_path / "bad.yaml", "--out", tmp_path / "x.svg")
    assert done.code == 2
    assert "bad.yaml: line 3" in done.err


def test_show_draws_the_learned_weights_of_every_cell(
    command: Command, files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "drawing.svg"
    assert command("show", files[0], "--out", out).out.strip() == f"written: {out}"
    text = out.read_text()
    assert ">0.75</text>" in text  # in5 of out5, as in `files`
    assert "cell 0</text>" in text and "cell 1</text>" in text


def test_show_of_weights_that_are_plain_sums_says_so(command: Command, tmp_path: Path) -> None:
    done = command("show", "people", "--out", tmp_path / "drawing.png")
    assert done.code == 0, done.err
    assert "there are no fusion weights" in done.out and (tmp_path / "drawing.png").is_file()


# ---- scale
def test_scale_finds_a_phi_for_a_cost(command: Command) -> None:
    facts = json.loads(command("scale", "--target-flops", "2.6B", "--json").out)
    assert facts["name"] == "phi0.375"  # a BiFPN of 72 channels; phi 0.5 would take another backbone
    assert json.loads(command("scale", "--phi", "3", "--json").out)["strides"] == "8, 16, 32, 64, 128"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-flops", "ten"], "'ten' is no number"),
        (["--target-flops", "1M"], "the smallest model"),
        (["--phi", "-1"], "phi is -1"),
        (["--phi", "1", "--target-flops", "10B"], "give one of"),
    ],
)
def test_scale_refuses(command: Command, arguments: list[str], message: str) -> None:
    done = command("scale", *arguments)
    assert done.code == 2
    assert message in done.err


def test_scale_prints_the_line_of_python_that_builds_the_model(command: Command) -> None:
    assert "ed.family.compound_scaling(0.125)" in command("scale", "--target-flops", "2.5B").out
    out = command("scale", "--phi", "0.5", "--arxiv-v1").out
    assert 'ed.family.compound_scaling(0.5, "arxiv-v1")' in out


def test_scale_alone_prints_the_law(command: Command) -> None:
    rows = json.loads(command("scale", "--json").out)
    assert [row["phi"] for row in rows] == list(range(7)) and rows[0]["GMAC"] == 2.49


# ---- explain
@pytest.fixture
def files(shapes: ModuleType, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with fusion weights that are not equal, and an image."""
    torch.manual_seed(0)
    spec = dataclasses.replace(shapes.TINY, fusion="fast", depth=2)
    model = create_model(spec, 2)
    with torch.no_grad():
        model.feature_network.cells[1]["out5"].fuse.weights.copy_(torch.tensor([3.0, 1.0, 0.0]))  # type: ignore[union-attr, operator]
    info = CheckpointInfo(spec, ("disc", "square"), (3, 7), default_preprocessing(spec))
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), info)
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "model.safetensors", tmp_path / "photo.png"


def test_explain_writes_figures_and_json(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("explain", *files, "--score-threshold", 0.001, "--detection", 1, "--out", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    names = ["detection-1.jpg", "detection-1.svg"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(Path(path).name for path in found["written"]) == names
    assert len(found["edges"]) == 2 * 19
    drawing = (out / names[1]).read_text()
    numbers = [f"{'-' if edge['value'] < 0 else ''}{edge['share']:.2f}" for edge in found["edges"]]
    assert all(f">{number}</text>" in drawing for number in numbers)
    with Image.open(out / names[0]) as image:
        assert image.size == (90, 70)


def test_explain_explains_the_detections_of_predict(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, photo = files
    settings = ["--score-threshold", 0.001, "--nms", "wbf", "--rectangular"]
    predicted = json.loads(command("predict", photo, "-w", weights, *settings, "-o", tmp_path / "a", "--json").out)
    found = json.loads(command("explain", *files, *settings, "--out", tmp_path / "b", "--json").out)
    first = predicted["images"][0]["detections"][0]
    assert found["box_xyxy"] == pytest.approx(first["box_xyxy"], abs=0.02)
    assert found["score"] == pytest.approx(first["score"], abs=1e-4)


def test_explain_prints_tables(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("explain", *files, "--score-threshold", 0.001, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "detection 0 in photo.png" in done.out and "strongest path" in done.out
    assert "candidates suppressed" in done.out


def test_explain_says_when_nothing_is_found(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("explain", *files, "--score-threshold", 1, "--out", tmp_path / "out")
    assert done.code == 1
    assert "photo.png: no detection scores 1 or more; the best score is 0.01" in done.err


# ---- report
def test_report_takes_its_settings(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def record(out: Path, settings: ReportSettings, say: Callable[[str], None]) -> Path:
        given.extend((out, settings))
        say("counting")
        return out / "report.md"

    monkeypatch.setattr(report, "write_report", record)
    out = tmp_path / "r"
    done = command("report", "--out", out, "--no-timing")
    assert (done.code, done.out.strip(), done.err.strip()) == (0, f"written: {out}/report.md", "counting")
    assert given == [out, ReportSettings(timing=False)]
    assert command("report", "--out", out, "--device", "gpu").code == 2


# ---- ablate
def test_ablate_takes_its_settings_and_prints_the_table(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    row = {
        "feature_network": "bifpn", "fusion": "fast", "is_reference": True, "ap": 0.31, "ap_deviation": 0.01,
        "ap_by_seed": [0.3, 0.32], "ap50": 0.5, "ap_difference": 0.0, "parameters": 3_200_000,
        "multiply_adds": 900_000_000, "images_per_second": 20.0,
    }  # fmt: skip

    def record(model: str, data: Path, out: Path, say: Callable[[str], None], **settings: Any) -> list[dict[str, Any]]:
        given.update(settings, model=model, data=data, out=out)
        return [row]

    monkeypatch.setattr(ablation, "ablate", record)
    options = ["--fusions", "fast,none", "--seeds", 2, "--scale-jitter", 0.7, 1.4, "--out", tmp_path / "out"]
    done = command("ablate", "lite0", "--data", tmp_path, *options)
    assert done.code == 0, done.err
    assert given == {
        "model": "lite0", "data": tmp_path, "out": tmp_path / "out", "fusions": ("fast", "none"), "seeds": 2,
        "scale_jitter": (0.7, 1.4),
    }  # fmt: skip
    assert "0.310 ± 0.010" in done.out and "0.300, 0.320" in done.out
    assert json.loads(command("ablate", "lite0", "--data", tmp_path, "--json").out) == [row]
    assert command("ablate", "lite0", "--data", tmp_path, "--seed", 1).code == 2  # the trials have theirs
