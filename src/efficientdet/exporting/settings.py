"""What can be exported to, and what one export asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from efficientdet.errors import SettingError, unknown_name
from efficientdet.inference.detector import Detector


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of the file's name.
        able: which of `end_to_end`, `dynamic_batch`, `dynamic_size` and `half` it can be.
    """

    suffix: str
    able: frozenset[str]


FORMATS = {
    "onnx": Format(".onnx", frozenset(("end_to_end", "dynamic_batch", "dynamic_size", "half"))),
    "openvino": Format(".xml", frozenset(("end_to_end", "dynamic_batch", "dynamic_size", "half"))),
    "torch-export": Format(".pt2", frozenset(("end_to_end", "dynamic_batch", "half"))),
    "executorch": Format(".pte", frozenset()),
    "tflite": Format(".tflite", frozenset()),
}
WORDS = {
    "end_to_end": "decoding and suppression in the file (--end-to-end)",
    "dynamic_batch": "any number of pictures at once (--dynamic-batch)",
    "dynamic_size": "pictures of any size (--dynamic)",
    "half": "weights stored as float16 (--half)",
}

# Formats that are asked for and not written here: suffix, and what to do instead.
NOT_WRITTEN = {
    "coreml": (
        ".mlpackage",
        "a Core ML file runs on macOS alone, so nothing here could prove it equal. On a Mac, export to torch-export, "
        "then: pip install coremltools; coremltools.convert(torch.export.load('FILE.pt2').run_decompositions({}))",
    ),
    "tensorrt": (
        ".engine",
        "an engine is built on the GPU that will run it. Export to onnx, then there, with NVIDIA's TensorRT installed: "
        "trtexec --onnx=FILE.onnx --saveEngine=FILE.engine (--fp16 for half precision)",
    ),
}


@dataclass(frozen=True)
class ExportSettings:
    """What one export asks for.

    Attributes:
        to: the format.
        end_to_end: decode and suppress in the file too.
        dynamic_batch: take any number of pictures at once.
        dynamic_size: take any height and width that is a multiple of the coarsest stride.
        half: store the convolutions' weights as float16; the arithmetic stays float32 unless the runtime is told
            otherwise.
    """

    to: str
    end_to_end: bool = False
    dynamic_batch: bool = False
    dynamic_size: bool = False
    half: bool = False

    @property
    def precision(self) -> str:
        """`fp32` or `fp16`: which bounds the file must keep."""
        return "fp16" if self.half else "fp32"


def find_format(to: str | None, path: Path) -> str:
    """The format that a name, or else a file's suffix, means.

    Raises:
        UnknownNameError: neither says a known format.
        SettingError: the suffix is another format's, or the format is not written here; says what to do instead.
    """
    suffixes = {format.suffix: name for name, format in FORMATS.items()}
    suffixes |= {suffix: name for name, (suffix, _) in NOT_WRITTEN.items()}
    if to is None:
        to = suffixes.get(path.suffix)
        if to is None:
            raise SettingError(f"{path}: no format has the suffix '{path.suffix}'; known: {', '.join(suffixes)}")
    if to in NOT_WRITTEN:
        raise SettingError(f"{to} is not written here: {NOT_WRITTEN[to][1]}")
    if to not in FORMATS:
        raise unknown_name("format", to, [*FORMATS, *NOT_WRITTEN])
    if path.suffix != FORMATS[to].suffix:
        raise SettingError(f"{path}: a file of format {to} must be called *{FORMATS[to].suffix}")
    return to


def check_settings(settings: ExportSettings, detector: Detector) -> None:
    """Refuse what a format, or a graph with suppression in it, cannot do.

    Raises:
        SettingError: says what cannot be done and what can.
    """
    able = FORMATS[settings.to].able
    for option, words in WORDS.items():
        if getattr(settings, option) and option not in able:
            others = [name for name, format in FORMATS.items() if option in format.able]
            raise SettingError(f"{settings.to} files here cannot have {words}; these can: {', '.join(others)}")
    post = detector.postprocess
    if settings.end_to_end and (post.nms, post.candidates) != ("hard", "pairs"):
        raise SettingError(
            f"end-to-end files suppress with nms 'hard' over candidates 'pairs', not '{post.nms}' over "
            f"'{post.candidates}'; export raw outputs for those"
        )
    stride = detector.model.spec.strides[-1]
    if settings.dynamic_size and any(side % stride for side in detector.image_size):
        raise SettingError(
            f"image size {detector.image_size}: with dynamic size every side is a multiple of {stride}; choose "
            "--image-size so"
        )
