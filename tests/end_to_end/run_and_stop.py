"""Commands that get a signal: `python run_and_stop.py JOB.json`; prints what became of each as JSON.

Each command is a process of its own, forked so that the libraries are imported once. First the command runs without
being disturbed; then, for each of the signals, it runs until the signal arrives, at a time drawn by chance. A command
that can be resumed is resumed then (or, if it had not begun, started again).
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from efficientdet import cli


def start(arguments: list[str], log: Path) -> int:
    """Fork the command; its output goes into a file."""
    child = os.fork()
    if child:
        return child
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["efficientdet", *arguments]
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
    for name in job["imports"]:  # before the first fork
        importlib.import_module(name)
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
        outcome = {"signal": name, "delay": delay, "code": end(child), "said": log.read_text(errors="replace")}
        if job["resumes"]:
            outcome["has_begun"], again = (out / "config.json").is_file(), folder / f"{number}-again.log"
            outcome["resumed"] = end(start([*arguments, "--resume"] if outcome["has_begun"] else arguments, again))
            outcome["again"] = again.read_text()
        outcomes.append(outcome)
    print(json.dumps({"whole": whole, "duration": duration, "outcomes": outcomes}))


if __name__ == "__main__":
    main()
