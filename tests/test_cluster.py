"""Images on a Ray cluster: what a folder of results knows, and runs that are killed and go on."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from efficientdet import cluster
from efficientdet.cluster import ClusterOptions, ClusterSettings, Run, list_images
from efficientdet.errors import DataError, ImageError, SettingError
from efficientdet.inference.detector import load
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
from efficientdet.settings import names_of

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing (extra ray)")
FIXED = {"weights_sha256": "0", "settings": {"scales": (1, 2)}, "part_size": 2}
THRESHOLD = 0.009  # over which the network finds something in every image


@pytest.fixture(scope="module")
def images(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven images, one of which cannot be read, in two subfolders; and a file that is none."""
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "sh%20 é", {"train": 10}) / "images"
    (folder / "more").mkdir()
    for number in (1, 2, 3):
        (folder / f"train{number}.png").rename(folder / "more" / f"train{number}.PNG")
    (folder / "more" / "torn.png").write_bytes((folder / "train4.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def work(images: Path, checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a worker of a run that has begun, which no cluster needs to know of."""

    def make(out: str | Path = tmp_path / "out", source: str | Path = images) -> Any:
        run = Run(source, out)
        run.begin({**FIXED, "settings": {}, "part_size": 4}, {})
        settings = {"score_threshold": THRESHOLD, "device": "cpu"}
        return cluster._Worker(run, str(checkpoint), cluster.sha256_of(checkpoint), settings, ClusterSettings())

    threads = torch.get_num_threads()
    yield make
    torch.set_num_threads(threads)


def rows_of(out: Path | str) -> list[dict[str, Any]]:
    """All results of a folder, as any reader of parquet gives them."""
    rows: list[dict[str, Any]] = parquet.read_table(out).to_pylist()
    return rows


def check_rows(rows: list[dict[str, Any]], images: Path, checkpoint: Path) -> None:
    """Each image has a row, and that the boxes of one process."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*") if path.suffix.lower() == ".png")
    assert sorted(row["image"] for row in rows) == names
    found = load(checkpoint, device="cpu", score_threshold=THRESHOLD).try_many([images / name for name in names])
    for row, one in zip(sorted(rows, key=lambda row: str(row["image"])), found, strict=True):
        if isinstance(one, ImageError):
            assert row["error"] and f"{images / row['image']}: {row['error']}" == str(one)
            assert row["boxes_xyxy"] is row["width"] is None
            continue
        assert row["error"] is None and len(one) > 0
        assert (row["height"], row["width"]) == one.image_size
        assert torch.allclose(torch.tensor(row["boxes_xyxy"]), torch.tensor(one.boxes_xyxy), atol=1e-3)
        assert torch.allclose(torch.tensor(row["scores"]), torch.tensor(one.scores), atol=1e-5)
        assert row["labels"] == one.labels.tolist()
        assert row["class_names"] == [one.class_names[label] for label in one.labels]


# What the folder knows


def test_a_run_knows_which_parts_are_done(images: Path, tmp_path: Path) -> None:
    run = Run(images, tmp_path / "out")
    run.begin(FIXED, {"weights": "people"})
    assert (run.manifest["images"], run.parts, run.missing()) == (11, 6, [0, 1, 2, 3, 4, 5])
    listed = [name for part in range(6) for name, _ in run.images(part)]
    assert listed == sorted(listed) and listed[0] == "more/torn.png" and "notes.txt" not in listed
    for part in (0, 1, 2, 4, 5):
        run.keep(part, [{"image": name, "error": "none"} for name, _ in run.images(part)])

    again = Run(images, tmp_path / "out")
    again.begin(FIXED, {"weights": "moved.safetensors"})
    assert again.missing() == [3] and again.manifest["weights"] == "people" and not again.manifest["complete"]
    with pytest.raises(DataError, match="holds 9 rows for 11 images"):
        again.finish()
    again.keep(3, [{"image": name, "scores": [0.5]} for name, _ in again.images(3)])
    assert again.missing() == []
    assert again.finish() == json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (again.manifest["complete"], again.manifest["unreadable"]) == (True, 9)
    assert [row["image"] for row in rows_of(tmp_path / "out")] == listed  # and no other file is taken for results


def test_images_that_came_later_are_not_among_those_of_a_run(tmp_path: Path, images: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(b"x")
    for name in ("1.png", "2.png"):
        (tmp_path / "in" / name).write_bytes(b"x")
        run = Run(tmp_path / "in", tmp_path / "out")
        run.begin(FIXED, {})
        assert run.images(0) == [("1.png", 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "1"}, "begun with {'weights_sha256': '0'}, not {'weights_sha256': '1'}; go on with that"),
        ({"settings": {"scales": (1,)}}, r"'scales': \[1, 2\].*not .*'scales': \[1\]"),
        ({"part_size": 3}, "'part_size': 2"),
    ],
)
def test_another_run_is_refused(changes: dict[str, Any], message: str, images: Path, tmp_path: Path) -> None:
    Run(images, tmp_path).begin(FIXED, {})
    with pytest.raises(SettingError, match=message):
        Run(images, tmp_path).begin({**FIXED, **changes}, {})
    with pytest.raises(SettingError, match="'source'"):
        Run(images / "more", tmp_path).begin(FIXED, {})


def test_a_folder_that_is_damaged_is_refused(images: Path, tmp_path: Path) -> None:
    run = Run(images, tmp_path)
    run.begin(FIXED, {})
    run.keep(0, [])
    manifest = tmp_path / "_manifest.json"
    for content in (manifest.read_text()[:50], "[]", "{}"):
        manifest.write_text(content)
        with pytest.raises(DataError, match="_manifest.json: damaged"):
            Run(images, tmp_path).begin(FIXED, {})
    manifest.unlink()
    with pytest.raises(SettingError, match="holds results without their _manifest.json"):
        Run(images, tmp_path).begin(FIXED, {})
    (tmp_path / "part-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged results"):
        run.finish()


def test_where_there_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image in this folder"):
        list_images(str(tmp_path))
    with pytest.raises(ImageError, match="gone: cannot be listed"):
        list_images(str(tmp_path / "gone"))
    with pytest.raises(SettingError, match=r"ftp2://host/x: cannot be opened"):
        list_images("ftp2://me:secret@host/x")


def test_storage_where_a_killed_writer_leaves_half_a_file_is_refused(images: Path) -> None:
    with pytest.raises(
        SettingError, match="mock:///out: a killed worker would leave half a file on storage of type mock"
    ):
        Run(images, "mock:///out").begin(FIXED, {})


def test_messages_about_a_bucket_leave_out_its_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pyarrow import fs

    monkeypatch.setattr(cluster, "_place", lambda uri: (fs.LocalFileSystem(), str(tmp_path)))
    (tmp_path / "part-000000.parquet").write_bytes(b"PAR1")
    run = Run("s3://me:secret@bucket/in", "s3://me:secret@bucket/out")
    with pytest.raises(SettingError, match=r"^s3://bucket/out: holds results"):
        run.begin(FIXED, {})
    with pytest.raises(DataError, match=r"^s3://bucket/out: damaged results"):
        run.finish()
    (tmp_path / "_manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"^s3://bucket/out/_manifest.json: damaged"):
        run.begin(FIXED, {})


# What a worker does


def test_a_worker_finds_what_one_process_finds(
    work: Callable[..., Any], images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    worker = work()
    assert worker({"part": np.array([1])})["part"].tolist() == [1]
    worker({"part": np.array([0, 2])})
    check_rows(rows_of(tmp_path / "out"), images, checkpoint)


def test_images_that_have_gone_are_rows(work: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(images, folder)
    worker = work(source=folder)
    (folder / "more" / "train2.PNG").unlink()
    rows = worker._rows(0)
    assert [row["image"] for row in rows] == [
        f"more/{name}" for name in ("torn.png", "train1.PNG", "train2.PNG", "train3.PNG")
    ]
    assert "No such file" in rows[2]["error"] and ["error" in row for row in rows] == [True, False, True, False]
    shutil.rmtree(folder)
    with pytest.raises(ImageError, match=r"nothing of part 0 can be fetched .*try again later"):
        worker._rows(0)


def test_other_weights_on_another_machine_are_refused(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="another file on this machine"):
        cluster._Worker(Run(images, tmp_path), str(checkpoint), "0", {}, ClusterSettings())


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a stand-in for S3 on this machine."""
    server = pytest.importorskip("moto.server", reason="moto is missing (dependency group dev)")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    from pyarrow import fs

    files, name = fs.FileSystem.from_uri("s3://images?allow_bucket_creation=true")
    files.create_dir(name)
    yield "s3://images"
    cluster._place.cache_clear()
    running.stop()


def test_images_and_results_in_a_bucket(bucket: str, work: Callable[..., Any], images: Path, checkpoint: Path) -> None:
    from pyarrow import fs

    fs.copy_files(str(images), f"{bucket}/photos/2026")
    worker = work(source=f"{bucket}/photos", out=f"{bucket}/results")
    worker({"part": np.array([0, 1])})
    again = Run(f"{bucket}/photos", f"{bucket}/results")
    again.begin({**FIXED, "settings": {}, "part_size": 4}, {})
    assert again.missing() == [2]
    worker({"part": np.array([2])})
    assert again.finish()["unreadable"] == 1
    rows = rows_of(f"{bucket}/results")
    check_rows([{**row, "image": row["image"].removeprefix("2026/")} for row in rows], images, checkpoint)


# Settings


def test_keywords_for_type_checkers_are_the_fields() -> None:
    assert set(get_type_hints(ClusterOptions)) == set(names_of(ClusterSettings, DetectorSettings, PostprocessSettings))


def test_the_settings_need_neither_torch_nor_numpy() -> None:
    program = "import sys, efficientdet.cluster; print({'torch', 'numpy', 'ray', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ray_sends_no_usage_statistics() -> None:
    pytest.importorskip("ray", reason="ray is missing (extra ray)")
    program = (
        "from efficientdet.errors import require; require('ray', 'ray')\n"
        "from ray._common.usage.usage_lib import usage_stats_enabled; print(usage_stats_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# On a cluster of this machine


DIES_AFTER_HALF = """
import os, signal, sys
import efficientdet as ed

def progress(done, parts):
    if done >= parts / 2:
        os.kill(os.getpid(), signal.SIGKILL)

ed.predict_on_ray(*sys.argv[1:4], workers=2, part_size=1, device="cpu", score_threshold=float(sys.argv[4]),
                  progress=progress)
"""

KILLS_A_WORKER = """
import os, signal, sys
import efficientdet as ed

killed = []

def progress(done, parts):
    if not killed:
        from ray._private.state import actors
        alive = [one for one in actors().values() if one["State"] == "ALIVE" and "_Worker" in one["ActorClassName"]]
        killed.append(alive[0]["Pid"])
        os.kill(killed[0], signal.SIGKILL)

run = ed.predict_on_ray(*sys.argv[1:4], workers=1, part_size=1, device="cpu", score_threshold=float(sys.argv[4]),
                        progress=progress)
print(f"killed {len(killed)}; {run['images']} images, {run['unreadable']} unreadable")
"""


def predict(source: Path, out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`efficientdet predict --ray`, in a process of its own."""
    pytest.importorskip("ray", reason="ray is missing (extra ray)")
    command = [sys.executable, "-m", "efficientdet", "predict", source, "--ray", "--out", out, "--device", "cpu"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_that_is_killed_after_half_goes_on(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is missing (extra ray)")
    out = tmp_path / "out"
    half = [sys.executable, "-c", DIES_AFTER_HALF, images, out, checkpoint, str(THRESHOLD)]
    assert subprocess.run(half, check=False).returncode == -signal.SIGKILL
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["images"], manifest["complete"]) == (11, False)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 6 <= len(before) <= 11

    rest = ("--weights", checkpoint, "--workers", 2, "--part-size", 1, "--score-threshold", THRESHOLD)
    other = predict(images, out, *rest, "--nms", "soft")
    assert other.returncode == 2 and "'nms': 'soft'" in other.stderr and "begun with" in other.stderr
    done = predict(images, out, *rest)
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"11 images, 1 of them unreadable; written to {out}/\n"
    assert done.stderr.endswith("1 of 11 images failed; the column `error` says why\n")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(after) == 11 and before.items() <= after.items()
    check_rows(rows_of(out), images, checkpoint)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is missing (extra ray)")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLS_A_WORKER, images, out, checkpoint, str(THRESHOLD)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("killed 1; 11 images, 1 unreadable\n")
    check_rows(rows_of(out), images, checkpoint)


@pytest.mark.slow
def test_what_goes_wrong_on_the_cluster_is_said(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = predict(images, tmp_path / "a", "--gpus-per-worker", 1)
    assert done.returncode == 2 and "no worker of 1 CPUs and 1 GPUs finds room: the cluster has" in done.stderr
    source = tmp_path / "images"
    shutil.copytree(images, source)
    run, damaged = Run(source, tmp_path / "b"), Run(source, tmp_path / "c")
    fixed = {"weights_sha256": cluster.sha256_of(checkpoint), "settings": {"device": "cpu"}, "part_size": 1000}
    for one in (run, damaged):
        one.begin(fixed, {})
    (tmp_path / "c" / "_images.parquet").write_bytes(b"PAR1")
    done = predict(source, tmp_path / "c", "--weights", checkpoint)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"error: Ray failed \(.*Parquet.*\); call again to do the parts that are missing", last)
    shutil.rmtree(source)
    done = predict(source, tmp_path / "b", "--weights", checkpoint)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {source}: nothing of part 0 can be fetched (") and last.endswith("try again later")
