"""`efficientdet predict` on videos: what it writes, what it says, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

av = pytest.importorskip("av", reason="PyAV is missing (efficientdet[video])")
FRAMES, LONG = 20, 2000


@pytest.fixture(scope="module")
def clip(clips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = clips.write_clip(
        tmp_path_factory.mktemp("clips") / "clip.mp4", [number / 10 for number in range(FRAMES)], sound="aac"
    )
    return path


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_is_predicted_tracked_and_counted(
    clip: Path, checkpoint: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("trackers", reason="trackers is missing (efficientdet[video])")
    (tmp_path / "zones.json").write_text('{"all": [[0, 0], [96, 0], [96, 64], [0, 64]]}')
    out = tmp_path / "out"
    done = command(
        "predict", clip, "-w", checkpoint, "-o", out, "--threshold", "0.001", "--max-detections", "3",
        "--track", "sort", "--line", "48,0,48,64", "--zone", tmp_path / "zones.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted(path.name for path in out.iterdir()) == ["clip.jsonl", "clip.mp4", "clip.txt", "detections.json"]
    lines = lines_of(out / "clip.jsonl")
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert all(len(line["detections"]) == 3 for line in lines)
    assert lines[-1]["counts"]["lines"] == [{"in": 0, "out": 0}]
    assert 0 < lines[-1]["counts"]["zones"]["all"] <= 3
    tracked = {one["track_id"] for line in lines for one in line["detections"]} - {None}
    mot = (out / "clip.txt").read_text().splitlines()
    assert {int(line.split(",")[1]) for line in mot} == tracked != set()
    assert frames_of(out / "clip.mp4") == FRAMES
    (entry,) = json.loads((out / "detections.json").read_text())["videos"]
    assert (entry["frames"], entry["boxes"], entry["tracks"]) == (FRAMES, 3 * FRAMES, len(tracked))
    assert f"{FRAMES} frames in" in done.err and "frames/s" in done.err
    assert done.out.startswith("1 videos, 60 boxes; written to")


def test_json_alone(clip: Path, checkpoint: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    done = command(
        "predict", clip, clip, "-w", checkpoint, "-o", tmp_path, "--no-images", "--every", "4", "--end", "1", "--json"
    )
    report = json.loads(done.out)
    assert [entry["frames"] for entry in report["videos"]] == [3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-2.jsonl", "clip.jsonl", "detections.json"]
    assert [line["frame"] for line in lines_of(tmp_path / "clip-2.jsonl")] == [0, 4, 8]


def test_a_video_that_cannot_be_read_is_told_and_the_others_go_on(
    clip: Path, checkpoint: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    done = command("predict", tmp_path / "bad.mp4", clip, "-w", checkpoint, "-o", tmp_path / "out")
    assert done.code == 1
    assert "bad.mp4: cannot be opened as a video" in done.err
    assert "1 of 2 videos failed" in done.err
    assert frames_of(tmp_path / "out" / "clip.mp4") == FRAMES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["clip.mp4", "photo.jpg"], "some are images, some videos"),
        (["photo.jpg", "--every", "2", "--line", "1,2,3,4"], "every, line: for videos only"),
        (["clip.mp4", "--line", "1,2,3,4"], "choose a tracker"),
        (["clip.mp4", "--line", "1,2,3", "--track", "sort"], "write its two ends in pixels"),
        (["clip.mp4", "--start", "9", "--end", "3"], "must be after start"),
    ],
)
def test_wrong_usage(
    arguments: list[str], said: str, checkpoint: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command("predict", *arguments, "-w", checkpoint, "-o", tmp_path)
    assert done.code == 2
    assert said in done.err


def test_a_video_is_never_written_over_itself(
    clip: Path, checkpoint: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    before = clip.read_bytes()
    done = command("predict", clip, "-w", checkpoint, "-o", clip.parent)
    assert done.code == 2
    assert "would be overwritten" in done.err
    assert clip.read_bytes() == before


@pytest.fixture(scope="module")
def long_clip(clips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = clips.write_clip(
        tmp_path_factory.mktemp("clips") / "long.mp4", [frame / 10 for frame in range(LONG)], sound="aac"
    )
    return path


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_stopped_leaves_whole_files(
    number: signal.Signals, code: int, long_clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(long_clip), "-w", str(checkpoint), "-o", str(out), "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "efficientdet", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        path = out / "long.jsonl"
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 150):
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    lines = lines_of(path)
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    frames = frames_of(out / "long.mp4")
    left = {entry.name for entry in out.iterdir()}
    if number == signal.SIGKILL:  # the last fragment is lost
        assert 48 <= frames <= len(lines)
        assert left == {"long.jsonl", "long.mp4", "detections.partial.jsonl"}
        return
    assert frames == len(lines) < LONG
    assert left == {"long.jsonl", "long.mp4", "detections.json"}
    report = json.loads((out / "detections.json").read_text())
    assert report["complete"] is False
    assert (report["videos"][0]["complete"], report["videos"][0]["frames"]) == (False, len(lines))
