"""Files that `efficientdet export` and `efficientdet quantize` wrote, as engines, ONNX or OpenVINO.

Torch is imported for raw networks alone, whose outputs it decodes: end-to-end files run without it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from efficientdet.errors import SettingError, WeightsError, as_error, unknown_name
from efficientdet.family import level_sizes
from efficientdet.inference.engines.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, FileMetadata, verify_checksum
from efficientdet.inference.engines.runtimes import (
    as_session,
    onnxruntime_options,
    open_onnx,
    open_openvino,
    openvino_session,
)
from efficientdet.inference.engines.session import EndToEndEngine, Session
from efficientdet.inference.settings import OFFERED, DetectorSettings
from efficientdet.settings import to_dict
from efficientdet.weights.info import METADATA_KEY, CheckpointInfo

if TYPE_CHECKING:
    from efficientdet.inference.engines.engine import Engine

Shapes: TypeAlias = list[tuple[int, ...]]
# What runs a file, by its suffix; the first unless another is asked for.
RUNNERS = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}


def is_exported(path: Path) -> bool:
    """Whether a file's name is that of an exported network."""
    return path.suffix in RUNNERS


def open_exported(
    path: Path, settings: DetectorSettings
) -> tuple[CheckpointInfo, Engine | EndToEndEngine, tuple[int, int]]:
    """Open a network that was exported or quantized, raw or end-to-end.

    Args:
        path: an `.onnx` file, or the `.xml` of an OpenVINO one, whose `.bin` lies beside it.
        settings: backend (`onnxruntime`, for `.onnx`, or `openvino`; `auto` for the first that suits); precision
            (`bf16`, in OpenVINO, of what the file does not fix: int8 stays int8); device (`auto` or `cpu`); image size.

    Returns:
        What the checkpoint behind it says of itself, with the post-processing that the file was exported with; the
        engine, which runs images one by one, since a batch is no faster on a CPU; and the (height, width) that images
        are letterboxed to.

    Raises:
        WeightsError: the file is missing, damaged, or not one of ours; says what to load instead.
        SettingError: the file cannot be run so, or cannot take that size; says what it can.
        MissingExtraError: the library that runs it is not installed.
    """
    backend = _choose_runner(path, settings)
    if path.is_file():
        verify_checksum(path)
    metadata, open_session = open_file(path, backend, settings.precision)
    info = dataclasses.replace(metadata.checkpoint, postprocess=to_dict(metadata.postprocess))
    size = _choose_size(path, metadata, settings)
    precision = "int8" if metadata.precision == "int8" else settings.precision
    if metadata.end_to_end:
        return info, _end_to_end_engine(path, metadata, backend, precision, open_session), size

    from efficientdet.inference.engines.engine import Engine, SessionByShape

    shapes = functools.partial(_raw_shapes, metadata.checkpoint)
    run = SessionByShape(lambda shape: _guarded(path, lambda: open_session(shape), shapes), one_by_one=True)
    return info, Engine(backend, precision, run), size


def open_end_to_end(path: Path) -> tuple[FileMetadata, EndToEndEngine]:
    """Open an end-to-end `.onnx` file for a few images in ONNX Runtime, which starts fastest.

    It has one session, on all cores: to open another takes longer than a few images win by it. Errors are those of
    `open_exported`.
    """
    metadata, open_session = open_file(path, "onnxruntime")
    return metadata, _end_to_end_engine(
        path, metadata, "onnxruntime", "fp32", lambda shape, streams: open_session(shape)
    )


def _end_to_end_engine(
    path: Path, metadata: FileMetadata, backend: str, precision: str, open_session: Callable[..., Session]
) -> EndToEndEngine:
    session = functools.cache(lambda streams: _guarded(path, lambda: open_session(None, streams), _detection_shapes))
    return EndToEndEngine(backend, precision, metadata.postprocess, session, f"{path.resolve()} {path.stat().st_size}")


def _choose_size(path: Path, metadata: FileMetadata, settings: DetectorSettings) -> tuple[int, int]:
    own = metadata.image_size
    size = settings.image_size or own
    size = (size, size) if isinstance(size, int) else size
    if not metadata.dynamic_size and (size != own or settings.rectangular):
        raise SettingError(
            f"{path}: takes images of {own[0]}x{own[1]} pixels only; export it with --image-size, or with "
            "--dynamic-size for any multiple of the coarsest stride"
        )
    step = metadata.checkpoint.spec.strides[-1]
    if any(side % step for side in size) and size != own:
        raise SettingError(f"{path}: image_size is {size}; this file takes multiples of {step} only")
    return size


