"""What can be exported to, and the settings of `export` and `quantize`: defaults, ranges and descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

from efficientdet.errors import SettingError, unknown_name
from efficientdet.settings import Settings, setting

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of the file's name; none of a folder's.
        module: of this folder, which writes and opens such files.
        abilities: which of `ABILITIES` it can have.
    """

    suffix: str
    module: str
    abilities: tuple[str, ...]


ABILITIES = {
    "end_to_end": "decoding and NMS in the file (--end-to-end)",
    "dynamic_batch": "any number of images at once (--dynamic-batch)",
    "dynamic_size": "images of any size (--dynamic-size)",
    "half": "weights stored as float16 (--half)",
}
FORMATS = {
    "onnx": Format(".onnx", "onnx_file", tuple(ABILITIES)),
    "openvino": Format(".xml", "openvino_file", tuple(ABILITIES)),
    "torch-export": Format(".pt2", "torch_export_file", ("end_to_end", "dynamic_batch", "half")),
    "executorch": Format(".pte", "executorch_file", ()),
    "tflite": Format(".tflite", "tflite_file", ()),
    "triton": Format("", "onnx_file", tuple(ABILITIES)),
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
class ExportSettings(Settings):
    """What an exported file is. `dynamic_size` implies `dynamic_batch`."""

    to: str | None = setting(None, f"Format: {', '.join(FORMATS)}; by default by the file's suffix.")
    end_to_end: bool = setting(False, "Bytes in, boxes out: normalizing, decoding and NMS are in the file.")
    dynamic_batch: bool = setting(False, "Take any number of images at once, as a model for Triton always does.")
    dynamic_size: bool = setting(
        False,
        "Take any number of images, of any height and width that are multiples of the coarsest stride (128 for P7).",
        also="dynamic",
    )
    half: bool = setting(False, "Store the convolutions' weights as float16, which halves the file.")


@dataclass(frozen=True)
class QuantizeSettings(Settings):
    """How a detector is quantized to int8."""

    calibration_images: int = setting(
        300, "Number of calibration images, evenly spread over the split: they give the ranges to round in.", minimum=1
    )
    split: str = setting("train", "Split that the calibration images are from.")
    preset: Literal["performance", "mixed"] = setting(
        "mixed",
        "Ranges of the activations: mixed, asymmetric where it helps; or performance, symmetric around 0: less exact.",
    )
    check_split: str = setting("val", "Split that AP is compared on.")
    end_to_end: bool = setting(False, "Bytes in, boxes out: normalizing, decoding and NMS are in the file, in float32.")


class ExportOptions(TypedDict, total=False):
    """The fields of `ExportSettings` as keywords, for type checkers; `dynamic` is `dynamic_size`."""

    to: str | None
    end_to_end: bool
    dynamic_batch: bool
    dynamic_size: bool
    dynamic: bool
    half: bool


class QuantizeOptions(TypedDict, total=False):
    """The fields of `QuantizeSettings` as keywords, for type checkers."""

    calibration_images: int
    split: str
    preset: Literal["performance", "mixed"]
    check_split: str
    end_to_end: bool


def find_format(to: str | None, path: Path) -> str:
    """The format that a name, or else a file's suffix, means.

    Raises:
        UnknownNameError: neither says a known format.
        SettingError: the suffix is another format's, or the format is not written here; says what to do instead.
    """
    suffixes = {format.suffix: name for name, format in FORMATS.items() if format.suffix}
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
        name = f"called *{FORMATS[to].suffix}" if FORMATS[to].suffix else "a folder, whose name has no suffix"
        raise SettingError(f"{path}: what is exported to {to} must be {name}")
    return to


def check_abilities(settings: ExportSettings, to: str, detector: Detector) -> None:
    """Refuse what a format cannot be, or a detector cannot be exported as.

    Raises:
        SettingError: says what cannot be done and what can.
    """
    for ability, words in ABILITIES.items():
        if getattr(settings, ability) and ability not in FORMATS[to].abilities:
            others = [name for name, format in FORMATS.items() if ability in format.abilities]
            raise SettingError(f"{to} files here cannot have {words}; these can: {', '.join(others)}")
    post = detector.postprocess
    if settings.end_to_end and (post.nms, post.candidates) != ("hard", "pairs"):
        raise SettingError(
            f"end-to-end files have nms 'hard' over candidates 'pairs', not '{post.nms}' over '{post.candidates}'; "
            "export raw outputs for those"
        )
    stride = detector.info.spec.strides[-1]
    height, width = (-(-side // stride) * stride for side in detector.image_size)
    if settings.dynamic_size and (height, width) != detector.image_size:
        raise SettingError(
            f"image size {'x'.join(map(str, detector.image_size))}: a file of dynamic size takes multiples of {stride} "
            f"only; choose --image-size {height if height == width else f'{height}x{width}'}"
        )
