"""Training runs that are killed: `python train_and_die.py CASES.json`.

Each case is a process of its own, forked so that the libraries are imported once. It kills itself with SIGKILL on its
n-th call of a method: nothing in it gets a chance to tidy up.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import efficientdet.training.callbacks
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train

OWNERS = {"DetectionModule": DetectionModule, "SaveCheckpoints": efficientdet.training.callbacks.SaveCheckpoints}


def kill_in(owner: str, method: str, number: int) -> None:
    """Arrange for the process to die as the method is called for the n-th time, counted from 0."""
    original, calls = getattr(OWNERS[owner], method), []

    def dying(*arguments: Any, **options: Any) -> Any:
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        return original(*arguments, **options)

    setattr(OWNERS[owner], method, dying)


def main() -> None:
    spec = importlib.util.spec_from_file_location("shapes", Path(__file__).parents[1] / "shapes.py")
    assert spec is not None and spec.loader is not None
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    for case in json.loads(Path(sys.argv[1]).read_text()):
        child = os.fork()
        if child == 0:
            kill_in(*case["kill"])
            train(shapes.TINY, case["data"], out=case["out"], **{**shapes.SETTINGS, **case["settings"]})
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{case}: not killed, status {status}")


if __name__ == "__main__":
    main()
