"""Attribution against finite differences and a network with one open way; detections traced to their anchors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efficientdet.boxes import decode_deltas
from efficientdet.errors import SettingError
from efficientdet.family import MODELS
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import letterbox
from efficientdet.inference.detector import Detector
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import Fusion
from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import build_topology
from efficientdet.research.attribution import attribute, level_contributions, strongest_path
from efficientdet.research.explanation import AnchorPlace, NothingFoundError, explain_detection, fusion_rows
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing, save_checkpoint

SPEC = dataclasses.replace(
    MODELS["lite0"], width=16, depth=2, head_depth=1, image_size=96, fusion="fast", activation="swish"
)
NAMES = ("cat", "dog", "owl")
Score = Callable[[list[Tensor]], Tensor]


def make_network(name: str, fusion: str, *, per_channel: bool = False, channels: int = 4) -> FeatureNetwork:
    """In double precision, with weights and statistics that are far from neutral."""
    torch.manual_seed(0)
    network = FeatureNetwork(
        (channels, 5, 6), build_topology(name, (3, 7)), 4, 2, fusion, "swish", "same", False, per_channel=per_channel
    )
    return randomised(network).double()


def randomised(network: FeatureNetwork) -> FeatureNetwork:
    for module in network.modules():
        if isinstance(module, Fusion) and module.weights is not None:
            nn.init.uniform_(module.weights, 0.2, 2.0)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def make_features(channels: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, width, side, side, generator=generator, dtype=torch.float64)
        for width, side in ((channels, 16), (5, 8), (6, 4))
    ]


def middle_of(level: int) -> Score:
    """A curved number that depends on one level's fused map."""
    return lambda fused: fused[level - 3][0, :, 0].square().sum() + fused[level - 3].mean()


def node_modules(network: FeatureNetwork) -> Iterator[tuple[int, NodeModule]]:
    for cell, nodes in enumerate(network.cells):
        for module in nodes.children():
            assert isinstance(module, NodeModule)
            yield cell, module


def slope(network: FeatureNetwork, features: list[Tensor], score: Score, hook: Callable[[float], Any]) -> float:
    """Central difference of the score by a factor 1 + step that a hook puts somewhere."""
    values = []
    for step in (1e-5, -1e-5):
        handle = hook(1 + step)
        with torch.no_grad():
            values.append(float(score(network([x.clone() for x in features]))))
        handle.remove()
    return (values[0] - values[1]) / 2e-5


@pytest.mark.parametrize(
    ("name", "fusion", "per_channel"),
    [("bifpn", "fast", False), ("nas-fpn", "softmax", True), ("panet", "none", False), ("fpn", "unbounded", False)],
)
def test_contributions_are_the_slopes_of_each_edge(name: str, fusion: str, per_channel: bool) -> None:
    network, features, score = make_network(name, fusion, per_channel=per_channel), make_features(), middle_of(5)
    edges = iter(attribute(network, features, score))
    for cell, module in node_modules(network):
        for number, read in enumerate(module.node.inputs):

            def scale_input(factor: float, fuse: nn.Module = module.fuse, number: int = number) -> Any:
                return fuse.register_forward_pre_hook(
                    lambda _, maps: ([x * factor if i == number else x * 1 for i, x in enumerate(maps[0])],)
                )

            edge = next(edges)
            assert (edge.cell, edge.node, edge.input, edge.number) == (cell, module.node.name, read, number)
            assert edge.contribution == pytest.approx(slope(network, features, score, scale_input), rel=1e-4, abs=1e-7)
    assert next(edges, None) is None


@pytest.mark.parametrize("fusion", ["fast", "softmax", "unbounded", "none"])
def test_the_edges_of_a_node_add_up_to_its_fused_map(fusion: str) -> None:
    network, features, score = make_network("bifpn", fusion), make_features(), middle_of(4)
    edges = attribute(network, features, score)
    for cell, module in node_modules(network):

        def scale_output(factor: float, fuse: nn.Module = module.fuse) -> Any:
            return fuse.register_forward_hook(lambda _, maps, fused: fused * factor)

        own = [edge for edge in edges if (edge.cell, edge.node) == (cell, module.node.name)]
        total = sum(edge.contribution for edge in own)
        assert total == pytest.approx(slope(network, features, score, scale_output), rel=1e-4, abs=1e-7)
        reaches = any(edge.contribution for edge in own)
        assert sum(edge.share for edge in own) == pytest.approx(1.0 if reaches else 0.0)


