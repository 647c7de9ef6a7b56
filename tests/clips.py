"""Tiny videos that the tests write themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TICKS = 1000
SAMPLE_RATE = 48_000
# Display matrices (a, b, c, d) as phones write them, by how the picture has to be turned to stand upright.
MATRICES = {"clockwise": (0, 1, -1, 0), "half": (-1, 0, 0, -1), "mirrored": (-1, 0, 0, 1)}


def picture(number: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame whose gray tells its number, up to 24, and whose red corner at the top left tells how it lies."""
    pixels = np.full((height, width, 3), 40 + 8 * (number % 25), np.uint8)
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def number_of(image: Any) -> int:
    """What `picture` was given, from the decoded frame."""
    return round((float(np.asarray(image)[-8:, -8:].mean()) - 40) / 8)


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the video track of an MP4 file, in place."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 36  # version and flags, then 36 bytes of version 0 before the matrix
    a, b, c, d = (one << 16 for one in matrix)
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_clip(
    path: Path,
    times: Sequence[float],
    size: tuple[int, int] = (64, 96),
    sound: str | None = None,
    turned: str | None = None,
    codec: str = "libx264",
    draw: Callable[[int, int, int], Any] = picture,
) -> Path:
    """A video with a frame at each of the times in seconds, of (height, width), perhaps with a tone of one second.

    Args:
        path: the file, whose suffix names the container.
        times: of the frames.
        size: (height, width).
        sound: codec of the sound; None for silence.
        turned: key of `MATRICES`.
        codec: of the frames.
        draw: gives the pixels of a frame by its number, height and width.
    """
    av = pytest.importorskip("av", reason="PyAV is missing (efficientdet[video])")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, 10)
        stream.height, stream.width, stream.pix_fmt = *size, "rgb24" if codec == "png" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.options = {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
        tone = output.add_stream(sound, SAMPLE_RATE, layout="mono") if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 440 / SAMPLE_RATE).astype(np.float32)[None]
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            output.mux(tone.encode(heard))
            output.mux(tone.encode(None))
    if turned is not None:
        turn(path, MATRICES[turned])
    return path
