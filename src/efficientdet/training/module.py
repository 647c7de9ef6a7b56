"""The Lightning module: one training step, one evaluation step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from efficientdet.data.dataset import (
    Batch,
    DetectionDataset,
    EpochBatches,
    Sample,
    TrainLoader,
    collate,
    eval_loader,
    ignore_interrupts,
)
from efficientdet.detections import Detections
from efficientdet.evaluation.coco_ap import Metrics, metrics_of
from efficientdet.evaluation.matching import EvaluationTable, read_table
from efficientdet.inference.postprocess import postprocess
from efficientdet.inference.settings import EVALUATION_SCORE_THRESHOLD, PostprocessSettings
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.assignment import Matcher, match_atss, match_batch, match_task_aligned
from efficientdet.training.config import TrainConfig
from efficientdet.training.distillation import Teacher
from efficientdet.training.gradient_checkpointing import checkpoint_gradients
from efficientdet.training.losses import Losses, matched_loss
from efficientdet.training.pace import Pace
from efficientdet.training.schedule import batch_norm_momentum, build_optimizer, rate_factor
from efficientdet.training.synchronize import device_count, gathered, summed, synchronize_batch_norms

# Share of the steps in which task alignment is by ATSS: what a fresh network predicts would choose anchors at random.
# TOOD's own code does so for 4 of 12 epochs.
ATSS_SHARE = 0.2


def loader_settings(workers: int, device: torch.device) -> dict[str, Any]:
    """Arguments of a DataLoader: processes that live through the epochs, and pinned memory for a GPU.

    From pinned memory Lightning copies while the GPU computes.
    """
    settings = {
        "num_workers": workers, "pin_memory": device.type == "cuda", "worker_init_fn": ignore_interrupts,
    }  # fmt: skip
    return {**settings, "persistent_workers": True, "prefetch_factor": 4} if workers else settings


class DetectionModule(LightningModule):
    """Training and evaluation steps around a network.

    Args:
        model: the network.
        config: the settings.
        train_set: the training split.
        val_set: the validation split; None for no evaluation.
        workers: number of processes that load images.

    Attributes:
        metrics: of the last evaluation; None before the first.
        evaluated_epoch: the epoch of the last evaluation; -1 before the first.
        skipped_steps: a line for each skipped step: why, and the ids of its images.
        detections: of the last evaluation by image id, of this device's images.
        pace: where in its schedule the run is.
        val_loss: of the last evaluation, where it chooses the best checkpoint; None else.
        teacher: a trained detector to learn from; None for none.
    """

    def __init__(
        self, model: EfficientDet, config: TrainConfig, train_set: DetectionDataset, val_set: DetectionDataset | None,
        workers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.config = config
        self.train_set = train_set
        self.val_set = val_set
        self.workers = workers
        self.metrics: Metrics | None = None
        self.table: EvaluationTable | None = None
        self.evaluated_epoch = -1
        self.skipped_steps: list[str] = []
        self.pace = Pace()
        self.val_loss: float | None = None
        self.detections: dict[int | str, Detections] = {}
        self._val_losses: list[tuple[float, int]] = []  # of batches: sum over images, number of images
        self.teacher: Teacher | None = None
        self._atss_steps = 0.0  # of the schedule, from its start
        # Of the batches whose gradients are being added up: indices of the images, and the losses' normalizers.
        self._indices: list[Tensor] = []
        self._normalizers: list[Tensor] = []
        self._kept_statistics: list[Tensor] = []
        for module in self._frozen_stages():
            module.requires_grad_(False)
        if config.gradient_checkpointing:
            checkpoint_gradients(model)
        # Lightning starts in whatever mode it finds: without this, frozen batch norms would not be.
        self.train()

    def _frozen_stages(self) -> list[nn.Module]:
        if not self.config.frozen_stages:
            return []
        stem_and_stages = self.model.backbone.stages()[: 1 + self.config.frozen_stages]
        return [module for modules in stem_and_stages for module in modules]

    def train(self, mode: bool = True) -> DetectionModule:
        """Switch to training mode, except for batch norms that keep their running statistics."""
        super().train(mode)
        if mode:
            frozen = [self.model.backbone] if self.config.freezes_batch_norm() else self._frozen_stages()
            for part in frozen:
                for module in part.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self

    # Data

    def _batches(self) -> EpochBatches:
        return EpochBatches(
            self.train_set.records, self.config.images_at_once, self.config.seed,
            self.trainer.global_rank, self.trainer.world_size, self.config.accumulate,
        )  # fmt: skip

    def steps_per_epoch(self) -> int:
        """Steps of the weights in an epoch.

        Lightning's own estimate would build the loader, and before the state of a resumed run is restored.
        """
        return math.ceil(len(self._batches()) / self.config.accumulate)

    def total_steps(self) -> int:
        """Steps of the weights in the schedule of the whole run."""
        return self.steps_per_epoch() * self.config.epochs

    def steps_done(self) -> int:
        """Steps of the schedule that the run has done, those included that were skipped."""
        return int(self.trainer.lr_scheduler_configs[0].scheduler.last_epoch)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented batches, from where in the epoch a resumed run stopped."""
        batches, loop = self._batches(), self.trainer.fit_loop
        batches.set_epoch(loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        batches.start = loop.epoch_loop.batch_progress.current.processed % len(batches)  # type: ignore[attr-defined]
        return TrainLoader(
            self.train_set, batch_sampler=batches, collate_fn=collate, **loader_settings(self.workers, self.device)
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[Any]:
        """Letterboxed batches of this device's share of the validation split."""
        if self.val_set is None:
            return []
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return eval_loader(self.val_set, self.config.images_at_once, self.workers, rank, world_size)

    # Training

    def setup(self, stage: str) -> None:
        """Join the batch norms of several devices."""
        if self.trainer.world_size > 1:
            synchronize_batch_norms(self.model)

    def on_train_start(self) -> None:
        """Log each epoch at least once; set the momentum of batch norms to suit the length of the run."""
        self.trainer.log_every_n_steps = max(1, min(self.trainer.log_every_n_steps, self.trainer.num_training_batches))  # type: ignore[attr-defined]
        self._atss_steps = ATSS_SHARE * self.total_steps()
        momentum = batch_norm_momentum(self.total_steps())
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step's random numbers by its number, so that a resumed run draws the same ones."""
        seed = self.config.seed * 1_000_003 + self.current_epoch * 100_003 + batch_idx
        torch.manual_seed(seed + self.global_rank * 10_000_019)
        if self.current_epoch + 1 == self.trainer.max_epochs:  # the last epoch is evaluated whatever evaluate_every
            self.trainer.check_val_every_n_epoch = 1
        self._keep_statistics()

    def _statistics(self) -> list[Tensor]:
        """Running means and variances that the next batch will update."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]

    def _keep_statistics(self) -> None:
        """Copy them: a batch whose activations overflow would leave them NaN for the rest of the run."""
        statistics = self._statistics()
        if len(self._kept_statistics) != len(statistics):
            self._kept_statistics = [torch.empty_like(s) for s in statistics]
        if statistics:
            torch._foreach_copy_(self._kept_statistics, statistics)

    def _restore_statistics(self) -> None:
        if self._kept_statistics:
            torch._foreach_copy_(self._statistics(), self._kept_statistics)

    def _predict(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Class logits, box deltas and anchors."""
        class_logits, box_deltas = self.model(batch.images.contiguous(memory_format=torch.channels_last))
        return class_logits, box_deltas, self.model.anchors((batch.images.shape[2], batch.images.shape[3]))

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch."""
        return self._compare(batch, *self._predict(batch))[0]

    def _compare(
        self, batch: Batch, class_logits: list[Tensor], box_deltas: list[Tensor], anchors: Tensor, is_step: bool = False
    ) -> tuple[Losses, Tensor]:
        """The losses of a batch, and the normalizer that they were divided by.

        In a step, devices average their gradients: with the positives of all of them, and times the number of devices,
        the average is the gradient of one large batch.
        """
        logits, labels, teacher = class_logits, batch.labels, self.teacher if is_step else None
        if self.teacher is not None:
            logits, labels = self.teacher.of_dataset(class_logits, labels)
        matchers = self._matchers(logits, box_deltas, is_step)
        targets = match_batch(anchors, batch.boxes_xyxy, labels, batch.ignored_xyxy, matchers)
        normalizer, devices = targets.normalizer(), 1
        if is_step:
            normalizer, devices = summed(normalizer - 1.0) + 1.0, device_count()
        giou_anchors = anchors if self.config.box_loss == "giou" else None
        losses = matched_loss(logits, box_deltas, targets, self.config.loss, giou_anchors, normalizer / devices)
        if teacher is not None:
            distance = devices * teacher.loss(batch.images, class_logits, box_deltas, targets.labels >= 0)
            self.log("train/distill_loss", summed(distance.detach()) / devices, batch_size=len(batch.indices))
            weight = 1.0 if self.config.distill_weight is None else self.config.distill_weight
            losses = losses._replace(total=losses.total + weight * distance)
        return losses, normalizer

    def _matchers(self, class_logits: list[Tensor], box_deltas: list[Tensor], is_step: bool) -> list[Matcher] | None:
        """What assigns the boxes of each image to anchors; in evaluations the same from the first epoch to the last."""
        if self.config.assigns_by() == "iou":
            return None
        per_place = self.model.spec.octaves * len(self.model.spec.aspects)
        if is_step and self.pace.position(self.steps_done()) < self._atss_steps:
            counts = [logits.shape[1] for logits in class_logits]
            return [partial(match_atss, level_counts=counts, per_place=per_place)] * len(class_logits[0])
        return [
            partial(match_task_aligned, class_logits=logits, box_deltas=deltas, per_place=per_place)
            for logits, deltas in zip(zip(*class_logits, strict=True), zip(*box_deltas, strict=True), strict=True)
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a batch; None, which skips the step, where it is not finite."""
        losses, normalizer = self._compare(batch, *self._predict(batch), is_step=True)
        shown = summed(torch.stack([value.detach() for value in losses])) / device_count()
        if not bool(shown[0].isfinite()):
            self._skip("the loss is not finite", [batch.indices])
            self._restore_statistics()
            if device_count() == 1:
                return None
            # Every device must go through the backward pass: return a zero that depends on all weights.
            return torch.stack([(p.nan_to_num() * 0).sum() for p in self.model.parameters()]).sum()
        size, names = len(batch.indices), ("train/loss", "train/class_loss", "train/box_loss")
        self.log_dict(dict(zip(names, shown, strict=True)), batch_size=size)
        self.log("loss", shown[0], prog_bar=True, logger=False, batch_size=size)
        self._indices.append(batch.indices)
        return losses.total if self.config.accumulate == 1 else losses.total * self._weight(normalizer)

    def _weight(self, normalizer: Tensor) -> Tensor:
        """Weight of a batch among those whose gradients are added up, relative to the first of them.

        The loss is a sum over anchors divided by (positives + 1) of its batch. Undoing that here and dividing the added
        gradients by (all positives + 1), as `_end_accumulation` does, gives what one large batch would have given.
        """
        self._normalizers.append(normalizer)
        return normalizer / self._normalizers[0]

    def _end_accumulation(self, parameters: list[nn.Parameter]) -> None:
        if self._normalizers:
            positives = sum(normalizer - 1.0 for normalizer in self._normalizers)
            factor = self.config.accumulate * self._normalizers[0] / (positives + 1.0)
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
        self._normalizers = []

    def _skip(self, why: str, indices: list[Tensor]) -> None:
        indices_of_all = [i for part in gathered(torch.cat(indices).tolist()) for i in part]
        image_ids = [self.train_set.records.images[i].image_id for i in indices_of_all]
        message = f"epoch {self.current_epoch}, step {self.global_step}: {why}; step skipped, image ids {image_ids}"
        self.skipped_steps.append(message)
        self.print(message)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm; drop a gradient that is not finite, which leaves the weights as they are."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self._end_accumulation(parameters)
        indices, self._indices = self._indices, []
        if not indices:  # all batches were skipped: no decay and no momentum either
            self.zero_grad(set_to_none=True)
            return
        norm = nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip or float("inf"), foreach=True)
        # Under fp16 the gradient scaler looks for overflows itself and lowers its scale.
        if self.trainer.precision != "16-mixed" and not bool(norm.isfinite()):
            self.zero_grad(set_to_none=True)
            self._skip("the gradient is not finite", indices)

    def configure_optimizers(self) -> Any:
        """The optimizer, with warm-up and cosine by the step."""
        optimizer = build_optimizer(self.model, self.config)
        total = self.total_steps()
        warmup = min(round(total * min(1.0, self.config.warmup_epochs / self.config.epochs)), total // 2)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(self.pace.position(step), warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Drop the detections of the last evaluation."""
        self.detections, self._val_losses = {}, []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict with the post-processing of a user's prediction, and keep the detections."""
        if self.val_set is None:
            return
        class_logits, box_deltas, anchors = self._predict(batch)
        if self.config.best_metric == "loss":
            total = self._compare(batch, class_logits, box_deltas, anchors)[0].total
            self._val_losses.append((float(total) * len(batch.indices), len(batch.indices)))
        records = self.val_set.records
        images = [records.images[i] for i in batch.indices.tolist()]
        found = postprocess(
            class_logits,
            box_deltas,
            anchors,
            PostprocessSettings(EVALUATION_SCORE_THRESHOLD),
            scales=batch.scales,
            image_sizes=torch.tensor([image.image_size for image in images], device=batch.scales.device),
        )
        boxes, scores, labels, counts, _ = (part.cpu().numpy() for part in found)
        for i, image in enumerate(images):
            kept = slice(int(counts[i]))
            self.detections[image.image_id] = Detections(
                boxes[i, kept], scores[i, kept], labels[i, kept], records.class_names, image.image_size,
                records.category_ids,
            )  # fmt: skip

    def on_validation_epoch_end(self) -> None:
        """AP over the detections of all devices."""
        if self.val_set is None or self.trainer.sanity_checking:
            return
        own = {image_id: detections.to_coco(image_id) for image_id, detections in self.detections.items()}
        found = {image_id: rows for part in gathered(own) for image_id, rows in part.items()}
        in_order = [found.get(image.image_id, []) for image in self.val_set.records.images]
        self.table = read_table(self.val_set.records.to_coco(), [row for rows in in_order for row in rows])
        self.metrics = metrics_of(self.table)
        self.evaluated_epoch = self.current_epoch
        self.log_dict({f"val/{name}": getattr(self.metrics, name) for name in ("ap", "ap50", "ap75", "ar100")})

        losses = [one for part in gathered(self._val_losses) for one in part]
        if losses:
            self.val_loss = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
            self.log("val/loss", self.val_loss)

    # State of a resumed run

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the report of a resumed run needs."""
        metrics = self.metrics.to_dict() if self.metrics is not None else None
        checkpoint["report"] = {"skipped": self.skipped_steps, "metrics": metrics, "epoch": self.evaluated_epoch}
        checkpoint["pace"] = self.pace.state_dict()
        checkpoint["batches_per_epoch"] = len(self._batches())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        report = checkpoint["report"]
        self.skipped_steps = list(report["skipped"])
        self.metrics = Metrics(**report["metrics"]) if report["metrics"] else None
        self.evaluated_epoch = report["epoch"]
        self.pace.load_state_dict(checkpoint["pace"])
        before, now = checkpoint["batches_per_epoch"], len(self._batches())
        if before != now:  # the same steps in smaller batches: count in those
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts.update({name: count * now // before for name, count in counts.items()})
