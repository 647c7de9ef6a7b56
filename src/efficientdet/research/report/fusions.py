"""Section 3 of the report: the fusions' learned weights, their speed in one run, and how far their results agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.family import MODELS, ModelSpec
from efficientdet.network.backbones import build_backbone
from efficientdet.network.fusion import EPSILON, FUSIONS, Fusion
from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import spec_topology
from efficientdet.research.draw_topology import learned_weights
from efficientdet.research.peers import FAST_OVER_SOFTMAX
from efficientdet.research.report import figures
from efficientdet.research.report.markdown import table
from efficientdet.research.scaling import milliseconds
from efficientdet.research.spread import Spread
from efficientdet.weights.checkpoint import load_checkpoint, read_info
from efficientdet.weights.names import BUNDLED_FOLDER, bundled_names, find_weights

ROUNDS = 40


def fusions_section(
    out: Path, weights: str | None, device: str | None, where: str, spec: ModelSpec | None = None, rounds: int = ROUNDS
) -> str:
    """Write the pictures, and give the section.

    Args:
        out: folder of the pictures.
        weights: name or file of a checkpoint whose learned weights are shown; None for the bundled ones.
        device: where the fusions are timed, `cpu` or `cuda`; None for no timing.
        where: the machine, for the heading.
        spec: the feature network that is timed and compared; D0's when None.
        rounds: how many times each fusion is timed.

    Raises:
        UnknownNameError: there are no such weights.
        WeightsError: the file is no checkpoint of ours.
    """
    spec = spec or MODELS["d0"]
    parts = ["## 3. Fusions\n", _learned(out, weights)]
    if device is not None:
        parts.append(_speed(out, spec, device, where, rounds))
    parts.append(_agreement(spec))
    return "\n".join(parts)


def learned_rows(network: FeatureNetwork) -> list[dict[str, Any]]:
    """One row for each node that has weights: its share of each input, in the order that it reads them."""
    rows = []
    for number, cell in enumerate(node_shares(network)):
        for node, inputs in cell.items():
            shown = ", ".join(f"{name} {share:.3f}" for name, share in inputs.items())
            rows.append({"cell": number, "node": node, "share of each input": shown})
    return rows


def node_shares(network: FeatureNetwork) -> list[dict[str, dict[str, float]]]:
    """For each cell, node -> input -> share, of the nodes that have learned weights."""
    cells = []
    for number, cell in enumerate(network.cells):
        by_edge = learned_weights(network, number)
        cells.append(
            {
                name: {read: by_edge[name, i] for i, read in enumerate(module.node.inputs)}
                for name, module in cell.named_children()
                if isinstance(module, NodeModule)
                and isinstance(module.fuse, Fusion)
                and module.fuse.weights is not None
                and len(module.fuse.weights) == len(module.node.inputs)
            }
        )
    return cells


def _learned(out: Path, weights: str | None) -> str:
    if weights is None:
        fusions = {name: read_info(BUNDLED_FOLDER / f"{name}.safetensors").spec for name in bundled_names()}
        without = [f"{name} ({spec.name}, fusion {spec.fusion})" for name, spec in fusions.items()]
        return (
            "### Learned weights\n\nNone to show: the models in the package sum without weights, as lite, D6 and D7 "
            f"do: {', '.join(without) or 'there are none'}. `--weights CHECKPOINT` shows those of one that has some.\n"
        )
    network, info = load_checkpoint(find_weights(weights))
    cells = node_shares(network.feature_network)
    title = f"### Learned weights of {Path(weights).stem}\n\n"
    spec = info.spec
    if not any(cells):
        return f"{title}None: {spec.name} sums with fusion {spec.fusion}, which learns none.\n"
    figures.save(
        figures.shares(f"{Path(weights).stem}: share of each input ({spec.fusion})", cells), out / "learned_weights"
    )
    kind = "weight over the sum of the node's weights" if spec.fusion == "unbounded" else "normalized weight"
    return (
        f"{title}{spec.name}, {spec.feature_network}, fusion {spec.fusion}: {kind} of each input"
        f"{', the mean over channels' if spec.fusion_per_channel else ''}. Training starts from equal shares.\n\n"
        f"{table(learned_rows(network.feature_network))}\n![Learned weights](learned_weights.png)\n"
    )


def build_networks(spec: ModelSpec, kinds: Sequence[str] = FUSIONS) -> dict[str, FeatureNetwork]:
    """Feature networks of a spec that differ in the fusion alone: the same random convolutions, ready to run."""
    with torch.device("meta"):
        channels = build_backbone(spec).channels
    networks = {}
    for kind in kinds:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            networks[kind] = FeatureNetwork(
                channels, spec_topology(spec), spec.width, spec.depth, kind, spec.activation, spec.padding,
                spec.redundant_bias, separable=spec.separable, per_channel=spec.fusion_per_channel,
            ).eval()  # fmt: skip
    return networks


def random_features(spec: ModelSpec) -> list[Tensor]:
    """[P3, P4, P5] of noise, as the spec's backbone would give them for one picture."""
    with torch.device("meta"):
        channels = build_backbone(spec).channels
    generator = torch.Generator().manual_seed(1)
    sizes = [math.ceil(spec.image_size / stride) for stride in spec.strides]
    return [torch.randn(1, c, size, size, generator=generator) for c, size in zip(channels, sizes, strict=False)]


