"""Training commands that get a signal: `python train_and_stop.py JOB.json`; prints what became of each as JSON.

Each command is a process of its own, forked so that the libraries are imported once. First the command runs without
being disturbed; then, for each of the signals, it runs until the signal arrives, at a time drawn by chance, and is
resumed (or, if it had not begun, started again).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from efficientdet import cli
from efficientdet.training import callbacks, run  # noqa: F401  (imported before the first fork)


def start(arguments: list[str], log: Path) -> int:
    """Fork the command; its output goes into a file."""
    child = os.fork()
    if child:
        return child
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["efficientdet", "train", *arguments]
    code: Any = 70
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def end(child: int) -> int:
    """Exit code of a child; negative if a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, chance, outcomes = Path(job["folder"]), random.Random(job["seed"]), []
    begun = time.monotonic()
    whole = end(start([*job["arguments"], "--out", str(folder / "whole")], folder / "whole.log"))
    duration = time.monotonic() - begun
    for number, name in enumerate(job["signals"]):
        out, log = folder / str(number), folder / f"{number}.log"
        arguments = [*job["arguments"], "--out", str(out)]
        child = start(arguments, log)
        delay = chance.uniform(0, duration)
        time.sleep(delay)
        os.kill(child, name)
        code, said = end(child), log.read_text(errors="replace")
        has_begun = (out / "config.json").is_file()
        resumed = end(start([*arguments, "--resume"] if has_begun else arguments, folder / f"{number}-again.log"))
        outcomes.append({"signal": name, "delay": delay, "code": code, "said": said, "has_begun": has_begun,
                         "resumed": resumed, "again": (folder / f"{number}-again.log").read_text()})  # fmt: skip
    print(json.dumps({"whole": whole, "duration": duration, "outcomes": outcomes}))


if __name__ == "__main__":
    main()
