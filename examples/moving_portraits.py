"""Write a video in which three portraits pass each other, to try tracking and counting on.

pip install 'efficientdet[video,demo]'
python examples/moving_portraits.py clip.mp4
"""

from __future__ import annotations

import sys
from fractions import Fraction

import av
from PIL import Image

from efficientdet.images.find import sample_image

WIDTH, HEIGHT, RATE, FRAMES = 640, 360, 15, 75
# Of each portrait: height in pixels, where its middle is in the first frame and in the last.
PORTRAITS = [(120, (-60, 72), (580, 72)), (120, (-360, 72), (280, 72)), (130, (700, 288), (60, 288))]


def frame_at(share: float, portrait: Image.Image) -> Image.Image:
    """The frame after a share of the video."""
    frame = Image.new("RGB", (WIDTH, HEIGHT), (112, 118, 124))
    for height, first, last in PORTRAITS:
        small = portrait.resize((height * portrait.width // portrait.height, height))
        x, y = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
        frame.paste(small, (x - small.width // 2, y - small.height // 2))
    return frame


if __name__ == "__main__":
    portrait = Image.open(sample_image()).convert("RGB")
    with av.open(sys.argv[1], "w") as output:
        stream = output.add_stream("libx264", Fraction(RATE))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            output.mux(stream.encode(av.VideoFrame.from_image(frame_at(number / FRAMES, portrait))))
        output.mux(stream.encode(None))
