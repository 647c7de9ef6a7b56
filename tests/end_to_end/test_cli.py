from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from efficientdet import __version__, cli
from efficientdet.evaluation.numbers import NUMBERS
from efficientdet.family import MODELS
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.names import bundled_names

Command = Callable[..., Any]

# What the manifests of the shared data call `reject`; a test below holds the lists to the manifests.
ODD_REJECTS = (
    "broken.png", "decompression_bomb.gif", "made_not_an_image.jpg", "made_truncated_header_only.jpg",
    "truncated_image.png", "zero_byte.jpg", "zero_width.gif",
)  # fmt: skip
BAD_ANNOTATIONS = (
    "missing_categories.json", "missing_bbox.json", "nan_box.json", "string_in_box.json", "three_numbers.json",
    "duplicate_annotation_ids.json", "duplicate_image_ids.json", "unknown_category.json", "unknown_image.json",
    "missing_image_file.json", "path_traversal.json", "size_mismatch.json", "truncated.json", "empty.json",
    "list_at_top.json", "yolo_class_out_of_range.txt", "yolo_bad_number.txt", "yolo_pixels_instead_of_fractions.txt",
    "voc_billion_laughs.xml", "voc_external_entity.xml", "voc_unknown_class.xml",
)  # fmt: skip


def process(*arguments: object, stdin: bytes | None = None, program: Sequence[str] = ()) -> Any:
    """Run a real process, by default `python -m efficientdet`; output as text."""
    head = program or (sys.executable, "-m", "efficientdet")
    done = subprocess.run([*head, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def _rejects(manifest: Path) -> set[str]:
    return {name for name, entry in json.loads(manifest.read_text()).items() if entry["expect"] == "reject"}


def _pictures(report: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(report.read_text())["images"]
    return content


# Before any command


def test_importing_and_helping_are_light() -> None:
    script = (
        "import sys\n"
        "def heavy(): return {name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'lightning'}\n"
        "import efficientdet; assert not heavy(), heavy()\n"
        "from efficientdet import cli\n"
        "sys.argv = ['efficientdet', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not heavy(), heavy()\n"
    )
    code, out, err = process("-c", script, program=(sys.executable,))
    assert (code, err) == (0, "")
    for name in ("demo", "predict", "train", "evaluate", "models"):
        assert f" {name} " in out


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("efficientdet")
    if not script.exists():
        pytest.skip("the package is not installed, only on the path")
    assert process("--version", program=(str(script),)) == (0, f"{__version__}\n", "")
    assert process("--version") == (0, f"{__version__}\n", "")


def _helps(group: Any, *words: str, parent: Any = None) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """The program and each of its commands: the words to type, the command, and its help."""
    context = group.make_context(words[-1] if words else "efficientdet", [], parent, resilient_parsing=True)
    yield words, group, group.get_help(context)
    for name, command in getattr(group, "commands", {}).items():
        yield from _helps(command, *words, name, parent=context)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_is_readable_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width + 2))  # click leaves two of them free
    for words, one, out in _helps(typer.main.get_command(cli.app)):
        lines = out.splitlines()
        assert max(map(len, lines)) <= width, words
        text = " ".join(out.split())
        if hasattr(one, "commands"):
            texts = [each.get_short_help_str() for each in one.commands.values()]
            assert all(each in text and not each.endswith("...") for each in texts), words  # none is cut off
            continue
        assert f"Example: `efficientdet {' '.join(words)}" in text, words
        options = [each for each in one.params if each.param_type_name == "option"]
        assert {name for each in options for name in each.opts} <= set(re.split(r"[\s,]+", out)), words
        starts = {re.search(r"^ +-.*?\S  +(?=\S)", line) for line in lines}  # of texts beside an option's name
        assert max(len(start[0]) for start in starts if start) <= 34, words


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",), ("predict",), ("train", "lite0"), ("evaluate", "people"),
        ("predict", "a.jpg", "--no-such-option"), ("train", "lite0", "--data", "x", "--epochs", "many"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments: tuple[str, ...], command: Command) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert not out
    assert "Usage: " in err
    assert "Traceback" not in err


def test_models_lists_the_family(command: Command) -> None:
    code, out, err = command("models", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert [row["name"] for row in listed["family"]] == list(MODELS)
    assert {row["name"] for row in listed["bundled"]} == set(bundled_names())
    code, out, _ = command("models")
    assert code == 0
    assert all(f" {name} " in out for name in MODELS)


# Predict


def test_a_file_a_folder_and_a_glob(data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for source, target in (("val1.png", "one.png"), ("val2.png", "deep/two.png"), ("train1.png", "three.png")):
        shutil.copy(data / "images" / source, folder / target)
    for source, expected in (
        (folder / "one.png", ["one"]), (folder, ["two", "one", "three"]), (folder / "t*.png", ["three"]),
    ):  # fmt: skip
        out = tmp_path / f"out-{len(expected)}-{expected[0]}"
        code, said, err = command(
            "predict", source, "--weights", checkpoint, "--out", out, "--score-threshold", "0.001"
        )
        assert (code, err) == (0, "")
        written = _pictures(out / "detections.json")
        assert [Path(entry["source"]).stem for entry in written] == expected
        assert sorted(path.stem for path in out.glob("*.jpg")) == sorted(expected)
        for entry in written:
            with Image.open(entry["annotated"]) as annotated, Image.open(entry["source"]) as picture:
                assert annotated.size == picture.size
                assert entry["image_size"] == [picture.height, picture.width]
        assert said.startswith(f"{len(expected)} images, ")
        assert not list(out.glob(".*"))


def test_standard_input_in_a_real_process(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    picture = (data / "images" / "val1.png").read_bytes()
    code, out, err = process("predict", "-", "-w", checkpoint, "-o", tmp_path / "out", "--json", stdin=picture)
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)["images"]
    assert entry["source"] == "-"
    assert (tmp_path / "out" / "stdin.jpg").is_file()
    code, _, err = process("predict", "-", "-w", checkpoint, "-o", tmp_path / "none", stdin=b"")
    assert code == 1
    assert "standard input is empty" in err
    assert "Traceback" not in err


def test_json_is_all_that_is_printed(data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command(
        "predict", data / "images", "-w", checkpoint, "-o", tmp_path / "out", "--json", "--no-images",
        "--score-threshold", "0.001",
    )  # fmt: skip
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["images"] == _pictures(tmp_path / "out" / "detections.json")
    assert len(printed["images"]) == 6
    assert printed["failures"] == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.json"]
    found = [detection for entry in printed["images"] for detection in entry["detections"]]
    assert found
    assert {detection["class_name"] for detection in found} <= {"disc", "square"}


def test_predicting_goes_on_past_a_picture_that_cannot_be_read(
    data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    # A long name: the error must stay on one line, whatever the width of the terminal.
    broken = tmp_path / ("a-picture-with-a-[bracketed]-and-rather-long-name-" + "x" * 60 + ".jpg")
    broken.write_bytes(b"no picture")
    good = data / "images" / "val1.png"
    code, out, err = command(
        "predict", good, broken, data / "images" / "val2.png", "-w", checkpoint, "-o", tmp_path / "out"
    )
    assert code == 1
    assert str(broken) in err
    assert "1 of 3 images failed" in err
    assert "Traceback" not in err
    assert out.startswith("2 images, ")
    report = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [entry["source"] for entry in report["images"]] == [str(good), str(data / "images" / "val2.png")]
    assert [failure["source"] for failure in report["failures"]] == [str(broken)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["val1.jpg", "val2.jpg"]


def test_pictures_of_the_same_name_do_not_overwrite_each_other(
    data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    for number, folder in enumerate(("a", "b"), start=1):
        (tmp_path / folder).mkdir()
        shutil.copy(data / "images" / f"val{number}.png", tmp_path / folder / "same.png")
    code, _, _ = command("predict", tmp_path / "a", tmp_path / "b", "-w", checkpoint, "-o", tmp_path / "out")
    assert code == 0
    sizes = []
    for entry in _pictures(tmp_path / "out" / "detections.json"):
        with Image.open(entry["annotated"]) as annotated:
            sizes.append([annotated.height, annotated.width])
            assert sizes[-1] == entry["image_size"]
    assert len({entry["annotated"] for entry in _pictures(tmp_path / "out" / "detections.json")}) == 2


@pytest.mark.parametrize("name", ["demo", "predict"])
def test_originals_are_not_written_over(
    name: str, data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    with Image.open(data / "images" / "val1.png") as picture:
        picture.save(tmp_path / "mine.jpg")
    before = (tmp_path / "mine.jpg").read_bytes()
    code, _, err = command(name, tmp_path / "mine.jpg", "--weights", checkpoint, "--out", tmp_path)
    assert code == 2
    assert str(tmp_path / "mine.jpg") in err
    assert (tmp_path / "mine.jpg").read_bytes() == before


@pytest.mark.parametrize("name", ODD_REJECTS)
def test_a_rejected_picture(name: str, shared_data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    picture = shared_data / "odd_images" / name
    code, _, err = command("predict", picture, "-w", checkpoint, "-o", tmp_path / "out")
    assert code == 1
    assert str(picture) in err
    assert "Traceback" not in err
    (failure,) = json.loads((tmp_path / "out" / "detections.json").read_text())["failures"]
    assert failure["source"] == str(picture)


def test_the_odd_pictures_together(shared_data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    folder = shared_data / "odd_images"
    manifest = json.loads((folder / "manifest.json").read_text())
    code, out, err = command("predict", folder, "-w", checkpoint, "-o", tmp_path / "out", "--no-images")
    assert code == 1
    assert "Traceback" not in err
    report = json.loads((tmp_path / "out" / "detections.json").read_text())
    sizes = {Path(entry["source"]).name: entry["image_size"] for entry in report["images"]}
    accepted = {name: entry for name, entry in manifest.items() if entry["expect"] == "ok"}
    assert sizes == {name: [entry["height"], entry["width"]] for name, entry in accepted.items()}
    assert {Path(failure["source"]).name for failure in report["failures"]} == set(ODD_REJECTS)
    assert set(ODD_REJECTS) == _rejects(folder / "manifest.json")
    assert out.startswith(f"{len(accepted)} images, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.jpg",), "missing.jpg: no such file"),
        (("{picture}", "--workers", "2", "--part-size", "9"), "workers, part_size: for --ray only"),
        (("{empty}", "--ray", "--flip", "--every", "2"), "every, flip: for runs without --ray only"),
        (("s3://me:secret@bucket/photos",), "s3://bucket/photos: for --ray only"),
        (("{empty}", "{empty}", "--ray"), "with --ray, give one folder or bucket"),
        (("{empty}",), "no image in this folder"),
        (("{picture}", "--nms", "medium"), "medium"),
        (("{picture}", "--device", "quantum"), "device 'quantum' cannot be used here"),
        (("{picture}", "--image-size", "8"), "image_size is 8;"),
        (("{picture}", "--score-threshold", "2"), "score_threshold"),
        (("{picture}", "--weights", "missing.safetensors"), "missing.safetensors: no such weights file"),
        (("{picture}", "--weights", "{picture}"), "not a safetensors file"),
        (("{picture}", "--weights", "pepole"), "unknown weights 'pepole'"),
    ],
)
def test_a_setting_that_cannot_be(
    arguments: tuple[str, ...], message: str, data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "picture": data / "images" / "val1.png"}
    filled = [argument.format(**places) for argument in arguments]
    if "--weights" not in filled:
        filled += ["--weights", str(checkpoint)]
    code, out, err = command("predict", *filled, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_the_demo_prints_its_boxes(data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    picture = data / "images" / "val1.png"
    code, out, err = command("demo", picture, "--weights", checkpoint, "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    assert "found in val1.png" in out
    assert f"annotated image: {tmp_path / 'demo' / 'val1.jpg'}" in out
    assert (tmp_path / "demo" / "val1.jpg").is_file()


def test_the_demo_finds_the_person_in_the_portrait(tmp_path: Path, command: Command) -> None:
    pytest.importorskip("matplotlib", reason="its sample data holds the portrait")
    if "people" not in bundled_names():
        pytest.skip("the weights 'people' are not in the package")
    code, out, err = command("demo", "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    assert "person" in out
    assert (tmp_path / "demo" / "grace_hopper.jpg").is_file()


# Evaluate


def test_evaluating(data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command("evaluate", checkpoint, "--data", data, "--json", "--out", tmp_path / "new" / "m.json")
    assert (code, err) == (0, "")
    metrics = json.loads(out)
    assert metrics == json.loads((tmp_path / "new" / "m.json").read_text())
    assert metrics["images"] == 2
    assert set(metrics["per_class"]) == {"disc", "square"}
    code, out, _ = command("evaluate", checkpoint, "--data", data / "train.json")
    assert code == 0
    shown = " ".join(out.split())
    assert "Numbers, 4 images" in shown and "Mistakes at IoU 0.50" in shown
    assert all(one.label in shown for one in NUMBERS.values())


def test_the_report_and_the_threshold_of_an_evaluation(
    data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    mine = tmp_path / "mine.safetensors"
    shutil.copy(checkpoint, mine)
    report = tmp_path / "report.json"
    options = ("--data", data / "train.json", "--report", report, "--save-thresholds", "--false-positive-cost", "0.5")
    code, _, _ = command("evaluate", mine, *options)
    content = json.loads(report.read_text())
    if content["threshold"] is None:  # nothing was found in the half that thresholds are chosen on
        assert code == 2
    else:
        assert code == 0
        assert read_info(mine).postprocess["score_threshold"] == content["threshold"]["score_threshold"]
    code, _, err = command("evaluate", mine, "--data", data / "train.json", "--report", tmp_path / "report.pdf")
    assert code == 2 and "ends in .json, .md or .html" in err


def test_thresholds_by_class_travel_from_the_evaluation_to_the_prediction(
    data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    mine, report = tmp_path / "mine.safetensors", tmp_path / "report.json"
    shutil.copy(checkpoint, mine)
    code, _, err = command(
        "evaluate", mine, "--data", data / "train.json", "--report", report, "--by-class", "--save-thresholds",
        "--false-positive-cost", "0.1",
    )  # fmt: skip
    assert (code, err) == (0, "")
    threshold = json.loads(report.read_text())["threshold"]
    stored = read_info(mine).postprocess["score_threshold"]
    assert stored == [threshold["by_class"][name] for name in read_info(mine).class_names]
    code, out, _ = command("predict", data / "images", "--weights", mine, "--out", tmp_path, "--no-images", "--json")
    found = [one for image in json.loads(out)["images"] for one in image["detections"]]
    assert code == 0 and found
    assert all(one["score"] >= threshold["by_class"][one["class_name"]] - 1e-6 for one in found)


def test_an_ensemble_prints_its_gain_and_its_cost(
    data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    options = ("--flip", "--scales", "1,2", "--ensemble", checkpoint)
    code, out, err = command("evaluate", checkpoint, "--data", data, *options)
    assert (code, err) == (0, "")
    assert re.search(
        r"2 detectors, 4 views: AP \d\.\d{3} instead of \d\.\d{3} \([+-]\d\.\d{3}\), in \d+\.\d times the time", out
    )
    picture = sorted((data / "images").iterdir())[0]
    threshold = ("--score-threshold", "0.01", "--out", tmp_path, "--json")
    code, out, _ = command("predict", picture, "--weights", checkpoint, *options, *threshold)
    fused = json.loads(out)["images"][0]["detections"]
    _, out, _ = command("predict", picture, "--weights", checkpoint, *threshold)
    assert code == 0 and fused and fused != json.loads(out)["images"][0]["detections"]
    code, _, err = command("evaluate", checkpoint, "--data", data, "--ensemble", "cells")
    assert code == 2 and "know other classes" in err


def test_the_report_explains_its_detections(data: Path, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    """The command below a figure is run as it stands, and speaks of the detection that the figure shows."""
    page = tmp_path / "report.html"
    assert command("evaluate", checkpoint, "--data", data / "train.json", "--report", page)[0] == 0
    figures = re.findall(r"<figcaption>\w+: (\w+) (\d\.\d\d).*?<code>(.*?)</code>", page.read_text())
    assert figures
    name, score, typed = figures[-1]
    program, *arguments = shlex.split(html.unescape(typed))
    code, out, _ = command(*arguments, "--out", tmp_path / "explain", "--json")
    explained = json.loads(out)
    assert (program, code) == ("efficientdet", 0)
    assert explained["class_name"] == name and explained["score"] == pytest.approx(float(score), abs=0.006)
    assert explained["anchor"]["level"] in range(3, 8) and explained["edges"]


def test_comparing(data: Path, checkpoint: Path, command: Command) -> None:
    code, out, _ = command("compare", checkpoint, checkpoint, "--data", data, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["difference"], content["interval"], content["better"]) == (0, [0, 0], [])


def test_evaluating_on_classes_that_the_detector_does_not_know(
    shared_data: Path, checkpoint: Path, command: Command
) -> None:
    annotations = shared_data / "bad_annotations" / "good.json"
    code, _, err = command("evaluate", checkpoint, "--data", annotations)
    assert code == 2
    assert "the detector does not know its classes" in err


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_rejected_annotations(
    action: str, name: str, shared_data: Path, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    file = shared_data / "bad_annotations" / name
    first = ("lite0", "--out", tmp_path / "run") if action == "train" else (checkpoint,)
    code, out, err = command(action, *first, "--data", file)
    assert (code, out) == (2, "")
    assert str(file) in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_every_rejected_annotation_file_is_tried(shared_data: Path) -> None:
    assert set(BAD_ANNOTATIONS) == _rejects(shared_data / "bad_annotations" / "manifest.json")


@pytest.mark.parametrize("name", ["truncated.json", pytest.param("nan_box.json", marks=pytest.mark.slow)])
def test_rejected_annotations_in_a_real_process(name: str, shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "bad_annotations" / name
    code, out, err = process("train", "lite0", "--data", file, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert str(file) in err
    assert len(err.splitlines()) == 1


# Train


@pytest.mark.slow
def test_training_in_a_real_process(data: Path, tmp_path: Path) -> None:
    """A whole network on tiny pictures: quiet but for our own lines, and resumable."""
    arguments = (
        "train", "lite0", "--data", data, "--out", tmp_path / "run", "--epochs", "1", "--image-size", "64",
        "--batch-size", "2", "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    code, out, err = process(*arguments)
    assert code == 0, err
    told = [line.partition(": ")[0] for line in err.splitlines()]
    checked = told.count("check")  # what the quick check has to say of so small a dataset
    assert told[: 2 + checked] == ["train", "val", *["check"] * checked]
    assert told[2 + checked].startswith("training on cpu") and told[3 + checked :] == ["epoch 1/1"]
    assert out.splitlines()[-1] == f"best checkpoint: {tmp_path / 'run' / 'best.safetensors'}"
    code, out, err = process(*arguments)
    assert code == 2
    assert "holds a run already" in err
    code, out, err = process(*arguments, "--resume", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["best"] == str(tmp_path / "run" / "best.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lite9",), "did you mean 'lite"),
        (("lite0", "--epochs", "0"), "epochs is 0; it must be at least 1"),
        (("lite0", "--optimizer", "adam"), "unknown optimizer 'adam'; did you mean 'adamw'?"),
        (("lite0", "--recipe", "papr"), "unknown recipe 'papr'; did you mean 'paper'?"),
        (("lite0", "--device", "gpu"), "unknown device 'gpu'"),
        (("lite0", "--device", "cuda", "--devices", "99"), "device cuda with devices 99"),
        (("lite0", "--scale-jitter", "2", "1"), "scale_jitter is (2.0, 1.0)"),
        (("lite0", "--weights", "no-such-weights"), "unknown weights 'no-such-weights'"),
        (("lite0", "--backbone-weights", "missing.npz"), "missing.npz: no such weights file"),
        (("lite0", "--resume"), "no run to resume there"),
    ],
)
def test_training_with_settings_that_cannot_be(
    arguments: tuple[str, ...], message: str, data: Path, tmp_path: Path, command: Command
) -> None:
    code, out, err = command("train", *arguments, "--data", data, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_there(tmp_path: Path, command: Command) -> None:
    code, _, err = command("train", "lite0", "--data", tmp_path / "nowhere")
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: no such dataset" in err
    (tmp_path / "empty").mkdir()
    code, _, err = command("train", "lite0", "--data", tmp_path / "empty")
    assert code == 2
    assert f"{tmp_path / 'empty'}: no annotations of the split 'train'" in err
