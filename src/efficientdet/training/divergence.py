"""Stops a run that diverges, and says what to change."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from efficientdet.errors import SettingError
from efficientdet.training.config import TrainConfig
from efficientdet.training.module import DetectionModule

# Steps in a row that were skipped since their loss or gradient was not finite.
MOST_SKIPPED = 20
# Steps whose mean loss is looked at, and how many times the mean of the first ones it may become.
MEAN_OF, GROWTH = 20, 10.0


class StopIfDiverging(Callback):
    """Raises where the loss grows far above its start, or has not been finite for many steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=MEAN_OF)
        self.skipped_in_a_row = 0
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """What the loss is compared with, for a resumed run."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.first = state_dict["first"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self.skipped = len(pl_module.skipped_steps)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the step.

        Raises:
            SettingError: the run diverges.
        """
        module: DetectionModule = pl_module  # type: ignore[assignment]
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if len(module.skipped_steps) > self.skipped else 0
        self.skipped = len(module.skipped_steps)
        place = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise SettingError(
                f"{place}: loss or gradient have not been finite for {MOST_SKIPPED} steps. {self._advice()}"
            )
        loss = trainer.callback_metrics.get("loss")
        if self.skipped_in_a_row or loss is None:
            return
        self.recent.append(float(loss))
        if len(self.recent) < MEAN_OF:
            return
        mean = sum(self.recent) / MEAN_OF
        if self.first is None:
            self.first = mean
        if mean > GROWTH * max(1.0, self.first):
            raise SettingError(f"{place}: the loss has grown from {self.first:.3g} to {mean:.3g}. {self._advice()}")

    def _advice(self) -> str:
        rate = self.config.peak_learning_rate()
        others = ["a longer warmup_epochs"]
        if self.config.gradient_clip == 0 or self.config.gradient_clip > 1:
            others.append("gradient_clip 1")
        if self.config.precision != "fp32":
            others.append("precision fp32")
        return (
            f"The run diverges: start again in another folder with a lower learning_rate, such as {rate / 4:.2g} "
            f"instead of {rate:.2g}, or with {' or '.join(others)}"
        )
