"""Detector: `load(...).predict(...)`, from any image to Detections.

Torch is imported where it computes, so that an end-to-end file goes from image to boxes without its second of loading.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from efficientdet.detections import Detections
from efficientdet.errors import ImageError, SettingError
from efficientdet.images.letterbox import Prepared, letterbox, letterbox_bytes, letterbox_scale
from efficientdet.images.read import ImageSource, image_size, read, read_reduced
from efficientdet.inference.engines.exported import is_exported, open_exported
from efficientdet.inference.engines.session import EndToEndEngine
from efficientdet.inference.hardware import core_count, thread_count
from efficientdet.inference.prefetch import next_batch, prefetch, run_by_size
from efficientdet.inference.settings import (
    DetectorOptions,
    DetectorSettings,
    PostprocessOptions,
    PostprocessSettings,
    StreamOptions,
)
from efficientdet.inference.streams import choose_streams
from efficientdet.settings import changed, divided
from efficientdet.weights.info import CheckpointInfo
from efficientdet.weights.names import HUB_PREFIX, find_weights

if TYPE_CHECKING:
    import torch

    from efficientdet.inference.engines.engine import Engine
    from efficientdet.inference.gpu import GpuPredictor
    from efficientdet.network.efficientdet import EfficientDet
    from efficientdet.video.frames import Video, VideoFile

# Threads that read images ahead of the network, and the bytes of decoded images that they may hold together.
READERS = 2
BYTES_AHEAD = 2**28
BATCH_SIZE = 8
# A block of the prediction, by name: decode, preprocess, network, postprocess.
Timer = Callable[[str], AbstractContextManager[Any]]


class Detector:
    """A network with everything that it takes to go from images to boxes. Any thread may call it.

    Attributes:
        info: classes, preprocessing, and what else the checkpoint says of itself.
        settings: where and how the network runs, and what it is fed.
        postprocess: settings of the post-processing: the defaults, the checkpoint's over them, what was given on top.
        image_size: (height, width) that images are letterboxed to.
        timer: entered as `timer(part)` around each part of a prediction (decode, preprocess, network, postprocess), to
            measure it; None for none.
    """

    def __init__(
        self,
        model: EfficientDet | None,
        info: CheckpointInfo,
        *,
        engine: Engine | EndToEndEngine | None = None,
        **settings: Unpack[DetectorOptions],
    ) -> None:
        """Put a network and its facts together.

        Args:
            model: the network, which is copied; None where `engine` runs an exported file.
            info: its facts.
            engine: what runs the network; None to build it by `backend` and `precision` at the first prediction.
            **settings: fields of `DetectorSettings` and `PostprocessSettings`.

        Raises:
            SettingError: a setting is unknown or out of range, or neither a model nor an engine is given.
        """
        if model is None and engine is None:
            raise SettingError("a detector needs a model, or an engine that runs one")
        own, post = divided(settings, DetectorSettings, PostprocessSettings)
        own |= {"device": str(own["device"])} if "device" in own else {}  # a torch.device is understood too
        self.settings = changed(DetectorSettings(), own)
        self.info = info.with_conventions(self.settings.preprocess, self.settings.anchors)
        stored = changed(PostprocessSettings(), info.postprocess)
        self._engine = engine
        self._runs_on_gpu = False
        self._gpu: GpuPredictor | None = None
        self.postprocess = self._with(stored, post)
        size = self.settings.image_size or self.info.spec.image_size
        self.image_size = (size, size) if isinstance(size, int) else size
        self.timer: Timer | None = None
        self._lock = threading.Lock()
        self._model: EfficientDet | None = None
        self.device: torch.device  # of an end-to-end file, which needs no torch, the string cpu
        if engine is not None:
            self.device = engine.device  # type: ignore[assignment]
        else:
            from efficientdet.inference.engines.engine import choose_backend, find_device

            self.device = find_device(self.settings.device)
            self._backend = choose_backend(self.settings.backend, self.settings.precision, self.device)
            self._runs_on_gpu = self.device.type == "cuda" and self._backend in ("eager", "compile")
        if model is not None:
            import torch

            own_model = copy.deepcopy(model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            own_model.spec = self.info.spec
            self._model = own_model.eval()

    @overload
    def predict(
        self, source: list[Any] | tuple[Any, ...], *, batch_size: int = ..., **settings: Unpack[PostprocessOptions]
    ) -> list[Detections]: ...
    @overload
    def predict(
        self, source: ImageSource, *, batch_size: int = ..., **settings: Unpack[PostprocessOptions]
    ) -> Detections: ...

    def predict(
        self, source: Any, *, batch_size: int = BATCH_SIZE, **settings: Unpack[PostprocessOptions]
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in each of a list.

        Args:
            source: a path, bytes, PIL image, (H, W, 3) RGB array or tensor (see `images.read`); or a list or tuple of
                such, of any sizes.
            batch_size: images that go through the network together, of a list.
            **settings: fields of `PostprocessSettings` for this call, such as `score_threshold=0.5`.

        Returns:
            Detections, or a list of them in the order of the images. Boxes are xyxy pixels of the original image.

        Raises:
            ImageError: an image cannot be read.
            SettingError: a setting is unknown or out of range.
        """
        if isinstance(source, (list, tuple)):
            return list(self.predict_many(source, batch_size=batch_size, **settings))
        if (chosen := self._with(self.postprocess, settings)).tiles is not None:
            return next(self.predict_many([source], batch_size=batch_size, **settings))
        return self._detect([self._prepare(source)], chosen)[0]

    __call__ = predict

    def predict_many(
        self, sources: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, **settings: Unpack[PostprocessOptions]
    ) -> Iterator[Detections]:
        """Find objects in many images, without holding all of them in memory: the same detections as `predict`.

        The next images are read while the network works on these. On a CPU with OpenVINO or ONNX Runtime each core
        takes one image from file to boxes, and `batch_size` does not matter.
        """
        for found in self.try_many(sources, batch_size=batch_size, **settings):
            if isinstance(found, ImageError):
                raise found
            yield found

    def try_many(
        self, sources: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, **settings: Unpack[PostprocessOptions]
    ) -> Iterator[Detections | ImageError]:
        """As `predict_many`, but an image that cannot be read gives its error in its place, and the rest goes on."""
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}; it must be at least 1")
        chosen = self._with(self.postprocess, settings)
        find = functools.partial(self._in_batches, batch_size=batch_size, settings=chosen)
        if thread_count() > 1 and self.engine.shared is not None:
            streams = choose_streams(self.engine, self.image_size, sources)
            find = functools.partial(self._side_by_side, settings=chosen, streams=streams)
        if chosen.tiles is None:
            return find(sources)
        from efficientdet.inference.tiles import predict_in_tiles

        return predict_in_tiles(sources, find, chosen)

    def stream(
        self, source: VideoFile | Video, *, batch_size: int = BATCH_SIZE, **settings: Unpack[StreamOptions]
    ) -> Iterator[Detections]:
        """Find objects in the frames of a video, a camera or a network stream.

        Args:
            source: a path, the number of a camera, the URL of a stream, or a `Video`.
            batch_size: frames of a file that the network takes together; of a live source it takes the latest alone.
            **settings: fields of `PostprocessSettings`, `TrackSettings` and, but for a `Video`, `VideoSettings`.

        Yields:
            The detections of each frame, with its `frame` and `time`; with a tracker, `track_ids` too.

        Raises:
            ImageError: the source cannot be read, or not to its end.
            SettingError: a setting is unknown or out of range.
        """
        from efficientdet.inference.stream import predict_stream

        many = functools.partial(self.predict_many, batch_size=batch_size)
        yield from predict_stream(source, self.predict, many, self.postprocess, settings)

    def _prepare(self, source: ImageSource, scale: float = 1.0) -> Prepared:
        """Read an image and make the network's input of it: what other threads do ahead of the network."""
        with self._timed("decode"):
            if self.settings.reduced_decoding:
                image, image_size = read_reduced(source, self.image_size)
            else:
                image = read(source)
                image_size = image.shape[:2]
        with self._timed("preprocess"):
            size = self.input_size(image_size, scale)
            if self._runs_on_gpu or isinstance(self._engine, EndToEndEngine):  # which normalize it
                method = self.info.preprocessing.resize
                pixels: NDArray[Any] = letterbox_bytes(image, size, image_size, method)
                scale = letterbox_scale(image_size, size, method)[0]
            else:
                pixels, scale = letterbox(image, size, self.info.preprocessing, image_size)
        return Prepared(pixels, scale, image, image_size, str(source) if isinstance(source, (str, Path)) else None)

    def _detect(self, images: Sequence[Prepared], settings: PostprocessSettings, streams: int = 1) -> list[Detections]:
        """Run the network on prepared images and make Detections of its outputs."""
        if not images:
            return []
        engine = self.engine
        if isinstance(engine, EndToEndEngine):
            with self._timed("network"):
                found = [engine.detect(each.pixels, each.image_size, settings, streams) for each in images]
        elif self._gpu is not None:
            with self._timed("network"):  # with pre- and post-processing
                found = run_by_size(images, functools.partial(self._gpu, settings=settings))
        else:
            from efficientdet.inference.postprocess import detect

            run = engine.shared(streams) if streams > 1 and engine.shared else engine.run
            found = run_by_size(images, functools.partial(detect, run, self.device, self.info, settings, self._timed))
        names, ids = self.info.class_names, self.info.category_ids
        return [
            Detections(boxes, scores, labels, names, image.image_size, ids, image.original, image.source)
            for (boxes, scores, labels), image in zip(found, images, strict=True)
        ]

    def _with(self, settings: PostprocessSettings, given: Mapping[str, Any]) -> PostprocessSettings:
        """Settings with what was given on top, which an end-to-end file must allow."""
        chosen = changed(settings, given)
        chosen.class_thresholds(len(self.info.class_names))  # refuses another number of them
        if isinstance(self._engine, EndToEndEngine):
            self._engine.check(chosen)
        return chosen

    def input_size(self, image_size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """(height, width) of the network's input for an image, at a scale of the detector's own input size."""
        step, largest = self.info.spec.strides[-1], self.image_size
        if scale != 1:
            largest = tuple(max(1, round(side * scale / step)) * step for side in largest)  # type: ignore[assignment]
        if not self.settings.rectangular:
            return largest
        _, content = letterbox_scale(image_size, largest, self.info.preprocessing.resize)
        height, width = (min(-(-side // step) * step, most) for side, most in zip(content, largest, strict=True))
        return height, width

    def _side_by_side(
        self, sources: Iterable[ImageSource], settings: PostprocessSettings, streams: int
    ) -> Iterator[Detections | ImageError]:
        """So many images at once, each on its share of the cores, from file to boxes."""

        def one(source: ImageSource) -> Detections | ImageError:
            image = self._try_prepare(source)
            return image if isinstance(image, ImageError) else self._detect([image], settings, streams)[0]

        with prefetch(one, sources, streams, 2 * streams, self._decoded_bytes, BYTES_AHEAD) as found:
            yield from found

    def _in_batches(
        self, sources: Iterable[ImageSource], batch_size: int, settings: PostprocessSettings
    ) -> Iterator[Detections | ImageError]:
        """Batches through the network, while other threads read the next ones; a GPU needs more of them."""
        readers, ahead = core_count() if self._runs_on_gpu else READERS, 2 * batch_size

        def detect(batch: list[Prepared | ImageError]) -> list[Detections | ImageError]:
            found = iter(self._detect([image for image in batch if not isinstance(image, ImageError)], settings))
            return [image if isinstance(image, ImageError) else next(found) for image in batch]

        with prefetch(self._try_prepare, sources, readers, ahead, self._decoded_bytes, BYTES_AHEAD) as prepared:
            take = functools.partial(next_batch, prepared, batch_size, lambda one: getattr(one, "nbytes", 0))
            batches = iter(lambda: take(BYTES_AHEAD), [])
            if self._runs_on_gpu:
                with prefetch(detect, batches, 2, 2) as detected:
                    yield from itertools.chain.from_iterable(detected)
            else:
                yield from itertools.chain.from_iterable(map(detect, batches))

    def _decoded_bytes(self, source: ImageSource) -> int:
        """Memory that an image takes once it is decoded, from its header; 0 where that cannot be read."""
        try:
            height, width = image_size(source) if isinstance(source, (str, Path, bytes)) else (0, 0)
        except ImageError:
            return 0
        return 3 * height * width + 12 * self.image_size[0] * self.image_size[1]  # uint8, and float32 of the input

    def _try_prepare(self, source: ImageSource) -> Prepared | ImageError:
        """As `_prepare`, but an error is the result.

        Its traceback leads to the future that holds the error: a circle, which would keep the image in memory.
        """
        try:
            return self._prepare(source)
        except ImageError as error:
            return error.with_traceback(None)

    def _timed(self, part: str) -> AbstractContextManager[Any]:
        return nullcontext() if self.timer is None else self.timer(part)

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
    def engine(self) -> Engine | EndToEndEngine:
        """What runs the network; built at the first use, from the weights as they are then."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    from efficientdet.inference.engines.engine import open_engine

                    opened = open_engine(self.model, self._backend, self.settings.precision, self.device)
                    if self._runs_on_gpu:
                        from efficientdet.inference.gpu import GpuPredictor

                        self._gpu = GpuPredictor(opened, self.info)
                    self._engine = opened
        return self._engine

    @classmethod
    def from_pretrained(
        cls, repository: str, revision: str | None = None, **settings: Unpack[DetectorOptions]
    ) -> Detector:
        """Load `owner/repo` of the Hugging Face Hub, at its default branch or a revision: `load("hf://owner/repo")`."""
        return load(HUB_PREFIX + repository + (f"@{revision}" if revision else ""), **settings)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the network with a model card to the Hugging Face Hub; see `weights.model_card.push_to_hub`."""
        from efficientdet.weights.model_card import push_network

        return push_network(self.model, self.info, repository, private=private)

    def warmup(self) -> Engine | EndToEndEngine:
        """Build the engine and run it once, so that the first prediction takes no longer than the others.

        Returns:
            The engine: print it to see which backend was chosen.
        """
        self.predict(np.zeros((*self.image_size, 3), np.uint8))
        return self.engine


def load(name_or_path: str | Path, **settings: Unpack[DetectorOptions]) -> Detector:
    """Load a detector: weights, classes, preprocessing and anchors come from the one file.

    Args:
        name_or_path: a bundled model (`people`, `cells`); the path of a `.safetensors` checkpoint, or of an exported or
            quantized `.onnx` or OpenVINO `.xml`; a released model (`d0`, `lite0`, ...), downloaded at the first call;
            or `hf://owner/repo`.
        **settings: fields of `DetectorSettings` and `PostprocessSettings`, such as `device="cpu"` or `nms="soft"`; by
            default the checkpoint's, else those classes'.

    Returns:
        The detector.

    Raises:
        UnknownNameError: no such weights, or a choice is not known; lists those there are.
        WeightsError: the file is missing, damaged, not one of ours, or cannot be downloaded.
        SettingError: a setting is unknown or out of range.
    """
    own, post = divided(settings, DetectorSettings, PostprocessSettings)
    chosen, _ = changed(DetectorSettings(), own), changed(PostprocessSettings(), post)  # before anything is downloaded
    path = find_weights(name_or_path)
    if not is_exported(path):
        from efficientdet.weights.checkpoint import load_checkpoint

        return Detector(*load_checkpoint(path), **settings)
    info, engine, settings["image_size"] = open_exported(path, chosen)
    return Detector(None, info, engine=engine, **settings)
