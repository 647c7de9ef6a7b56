"""What a run over many images has done, kept however the run ends; and annotated copies beside it."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.atomic_write import replacing, write_json
from efficientdet.cli.options import complain
from efficientdet.errors import SettingError
from efficientdet.stop import SIGNALS, Stopped, StopRequest, stop_signals
from efficientdet.text import in_json

if TYPE_CHECKING:
    from efficientdet.detections import Detections


class RunResults:
    """What a run over many images has done, written to a JSON file however the run ends.

    Each result also goes to a journal beside that file at once, `NAME.partial.jsonl`, which is removed when the file is
    written: where even that cannot be done, or the process is killed, the results are in the journal.
    """

    def __init__(self, path: Path, facts: dict[str, Any], total: int, things: str = "images") -> None:
        """Begin a run; results of an earlier one are removed, so that they never stand beside new images.

        Args:
            path: the JSON file.
            facts: what it says besides the results and `failures`.
            total: number of images of the run.
            things: what the run is over, and the name of the results in the file: images or videos.
        """
        self.path = path
        self.journal_path = path.with_suffix(".partial.jsonl")
        self.facts = facts
        self.total, self.things = total, things
        self.images: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self._signals = contextlib.ExitStack()
        self._stop = StopRequest()

    def __enter__(self) -> RunResults:
        """Open the journal, and let SIGTERM end the block as Ctrl-C does, but never while an image is written.

        Raises:
            SettingError: there cannot be such a folder or file.
        """
        self._stop = self._signals.enter_context(stop_signals(is_quiet=True))
        try:
            with self.undisturbed():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.unlink(missing_ok=True)
                self._journal = self.journal_path.open("w", encoding="utf-8")
        except OSError as error:
            self._signals.close()
            if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
                raise SettingError(f"--out {self.path.parent}: {error.filename}: {error.strerror}") from error
            raise
        except Stopped as error:
            self.__exit__(Stopped, error, None)
        return self

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let a signal wait until the block is done, so that what it writes is whole."""
        self._stop.install(waits_for_step=True)
        try:
            yield
        finally:
            self._stop.install(waits_for_step=False)
        if self._stop:
            raise Stopped

    def add(self, entry: dict[str, Any]) -> None:
        """Keep the result of an image."""
        self.images.append(entry)
        self._write(entry)

    def fail(self, source: str, error: str) -> None:
        """Keep, and print, why an image failed."""
        failure = {"source": source, "error": error}
        self.failures.append(failure)
        complain(f"error: {error}")
        self._write(failure)

    def _write(self, entry: dict[str, Any]) -> None:
        self._journal.write(in_json(json.dumps(entry, ensure_ascii=False)) + "\n")
        self._journal.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Write the file; where the run was cut short, say how far it came."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        try:
            where = self._write_all(error is None)
            if error is not None:
                complain(
                    f"stopped after {len(self.images)} of {self.total} {self.things}; their results are in {where}"
                )
        finally:
            self._signals.__exit__(kind, error, None)

    def _write_all(self, is_complete: bool) -> Path:
        """Write the file; returns where the results are, which is the journal if a run that was cut short cannot."""
        try:
            with contextlib.suppress(OSError):  # what could not be flushed for want of space
                self._journal.close()
            write_json(
                self.path, {**self.facts, "complete": is_complete, self.things: self.images, "failures": self.failures}
            )
            self.journal_path.unlink(missing_ok=True)
            return self.path
        except OSError as problem:
            complain(f"{self.path} cannot be written ({problem.strerror}); what was done is in {self.journal_path}")
            if is_complete:
                raise
            return self.journal_path


def spare_originals(sources: Sequence[Path | str], targets: Sequence[Path]) -> None:
    """Refuse to write annotated images over the images themselves."""
    originals = {Path(source).resolve() for source in sources}
    for target in targets:
        if target.resolve() in originals:
            raise SettingError(f"--out {target.parent}: {target} would be overwritten; choose another folder")


def save_annotated(detections: Detections, target: Path) -> None:
    """Write a copy of the detections' image with their boxes, whole or not at all."""
    with replacing(target) as temporary:
        detections.draw().save(temporary, quality=92)