def fusion_times(spec: ModelSpec, device: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of the feature network with each fusion, in turns: A B C D, A B C D, ...

    The order turns by one every round, so that none is always the one after another; the first two rounds are dropped.
    """
    networks = {
        kind: network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for kind, network in build_networks(spec).items()
    }
    features = [x.to(device).contiguous(memory_format=torch.channels_last) for x in random_features(spec)]
    kinds = list(networks)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with torch.inference_mode():
        for number in range(rounds + 2):
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                network = networks[kind]
                found[kind].append(milliseconds(lambda network=network: network(features), device))  # type: ignore[misc]
    return {kind: values[2:] for kind, values in found.items()}


def _speed(out: Path, spec: ModelSpec, device: str, where: str, rounds: int) -> str:
    found = fusion_times(spec, device, rounds)
    ratios = {
        kind: Spread.of([a / b for a, b in zip(values, found["fast"], strict=True)]) for kind, values in found.items()
    }
    rows = [
        {"fusion": kind, "ms": str(Spread.of(values)), "time over fast's, round by round": str(ratios[kind])}
        for kind, values in found.items()
    ]
    pictured = {kind: (ratio.median, *_quartiles(found[kind], found["fast"])) for kind, ratio in ratios.items()}
    figures.save(
        figures.bars(f"Time over fast normalized fusion's ({spec.name})\n{where}", "ratio, middle half of the rounds",
                     pictured),
        out / "fusion_speed",
    )  # fmt: skip
    low, high = min(FAST_OVER_SOFTMAX), max(FAST_OVER_SOFTMAX)
    return (
        f"### Speed\n\n{where}. The feature network of {spec.name} alone, float32, batch 1, {rounds} rounds in which "
        "each fusion runs once: median, in brackets the least and the largest. The paper measured softmax to take "
        f"{low:.2f}-{high:.2f} times as long as fast on its GPU, for whole detectors: published, not comparable with "
        f"this machine. Here the median ratio is **{ratios['softmax'].median:.2f}**. A softmax over two or three "
        "numbers is one small call, relu, sum and division are three; both vanish beside the maps that they weigh, and "
        f"an engine folds either into constants once trained.\n\n{table(rows)}\n"
        "![Speed of the fusions](fusion_speed.png)\n"
    )


def _quartiles(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    ratios = sorted(a / b for a, b in zip(values, base, strict=True))
    return ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]


def agreement(spec: ModelSpec) -> list[dict[str, Any]]:
    """How far the outputs with fast fusion lie from those with softmax, for some settings of the raw weights.

    Returns:
        Rows: the largest difference of any value on any level, over the largest value with softmax; and the largest
        difference of a normalized weight.
    """
    networks = build_networks(spec, ("fast", "softmax"))
    features = random_features(spec)
    rows = []
    for name, setting in WEIGHT_SETTINGS.items():
        generator = torch.Generator().manual_seed(2)
        pairs = list(zip(_fusions(networks["fast"]), _fusions(networks["softmax"]), strict=True))
        with torch.no_grad():
            for fast, softmax in pairs:
                raw = torch.rand(fast.shape, generator=generator) + 0.5
                for parameter, values in zip((fast, softmax), setting(raw), strict=True):
                    parameter.copy_(values)
            outputs = {kind: network(features) for kind, network in networks.items()}
            weights_apart = max(
                float((fast.relu() / (fast.relu().sum(0) + EPSILON) - softmax.softmax(0)).abs().max())
                for fast, softmax in pairs
            )
        apart = max(float((a - b).abs().max()) for a, b in zip(outputs["fast"], outputs["softmax"], strict=True))
        largest = max(float(x.abs().max()) for x in outputs["softmax"])
        rows.append(
            {
                "raw weights": name,
                "normalized weights differ by": f"{weights_apart:.1e}",
                "outputs differ by, relative": f"{apart / largest:.1e}",
            }
        )
    return rows


def _equal(raw: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(raw), torch.ones_like(raw)


def _same_normalized(raw: Tensor) -> tuple[Tensor, Tensor]:
    return raw, raw.log()


def _same_raw(raw: Tensor) -> tuple[Tensor, Tensor]:
    return raw, raw


# From random numbers of 0.5 to 1.5 to the raw weights of fast and of softmax.
WEIGHT_SETTINGS = {
    "all 1, as training starts": _equal,
    "random; softmax's the logarithms of fast's, so that both normalize to the same": _same_normalized,
    "random and the same for both, so that they normalize to different weights": _same_raw,
}


def _fusions(network: nn.Module) -> list[nn.Parameter]:
    """The raw weights of every node that has some."""
    return [m.weights for m in network.modules() if isinstance(m, Fusion) and m.weights is not None]


def _agreement(spec: ModelSpec) -> str:
    return (
        f"### Numerical agreement\n\nOutputs of {spec.name}'s feature network with fast normalized fusion beside those "
        f"with softmax, with the same convolutions, for noise as input. For the same normalized weights they may "
        f"differ by fast's epsilon alone ({EPSILON:g} over the sum of the raw weights, in each of {spec.depth} cells "
        f"one after the other). The last row shows what another normalization of the same raw weights is worth.\n\n"
        f"{table(agreement(spec))}"
    )
