"""Ends a run with a budget in time: its steps are planned anew when the machine turns out slower or faster."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from efficientdet.training import plan
from efficientdet.training.module import DetectionModule
from efficientdet.training.plan import EPOCH_SECONDS, Budget

# A run is planned anew when it would miss its end by this share of the budget, or by the second of an epoch's time.
LATE, EARLY_EPOCHS = 0.01, 1.2
# Steps between two looks at the clock, and steps over which their time is averaged.
LOOK_EVERY, RECENT = 5, 30


class Deadline(Callback):
    """Plans the steps that are left by the clock, in the process of the first device.

    The learning rate goes on from where it is and reaches the end of its schedule with the last step (see `Pace`).
    """

    def __init__(self, budget: Budget, console: Console) -> None:
        self.budget = budget
        self.console = console
        self.used_before = 0.0
        self.most_epochs = budget.most_epochs
        self.evaluation_seconds = budget.evaluation_seconds
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.epoch_seconds = EPOCH_SECONDS
        self.last = self.evaluation_started = plan.clock()

    def state_dict(self) -> dict[str, Any]:
        """The seconds used, for a resumed run."""
        return {"used": self._used(), "evaluation": self.evaluation_seconds, "most_epochs": self.most_epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.used_before, self.evaluation_seconds = state_dict["used"], state_dict["evaluation"]
        self.most_epochs = state_dict["most_epochs"]

    def _used(self) -> float:
        return self.used_before + self.budget.used()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer the number of epochs that a resumed run was planned to have."""
        self._set_end(trainer, pl_module)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what an epoch takes beside its steps and its evaluation; start the clock of the first step."""
        now = plan.clock()
        if self.recent:
            self.epoch_seconds = now - self.last
        self.last = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock every few steps; end the run after its last."""
        module: DetectionModule = pl_module  # type: ignore[assignment]
        now = plan.clock()
        self.recent.append(now - self.last)
        self.last = now
        is_last = batch_idx + 1 >= trainer.num_training_batches
        if not (is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0):
            return
        step = module.steps_done()
        if is_last or step % LOOK_EVERY == 0:
            left = trainer.strategy.broadcast(self._steps_left(trainer, module))
            if left is not None:
                module.pace.change(step, left, module.total_steps())
                self._set_end(trainer, module)
                self._tell(module)
        if step >= module.pace.end(module.total_steps()):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def _steps_left(self, trainer: Trainer, module: DetectionModule) -> int | None:
        """Another number of steps to go; None to keep it."""
        step, total, epoch = module.steps_done(), module.total_steps(), module.steps_per_epoch()
        planned = module.pace.end(total) - step
        recent = list(self.recent)[1:] or list(self.recent)  # the first step of a run is slow
        per_step = max(1e-6, sum(recent) / len(recent) * trainer.accumulate_grad_batches)
        seconds = self.budget.left() - self.used_before
        evaluations = math.ceil(planned / epoch / module.config.evaluate_every)
        beside = math.ceil(planned / epoch) * self.epoch_seconds
        if module.val_set is not None:
            beside += max(1, evaluations) * self.evaluation_seconds
        fits = int((seconds - beside) / per_step)
        is_late = (planned - fits) * per_step > (LATE * self.budget.seconds if planned > epoch else 0.0)
        most = self.most_epochs * epoch - step
        is_early = planned > 0 and fits > planned + EARLY_EPOCHS * epoch and most > planned
        if not (is_late or is_early):
            return None
        whole = (step + fits) // epoch * epoch - step
        takes_whole = whole >= 2 * epoch or (is_early and whole > planned)
        left = max(0, min(most, whole if takes_whole else fits if is_late else planned))
        return left if left != planned else None

    def _set_end(self, trainer: Trainer, module: DetectionModule) -> None:
        end = module.pace.end(module.total_steps())
        trainer.fit_loop.max_epochs = max(1, math.ceil(end / module.steps_per_epoch()))

    def _tell(self, module: DetectionModule) -> None:
        end, epoch = module.pace.end(module.total_steps()), module.steps_per_epoch()
        self.console.print(f"by the clock, the run ends after {end / epoch:.3g} epochs ({end} steps)")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an evaluation."""
        self.evaluation_started = plan.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long it took."""
        self.evaluation_seconds = plan.clock() - self.evaluation_started
        self.last = plan.clock()