def test_one_open_way_is_named_and_all_else_is_nothing() -> None:
    """in6 > td6 > td5 > out5 in the first cell, in5 > out5 in the second: every other weight is 0."""
    network = make_network("bifpn", "unbounded")
    opened = {(0, "td6", "in6"), (0, "td5", "td6"), (0, "out5", "td5"), (1, "out5", "in5")}
    for cell, module in node_modules(network):
        assert isinstance(module.fuse, Fusion) and module.fuse.weights is not None
        with torch.no_grad():
            for number, read in enumerate(module.node.inputs):
                module.fuse.weights[number] = float((cell, module.node.name, read) in opened)
    edges = attribute(network, make_features(), middle_of(5))
    assert {(edge.cell, edge.node, edge.input) for edge in edges if edge.contribution != 0} == opened
    path, share = strongest_path(network.topology, edges, 5)
    assert [(edge.cell, edge.node, edge.input) for edge in path] == sorted(
        opened, key=lambda way: (way[0], ["td6", "td5", "out5"].index(way[1]))
    )
    assert share == 1.0
    levels = level_contributions(network.topology, edges)
    assert [level for level, (part, _) in levels.items() if part != 0] == [6]
    assert levels[6][1] == 1.0


def test_level_contributions_are_gradient_times_feature() -> None:
    network = make_network("bifpn", "fast", channels=4)  # P3 has the network's width: nothing lies before its nodes
    features, score = make_features(), middle_of(6)
    edges = attribute(network, features, score)
    leaves = [x.clone().requires_grad_() for x in features]
    (gradient,) = torch.autograd.grad(score(network(leaves)), leaves[:1])
    levels = level_contributions(network.topology, edges)
    assert levels[3][0] == pytest.approx(float((gradient * features[0]).sum()), rel=1e-9)
    assert sum(share for _, share in levels.values()) == pytest.approx(1.0)


def test_the_strongest_path_is_the_best_of_all() -> None:
    network = make_network("bifpn", "fast")
    edges = attribute(network, make_features(), middle_of(6))
    outputs = dict(zip((f"in{level}" for level in range(3, 8)), network.topology.outputs(), strict=True))

    def products(cell: int, name: str) -> Iterator[float]:
        if name in outputs:
            yield from (products(cell - 1, outputs[name]) if cell else iter([1.0]))
            return
        for edge in edges:
            if (edge.cell, edge.node) == (cell, name):
                yield from (edge.share * rest for rest in products(cell, edge.input))

    every = list(products(1, "out6"))
    path, share = strongest_path(network.topology, edges, 6)
    assert share == pytest.approx(max(every))
    assert sum(every) == pytest.approx(1.0)
    assert np.prod([edge.share for edge in path]) == pytest.approx(share)
    assert path[0].cell == 0 and path[0].input.startswith("in") and path[-1].node == "out6"


