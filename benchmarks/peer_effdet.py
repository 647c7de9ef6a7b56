"""The effdet package's side of training: runs in effdet's own environment; run.py starts it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from conversation import Measure, serve, timed_total  # type: ignore[import-not-found, unused-ignore]
from effdet import DetBenchTrain  # type: ignore[import-not-found, unused-ignore]
from effdet_side import build, layout, versions  # type: ignore[import-not-found, unused-ignore]
from training_batch import training_batch


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimizer."""
    model = DetBenchTrain(build(case), create_labeler=True).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case["learning_rate"], momentum=0.9, weight_decay=4e-5, foreach=True
    )
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=layout(case))
    # effdet takes (y, x, y, x), and counts classes from 1.
    target = {"bbox": boxes_xyxy[..., [1, 0, 3, 2]].contiguous(), "cls": labels + 1}

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            loss = model(pixels, target)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`."""
    measure, facts = training(case)
    return measure, {**facts, "versions": versions(), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