def _guarded(
    path: Path, open_session: Callable[[], Session], expected: Callable[[Sequence[NDArray[Any]], Shapes], Shapes]
) -> Session:
    """The session; what goes wrong in it, or comes out in other shapes than `expected`, is an error of the file."""
    fault = f"{path}: cannot be run, so it may be damaged"
    with as_error(WeightsError, fault):
        session = open_session()

    def run(*inputs: NDArray[Any]) -> list[NDArray[Any]]:
        with as_error(WeightsError, fault):
            outputs = session(*inputs)
        found = [tuple(output.shape) for output in outputs]
        if found != (wanted := expected(inputs, found)):
            raise WeightsError(f"{path}: damaged: its outputs have shapes {found}, by its metadata {wanted}")
        return outputs

    return run


def _detection_shapes(_: Sequence[NDArray[Any]], found: Shapes) -> Shapes:
    places = found[1][1:]
    return [(1, *places, 4), (1, *places), (1, *places), (1,)]


def _raw_shapes(info: CheckpointInfo, inputs: Sequence[NDArray[Any]], _: Shapes) -> Shapes:
    count, _, *size = inputs[0].shape
    cells = sum(height * width for height, width in level_sizes((size[0], size[1]), info.spec.levels))
    return [(count, cells * info.spec.anchors_per_cell, last) for last in (len(info.class_names), 4)]


def _choose_runner(path: Path, settings: DetectorSettings) -> str:
    runners = RUNNERS[path.suffix]
    backend = runners[0] if settings.backend == "auto" else settings.backend
    if backend not in runners:
        raise unknown_name(f"backend for a {path.suffix} file", backend, ("auto", *runners))
    if settings.device not in ("auto", "cpu"):
        raise SettingError(f"{path}: device is '{settings.device}'; exported files run on the CPU here")
    if settings.precision not in OFFERED[backend]:
        raise SettingError(
            f"{path}: precision is '{settings.precision}'; {backend} runs it in: {', '.join(OFFERED[backend])}"
        )
    return backend


def open_file(path: Path, backend: str, precision: str = "fp32") -> tuple[FileMetadata, Callable[..., Session]]:
    """Open an exported file, raw or end-to-end.

    Args:
        path: the file.
        backend: `onnxruntime` or `openvino`.
        precision: of the arithmetic.

    Returns:
        Its metadata; and what opens a session of it for a shape of its first input, or None for any that it takes, and
        for as many threads at once as `streams` says; `cached` keeps what OpenVINO compiles. The session gives the
        outputs in the order of `RAW_OUTPUTS` or `DETECTION_OUTPUTS`.

    Raises:
        WeightsError: the file is missing, damaged, or not one of ours.
        MissingExtraError: the library that runs it is not installed.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file")
    if backend == "onnxruntime":
        session = open_onnx(path)
        metadata = FileMetadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
        outputs = _check_outputs(metadata, [output.name for output in session.get_outputs()], path)

        def open_again(shape: Sequence[int] | None, streams: int = 1, cached: bool = True) -> Session:
            return as_session(session if streams == 1 else open_onnx(path, onnxruntime_options(streams)), outputs)

        return metadata, open_again
    model = open_openvino(path)
    place = [METADATA_KEY] if path.suffix == ".xml" else ["framework", METADATA_KEY]  # an ONNX file's own metadata
    text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    metadata = FileMetadata.from_json(text, path)
    outputs = _check_outputs(metadata, [output.any_name for output in model.outputs], path)
    cache = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    return metadata, lambda shape, streams=1, cached=True: openvino_session(
        model.clone(), shape, precision, streams=streams, outputs=outputs, cache=cache if cached else None
    )


def _check_outputs(metadata: FileMetadata, found: list[str], path: Path) -> tuple[str, ...]:
    expected = DETECTION_OUTPUTS if metadata.end_to_end else RAW_OUTPUTS
    if sorted(found) != sorted(expected):
        raise WeightsError(f"{path}: its outputs are {found}, not {list(expected)}; export it anew")
    return expected
