"""Facts about models: tables for the terminal, and model cards in markdown."""

from __future__ import annotations

import os
from typing import Any

from efficientdet.family import PUBLISHED, PUBLISHED_AP, ModelSpec
from efficientdet.network.anchors import level_sizes
from efficientdet.network.backbones import backbone_title
from efficientdet.network.count import count
from efficientdet.network.efficientdet import COCO_SLOTS
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing, read_info
from efficientdet.weights.coco_classes import COCO_CLASS_NAMES
from efficientdet.weights.names import BUNDLED_FOLDER, bundled_names, cached_path
from efficientdet.weights.registry import LICENSE, RELEASED

# Settings of a training run that say nothing about its result.
UNINTERESTING = ("workers", "cache", "device", "devices", "save_every", "evaluate_every", "allow_no_boxes")
SHOWN_METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def spec_facts(spec: ModelSpec, num_classes: int = COCO_SLOTS) -> dict[str, Any]:
    """A network's layers, anchors, parameters and multiply-adds; the numbers are counted from the code."""
    parameters, multiply_adds = count(spec, num_classes)
    size = (spec.image_size, spec.image_size)
    positions = sum(height * width for height, width in level_sizes(size, spec.levels))
    return {
        "network": spec.name,
        "backbone": backbone_title(spec.backbone),
        "feature network": f"{spec.feature_network}, {spec.depth} cells of {spec.width} channels, fusion {spec.fusion}",
        "heads": f"{spec.head_depth} convolutions before the last",
        "input": f"{spec.image_size} x {spec.image_size} (any other size runs)",
        "strides": ", ".join(map(str, spec.strides)),
        "anchors": f"{positions * spec.anchors_per_cell} (scale {spec.anchor_scale:g}, {spec.octaves} octaves, "
        f"aspects {', '.join(f'{w:.3g}:{h:.3g}' for w, h in spec.aspects)})",
        "parameters": f"{parameters:,}",
        "multiply-adds": f"{multiply_adds / 1e9:.2f} G at the input above, convolutions only",
        "classes": num_classes,
    }


def checkpoint_facts(info: CheckpointInfo) -> dict[str, Any]:
    """`spec_facts` of a checkpoint's network, with its classes, preprocessing, metrics and license."""
    names = info.class_names
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    pre = info.preprocessing
    facts = spec_facts(info.spec, len(names)) | {
        "classes": shown,
        "preprocessing": f"mean {[round(m, 2) for m in pre.mean]}, std {[round(s, 2) for s in pre.std]}, "
        f"resize {pre.resize}",
        "post-processing": ", ".join(f"{k} {v}" for k, v in info.postprocess.items()) or "the defaults",
    }
    facts |= {f"{name}": round(info.metrics[name], 4) for name in SHOWN_METRICS if name in info.metrics}
    facts |= dict(info.about)
    return facts


def released_facts(spec: ModelSpec) -> dict[str, Any]:
    """`spec_facts` of a member of the family for COCO, with the published figures."""
    pre = default_preprocessing(spec)
    named = sum(not name.startswith("unused-") for name in COCO_CLASS_NAMES)
    published = {}
    if spec.name in PUBLISHED:
        parameters, multiply_adds = PUBLISHED[spec.name]
        published["published"] = (
            f"{parameters:,} parameters, {multiply_adds / 1e9:.2f} G multiply-adds, AP {PUBLISHED_AP[spec.name]}"
        )
    return (
        spec_facts(spec)
        | published
        | {
            "classes": f"COCO: {COCO_SLOTS} slots, {named} of them in use",
            "preprocessing": f"mean {[round(m, 2) for m in pre.mean]}, std {[round(s, 2) for s in pre.std]}",
        }
    )


def model_card(name: str, info: CheckpointInfo) -> str:
    """A model card in markdown: what the model detects, how to use it, data, license, metrics, recipe, limits."""
    facts = checkpoint_facts(info)
    about = facts.pop("license", "not stated"), facts.pop("data", "not stated"), facts.pop("note", "")
    source = facts.pop("source", "")
    per_class: dict[str, float | None] = info.metrics.get("per_class") or {}
    training = {key: value for key, value in info.training.items() if key not in UNINTERESTING}
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    lines = [
        f"# {name}",
        "",
        f"An EfficientDet ({info.spec.name}) that detects: {facts['classes']}.",
        "",
        "```python",
        "import efficientdet as ed",
        f'detections = ed.load("{name}").predict("photo.jpg")',
        "```",
        "",
        "| | |",
        "|---|---|",
        rows,
        "",
        f"**License of the weights:** {about[0]}",
        "",
        f"**Data:** {about[1]}",
        "",
    ]
    if source:
        lines += [f"**Recipe:** `{source}`", ""]
    if per_class:
        cells = ", ".join(f"{label} {'-' if value is None else round(value, 3)}" for label, value in per_class.items())
        where = f" ({info.metrics['data']})" if "data" in info.metrics else ""
        lines += [f"**AP by class**{where}: {cells}", ""]
    if about[2]:
        lines += [f"**Limits:** {about[2]}", ""]
    if training:
        lines += ["<details><summary>Settings of the training run</summary>", ""]
        lines += [f"- {key}: {value}" for key, value in training.items()]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def bundled_rows() -> list[dict[str, Any]]:
    """One row for each bundled model, from its metadata."""
    rows = []
    for name in bundled_names():
        info = read_info(BUNDLED_FOLDER / f"{name}.safetensors")
        rows.append(
            {
                "name": name,
                "network": info.spec.name,
                "classes": ", ".join(info.class_names),
                "input": info.spec.image_size,
                "AP": _rounded(info.metrics.get("ap")),
                "AP50": _rounded(info.metrics.get("ap50")),
            }
        )
    return rows


def released_rows() -> list[dict[str, Any]]:
    """One row for each released file: the AP that its publisher states, and whether the cache has it."""
    return [
        {
            "name": row.name,
            "AP val2017 (stated)": row.ap,
            "license": LICENSE,
            "cached": "yes" if os.path.isfile(cached_path(row.name)) else "no",
        }
        for row in RELEASED.values()
    ]


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 3)
