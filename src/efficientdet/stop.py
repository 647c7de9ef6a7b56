"""SIGINT and SIGTERM end a run between two steps, or two images, with its state saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from efficientdet.errors import Terminated
from efficientdet.text import printable_lines

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = "stopping after this step, or this epoch's evaluation; a second signal stops at once"


class Stopped(BaseException):
    """Ends a run from within; a class of its own, since Lightning exits with 1 at a KeyboardInterrupt."""


class StopRequest:
    """The signal that asks a run to stop.

    Args:
        signals: that do so.
        is_quiet: print nothing when one arrives.

    Attributes:
        received: the first signal; None before it.
        message: what the exception of a stopped run says, and standard error too.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, is_quiet: bool = False) -> None:
        self.signals = signals
        self.is_quiet = is_quiet
        self.received: signal.Signals | None = None
        self.message = ""
        self._waits_for_step = False
        self._children: Callable[[], Iterable[BaseProcess]] | None = None

    def __bool__(self) -> bool:
        """Whether a signal has been received."""
        return self.received is not None

    def install(self, waits_for_step: bool, children: Callable[[], Iterable[BaseProcess]] | None = None) -> None:
        """Handle signals from now on; only the main thread can.

        Args:
            waits_for_step: the first signal is noted alone.
            children: the processes that do the work, which get SIGTERM for each signal that this one gets.
        """
        self._waits_for_step, self._children = waits_for_step, children
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        is_first, self.received = self.received is None, signal.Signals(number)
        for child in self._children() if self._children else ():
            child.terminate()
        if self._children is None and not (is_first and self._waits_for_step):
            raise Stopped
        if is_first and not self.is_quiet:
            _tell(NOTICE)


def _tell(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{printable_lines(text)}\n".encode())  # print could have been interrupted in the middle of a line


@contextmanager
def stop_signals(signals: Sequence[signal.Signals] = SIGNALS, is_quiet: bool = False) -> Iterator[StopRequest]:
    """Within this context signals raise at once, or after a step where `install` was told so.

    Raises:
        KeyboardInterrupt: SIGINT arrived.
        Terminated: SIGTERM arrived.
    """
    request = StopRequest(signals, is_quiet)
    before = {number: signal.getsignal(number) for number in signals}
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
