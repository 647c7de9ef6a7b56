"""OpenVINO lives as long as the process: what it leaves behind when it ends earlier would kill it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("openvino")

# A signal's handler runs on the stack that faulthandler asked for, as under pytest.
PROGRAM = """
import faulthandler, gc, signal, subprocess, threading, time
import numpy as np
import efficientdet

faulthandler.enable()
detectors = [efficientdet.load("people", backend="openvino")]
detectors[0].predict(np.zeros((64, 64, 3), np.uint8))

def forget():
    detectors.clear()
    gc.collect()

thread = threading.Thread(target=forget)
thread.start()
thread.join()
ended = []
signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
subprocess.run(["true"])
while not ended:
    time.sleep(0.01)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no signal tells of a child's end here")
def test_a_detector_may_be_forgotten_in_any_thread() -> None:
    """With a core for each, this process died of SIGSEGV at the signal."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
