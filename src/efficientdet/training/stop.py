"""SIGINT and SIGTERM end a run between two steps, with its state saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from efficientdet.errors import Terminated
from efficientdet.text import printable_lines

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = "stopping after this step, or this epoch's evaluation; a second signal stops at once"


class Stopped(BaseException):
    """Ends a run from within; a class of its own, since Lightning exits with 1 at a KeyboardInterrupt."""


class StopRequest:
    """The signal that asks a run to stop.

    Attributes:
        received: the first signal; None before it.
        message: what the exception of a stopped run says, and standard error too.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.message = ""
        self._waits_for_step = False

    def __bool__(self) -> bool:
        """Whether a signal has been received."""
        return self.received is not None

    def install(self, waits_for_step: bool) -> None:
        """Handle signals from now on; only the main thread can."""
        self._waits_for_step = waits_for_step
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        is_first, self.received = self.received is None, signal.Signals(number)
        if not (is_first and self._waits_for_step):
            raise Stopped
        _tell(NOTICE)


def _tell(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{printable_lines(text)}\n".encode())  # print could have been interrupted in the middle of a line


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within this context SIGINT and SIGTERM raise at once, or after a step where `install` was told so.

    Raises:
        KeyboardInterrupt: SIGINT arrived.
        Terminated: SIGTERM arrived.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request.install(waits_for_step=False)
    try:
        yield request
    except Stopped:
        if request.message:
            _tell(request.message)
        raise (KeyboardInterrupt if request.received == signal.SIGINT else Terminated)(request.message) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
