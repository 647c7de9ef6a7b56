"""Facts about models: tables for the terminal, and model cards in markdown, with which they go to the Hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from efficientdet.errors import WeightsError, as_error
from efficientdet.family import PUBLISHED, PUBLISHED_AP, ModelSpec, level_sizes
from efficientdet.images.letterbox import Preprocessing
from efficientdet.network.backbones import backbone_title
from efficientdet.network.count import count
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.text import in_markdown, printable
from efficientdet.weights.checkpoint import read_info, save_checkpoint
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.names import (
    BUNDLED_FOLDER,
    CARD_NAME,
    FILE_NAME,
    HUB_PREFIX,
    bundled_names,
    cached_path,
    parse_hub_name,
)
from efficientdet.weights.registry import COCO_CATEGORIES, LICENSE, RELEASED

# Settings of a training run that say nothing about its result.
UNINTERESTING = ("workers", "cache", "device", "devices", "save_every", "evaluate_every", "allow_no_boxes")
# Of the licenses that the Hugging Face Hub knows, those that weights usually have; others are called `other` there.
LICENSES = (
    "apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
)  # fmt: skip
HUB_METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
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
    return {
        **spec_facts(info.spec, len(names)),
        "classes": ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else ""),
        "preprocessing": _describe(info.preprocessing),
        "post-processing": ", ".join(f"{k} {v}" for k, v in info.postprocess.items()) or "the defaults",
        **{name: _rounded(info.metrics[name], 4) for name in SHOWN_METRICS if name in info.metrics},
        **info.about,
    }


def released_facts(spec: ModelSpec) -> dict[str, Any]:
    """`spec_facts` of a member of the family for COCO, with the published figures."""
    facts = spec_facts(spec)
    if spec.name in PUBLISHED:
        parameters, multiply_adds = PUBLISHED[spec.name]
        figures = f"{parameters:,} parameters, {multiply_adds / 1e9:.2f} G multiply-adds, AP {PUBLISHED_AP[spec.name]}"
        facts["published"] = figures
    facts["classes"] = f"COCO: {COCO_SLOTS} slots, {len(COCO_CATEGORIES)} of them in use"
    facts["preprocessing"] = _describe(default_preprocessing(spec))
    return facts


def _describe(preprocessing: Preprocessing) -> str:
    mean, std = ([round(number, 2) for number in numbers] for numbers in (preprocessing.mean, preprocessing.std))
    return f"mean {mean}, std {std}, resize {preprocessing.resize}"


def model_card(name: str, info: CheckpointInfo) -> str:
    """A model card in markdown: what the model detects, how to use it, data, license, metrics, recipe, limits.

    It begins with the facts by which the Hugging Face Hub finds and shows a model, as YAML.
    """
    facts = {key: in_markdown(value) for key, value in checkpoint_facts(info).items()}
    license, data, _, note = (facts.pop(key, "") for key in ("license", "data", "source", "note"))
    recipe = printable(info.about.get("source", ""), 2000).replace("`", "'")
    per_class = info.metrics.get("per_class")
    classes = per_class.items() if isinstance(per_class, dict) else ()
    training = {key: value for key, value in info.training.items() if key not in UNINTERESTING}
    on = f" ({in_markdown(info.metrics['data'])})" if "data" in info.metrics else ""
    sections = [
        f"# {in_markdown(name)}",
        f"An EfficientDet ({in_markdown(info.spec.name)}) that detects: {facts['classes']}.",
        f'```python\nimport efficientdet as ed\n\ndetections = ed.load("{printable(name)}").predict("photo.jpg")\n```',
        "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]),
        f"**License of the weights:** {license or 'not stated'}",
        f"**Data:** {data or 'not stated'}",
        recipe and f"**Recipe:** `{recipe}`",
        classes and f"**AP by class**{on}: " + ", ".join(f"{in_markdown(k)} {_rounded(v) or '-'}" for k, v in classes),
        note and f"**Limits:** {note}",
        training and "<details><summary>Settings of the training run</summary>",
        "\n".join(f"- {in_markdown(key)}: {in_markdown(value)}" for key, value in training.items()),
        training and "</details>",
    ]
    return f"---\n{_front_matter(name, info)}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(name: str, info: CheckpointInfo) -> str:
    """The facts that the Hugging Face Hub reads: task, library, license, dataset, results."""
    from huggingface_hub import EvalResult, ModelCardData

    license = info.about.get("license", "")
    is_known = license.lower() in LICENSES
    split = printable(info.metrics.get("data", ""))
    dataset = split.partition(",")[0]
    results = [
        EvalResult(
            "object-detection",
            dataset,
            split,
            "mean_average_precision",
            _rounded(info.metrics[key], 4),
            metric_name=shown,
        )
        for key, shown in HUB_METRICS.items()
        if split and isinstance(info.metrics.get(key), (int, float))
    ]
    return ModelCardData(
        pipeline_tag="object-detection",
        library_name="efficientdet",
        license=license.lower() if is_known else "other" if license else None,
        license_name=printable(license) if license and not is_known else None,
        datasets=[dataset] if dataset else None,
        tags=["efficientdet", "object-detection", printable(info.spec.name)],
        model_name=printable(name.removeprefix("hf://")) if results else None,
        eval_results=results or None,
    ).to_yaml()


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


def _rounded(value: Any, digits: int = 3) -> float | None:
    return round(value, digits) if isinstance(value, (int, float)) else None


def push_to_hub(checkpoint: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a checkpoint with its model card in one commit. A repository that does not exist is made.

    Args:
        checkpoint: a checkpoint of ours.
        repository: `owner/repo`.
        private: make a new repository private.

    Returns:
        The address of the commit.

    Raises:
        WeightsError: the file is not a checkpoint of ours, you are not logged in or not allowed, or the hub cannot be
            reached; says which.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    parse_hub_name(HUB_PREFIX + repository)
    card = model_card(HUB_PREFIX + repository, read_info(checkpoint))
    with as_error(WeightsError, f"{repository}: cannot be uploaded"):
        files = [CommitOperationAdd(FILE_NAME, str(checkpoint)), CommitOperationAdd(CARD_NAME, card.encode())]
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message="Upload a checkpoint of efficientdet")
    return str(commit.commit_url)


def push_network(network: EfficientDet, info: CheckpointInfo, repository: str, *, private: bool = False) -> str:
    """Upload a network with its facts; see `push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE_NAME
        save_checkpoint(file, network.state_dict(), info)
        return push_to_hub(file, repository, private=private)
