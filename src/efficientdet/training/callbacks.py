"""Lightning callbacks: averaged weights, checkpoints, the state to resume from, and the progress shown."""

from __future__ import annotations

import dataclasses
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from rich.console import Console
from torch import Tensor

from efficientdet.atomic_write import replacing, write_json
from efficientdet.data.dataset import DetectionDataset
from efficientdet.errors import EfficientDetError
from efficientdet.evaluation.coco_ap import Metrics
from efficientdet.evaluation.matching import EvaluationTable
from efficientdet.stop import Stopped, StopRequest
from efficientdet.training.config import TrainConfig
from efficientdet.training.module import DetectionModule
from efficientdet.training.run_folder import RESUME_FILE, SPARE_FILE, TrainingRun
from efficientdet.training.run_page import RUN_PAGE, write_run_page
from efficientdet.training.schedule import move_average
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo


class Ema(WeightAveraging):
    """Averaged weights: those that are evaluated and saved."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(move_average, decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network, but neither the images that a dataset may keep in memory nor the teacher."""
        module: DetectionModule = pl_module  # type: ignore[assignment]
        sets = module.train_set, module.val_set, module.teacher
        module.train_set = module.val_set = module.teacher = None  # type: ignore[assignment]
        try:
            super().setup(trainer, pl_module, stage)
        finally:
            module.train_set, module.val_set, module.teacher = sets

    def network_state(self) -> dict[str, Tensor]:
        """State dict of the averaged network."""
        module: DetectionModule = self._average_model.module  # type: ignore[union-attr, assignment]
        return module.model.state_dict()


class Best(NamedTuple):
    """The best evaluation of a run.

    Attributes:
        value: of the metric that chooses it, larger for better; None before the first evaluation.
        ap: its AP.
        epoch: its number.
        evaluations_since: that were not better.
    """

    value: float | None = None
    ap: float | None = None
    epoch: int = -1
    evaluations_since: int = 0


