"""Section 3 of the report: learned weights of fusions, their speed in one run, and how far their results agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.family import MODELS, ModelSpec
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import EPSILON, FUSIONS, Fusion
from efficientdet.research.explanation_figures import draw_fusion
from efficientdet.research.figures import save_figure
from efficientdet.research.learned_weights import fusion_rows
from efficientdet.research.markdown import spread, table
from efficientdet.research.peers import FAST_OVER_SOFTMAX
from efficientdet.research.timing import time_in_turns
from efficientdet.text import in_markdown
from efficientdet.weights.checkpoint import load_checkpoint, read_info
from efficientdet.weights.names import BUNDLED_FOLDER, bundled_names, find_weights

# The model whose feature network is timed and compared.
SPEC = MODELS["d0"]
ROUNDS = 40

# How raw weights of fast and of softmax are made from random numbers of 0.5 to 1.5, by what to call them.
RAW_WEIGHTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "all 1, as training starts": lambda raw: (torch.ones_like(raw), torch.ones_like(raw)),
    "different, with the same normalized weights": lambda raw: (raw, raw.log()),
    "the same, with different normalized weights": lambda raw: (raw, raw),
}


def fusions_section(out: Path, weights: str | None, device: str | None) -> str:
    """Draw learned weights into a folder, if there are any, and return the section.

    Args:
        out: the folder.
        weights: name or file of the checkpoint whose learned weights are shown; None for the bundled ones.
        device: where the fusions are timed, `cpu` or `cuda`; None for no timing.

    Raises:
        UnknownNameError: there are no such weights.
        WeightsError: the file is no checkpoint.
    """
    parts = ["## 3. Fusions\n", _learned(out, weights)]
    if device is not None:
        parts.append(_speed(fusion_times(SPEC, device)))
    parts.append(
        f"### Numerical agreement\n\nOutputs of {SPEC.name}'s feature network with fast normalized fusion beside those "
        "with softmax, for the same convolutions and noise as input. For the same normalized weights they differ by "
        f"fast's epsilon alone ({EPSILON:g}, added to the sum of the raw weights). The last row shows how much another "
        f"normalization of the same raw weights changes.\n\n{table(agreement(SPEC))}"
    )
    return "\n".join(parts)


def _learned(out: Path, weights: str | None) -> str:
    if weights is None:
        specs = {name: read_info(BUNDLED_FOLDER / f"{name}.safetensors").spec for name in bundled_names()}
        fusions = ", ".join(f"{name} ({spec.name}, fusion {spec.fusion})" for name, spec in specs.items())
        return (
            f"### Learned weights\n\nNone: the bundled models sum without weights, as lite, D6 and D7 do: {fusions}. "
            "`--weights CHECKPOINT` shows those of a checkpoint.\n"
        )
    network, info = load_checkpoint(find_weights(weights))
    name, spec, rows = Path(weights).stem, info.spec, fusion_rows(network.feature_network)
    title = f"### Learned weights of {in_markdown(name)}\n\n{spec.name}, {spec.feature_network}, fusion {spec.fusion}"
    if not any(row["is_learned"] for row in rows):
        return f"{title}: a plain sum, which learns no weights.\n"
    save_figure(draw_fusion(rows, f"{name}: share of each input", spec.fusion), out / "learned_weights.png")
    return f"{title}. Training starts from equal shares.\n\n![Learned weights](learned_weights.png)\n"


def build_models(spec: ModelSpec) -> dict[str, EfficientDet]:
    """Models that differ in the fusion alone, with the same random convolutions, by kind of fusion."""
    models = {}
    for kind in FUSIONS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models[kind] = EfficientDet(dataclasses.replace(spec, fusion=kind), 1).eval()
    return models


def noise_features(model: EfficientDet) -> list[Tensor]:
    """[P3, P4, P5], (1, C, h, w) each, of noise, in the shapes that the backbone gives."""
    size = model.spec.image_size
    with torch.no_grad():
        shapes = [feature.shape for feature in model.backbone(torch.zeros(1, 3, size, size))]
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def fusion_times(spec: ModelSpec, device: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of the feature network with each fusion, in turns, by kind of fusion."""
    models = build_models(spec)
    features = [
        x.to(device).contiguous(memory_format=torch.channels_last) for x in noise_features(next(iter(models.values())))
    ]
    networks = {
        kind: model.feature_network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for kind, model in models.items()
    }
    return time_in_turns({kind: partial(network, features) for kind, network in networks.items()}, device, rounds)


def _speed(found: Mapping[str, Sequence[float]]) -> str:
    ratios = {kind: [a / b for a, b in zip(values, found["fast"], strict=True)] for kind, values in found.items()}
    rows = [{"fusion": kind, "ms": spread(found[kind]), "over fast's": spread(ratios[kind])} for kind in found]
    return (
        f"### Speed\n\nThe feature network of {SPEC.name} in PyTorch: float32, batch 1, in rounds in which each fusion "
        "runs once. Median of the rounds, least and largest in brackets. On the paper's GPU, whole detectors with "
        f"softmax took {min(FAST_OVER_SOFTMAX)}-{max(FAST_OVER_SOFTMAX)} times as long as with fast; here the feature "
        f"network takes {median(ratios['softmax']):.2f} times as long. In exported files the normalized weights are "
        f"constants, so that the two cost the same.\n\n{table(rows)}"
    )


def agreement(spec: ModelSpec) -> list[dict[str, Any]]:
    """How far the outputs with fast fusion are from those with softmax.

    Returns:
        One row for each of `RAW_WEIGHTS`: the largest difference of a normalized weight; and the largest difference of
        an output on any level, over the largest output with softmax.
    """
    models = build_models(spec)
    fast, softmax, features = (
        models["fast"].feature_network,
        models["softmax"].feature_network,
        noise_features(models["fast"]),
    )
    pairs = list(zip(_fusions(fast), _fusions(softmax), strict=True))
    rows = []
    for name, make in RAW_WEIGHTS.items():
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for pair in pairs:
                raw = torch.rand(len(pair[0].weights), generator=generator) + 0.5  # type: ignore[arg-type]
                for fuse, values in zip(pair, make(raw), strict=True):
                    fuse.weights.copy_(values)  # type: ignore[union-attr]
            normalized = [[fuse.normalized_weights() for fuse in pair] for pair in pairs]
            ours, theirs = fast(features), softmax(features)
        largest = max(float(x.abs().max()) for x in theirs)
        rows.append(
            {
                "raw weights": name,
                "normalized weights differ by": f"{_difference(*zip(*normalized, strict=True)):.1e}",
                "outputs differ by": f"{_difference(ours, theirs) / largest:.1e}",
            }
        )
    return rows


def _difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def _fusions(network: nn.Module) -> list[Fusion]:
    return [module for module in network.modules() if isinstance(module, Fusion) and module.weights is not None]
