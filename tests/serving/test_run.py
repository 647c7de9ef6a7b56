"""Starting and stopping a server: names of models, the port, signals."""

from __future__ import annotations

import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientdet.errors import SettingError
from efficientdet.images.find import sample_image

pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
from efficientdet.inference.detector import load  # noqa: E402
from efficientdet.serving.run import name_models, run_server  # noqa: E402
from efficientdet.serving.settings import ServeSettings  # noqa: E402

# How much more memory a process has after its threads have freed large blocks, in MiB.
PROGRAM = """
import resource, threading
import numpy as np

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

def work():
    barrier.wait()
    blocks = [np.ones(20 * 2**20, np.uint8) for _ in range(2)]
    barrier.wait()
    del blocks
    barrier.wait()

{before}
np.ones(31 * 2**20, np.uint8)  # from now on glibc keeps blocks of this size
start, barrier = resident(), threading.Barrier(5)
for _ in range(4):
    threading.Thread(target=work).start()
for _ in range(3):
    barrier.wait()
print(resident() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves")
def test_what_an_image_took_goes_back_to_the_system() -> None:
    kept, given_back = (
        float(
            subprocess.run(
                [sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, check=True
            ).stdout
        )
        for before in ("", "from efficientdet.serving.run import _give_memory_back; _give_memory_back()")
    )
    assert kept > 100
    assert given_back < 20


def test_models_are_named_after_their_weights_unless_a_name_is_given() -> None:
    named = name_models(["people", "runs/1/best.safetensors", "hf://owner/repo", "day=runs/2/best.safetensors"])
    assert named == {
        "people": "people",
        "best": "runs/1/best.safetensors",
        "repo": "hf://owner/repo",
        "day": "runs/2/best.safetensors",
    }


def test_two_models_of_a_name_are_refused() -> None:
    with pytest.raises(SettingError, match="two models are named 'best'; name one of them: --weights NAME=b/best.onnx"):
        name_models(["a/best.safetensors", "b/best.onnx"])


def test_a_server_that_is_stopped_answers_what_it_accepted(start_process: Callable[..., Any], tiny: Path) -> None:
    server = start_process("--weights", tiny, "--time-limit", 600)
    image, answers = sample_image().read_bytes(), []
    # With settings of their own, so that they go through the network one after the other.
    threads = [
        threading.Thread(target=lambda n=n: answers.append(server.detect(image, max_detections=n))) for n in range(1, 9)
    ]
    with server.connect() as idle:  # which does not hold up the end
        assert server.ask("GET", "/ready", connection=idle).status == 200
        for thread in threads:
            thread.start()
        while not waiting(server.ask("GET", "/metrics").body) and any(thread.is_alive() for thread in threads):
            pass
        assert server.stop(signal.SIGTERM) == 143
    for thread in threads:
        thread.join()
    counts = [len(answer.content["images"][0]["detections"]) for answer in answers]
    assert sorted(counts) == list(range(1, 9))
    assert server.other_lines == ["terminated\n"]
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/health")


def waiting(metrics: bytes) -> float:
    line = next(line for line in metrics.splitlines() if line.startswith(b"efficientdet_waiting_images{"))
    return float(line.split()[-1])


def test_a_port_that_is_taken(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr("efficientdet.serving.run._log_as_json", lambda: None)
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServeSettings(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="Address already in use"):
            run_server({"tiny": load(tiny)}, settings, None, told.append)
    assert told == []
