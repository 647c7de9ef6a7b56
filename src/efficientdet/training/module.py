"""The Lightning module: one training step, one evaluation step."""

from __future__ import annotations

import math
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
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.inference.postprocess import postprocess
from efficientdet.inference.settings import EVALUATION_SCORE_THRESHOLD, PostprocessSettings
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.assignment import match_batch
from efficientdet.training.config import TrainConfig
from efficientdet.training.gradient_checkpointing import checkpoint_gradients
from efficientdet.training.losses import matched_loss
from efficientdet.training.schedule import batch_norm_momentum, build_optimizer, check_stages, rate_factor


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
        self.evaluated_epoch = -1
        self.skipped_steps: list[str] = []
        self._results: dict[int | str, list[dict[str, Any]]] = {}  # COCO results by image id
        # Of the batches whose gradients are being added up: indices of the images, and the losses' normalizers.
        self._indices: list[Tensor] = []
        self._normalizers: list[Tensor] = []
        self._kept_statistics: list[Tensor] = []
        check_stages(model.backbone, config)
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
            self.train_set.records, self.config.batch_size, self.config.seed,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip

    def _total_steps(self) -> int:
        """Steps of the weights in the whole run.

        Lightning's own estimate would build the loader, and before the state of a resumed run is restored.
        """
        return math.ceil(len(self._batches()) / self.config.accumulate) * self.config.epochs

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
        return eval_loader(self.val_set, self.config.batch_size, self.workers, rank, world_size)

    # Training

    def on_train_start(self) -> None:
        """Set the momentum of batch norms to suit the length of the run."""
        momentum = batch_norm_momentum(self._total_steps())
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step's random numbers by its number, so that a resumed run draws the same ones."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch * 100_003 + batch_idx)
        if self.current_epoch + 1 == self.config.epochs:  # the last epoch is evaluated whatever evaluate_every
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a batch; None, which skips the step, where it is not finite."""
        class_logits, box_deltas, anchors = self._predict(batch)
        targets = match_batch(anchors, batch.boxes_xyxy, batch.labels, batch.ignored_xyxy)
        giou_anchors = anchors if self.config.box_loss == "giou" else None
        losses = matched_loss(class_logits, box_deltas, targets, self.config.loss, giou_anchors)
        if not bool(losses.total.isfinite()):
            self._skip("the loss is not finite", [batch.indices])
            self._restore_statistics()
            if self.trainer.world_size == 1:
                return None
            # Every device must go through the backward pass: return a zero that depends on all weights.
            return torch.stack([(p.nan_to_num() * 0).sum() for p in self.model.parameters()]).sum()
        shown = {"loss": losses.total, "class_loss": losses.classes, "box_loss": losses.boxes}
        self.log_dict({f"train/{name}": value.detach() for name, value in shown.items()}, batch_size=len(batch.indices))
        self.log("loss", losses.total.detach(), prog_bar=True, logger=False, batch_size=len(batch.indices))
        self._indices.append(batch.indices)
        return losses.total if self.config.accumulate == 1 else losses.total * self._weight(targets.normalizer())

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
        image_ids = [self.train_set.records.images[i].image_id for i in torch.cat(indices).tolist()]
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
        norm = nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip or float("inf"), foreach=True)
        # Under fp16 the gradient scaler looks for overflows itself and lowers its scale.
        if self.trainer.precision != "16-mixed" and not bool(norm.isfinite()):
            for parameter in parameters:
                parameter.grad = None
            self._skip("the gradient is not finite", indices)

    def configure_optimizers(self) -> Any:
        """The optimizer, with warm-up and cosine by the step."""
        optimizer = build_optimizer(self.model, self.config)
        total = self._total_steps()
        warmup = min(round(total * min(1.0, self.config.warmup_epochs / self.config.epochs)), total // 2)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Drop the results of the last evaluation."""
        self._results = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict with the post-processing of a user's prediction, and keep the results."""
        if self.val_set is None:
            return
        class_logits, box_deltas, anchors = self._predict(batch)
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
            detections = Detections(
                boxes[i, kept], scores[i, kept], labels[i, kept], records.class_names, image.image_size,
                records.category_ids,
            )  # fmt: skip
            self._results[image.image_id] = detections.to_coco(image.image_id)

    def on_validation_epoch_end(self) -> None:
        """AP over the results of all devices."""
        if self.val_set is None or self.trainer.sanity_checking:
            return
        gathered: list[Any] = [self._results]
        if self.trainer.world_size > 1:
            gathered = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, self._results)
        results = {image_id: rows for part in gathered for image_id, rows in part.items()}
        self.metrics = coco_metrics(self.val_set.records.to_coco(), [row for rows in results.values() for row in rows])
        self.evaluated_epoch = self.current_epoch
        self.log_dict({f"val/{name}": getattr(self.metrics, name) for name in ("ap", "ap50", "ap75", "ar100")})

    # State of a resumed run

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the report of a resumed run needs."""
        metrics = self.metrics.to_dict() if self.metrics is not None else None
        checkpoint["report"] = {"skipped": self.skipped_steps, "metrics": metrics, "epoch": self.evaluated_epoch}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        report = checkpoint["report"]
        self.skipped_steps = list(report["skipped"])
        self.metrics = Metrics(**report["metrics"]) if report["metrics"] else None
        self.evaluated_epoch = report["epoch"]
