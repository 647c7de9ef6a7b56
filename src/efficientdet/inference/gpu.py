"""Prediction on an NVIDIA GPU, from letterboxed pixels to detections, without waiting in between.

Of each input shape that comes again the whole is captured as a CUDA graph: launching the hundreds of operations of a
small network takes a CPU several times as long as computing them takes a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientdet.images.letterbox import Prepared, Preprocessing, letterbox_scale
from efficientdet.inference.engines.engine import Engine, last_used
from efficientdet.inference.engines.session import Found
from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.anchors import make_anchors
from efficientdet.weights.info import CheckpointInfo

# Input shapes, with settings, whose graphs are kept, and those that have come once.
MOST_GRAPHS = 4
MOST_SEEN = 64


@dataclass(frozen=True)
class Graph:
    """A captured computation: what lies in its inputs when it is replayed is computed into its outputs."""

    inputs: tuple[Tensor, ...]
    outputs: BatchDetections
    replay: Callable[[], None]


class GpuPredictor:
    """Runs an engine and its post-processing. Any thread may call it.

    Two threads overlap: one gets its images ready while the GPU computes those of the other.
    """

    def __init__(self, engine: Engine, info: CheckpointInfo) -> None:
        self._engine = engine
        self._info = info
        self._lock = threading.Lock()
        self._graphs: dict[Any, Graph] = {}
        self._seen: dict[Any, None] = {}
        self._pool: Any = None
        self._normalize = torch.compile(normalize, dynamic=False) if engine.backend == "compile" else normalize
        self._captures = importlib.util.find_spec("triton") is not None

    @torch.inference_mode()
    def __call__(self, images: Sequence[Prepared], settings: PostprocessSettings) -> list[Found]:
        """Boxes, scores and labels of each image; all have pixels of one shape and type."""
        pixels, facts = self._pinned(images)
        on_host = self._launch(pixels, facts, settings)
        *parts, counts, _ = (part.numpy() for part in on_host)
        if (counts < 0).any():  # more pairs over the threshold than a graph has room for
            with self._lock:
                found = self._compute(pixels.to(self._engine.device), facts.to(self._engine.device), settings, False)
                *parts, counts, _ = (part.cpu().numpy() for part in found)
        return [tuple(part[i, :count].copy() for part in parts) for i, count in enumerate(counts)]

    def _pinned(self, images: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) pixels, and (B, 5) float32: scale, height and width of the image, and of its place in the input.

        In memory from which the GPU copies by itself.
        """
        first = images[0].pixels
        pixels = torch.empty((len(images), *first.shape), dtype=torch.from_numpy(first).dtype, pin_memory=True)
        np.stack([image.pixels for image in images], out=pixels.numpy())
        size, method = (first.shape[0], first.shape[1]), self._info.preprocessing.resize
        rows = [(one.scale, *one.image_size, *letterbox_scale(one.image_size, size, method)[1]) for one in images]
        return pixels, torch.tensor(rows, dtype=torch.float32, pin_memory=True)

    def _launch(self, pixels: Tensor, facts: Tensor, settings: PostprocessSettings) -> BatchDetections:
        """Detections of pinned inputs, on the CPU."""
        key = (pixels.shape, pixels.dtype, settings)
        with self._lock:
            graph = self._graph(key, pixels, facts, settings)
            if graph is None:
                device = self._engine.device
                pixels, facts = pixels.to(device, non_blocking=True), facts.to(device, non_blocking=True)
                found = self._compute(pixels, facts, settings)
            else:
                for place, given in zip(graph.inputs, (pixels, facts), strict=True):
                    place.copy_(given, non_blocking=True)
                graph.replay()
                found = graph.outputs
            on_host = BatchDetections(*(torch.empty_like(x, device="cpu", pin_memory=True) for x in found))
            for place, part in zip(on_host, found, strict=True):
                place.copy_(part, non_blocking=True)
            done = torch.cuda.current_stream(self._engine.device).record_event()
        done.synchronize()
        return on_host

    def _graph(self, key: Any, pixels: Tensor, facts: Tensor, settings: PostprocessSettings) -> Graph | None:
        """The graph of this shape; captured when it comes the second time, since the first has warmed all up."""
        if not self._can_capture(settings):
            return None
        if key not in self._seen:
            return last_used(self._seen, key, MOST_SEEN, lambda: None)
        return last_used(self._graphs, key, MOST_GRAPHS, lambda: self._capture(pixels, facts, settings))

    def _capture(self, pixels: Tensor, facts: Tensor, settings: PostprocessSettings) -> Graph:
        device = self._engine.device
        inputs = (pixels.to(device), facts.to(device))
        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            # One pool for all: no two are replayed at once, and their outputs are copied before the next one.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._compute(*inputs, settings)  # cuDNN sets itself up in each thread, which cannot be captured
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._compute(*inputs, settings)
        return Graph(inputs, outputs, graph.replay)

    def _can_capture(self, settings: PostprocessSettings) -> bool:
        if not self._captures:
            return False
        from efficientdet.inference.postprocess_gpu import fits_gpu

        return fits_gpu(settings)

    def _compute(
        self, pixels: Tensor, facts: Tensor, settings: PostprocessSettings, static: bool = True
    ) -> BatchDetections:
        """Detections of inputs on the GPU; `static`: of shapes that do not depend on them, where that can be."""
        size = (pixels.shape[1], pixels.shape[2])
        scales, image_sizes, contents = facts[:, 0], facts[:, 1:3], facts[:, 3:]
        mean, std = _mean_and_std(self._info.preprocessing, pixels.device)
        class_logits, box_deltas = self._engine.run(self._normalize(pixels, contents, mean, std))
        anchors = make_anchors(self._info.spec, size, self._engine.device)
        if static and self._can_capture(settings):
            from efficientdet.inference.postprocess_gpu import postprocess_gpu

            try:
                return postprocess_gpu(class_logits, box_deltas, anchors, settings, scales, image_sizes)
            except Exception as error:  # whatever Triton raises where it cannot compile
                if torch.cuda.is_current_stream_capturing():
                    raise
                self._captures = False
                warnings.warn(
                    "Predictions take longer than they could: Triton cannot compile here, which takes a C compiler and "
                    f"Python's headers ({type(error).__name__}: {error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return postprocess(class_logits, box_deltas, anchors, settings, scales=scales, image_sizes=image_sizes)


def normalize(pixels: Tensor, contents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """As `letterbox.normalize_and_pad`, on the GPU.

    Args:
        pixels: (B, H, W, 3), RGB in units of 0..255.
        contents: (B, 2) float32, (height, width) of each image in the input; the rest becomes 0.
        mean: (3,) of R, G, B.
        std: (3,) of R, G, B.

    Returns:
        (B, 3, H, W) float32 in channels_last.
    """
    y, x = (torch.arange(side, device=pixels.device) for side in pixels.shape[1:3])
    inside = (y[:, None] < contents[:, 0, None, None]) & (x < contents[:, 1, None, None])  # (B, H, W)
    return torch.where(inside[..., None], (pixels.float() - mean) / std, 0.0).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _mean_and_std(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return torch.tensor(preprocessing.mean, device=device), torch.tensor(preprocessing.std, device=device)
