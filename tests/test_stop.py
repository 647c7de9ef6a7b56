"""SIGINT and SIGTERM: at once, or after the step; and the handlers of before are back afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

from efficientdet.errors import Terminated
from efficientdet.stop import Stopped, stop_signals


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_before_the_first_step_a_signal_ends_the_run_at_once(
    number: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error, match="what to do"), stop_signals() as stop:
        stop.message = "what to do"
        signal.raise_signal(number)
        pytest.fail("it went on")
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == "what to do\n"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_second_signal_ends_the_step(
    number: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    steps = 0
    with pytest.raises(error), stop_signals() as stop:
        stop.install(waits_for_step=True)
        assert not stop
        signal.raise_signal(number)
        assert stop
        steps += 1
        signal.raise_signal(number)
        pytest.fail("it went on")
    assert steps == 1
    assert capfd.readouterr().err.startswith("stopping after this step")


def test_the_step_after_which_a_run_stops_raises() -> None:
    with pytest.raises(Terminated), stop_signals() as stop:
        stop.install(waits_for_step=True)
        signal.raise_signal(signal.SIGTERM)
        raise Stopped


def test_other_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with stop_signals() as stop:
            stop.install(waits_for_step=True)
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
