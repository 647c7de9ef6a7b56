"""`predict` over many images, ended in every way that there is: what was done is on disk, and said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., Any]
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
resource = pytest.importorskip("resource", reason="signals and limits of POSIX")


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0000.png")
    for number in range(1, count):
        os.link(folder / "0000.png", folder / f"{number:04}.png")
    return folder


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "efficientdet", "predict", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_what_was_done(tmp_path: Path, checkpoint: Path, number: int, code: int) -> None:
    folder, out = make_images(tmp_path / "in", 3000), tmp_path / "out"
    process = start(folder, "--weights", checkpoint, "--out", out)
    journal = out / "detections.partial.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    report = json.loads((out / "detections.json").read_text())
    assert not report["complete"] and 0 < len(report["images"]) < 3000
    for entry in report["images"]:
        with Image.open(entry["annotated"]) as image:
            image.load()
    assert f"stopped after {len(report['images'])} of 3000 images" in err
    assert not journal.exists() and not list(out.glob(".*"))


def test_a_full_disk_leaves_the_journal(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "in", 60), tmp_path / "out"
    code = "import errno; from efficientdet.cli import main, run_results\n" + (
        "write = run_results.write_json\n"
        "def full(path, content):\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "run_results.write_json = full\n"
        "main()"
    )
    arguments = ["predict", str(folder), "--weights", str(checkpoint), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "detections.json cannot be written" in done.stderr and "detections.partial.jsonl" in done.stderr
    lines = (out / "detections.partial.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 60


def test_a_disk_that_fills_up_stops_the_run_with_what_was_done(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "in", 20), tmp_path / "out"
    code = "import errno; from efficientdet.cli import main, predict\n" + (
        "save, count = predict.save_annotated, []\n"
        "def full(detections, target):\n"
        "    count.append(target)\n"
        "    if len(count) > 5:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(target))\n"
        "    save(detections, target)\n"
        "predict.save_annotated = full\n"
        "main()"
    )
    arguments = ["predict", str(folder), "--weights", str(checkpoint), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert "stopped after 5 of 20 images" in done.stderr
    assert len(json.loads((out / "detections.json").read_text())["images"]) == 5


def test_a_file_size_limit_is_a_failure_of_that_image(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "in", 3), tmp_path / "out"
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large.png")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(folder, "--weights", checkpoint, "--out", out, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    report = json.loads((out / "detections.json").read_text())
    assert len(report["images"]) == 4 and len(report["failures"]) == 1
    assert "large.png" in report["failures"][0]["error"] and not (out / "large.jpg").exists()


def test_a_reader_that_has_gone_is_said_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "in", 5), tmp_path / "out"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "efficientdet", "predict", str(folder), "--weights", str(checkpoint)]
    command += ["--out", str(out), "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("error") == 1
    assert len(json.loads((out / "detections.json").read_text())["images"]) == 5


@pytest.mark.parametrize("arguments", [["info", "lite0"], ["--version"], ["predict", "--help"]])
def test_output_without_a_reader_ends_with_one(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "efficientdet", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and len(done.stderr.splitlines()) <= 1, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["info", "lite0"], ["--version"]])
def test_output_on_a_full_disk_ends_with_one(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "efficientdet", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.slow
def test_an_encoding_without_the_characters_of_a_name_is_no_fault(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "café…", 1), tmp_path / "ö"
    for extra in ([], ["--json"]):
        process = start(folder, "--weights", checkpoint, "--out", out, *extra, env={**os.environ, **ASCII})
        said, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert said.isascii() and (not extra or json.loads(said)["images"][0]["source"].startswith(str(folder)))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, checkpoint: Path, command: Command) -> None:
    folder = make_images(tmp_path / "in: images", 1)
    (folder / "gone.png").symlink_to("nowhere.png")
    code, _, err = command("predict", folder, "--weights", checkpoint, "--out", tmp_path / "out")
    assert code == 1 and f"error: {folder / 'gone.png'}: a link that leads nowhere" in err.splitlines()
    (failure,) = json.loads((tmp_path / "out" / "detections.json").read_text())["failures"]
    assert failure["source"] == str(folder / "gone.png")


def test_an_out_that_is_no_folder_is_wrong_usage(tmp_path: Path, checkpoint: Path, command: Command) -> None:
    folder, out = make_images(tmp_path / "in", 1), tmp_path / "out"
    out.write_text("mine")
    (tmp_path / "taken" / "detections.json").mkdir(parents=True)
    for place in (out, out / "below", tmp_path / "taken"):
        code, _, err = command("predict", folder, "--weights", checkpoint, "--out", place)
        assert code == 2 and f"--out {place}" in err, err
    assert out.read_text() == "mine"


def test_the_demo_of_a_long_name(tmp_path: Path, checkpoint: Path, command: Command) -> None:
    image = tmp_path / ("n" * 252 + ".bw")
    Image.new("RGB", (20, 20)).save(image, "SGI")
    assert command("demo", image, "--weights", checkpoint, "--out", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("n*.jpg"))) == 1


def test_closed_standard_streams_do_no_harm(tmp_path: Path, checkpoint: Path) -> None:
    folder, out = make_images(tmp_path / "in", 2), tmp_path / "out"
    line = f"{sys.executable} -m efficientdet predict {folder} --weights {checkpoint} --out {out} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    assert len(json.loads((out / "detections.json").read_text())["images"]) == 2


def test_copies_that_cannot_be_written_are_failures_with_their_names(
    tmp_path: Path, checkpoint: Path, command: Command
) -> None:
    folder, out = make_images(tmp_path / "in", 2), tmp_path / "out"
    Image.new("RGB", (66000, 10)).save(folder / "wide.png")
    Image.new("RGB", (20, 20)).save(folder / ("n" * 251 + ".png"))
    Image.new("RGB", (20, 20)).save(folder / "taken.png")
    (out / "taken.jpg").mkdir(parents=True)
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    Image.new("RGB", (20, 20)).save(odd)
    (out / "detections.json").write_text('{"stale": true}')
    code, _, err = command("predict", folder, "--weights", checkpoint, "--out", out)
    assert code == 1
    report = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    failed = {Path(failure["source"]).name for failure in report["failures"]}
    assert failed == {"wide.png", "taken.png"}
    assert len(report["images"]) == 6 and report["complete"] and "2 of 6 images failed" in err
    assert odd in {entry["source"] for entry in report["images"]}
    assert (out / ("n" * 251 + ".jpg")).is_file() and not list(out.glob(".*"))


def test_names_from_outside_do_nothing_to_the_terminal(tmp_path: Path, checkpoint: Path, command: Command) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad\x1b[2J[red]x.png").write_bytes(b"no image")
    code, out, err = command("predict", folder, "--weights", checkpoint, "--out", tmp_path / "out")
    assert code == 1 and "\x1b[2J" not in out + err
    assert "\\x1b[2J[red]x.png" in err.replace("\n", "")


@pytest.mark.slow  # tests/test_cache.py has the cache alone
def test_a_cache_that_cannot_be_is_worked_around(tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder, out = make_images(tmp_path / "in", 1), tmp_path / "out"
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "EFFICIENTDET_CACHE": str(tmp_path / "file" / "cache")}
    options = ("--weights", checkpoint, "--out", out, "--backend", "onnxruntime")
    process = start(folder, *options, env={**environment, "EFFICIENTDET_BACKEND": "onnxruntime"})
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    (line,) = err.splitlines()
    assert "cannot be written (Not a directory); this run uses a temporary one" in line and "EFFICIENTDET_CACHE" in line
