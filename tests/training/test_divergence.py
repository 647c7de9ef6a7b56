from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from efficientdet.errors import SettingError
from efficientdet.training import module as training_module
from efficientdet.training.losses import Losses, matched_loss
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun


@pytest.fixture
def run(shapes: ModuleType, data: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    def start(**settings: Any) -> TrainingRun:
        return train(shapes.TINY, data, out=tmp_path / "run", **{**shapes.SETTINGS, "epochs": 30, **settings})

    return start


def _times(factor: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Multiplies the loss of each step."""
    calls: list[int] = []

    def changed(logits: list[Tensor], *arguments: Any) -> Losses:
        calls.append(1)
        losses = matched_loss(logits, *arguments)
        return losses._replace(total=losses.total.detach() * factor(len(calls)) + losses.total * 0)

    monkeypatch.setattr(training_module, "matched_loss", changed)
    return calls


@pytest.mark.slow
def test_a_loss_that_grows_without_bounds_ends_the_run(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _times(lambda number: 1.0 if number < 40 else 1.5 ** (number - 40), monkeypatch)
    with pytest.raises(
        SettingError, match=r"the loss has grown from .* to .*lower learning_rate, such as 0\.0\d+ inst"
    ):
        run()
    assert 40 < len(calls) < 90


@pytest.mark.slow
def test_a_loss_that_is_not_finite_for_long_ends_the_run(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _times(lambda number: 1.0 if number < 30 else float("nan"), monkeypatch)
    with pytest.raises(SettingError, match=r"have not been finite for 20 steps\..*lower learning_rate"):
        run(precision="bf16")
    assert len(calls) == 49


def test_a_rate_that_is_far_too_high_really_diverges(run: Callable[..., TrainingRun]) -> None:
    with pytest.raises(
        SettingError, match="The run diverges: start again in another folder with a lower learning_rate"
    ):
        run(learning_rate=300.0, gradient_clip=0.0, warmup_epochs=0, ema_decay=0.0)


@pytest.mark.slow
def test_single_spikes_do_not_end_a_run(run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _times(lambda number: 30.0 if number % 25 == 0 else 1.0, monkeypatch)
    assert run(epochs=25).report["skipped_steps"] == []
    assert len(calls) == 75
