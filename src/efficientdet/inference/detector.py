"""Detector: `load(...).predict(...)`, from any picture to Detections in six calls."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, overload

import numpy as np
import torch

from efficientdet.detections import Detections
from efficientdet.errors import ImageError, SettingError, unknown_name
from efficientdet.family import ASPECTS
from efficientdet.images.convert import FloatImage, RgbImage
from efficientdet.images.letterbox import ResizeMethod, letterbox_scale, prepare
from efficientdet.images.read import ImageSource, read, read_reduced
from efficientdet.inference.engines.engine import Engine, choose_backend, open_engine
from efficientdet.inference.engines.exported import is_exported, open_exported
from efficientdet.inference.postprocess import BatchDetections, PostprocessSettings, postprocess
from efficientdet.inference.prefetch import ahead
from efficientdet.network.anchors import make_anchors
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import CheckpointInfo, load_checkpoint
from efficientdet.weights.names import find_weights

# The stride of P5: a smaller picture would be one cell to the deepest features of the backbone.
SMALLEST_SIDE = 32
# Threads that read pictures ahead of the network.
DECODERS = 2
# Predictions are for looking at; evaluation asks for everything down to 0.001.
SHOWN_SCORE = 0.3


class Detector:
    """A network with all that it takes to go from pictures to boxes.

    Any thread may call it.

    Attributes:
        info: classes, preprocessing, and what else the checkpoint says.
        image_size: (height, width) that pictures are letterboxed to.
        is_rectangular: whether the padding stops at the next multiple of the coarsest stride.
        reduces_decoding: whether large JPEG files are decoded at a part of their size.
        settings: of the post-processing, for predictions.
    """

    def __init__(
        self,
        model: EfficientDet | None,
        info: CheckpointInfo,
        *,
        engine: Engine | None = None,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "fp32",
        image_size: int | tuple[int, int] | None = None,
        rectangular: bool = False,
        reduced_decoding: bool = False,
        preprocess: str | None = None,
        anchors: str | None = None,
        **postprocess_settings: Any,
    ) -> None:
        """Put a network and its facts together.

        Args:
            model: the network; None where `engine` runs an exported file.
            info: its facts.
            engine: what runs the network; None to build it by `backend` and `precision` at the first prediction.
            device: where to run, unless an engine is given; `auto` takes a GPU where there is one.
            backend: what runs the network; see `engines.open_engine`.
            precision: `fp32`, `bf16`, or `fp16` on a GPU: what the network computes in.
            image_size: side of the square input, or (height, width); None for the checkpoint's.
            rectangular: pad to the next multiple of the coarsest stride instead of the whole of `image_size`: fewer
                pixels to compute, where a picture is no square.
            reduced_decoding: let JPEG files that are at least twice as large as the network needs be decoded at a half,
                a quarter or an eighth: faster, and nearly the same pixels. Such detections keep no `image`.
            preprocess: `official` resizes as TensorFlow does, `effdet` as Pillow does; None for the checkpoint's.
            anchors: `rounded` or `exact` aspects of the anchors; None for the checkpoint's.
            **postprocess_settings: fields of `PostprocessSettings` other than the checkpoint's.

        Raises:
            SettingError: a setting is unknown or out of range, or neither a model nor an engine is given.
                UnknownNameError: a convention, backend or precision is not known.
        """
        if model is None and engine is None:
            raise SettingError("a detector needs a model, or an engine that runs one")
        self.device = _device(device) if engine is None else engine.device
        info = _with_conventions(info, preprocess, anchors)
        if model is not None:
            model.spec = info.spec
            model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._model = model
        self.info = info
        self.image_size = _height_and_width(info.spec.image_size if image_size is None else image_size)
        self.is_rectangular = rectangular
        self.reduces_decoding = reduced_decoding
        self._choice = ("", "") if engine else (choose_backend(backend, precision, self.device), precision)
        self._lock = threading.Lock()
        self._engine = engine
        base = PostprocessSettings(score_threshold=SHOWN_SCORE)
        self.settings = with_changes(with_changes(base, info.postprocess), postprocess_settings)

    @property
    def model(self) -> EfficientDet:
        """The network, in evaluation mode.

        Raises:
            SettingError: the detector runs an exported file, which has no network to look into.
        """
        if self._model is None:
            raise SettingError("this detector runs an exported file; for what needs the network, load its checkpoint")
        return self._model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.info.class_names

    @property
    def engine(self) -> Engine:
        """What runs the network; built at the first use, from the weights as they are then."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = open_engine(self.model, *self._choice, self.device)
        return self._engine

    def warmup(self) -> Engine:
        """Build the engine and run it once, so that the first prediction takes no longer than the others.

        Returns:
            The engine: print it to see which backend was chosen.
        """
        self.predict(np.zeros((*self.image_size, 3), np.uint8))
        return self.engine

    @overload
    def predict(self, source: list[Any] | tuple[Any, ...], **settings: Any) -> list[Detections]: ...
    @overload
    def predict(self, source: ImageSource, **settings: Any) -> Detections: ...

    def predict(self, source: Any, **settings: Any) -> Detections | list[Detections]:
        """Find objects in one picture, or in each of a list.

        Args:
            source: a path, bytes, PIL image, (H, W, 3) RGB array, tensor (see `images.read`); or a list or tuple of
                such, of any sizes.
            **settings: fields of `PostprocessSettings` for this call, such as `score_threshold=0.5`; and
                `batch_size` (8) for lists.

        Returns:
            Detections, or a list of them in the order of the pictures. Boxes are pixels of the original picture.

        Raises:
            ImageError: a picture cannot be read.
            SettingError: a setting is unknown or out of range.
        """
        batch_size = settings.pop("batch_size", 8)
        if isinstance(source, (list, tuple)):
            return list(self.predict_many(source, batch_size=batch_size, **settings))
        return self._finish([self._make_ready(source)], with_changes(self.settings, settings))[0]

    def predict_many(
        self, sources: Iterable[ImageSource], *, batch_size: int = 8, **settings: Any
    ) -> Iterator[Detections]:
        """Find objects in many pictures, a batch at a time: the same as `predict`, without holding all in memory.

        Other threads read the next batch while the network is at work on this one; or, on a CPU with OpenVINO or ONNX
        Runtime, each core works on a picture of its own, and `batch_size` does not matter.
        """
        for found in self.try_many(sources, batch_size=batch_size, **settings):
            if isinstance(found, ImageError):
                raise found
            yield found

    def try_many(
        self, sources: Iterable[ImageSource], *, batch_size: int = 8, **settings: Any
    ) -> Iterator[Detections | ImageError]:
        """As `predict_many`, but a picture that cannot be read gives its error in its place, and the rest goes on."""
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}; it must be at least 1")
        chosen = with_changes(self.settings, settings)
        if self.engine.run_alone is not None and torch.get_num_threads() > 1:
            return self._each_alone(sources, chosen)
        return self._in_batches(sources, batch_size, chosen)

    def _each_alone(
        self, sources: Iterable[ImageSource], settings: PostprocessSettings
    ) -> Iterator[Detections | ImageError]:
        """Each picture on a core of its own, from file to boxes: no core ever waits for another."""
        cores = torch.get_num_threads()

        def one(source: ImageSource) -> Detections | ImageError:
            ready = self._try_ready(source)
            return ready if isinstance(ready, ImageError) else self._finish([ready], settings, alone=True)[0]

        with ahead(one, sources, cores, 2 * cores) as found:
            yield from found

    def _in_batches(
        self, sources: Iterable[ImageSource], batch_size: int, settings: PostprocessSettings
    ) -> Iterator[Detections | ImageError]:
        """Batches through the network, while other threads read the next one."""
        with ahead(self._try_ready, sources, DECODERS, 2 * batch_size) as ready:
            while batch := list(itertools.islice(ready, batch_size)):
                found = iter(self._finish([each for each in batch if isinstance(each, _Ready)], settings))
                yield from (next(found) if isinstance(each, _Ready) else each for each in batch)

    def _try_ready(self, source: ImageSource) -> _Ready | ImageError:
        try:
            return self._make_ready(source)
        except ImageError as error:
            return error

    def _make_ready(self, source: ImageSource) -> _Ready:
        """Read, letterbox and normalize: what can be done ahead of the network, in other threads."""
        if self.reduces_decoding:
            image, image_size = read_reduced(source, self.image_size)
        else:
            image = read(source)
            image_size = image.shape[:2]
        return self._letterbox(image, image_size, source)

    def _letterbox(self, image: RgbImage, image_size: tuple[int, int], source: Any = None) -> _Ready:
        canvas, scale = prepare(image, self.input_size(image_size), self.info.preprocessing, image_size)
        return _Ready(canvas, scale, image, image_size, str(source) if isinstance(source, (str, Path)) else None)

    def _finish(self, ready: Sequence[_Ready], settings: PostprocessSettings, alone: bool = False) -> list[Detections]:
        if not ready:
            return []
        found = self._detect(ready, settings, alone)
        return [
            Detections(
                found.boxes_xyxy[i, :count].numpy(),
                found.scores[i, :count].numpy(),
                found.labels[i, :count].numpy(),
                self.info.class_names,
                picture.image_size,
                self.info.category_ids,
                picture.image if picture.image.shape[:2] == picture.image_size else None,
                picture.source,
            )
            for i, (picture, count) in enumerate(zip(ready, found.counts.tolist(), strict=True))
        ]

    def run(self, images: Sequence[RgbImage], settings: PostprocessSettings) -> BatchDetections:
        """Letterbox, network, post-processing: (H, W, 3) uint8 RGB pictures of any sizes to a batch of detections."""
        return self._detect([self._letterbox(image, image.shape[:2]) for image in images], settings)

    @torch.inference_mode()
    def _detect(self, ready: Sequence[_Ready], settings: PostprocessSettings, alone: bool = False) -> BatchDetections:
        pixels = torch.from_numpy(_stack([picture.canvas for picture in ready])).to(self.device)
        run = self.engine.run_alone if alone and self.engine.run_alone is not None else self.engine.run
        class_logits, box_deltas = run(pixels)
        found = postprocess(
            class_logits,
            box_deltas,
            make_anchors(self.info.spec, (pixels.shape[2], pixels.shape[3]), self.device),
            settings,
            scales=torch.tensor([picture.scale for picture in ready], device=self.device),
            image_sizes=torch.tensor([picture.image_size for picture in ready], device=self.device),
        )
        return BatchDetections(*(part.cpu() for part in found))

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for a picture."""
        if not self.is_rectangular:
            return self.image_size
        step = self.info.spec.strides[-1]
        _, content = letterbox_scale(image_size, self.image_size, self.info.preprocessing.resize)
        height, width = (
            min(-(-side // step) * step, most) for side, most in zip(content, self.image_size, strict=True)
        )
        return height, width


class _Ready(NamedTuple):
    """A picture on its way: what the network takes, and what its detections will say of it."""

    canvas: FloatImage
    scale: float
    image: RgbImage
    image_size: tuple[int, int]
    source: str | None


def _stack(canvases: Sequence[FloatImage]) -> FloatImage:
    """(3, h, w) canvases to one batch (B, 3, H, W); smaller ones are filled up at the bottom and right with 0."""
    if len(canvases) == 1:
        return canvases[0][None]
    height, width = (max(canvas.shape[axis] for canvas in canvases) for axis in (1, 2))
    if all(canvas.shape[1:] == (height, width) for canvas in canvases):
        return np.stack(canvases)
    batch = np.zeros((len(canvases), 3, height, width), np.float32)
    for place, canvas in zip(batch, canvases, strict=True):
        place[:, : canvas.shape[1], : canvas.shape[2]] = canvas
    return batch


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    backend: str = "auto",
    precision: str = "fp32",
    image_size: int | tuple[int, int] | None = None,
    rectangular: bool = False,
    reduced_decoding: bool = False,
    preprocess: str | None = None,
    anchors: str | None = None,
    **postprocess_settings: Any,
) -> Detector:
    """Load a detector: weights, classes, preprocessing and anchors come from the one file.

    Args:
        name_or_path: a bundled model (`people`, `cells`); the path of a `.safetensors` checkpoint, or of an exported or
            quantized `.onnx` or OpenVINO `.xml`; a released model (`d0`, `lite0`, ...), downloaded at the first call;
            or `hf://owner/repo`.
        device: where to run; `auto` takes a GPU where there is one. Exported files run on the CPU.
        backend: `eager`, `compile`, `onnxruntime`, `openvino` or `tensorrt`; `auto` takes the best installed.
        precision: `fp32`, `bf16`, or `fp16` on a GPU.
        image_size: side of the square input, or (height, width); None for the checkpoint's.
        rectangular: pad to the next multiple of the coarsest stride instead of the whole of `image_size`.
        reduced_decoding: let large JPEG files be decoded at a part of their size.
        preprocess: `official` resizes as TensorFlow does, `effdet` as Pillow does; None for the checkpoint's.
        anchors: `rounded` or `exact` aspects of the anchors; None for the checkpoint's.
        **postprocess_settings: fields of `PostprocessSettings`, such as `nms="soft"`.

    Returns:
        The detector.

    Raises:
        UnknownNameError: no such weights, or no such convention; lists those there are.
        WeightsError: the file is missing, damaged, not one of ours, or cannot be downloaded.
        SettingError: a setting is unknown or out of range.
    """
    path = find_weights(name_or_path)
    model, engine = None, None
    if is_exported(path):
        file = open_exported(path, backend, precision, str(device))
        info, engine = file.info, file.engine
        image_size = file.image_size if image_size is None else _height_and_width(image_size)
        file.check_size(image_size, rectangular, path)
    else:
        model, info = load_checkpoint(path)
    return Detector(
        model, info, engine=engine, device=device, backend=backend, precision=precision, image_size=image_size,
        rectangular=rectangular, reduced_decoding=reduced_decoding, preprocess=preprocess, anchors=anchors,
        **postprocess_settings,
    )  # fmt: skip


def _with_conventions(info: CheckpointInfo, preprocess: str | None, anchors: str | None) -> CheckpointInfo:
    if preprocess is not None:
        if preprocess not in get_args(ResizeMethod):
            raise unknown_name("preprocess", preprocess, get_args(ResizeMethod))
        preprocessing = dataclasses.replace(info.preprocessing, resize=cast(ResizeMethod, preprocess))
        info = dataclasses.replace(info, preprocessing=preprocessing)
    if anchors is not None:
        if anchors not in ASPECTS:
            raise unknown_name("anchors", anchors, ASPECTS)
        info = dataclasses.replace(info, spec=dataclasses.replace(info.spec, aspects=ASPECTS[anchors]))
    return info


def with_changes(settings: PostprocessSettings, changes: Mapping[str, Any]) -> PostprocessSettings:
    """The settings with some fields changed.

    Raises:
        SettingError: a field is unknown or out of range; names it.
    """
    if not changes:
        return settings
    known = [field.name for field in dataclasses.fields(PostprocessSettings)]
    if unknown := sorted(set(changes) - set(known)):
        raise SettingError(f"unknown settings {unknown}; known: {', '.join(known)}")
    return dataclasses.replace(settings, **changes)


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= SMALLEST_SIDE for side in sides):
        raise SettingError(
            f"image_size is {size}; give the side of a square or (height, width), each at least {SMALLEST_SIDE} pixels"
        )
    return sides[0], sides[1]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError(f"device '{device}' cannot be used here ({reason})") from error
    return chosen
