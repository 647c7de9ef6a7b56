"""What `make bench` measures, as a list: one row a case, one more row for one more side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

NUM_CLASSES = 90
# The family by cost; the last three take minutes and gigabytes: `--all-sizes`.
GROWTH = ("d0", "d1", "d2", "d3", "d4")
LARGE = ("d5", "d6", "d7")


@dataclass(frozen=True)
class Side:
    """One thing that is measured.

    Attributes:
        label: how the report calls it.
        program: this package's own benchmark, `engine`, or ours.py, `ours`; effdet in this package's benchmark,
            `effdet`, or peer_effdet.py, `peer`.
        settings: what its process is told besides the case's settings.
        group: peers of the same group race; the fastest stands for them, and ours of that group are compared to it.
        beside: groups of peers that one of ours is compared to, besides its own.
        is_same: whether it is to find the same as the peer, to rounding.
    """

    label: str
    program: str
    settings: dict[str, Any] = field(default_factory=dict)
    group: str = "eager"
    beside: tuple[str, ...] = ()
    is_same: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peer's environment."""
        return self.program in ("effdet", "peer")


@dataclass(frozen=True)
class Case:
    """Sides that are measured in turns.

    Attributes:
        task: the section of the report.
        title: heading in the report.
        settings: what every side is told; `quick` settings go over them in a quick run.
        sides: ours and the peer's.
        rounds: how often the sides take turns.
        iterations: measured at a time.
        seconds: no round begins later than this, though three are measured.
        quick: for a quick run.
    """

    task: str
    title: str
    settings: dict[str, Any]
    sides: tuple[Side, ...]
    rounds: int
    iterations: int
    seconds: float = 60
    quick: dict[str, Any] = field(default_factory=lambda: {"model": "lite0", "size": 128, "batch": 1})

    def made_quick(self) -> Case:
        """Small inputs and two rounds."""
        title = f"{self.title} [quick: {self.quick}]"
        return replace(self, title=title, settings={**self.settings, **self.quick}, rounds=2, iterations=1)


def ours(label: str, group: str = "eager", **settings: Any) -> Side:
    """This package from file to boxes."""
    settings = {"postprocess": {"score_threshold": 0.05}, **settings}
    is_same = settings.get("precision", "fp32") == "fp32" and not settings.get("rectangular")
    return Side(f"efficientdet {label}", "engine", settings, group, is_same=is_same)


EFFDET_EAGER = tuple(Side(f"effdet, {layout}", "effdet", {"layout": layout}) for layout in ("channels_last", "NCHW"))
EFFDET_ONNX = Side("effdet, network in ONNX Runtime", "effdet", {"runtime": "onnxruntime"}, "onnxruntime")
TRAINING_SIDES = (
    *(Side(f"efficientdet {p}, channels_last", "ours", {"precision": p}, p) for p in ("fp32", "bf16")),
    *(
        Side(f"effdet {p}, {layout}", "peer", {"precision": p, "layout": layout}, p)
        for p in ("fp32", "bf16")
        for layout in ("channels_last", "NCHW")
    ),
)
PREDICTING_SIDES = (
    replace(ours("auto", backend="auto"), beside=("onnxruntime",)),
    replace(ours("auto, rectangular", backend="auto", rectangular=True), beside=("onnxruntime",)),
    ours("eager", backend="eager"),
    *EFFDET_EAGER,
    EFFDET_ONNX,
)
REDUCED_SIDES = (
    ours("openvino bf16", backend="openvino", precision="bf16"),
    ours("openvino bf16, rectangular", backend="openvino", precision="bf16", rectangular=True),
    # The file is made by run.py, and is what `load` takes; what it does not fix is computed in the precision of `rest`.
    ours("openvino int8", precision="int8", rest="bf16"),
    *EFFDET_EAGER,
)
POSTPROCESS_SIDES = (
    *(
        Side(
            f"efficientdet {nms}, scores >= {score}", "engine",
            {"measured": "postprocess", "backend": "auto", "postprocess": {"nms": nms, "score_threshold": score}}, nms,
        )
        for nms in ("hard", "soft")
        for score in (0.05, 0.001)
    ),
    Side("efficientdet, the network", "engine", {"measured": "network", "backend": "auto"}, "none", is_same=False),
    *(Side(f"effdet {nms}", "effdet", {"measured": "postprocess", "nms": nms}, nms) for nms in ("hard", "soft")),
)  # fmt: skip
CASES = (
    Case(
        "train", "Training step, d0, 512 px, batch 4", {"model": "d0", "size": 512, "batch": 4, "learning_rate": 1e-4},
        TRAINING_SIDES, rounds=5, iterations=1, seconds=70, quick={"model": "lite0", "size": 256, "batch": 2},
    ),
    Case(
        "train", "Training step, lite0, 320 px, batch 8",
        {"model": "lite0", "size": 320, "batch": 8, "learning_rate": 1e-4}, TRAINING_SIDES,
        rounds=5, iterations=1, seconds=45, quick={"size": 256, "batch": 2},
    ),
    Case(
        "predict", "From a 640x480 JPEG to boxes, d0, 512 px, batch 1, fp32", {"model": "d0", "size": 512, "batch": 1},
        PREDICTING_SIDES, rounds=11, iterations=6, seconds=90,
    ),
    Case(
        "reduced", "From a 640x480 JPEG to boxes, d0, 512 px, batch 1, bf16 and int8",
        {"model": "d0", "size": 512, "batch": 1}, REDUCED_SIDES, rounds=11, iterations=8, seconds=90,
    ),
    Case(
        "reduced", "From a 640x480 JPEG to boxes, lite0, 320 px, batch 1, bf16 and int8",
        {"model": "lite0", "size": 320, "batch": 1}, REDUCED_SIDES, rounds=15, iterations=10,
    ),
    Case(
        "postprocess", "Post-processing of 49,104 anchors x 90 classes, batch 1",
        {"model": "d0", "size": 512, "batch": 1}, POSTPROCESS_SIDES, rounds=11, iterations=3,
    ),
    Case(
        "growth", "The network alone, batch 1, fp32", {"batch": 1},
        tuple(
            Side(name, "engine", {"measured": "network", "backend": "auto", "model": name}, is_same=False)
            for name in (*GROWTH, *LARGE)
        ),
        rounds=7, iterations=5, seconds=150, quick={"size": 128},
    ),
    Case(
        "folder", "A folder of 500 pictures, d0, 512 px", {"model": "d0", "size": 512, "batch": 8, "pictures": 500},
        (Side("efficientdet auto", "ours", {"backend": "auto"}),),
        rounds=3, iterations=1, seconds=100, quick={"model": "lite0", "size": 128, "pictures": 24},
    ),
)  # fmt: skip