class SaveCheckpoints(Callback):
    """Saves `last` and `best` after each epoch, and the state to resume from every `save_every` steps.

    Where the run is asked to stop, the state is saved at the end of the step, or of the epoch's evaluation. Where
    `patience` evaluations have not been better than the best, the run ends.
    """

    def __init__(
        self, folder: Path, info: CheckpointInfo, config: TrainConfig, ema: Ema | None, stop: StopRequest,
        console: Console,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.info = info
        self.config = config
        self.ema = ema
        self.stop = stop
        self.console = console
        self.best = Best()
        self.best_evaluation: tuple[Metrics, EvaluationTable] | None = None
        self.has_started = False

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far, for a resumed run."""
        return {"best": self.best._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best = Best(**state_dict["best"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run whose patience is at its end stays ended when it is resumed."""
        if self._is_out_of_patience():
            trainer.should_stop = True

    def _is_out_of_patience(self) -> bool:
        return self.config.patience is not None and self.best.evaluations_since >= self.config.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on signals wait for the end of a step; Lightning has just set handlers of its own."""
        self.has_started = True
        self.stop.install(waits_for_step=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the state between two steps of the weights; the end of an epoch has a save of its own."""
        is_last = batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop
        has_stepped = (batch_idx + 1) % self.config.accumulate == 0
        if has_stepped and not is_last:
            self._save_state(trainer, is_due=trainer.global_step % self.config.save_every == 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the network, and the state to resume from."""
        module: DetectionModule = pl_module  # type: ignore[assignment]
        evaluated = module.evaluated_epoch == trainer.current_epoch
        is_best = module.val_set is None or (evaluated and self._note_evaluation(module))
        if is_best and module.metrics is not None and module.table is not None:
            self.best_evaluation = module.metrics, module.table
        if trainer.is_global_zero:
            self._save_network(module, evaluated, is_best)
        if self._is_out_of_patience() and not trainer.should_stop:
            trainer.should_stop = True
            self.console.print(
                f"no better {self.config.best_metric} in {self.best.evaluations_since} evaluations: the run ends; the "
                f"best was epoch {self.best.epoch + 1}"
            )
        self._save_state(trainer, is_due=True)

    def _note_evaluation(self, module: DetectionModule) -> bool:
        """Whether the evaluation was as good as the best before, or better, which is then noted."""
        name = self.config.best_metric
        value = -(module.val_loss or 0.0) if name == "loss" else float(getattr(module.metrics, name))
        is_better = self.best.value is None or value > self.best.value
        if not is_better and value != self.best.value:
            self.best = self.best._replace(evaluations_since=self.best.evaluations_since + 1)
            return False
        ap = module.metrics.ap if module.metrics is not None else None
        waited = 0 if is_better else self.best.evaluations_since + 1
        self.best = Best(value, ap, module.evaluated_epoch, waited)
        return True

    def _save_state(self, trainer: Trainer, is_due: bool) -> None:
        """Save the state if it is due, or if a device is asked to stop; then stop."""
        stops = trainer.strategy.reduce_boolean_decision(bool(self.stop), all=False)
        if not (is_due or stops):
            return
        path = self.folder / RESUME_FILE
        if trainer.is_global_zero:
            with replacing(path) as temporary:
                trainer.save_checkpoint(temporary)
                if path.exists():
                    os.replace(path, self.folder / SPARE_FILE)
        else:
            trainer.save_checkpoint(path)  # takes part, but writes nothing
        if stops:
            raise Stopped

    def _save_network(self, module: DetectionModule, evaluated: bool, is_best: bool) -> None:
        state = self.ema.network_state() if self.ema is not None else module.model.state_dict()
        metrics: dict[str, Any] = {}
        if evaluated and module.metrics is not None:
            some = f" ({len(module.val_set)} images)" if module.val_set and self.config.evaluate_images else ""
            metrics = {"data": f"{self.info.training['data']}, val{some}", **module.metrics.to_dict()}
        info = dataclasses.replace(self.info, metrics=metrics)
        save_checkpoint(self.folder / "last.safetensors", state, info)
        if is_best:
            save_checkpoint(self.folder / "best.safetensors", state, info)

    def finish(self, module: DetectionModule) -> TrainingRun:
        """Write the reports and return the run."""
        last, best = self.folder / "last.safetensors", self.folder / "best.safetensors"
        report = {
            "best_ap": self.best.ap,
            "best_epoch": self.best.epoch + 1 if module.val_set is not None else None,
            "train": _counts(module.train_set),
            "val": _counts(module.val_set) if module.val_set is not None else None,
            "skipped_steps": module.skipped_steps,
            "planned_anew": len(module.pace.stretches) - 1,
            "metrics": module.metrics.to_dict() if module.metrics is not None else None,
        }
        if module.global_rank == 0:
            write_json(self.folder / "report.json", report)
            if module.metrics is not None:
                module.metrics.to_json(self.folder / "metrics.json")
        run = TrainingRun(self.folder, best if best.exists() else last, last, module.metrics, report)
        if module.global_rank == 0:
            try:
                write_run_page(run, module.val_set.records if module.val_set else None, self.best_evaluation)
            except (OSError, EfficientDetError) as error:  # the weights are there
                self.console.print(f"{self.folder / RUN_PAGE} cannot be written: {error}")
        return run


def _counts(dataset: DetectionDataset) -> dict[str, int]:
    records = dataset.records
    return {"images": len(records), "boxes": records.training_boxes, **records.counts}


class Progress(Callback):
    """Training images a second, in the log; and a line after each epoch.

    Args:
        images_per_batch: on all devices.
        console: where lines are printed; None where a progress bar shows the same.
    """

    def __init__(self, images_per_batch: int, console: Console | None) -> None:
        self.images_per_batch = images_per_batch
        self.console = console
        self.run_started = self.epoch_started = 0.0
        self.first_epoch = self.batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the run."""
        self.run_started, self.first_epoch = time.perf_counter(), trainer.current_epoch
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out where it resumes within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self.epoch_started, self.batches = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean since the start of the epoch."""
        self.batches += 1
        rate = self.batches * self.images_per_batch / max(1e-9, time.perf_counter() - self.epoch_started)
        pl_module.log("images/s", rate, prog_bar=True, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print loss, AP if the epoch was evaluated, images a second, and the time left."""
        if self.console is None:
            return
        evaluated = pl_module.evaluated_epoch == trainer.current_epoch
        done = trainer.current_epoch + 1
        per_epoch = (time.perf_counter() - self.run_started) / (done - self.first_epoch)
        left = per_epoch * ((trainer.max_epochs or done) - done)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = ", ".join(
            f"{name.removeprefix('val/')} {values[name]:.4g}"
            for name in ("loss", *(("val/ap", "val/ap50") if evaluated else ()), "images/s")
            if name in values
        )
        self.console.print(f"epoch {done}/{trainer.max_epochs}: {shown}, {left / 60:.0f} min left")
