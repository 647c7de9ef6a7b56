"""The Lightning module: what one step and one evaluation do."""

from __future__ import annotations

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
)
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.evaluation.results import batch_results, ground_truth
from efficientdet.inference.postprocess import PostprocessSettings, postprocess
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.schedule import batch_norm_momentum, build_optimiser, rate_factor


class DetectionModule(LightningModule):
    """Training and evaluation steps around a network.

    Attributes:
        model: the network.
        config: settings.
        metrics: of the last evaluation; None before the first.
        skipped: what every skipped step was skipped for, with its pictures' ids.
    """

    def __init__(
        self, model: EfficientDet, config: TrainConfig, train_set: DetectionDataset,
        val_set: DetectionDataset | None, freezes_batch_norm: bool, workers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.config = config
        self.train_set = train_set
        self.val_set = val_set
        self.freezes_batch_norm = freezes_batch_norm
        self.workers = workers
        self.metrics: Metrics | None = None
        self.skipped: list[str] = []
        self._results: list[dict[str, Any]] = []
        self._freeze_stages()

    def on_train_start(self) -> None:
        """Let running statistics follow faster in a short run, or evaluation would see those of the beginning."""
        momentum = batch_norm_momentum(int(self.trainer.estimated_stepping_batches))
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def _frozen_modules(self) -> list[nn.Module]:
        backbone = self.model.backbone
        if not self.config.frozen_stages:
            return []
        return [backbone.conv_stem, backbone.bn1, *backbone.blocks[: self.config.frozen_stages]]

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> DetectionModule:
        """Switch to training mode, save for batch norms that keep their running statistics."""
        super().train(mode)
        if mode:
            frozen = [self.model.backbone] if self.freezes_batch_norm else self._frozen_modules()
            for part in frozen:
                for module in part.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented batches, from the place in the epoch where a resumed run stopped."""
        batches = EpochBatches(
            self.train_set.records, self.config.batch_size, self.config.seed,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip
        batches.set_epoch(self.trainer.current_epoch)
        batches.start = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed % len(batches)
        return TrainLoader(
            self.train_set, batch_sampler=batches, collate_fn=collate, num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader[Sample] | list[Any]:
        """Letterboxed batches of the validation split."""
        if self.val_set is None:
            return []
        return eval_loader(self.val_set, self.config.batch_size, self.workers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Tie the random numbers of the step to its number, so that a resumed run draws the same ones."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch * 100_003 + batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a batch; None, which skips the step, where it is not finite."""
        class_logits, box_deltas = self.model(batch.images.contiguous(memory_format=torch.channels_last))
        anchors = self.model.anchors((batch.images.shape[2], batch.images.shape[3]))
        losses = detection_loss(
            class_logits, box_deltas, anchors, batch.boxes_xyxy, batch.labels, self.config.loss
        )
        if not bool(losses.total.isfinite()):
            self._skip("the loss is not finite", batch)
            # Under several devices every one must go through the backward pass: give a zero that touches all weights.
            return (
                None
                if self.trainer.world_size == 1
                else sum((p.nan_to_num() * 0).sum() for p in self.model.parameters())
            )
        shown = {"loss": losses.total, "class_loss": losses.classes, "box_loss": losses.boxes}
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in shown.items()}, batch_size=len(batch.indices)
        )
        self.log("loss", losses.total.detach(), prog_bar=True, logger=False, batch_size=len(batch.indices))
        return losses.total

    def _skip(self, why: str, batch: Batch) -> None:
        ids = [self.train_set.records.images[i].image_id for i in batch.indices.tolist()]
        message = f"epoch {self.current_epoch}, step {self.global_step}: {why}; step skipped, image ids {ids}"
        self.skipped.append(message)
        self.print(message)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm; where it is not finite, drop the gradient, so that the weights stay."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip or float("inf"), foreach=True)
        # Under fp16 the gradient scaler looks for overflows by itself and lowers its scale.
        if self.trainer.precision != "16-mixed" and not bool(norm.isfinite()):
            for parameter in parameters:
                parameter.grad = None
            message = f"epoch {self.current_epoch}, step {self.global_step}: gradient not finite; dropped"
            self.skipped.append(message)
            self.print(message)

    def configure_optimizers(self) -> Any:
        """SGD or AdamW, with warm-up and cosine by the step."""
        optimiser = build_optimiser(self.model, self.config)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(round(total * self.config.warmup_epochs / self.config.epochs), total // 2)
        schedule = LambdaLR(optimiser, lambda step: rate_factor(step, warmup, total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation's results."""
        self._results = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict as a user's prediction does, and keep the results."""
        if self.val_set is None:
            return
        class_logits, box_deltas = self.model(batch.images.contiguous(memory_format=torch.channels_last))
        anchors = self.model.anchors((batch.images.shape[2], batch.images.shape[3]))
        records = [self.val_set.records.images[i] for i in batch.indices.tolist()]
        sizes = torch.tensor([record.image_size for record in records], device=batch.scales.device)
        found = postprocess(
            class_logits, box_deltas, anchors, PostprocessSettings(), scales=batch.scales, image_sizes=sizes
        )
        self._results += batch_results(found, batch.indices.tolist(), self.val_set.records)

    def on_validation_epoch_end(self) -> None:
        """AP over all devices' results."""
        if self.val_set is None or self.trainer.sanity_checking:
            return
        results = self._results
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, results)
            results = list({str(row): row for part in gathered for row in part}.values())
        self.metrics = coco_metrics(ground_truth(self.val_set.records), results)
        self.log_dict(
            {
                "val/ap": self.metrics.ap, "val/ap50": self.metrics.ap50, "val/ap75": self.metrics.ap75,
                "val/ar100": self.metrics.ar100,
            }  # fmt: skip
        )
