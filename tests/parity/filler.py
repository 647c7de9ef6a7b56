"""Deterministic weights and inputs for EfficientDet parity tests (numpy only).

A fixture stores outputs, never weights: both sides rebuild the same weights from
the parameter *names* (effdet's state_dict names) with the functions below.
Everything uses the frozen legacy stream of ``numpy.random.RandomState``, so the
arrays do not depend on the numpy version.

    state = {name: fill(name, shape, fixture["gains"]) for name, shape in shapes.items()}
    x = image(seed=0, batch=1, height=256, width=256)

``gains`` maps a module prefix to a factor. Each model fixture carries a few (one per
backbone stage, BiFPN cell and head); they keep activations near 1 in the deepest model,
where fixed random weights would otherwise grow or fade by many orders of magnitude.
"""

import re
import zlib

import numpy as np

GAIN = 1.4142135623730951  # He gain of an ordinary convolution
RESIDUAL_GAIN = 0.6  # last projection of a block that has a skip connection
EXCITE_GAIN = 0.5  # squeeze-and-excite expansion, so that the gates do not saturate
RANGES = {
    "bn_weight": (0.8, 1.2),
    "bias": (-0.1, 0.1),
    "running_mean": (-0.1, 0.1),
    "running_var": (0.5, 1.5),
    "edge_weights": (-0.2, 1.5),
}

# The projection that ends a backbone block: conv_pwl, or conv_pw in stage 0 (no expansion).
# Block 0 of a stage has no skip connection; the later blocks have one.
_PROJECTION = re.compile(
    r"(backbone\.blocks\.\d+\.)(\d+)\.conv_pwl\.weight$"
    r"|(backbone\.blocks\.0\.)(\d+)\.conv_pw\.weight$"
)
_FPN_OR_HEAD = re.compile(
    r"(fpn\.cell\.\d+\.)fnode\.\d+\.after_combine\.conv\.conv_pw\.weight$"
    r"|(class_net\.|box_net\.)(?:conv_rep\.\d+|predict)\.conv_pw\.weight$"
)


def fill(name, shape, gains=None):
    """Return parameter or buffer ``name`` as float32 (an int64 zero for counters)."""
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "weight" and len(shape) > 1:
        scale = _gain(name, gains or {}) / np.sqrt(float(np.prod(shape[1:])))
        return (rng.standard_normal(shape) * scale).astype(np.float32)
    low, high = RANGES["bn_weight" if leaf == "weight" else leaf]
    return rng.uniform(low, high, shape).astype(np.float32)


def _gain(name, gains):
    if name.endswith("se.conv_expand.weight"):
        return EXCITE_GAIN
    match = _PROJECTION.match(name)
    if match:
        prefix, block = (part for part in match.groups() if part)
        return RESIDUAL_GAIN if int(block) else GAIN * gains.get(prefix, 1.0)
    match = _FPN_OR_HEAD.match(name)
    return GAIN * gains.get(match.group(match.lastindex), 1.0) if match else GAIN


def image(seed, batch, height, width):
    """Return a standard-normal NCHW float32 batch with three channels."""
    return np.random.RandomState(seed).standard_normal((batch, 3, height, width)).astype(np.float32)


def head_outputs(seed, batch, sizes, num_classes, anchors=9):
    """Return made-up raw head outputs: two lists (class, box) of NCHW float32 arrays.

    ``sizes`` is [(height, width), ...] from the finest level to the coarsest. Level i
    draws from RandomState(seed + i): first class logits ~ 2 z - 4, then boxes ~ 0.5 z.
    """
    classes, boxes = [], []
    for i, (h, w) in enumerate(sizes):
        rng = np.random.RandomState(seed + i)
        classes.append((2.0 * rng.standard_normal((batch, anchors * num_classes, h, w)) - 4.0).astype(np.float32))  # noqa: E501
        boxes.append((0.5 * rng.standard_normal((batch, anchors * 4, h, w))).astype(np.float32))
    return classes, boxes


def sample_indices(size, count):
    """Return ``count`` flat (C order) positions in an array of ``size`` elements."""
    return np.random.RandomState(7).randint(0, size, count)
