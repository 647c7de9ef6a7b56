"""What `make bench` measures, as a list: a row a case, and in it a row a side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

# The family by cost; the last three take minutes and gigabytes: `--all-sizes`.
GROWTH = ("d0", "d1", "d2", "d3", "d4")
LARGE = ("d5", "d6", "d7")


@dataclass(frozen=True)
class Side:
    """One thing that is measured.

    Attributes:
        label: its name in the report.
        program: `ours` or `peer`: ours.py in this environment, or peer.py in effdet's.
        settings: what its process is told besides the case's settings.
        group: peers of the same group race; the fastest stands for them, and ours of that group are compared with it.
        beside: groups of peers that one of ours is compared with, besides its own.
        is_same: whether it must compute the same as the peer of its group, to rounding; other precisions, and inputs
            with less padding, need not.
    """

    label: str
    program: Literal["ours", "peer"]
    settings: dict[str, Any] = field(default_factory=dict)
    group: str = "eager"
    beside: tuple[str, ...] = ()
    is_same: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it is effdet."""
        return self.program == "peer"


@dataclass(frozen=True)
class Case:
    """Sides that are measured in turns.

    Attributes:
        task: the section of the report.
        title: heading in the report.
        network: whose weights all sides get: bundled, or of the family, with weights from a fixed seed.
        sides: ours and the peer's.
        rounds: how often the sides take turns; 0 to compare what they compute, and measure nothing.
        iterations: measured at each turn.
        seconds: no round begins later than this, though three are measured.
        size: side of the input; None for the network's own.
        images: which images: `sample`, `crops` of it, or `people`, the validation split of that dataset.
        count: how many; the first is the one that is measured.
        settings: what every side is told.
        quick: what a quick run replaces.
    """

    task: str
    title: str
    network: str
    sides: tuple[Side, ...]
    rounds: int
    iterations: int
    seconds: float = 60
    size: int | None = None
    images: Literal["sample", "crops", "people"] = "sample"
    count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=lambda: {"network": "lite0", "size": 128})

    def made_quick(self) -> Case:
        """Small inputs and two rounds."""
        return replace(
            self, title=f"{self.title} [quick: {self.quick}]", rounds=min(self.rounds, 2), iterations=1, **self.quick
        )


def ours(label: str, group: str = "eager", score_threshold: float = 0.05, nms: str = "hard", **settings: Any) -> Side:
    """This package, from file to boxes."""
    settings["postprocess"] = {"score_threshold": score_threshold, "nms": nms}
    is_same = settings.get("precision", "fp32") == "fp32" and not settings.get("rectangular")
    return Side(f"efficientdet {label}", "ours", settings, group, is_same=is_same)


def effdet(label: str, group: str = "eager", **settings: Any) -> Side:
    """The effdet package."""
    return Side(f"effdet {label}", "peer", settings, group)


EFFDET_EAGER = tuple(effdet(layout, layout=layout) for layout in ("channels_last", "NCHW"))
TRAINING_SIDES = (
    *(Side(f"efficientdet {p}, channels_last", "ours", {"precision": p}, p) for p in ("fp32", "bf16")),
    *(
        effdet(f"{p}, {layout}", p, precision=p, layout=layout)
        for p in ("fp32", "bf16")
        for layout in ("channels_last", "NCHW")
    ),
)
PREDICTING_SIDES = (
    replace(ours("auto", backend="auto"), beside=("onnxruntime",)),
    replace(ours("auto, rectangular", backend="auto", rectangular=True), beside=("onnxruntime",)),
    ours("eager", backend="eager"),
    *EFFDET_EAGER,
    effdet("with its network in ONNX Runtime", "onnxruntime", runtime="onnxruntime"),
)
REDUCED_SIDES = (
    ours("auto", backend="auto"),
    ours("openvino bf16", backend="openvino", precision="bf16"),
    ours("openvino bf16, rectangular", backend="openvino", precision="bf16", rectangular=True),
    # A file that run.py makes; what it leaves in floating point is computed in bf16.
    ours("openvino int8", precision="bf16", int8=True),
    *EFFDET_EAGER,
)
POSTPROCESS_SIDES = (
    *(
        ours(f"{nms}, scores >= {score}", nms, score, nms, part="postprocess", backend="auto")
        for nms in ("hard", "soft")
        for score in (0.05, 0.001)
    ),
    replace(ours("network", "none", part="network", backend="auto"), is_same=False),
    *(effdet(nms, nms, part="postprocess", nms=nms) for nms in ("hard", "soft")),
)
COMPARED_SIDES = (
    ours("auto", score_threshold=0.001, backend="auto"),
    ours("eager", score_threshold=0.001, backend="eager"),
    ours("auto, rectangular", score_threshold=0.001, backend="auto", rectangular=True),
    ours("openvino bf16", score_threshold=0.001, backend="openvino", precision="bf16"),
    ours("openvino int8", score_threshold=0.001, precision="bf16", int8=True),
    EFFDET_EAGER[0],
)
QUICK_TRAINING = {"network": "lite0", "size": 256, "settings": {"batch": 2, "learning_rate": 1e-4}}
CASES = (
    Case(
        "accuracy", "AP of `people` on its validation split", "people", COMPARED_SIDES, 0, 0, images="people",
        count=150, quick={"size": 256, "count": 10},
    ),
    Case(
        "accuracy", "AP of d0 with seeded weights on 20 crops", "d0", (*COMPARED_SIDES[:2], EFFDET_EAGER[0]), 0, 0,
        images="crops", count=20, quick={"count": 4},
    ),
    Case(
        "train", "Training step, d0, 512 px, batch 4", "d0", TRAINING_SIDES, 5, 1, 70, 512,
        settings={"batch": 4, "learning_rate": 1e-4}, quick=QUICK_TRAINING,
    ),
    Case(
        "train", "Training step, lite0, 320 px, batch 8", "lite0", TRAINING_SIDES, 5, 1, 45, 320,
        settings={"batch": 8, "learning_rate": 1e-4}, quick=QUICK_TRAINING,
    ),
    Case("predict", "From a 640x480 JPEG to boxes, d0, 512 px, 90 classes, fp32", "d0", PREDICTING_SIDES, 11, 6, 90),
    Case(
        "predict", "From a 640x480 JPEG to boxes, `people` (lite0), 640 px, 1 class, fp32", "people",
        PREDICTING_SIDES, 11, 8, 45, quick={"size": 256},
    ),
    Case("reduced", "d0, 512 px, 90 classes, bf16 and int8", "d0", REDUCED_SIDES, 11, 8, 90),
    Case("reduced", "lite0, 320 px, 90 classes, bf16 and int8", "lite0", REDUCED_SIDES, 15, 10, 45),
    Case(
        "reduced", "`people` (lite0), 640 px, 1 class, bf16 and int8", "people", REDUCED_SIDES, 15, 10, 45,
        quick={"size": 256},
    ),
    Case("postprocess", "Post-processing of 49,104 anchors x 90 classes", "d0", POSTPROCESS_SIDES, 11, 3, 45),
    Case(
        "growth", "The network alone, batch 1, fp32", "d0",
        tuple(
            replace(ours(name, part="network", backend="auto", network=name), label=name, is_same=False)
            for name in (*GROWTH, *LARGE)
        ),
        7, 5, 150, quick={"size": 128},
    ),
    Case(
        "folder", "A folder of 500 images, d0, 512 px", "d0", (ours("auto", backend="auto"),), 3, 1, 100,
        images="crops", count=500, settings={"batch": 8}, quick={"network": "lite0", "size": 128, "count": 24},
    ),
)  # fmt: skip