# ---- detections
@pytest.fixture(scope="module")
def picture() -> RgbImage:
    return np.random.default_rng(3).integers(0, 256, (130, 170, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A network with random weights that sees many things everywhere."""
    torch.manual_seed(2)
    model = EfficientDet(SPEC, len(NAMES))
    randomised(model.feature_network)
    with torch.no_grad():
        for head in (model.class_head, model.box_head):
            assert head.predict.pointwise.bias is not None
            head.predict.pointwise.bias.fill_(0)
        model.class_head.predict.pointwise.weight.mul_(3)
        model.box_head.predict.pointwise.weight.mul_(0.5)
    info = CheckpointInfo(SPEC, NAMES, (1, 2, 3), default_preprocessing(SPEC))
    return Detector(model, info, device="cpu", max_candidates=400)


@pytest.mark.parametrize("nms", ["hard", "soft", "matrix", "wbf"])
def test_a_detection_is_traced_to_the_outputs_at_its_anchor(detector: Detector, picture: RgbImage, nms: str) -> None:
    predictions = detector.predict(picture, nms=nms)
    canvas, scale = letterbox(picture, detector.image_size, detector.info.preprocessing)
    with torch.no_grad():
        class_logits, box_deltas = detector.model(torch.from_numpy(canvas)[None])
    levels = set()
    for index in range(0, min(len(predictions), 40), 13):
        found = explain_detection(detector, picture, index, nms=nms)
        place, label = found.anchor, NAMES.index(found.class_name)
        levels.add(place.level)
        assert found.box_xyxy == pytest.approx(predictions.boxes_xyxy[index].tolist(), abs=1e-2)
        assert found.score == pytest.approx(float(predictions.scores[index]), abs=1e-5)
        assert label == predictions.labels[index]
        side = round(96 / place.stride[0])
        row = (((place.row * side + place.column) * 3) + place.octave) * 3 + SPEC.aspects.index(place.aspect)
        logits = class_logits[place.level - 3][0, row]
        assert found.logit == pytest.approx(float(logits[label]), abs=1e-4)
        best = sorted(zip(logits.sigmoid().tolist(), NAMES, strict=True), reverse=True)
        assert found.classes == tuple((name, pytest.approx(p, abs=1e-5)) for p, name in best)
        assert_is_the_anchor(place, scale)
        anchor = torch.tensor([place.box_xyxy])
        box = decode_deltas(box_deltas[place.level - 3][0, row][None], anchor)[0].clamp(min=0)
        box = torch.minimum(box, torch.tensor([170.0, 130.0, 170.0, 130.0]))
        if nms != "wbf":
            assert found.box_xyxy == pytest.approx(box.tolist(), abs=1e-2)
        if nms in ("hard", "wbf"):
            assert found.score == pytest.approx(float(logits[label].sigmoid()), abs=1e-5)
    assert len(levels) > 1


def assert_is_the_anchor(place: AnchorPlace, scale: float) -> None:
    """The anchor stands on the middle of its cell, with its size."""
    left, top, right, bottom = place.box_xyxy
    middle = [(a + b) / 2 for a, b in zip(place.cell_xyxy[:2], place.cell_xyxy[2:], strict=True)]
    assert [(left + right) / 2, (top + bottom) / 2] == pytest.approx(middle, abs=1e-3)
    side = SPEC.anchor_scale * place.stride[0] * 2 ** (place.octave / 3) / scale
    assert [right - left, bottom - top] == pytest.approx([side * place.aspect[0], side * place.aspect[1]], rel=1e-4)
    assert place.cell_xyxy[0] == pytest.approx(place.column * place.stride[1] / scale)


def test_suppressed_candidates_are_those_that_come_back_without_suppression(
    detector: Detector, picture: RgbImage
) -> None:
    everything = detector.predict(picture, iou_threshold=1.0, max_detections=400)
    found = explain_detection(detector, picture)
    left, top, right, bottom = everything.boxes_xyxy.T
    x = np.clip(np.minimum(right, found.box_xyxy[2]) - np.maximum(left, found.box_xyxy[0]), 0, None)
    y = np.clip(np.minimum(bottom, found.box_xyxy[3]) - np.maximum(top, found.box_xyxy[1]), 0, None)
    own = (found.box_xyxy[2] - found.box_xyxy[0]) * (found.box_xyxy[3] - found.box_xyxy[1])
    iou = x * y / ((right - left) * (bottom - top) + own - x * y)
    same = everything.labels == NAMES.index(found.class_name)
    assert found.suppressed == int((same & (iou > 0.5)).sum()) - 1 > 0


def test_the_model_is_left_as_it_was(detector: Detector, picture: RgbImage) -> None:
    model = detector.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = explain_detection(detector, picture)
    assert any(edge.contribution for edge in found.edges)
    assert not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_score_fails() -> None:
    network = make_network("bifpn", "fast")

    def fails(_: list[Tensor]) -> Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        attribute(network, make_features(), fails)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_what_cannot_be_explained_is_said(detector: Detector, picture: RgbImage) -> None:
    with pytest.raises(NothingFoundError, match=r"scores 1 or more; the best of all anchors is at 0\.\d+: lower"):
        explain_detection(detector, picture, score_threshold=1.0)
    count = len(detector.predict(picture))
    with pytest.raises(SettingError, match=f"detection {count}: the picture has {count}, numbered 0 to {count - 1}"):
        explain_detection(detector, picture, count)


# ---- fusion weights
def test_rows_tell_weights_shares_and_what_is_pooled() -> None:
    rows = fusion_rows(make_network("nas-fpn", "unbounded"))
    by_node = {(row["cell"], row["node"], row["input"]): row for row in rows}
    assert not by_node[0, "a", "in6 & in4"]["is_learned"]
    network = make_network("nas-fpn", "unbounded")
    fuse = network.cells[1]["out5"].fuse
    assert isinstance(fuse, Fusion) and fuse.weights is not None
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor([-1.0, 3.0]))
    own = {row["input"]: row for row in fusion_rows(network) if (row["cell"], row["node"]) == (1, "out5")}
    assert {name: (row["weight"], row["share"]) for name, row in own.items()} == {
        "in5": (-1.0, 0.25), "out4 & out3": (3.0, 0.75),
    }  # fmt: skip


def test_weights_of_channels_are_averaged() -> None:
    network = make_network("bifpn", "unbounded", per_channel=True)
    fuse = network.cells[0]["td6"].fuse
    assert isinstance(fuse, Fusion) and fuse.weights is not None
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor([[1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 1.0, 1.0]]).reshape(2, 4, 1, 1))
    first, second = (row for row in fusion_rows(network) if (row["cell"], row["node"]) == (0, "td6"))
    assert (first["weight"], first["share"]) == (3.0, 0.75)
    assert (second["weight"], second["share"]) == (1.0, 0.25)


# ---- pictures and the command
def test_the_heat_map_shows_every_number(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from efficientdet.research.explanation_figures import draw_fusion, save_figure

    rows = fusion_rows(make_network("bifpn", "fast"))
    figure = draw_fusion(rows, "title", "fast")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(words) == sorted(word for row in rows for word in (f"{row['share']:.2f}", row["input"]))
    save_figure(figure, tmp_path / "made" / "heat.png")
    assert (tmp_path / "made" / "heat.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingError, match=r"\.bmp.*\.png, \.svg"):
        save_figure(figure, tmp_path / "heat.bmp")


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    import efficientdet.cli.explain  # noqa: F401
    from efficientdet import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["efficientdet", "explain", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return int(code), *capsys.readouterr()

    return run


@pytest.fixture
def files(detector: Detector, picture: RgbImage, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with learned weights, and a picture."""
    from PIL import Image

    save_checkpoint(tmp_path / "model.safetensors", detector.model.state_dict(), detector.info)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    return tmp_path / "model.safetensors", tmp_path / "photo.png"


Run = Callable[..., tuple[int, str, str]]


def test_explain_writes_drawings_and_json(explain: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = explain(*files, "--detection", 1, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    report = json.loads(out)
    names = ["detection-1-cell-0.svg", "detection-1-cell-1.svg", "detection-1.png", "fusion.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(Path(path).name for path in report["written"]) == names
    assert len(report["rows"]) == len(report["detection"]["edges"]) == 2 * 19
    assert {"level", "contribution", "share"} <= set(report["detection"]["levels"][0])
    drawing = (tmp_path / "out" / names[0]).read_text()
    for edge in report["detection"]["edges"]:
        if edge["cell"] == 0:
            assert f">{edge['share']:.2f}</text>" in drawing


def test_explain_prints_tables(explain: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = explain(*files, "--out", tmp_path / "out")
    assert code == 0, err
    assert "detection 0 in photo.png" in out and "strongest path" in out and "candidates suppressed" in out


def test_explain_says_when_nothing_is_found(explain: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = explain(*files, "--score-threshold", 1, "--out", tmp_path / "out")
    assert code == 1
    assert "photo.png: no detection scores 1 or more" in err


def test_plain_sums_have_nothing_to_draw(explain: Run, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, fusion="none", depth=1)
    weights = tmp_path / "plain.safetensors"
    info = CheckpointInfo(spec, NAMES, (1, 2, 3), default_preprocessing(spec))
    save_checkpoint(weights, EfficientDet(spec, len(NAMES)).state_dict(), info)
    code, out, err = explain(weights, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "fusion 'none'" in out and "same share by construction" in out
    assert not (tmp_path / "out").exists()
