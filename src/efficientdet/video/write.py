"""Annotated videos: H.264 in MP4, with the sound of the video that they were made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientdet.errors import SettingError, require
from efficientdet.video.frames import Video

# Ticks a second of the time stamps: whole numbers of them fit the usual frame rates, those of NTSC too.
TICKS = 90_000
# Written in fragments that play at once, so that a file that is never finished plays too; finished, it is a usual MP4
# whose index comes first.
CONTAINER = {
    "movflags": "+hybrid_fragmented+frag_keyframe+delay_moov",
    "flush_packets": "1",
    "max_interleave_delta": "500000",  # microseconds that one track waits for another, such as sound that has ended
}
ENCODER = {"preset": "veryfast", "crf": "23"}
FRAMES_IN_A_FRAGMENT = 48
BT709 = 1  # what FFmpeg calls the colors of HD video, in all three tables


class VideoWriter:
    """Writes frames to an MP4 file, within a `with` block. If the process is killed, what was written so far plays.

    Attributes:
        path: the file.
        problem: what became of the sound, where it could not be kept; else None.
    """

    def __init__(self, path: str | os.PathLike[str], video: Video) -> None:
        """Prepare to write; the file appears with the first frame.

        Args:
            path: the file; an existing one is replaced.
            video: what the frames are from; it gives time stamps, frame rate, shape of the pixels, and, where it is a
                file, sound: the packets as they are, or encoded anew (AAC) where MP4 cannot hold them.

        Raises:
            SettingError: `path` is the video itself.
            MissingExtraError: PyAV is not installed.
        """
        self.path = Path(path)
        if self.path.exists() and os.path.exists(video.source) and self.path.samefile(video.source):
            raise SettingError(f"{path} would be overwritten while it is read; choose another file")
        self._av = require("av", "video")
        self._video = video
        self._rate = video.frame_rate or Fraction(25)
        self._output: Any = None
        self._source: Any = None
        self._held: Any = None
        self.problem: str | None = None

    def __enter__(self) -> VideoWriter:
        """The writer itself."""
        return self

    def write(self, image: Image.Image, time: float) -> None:
        """Append a frame.

        Args:
            image: the frame, of the size of the first one, else it is scaled to that. H.264 needs an even width and
                height here, so an odd last row or column is repeated.
            time: seconds since the beginning of the source; the file begins at the `start` of its settings.
        """
        if self._output is None:
            self._open(image.size)
        if image.size != self._size:
            image = image.resize(self._size)
        pixels = np.pad(np.asarray(image), [(0, side % 2) for side in image.size[::-1]] + [(0, 0)], "edge")
        frame = self._av.VideoFrame.from_ndarray(pixels).reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.time_base = Fraction(1, TICKS)
        frame.pts = round(max(0.0, time - self._video.settings.start) * TICKS)
        if self._held is not None:
            frame.pts = max(frame.pts, self._held.pts + 1)
            self._encode(frame.pts)
        self._held = frame

    def _encode(self, until: int) -> None:
        """Write the frame that is held until its end is known, in ticks, and the sound up to there."""
        self._held.duration = until - self._held.pts
        self._output.mux(self._stream.encode(self._held))
        self._copy_sound(until / TICKS)

    def _open(self, size: tuple[int, int]) -> None:
        self._size = size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._output = self._av.open(str(self.path), "w", format="mp4", options=CONTAINER)
        self._stream = self._output.add_stream("libx264", self._rate)
        encoder = self._stream.codec_context
        encoder.width, encoder.height = (side + side % 2 for side in size)
        encoder.pix_fmt, encoder.time_base, encoder.options = "yuv420p", Fraction(1, TICKS), ENCODER
        # Without B-frames frames are written in the order of their time, so that each one's duration is kept.
        encoder.gop_size, encoder.max_b_frames = FRAMES_IN_A_FRAGMENT, 0
        encoder.flags |= self._av.codec.context.Flags.frame_duration
        encoder.sample_aspect_ratio = self._video.aspect_ratio
        encoder.colorspace = encoder.color_primaries = encoder.color_trc = BT709
        self._sound = iter(()) if self._video.is_live else self._open_sound()

    def _open_sound(self) -> Iterator[Any]:
        """Add the sound tracks of the source to the output; gives their packets."""
        self._source = self._video.open()
        can_copy = self._output.supported_codecs
        tracks = {}
        for track in self._source.streams.audio:
            if track.codec_context is None:
                self.problem = "a sound track of a kind that FFmpeg does not know is left out"
            elif track.codec_context.codec.canonical_name in can_copy:
                tracks[track.index] = self._output.add_stream_from_template(track)
            else:
                tracks[track.index] = self._output.add_stream("aac", track.codec_context.sample_rate)
        return self._sound_packets(tracks) if tracks else iter(())

    def _sound_packets(self, tracks: dict[int, Any]) -> Iterator[Any]:
        """Packets from `start` on, with the time stamps of the output."""
        source, video, start = self._source, self._source.streams.video[0], self._video.settings.start
        zero = start + float((video.start_time or 0) * video.time_base)
        if start:
            source.seek(int(zero * self._av.time_base))
        for packet in source.demux(source.streams.audio):
            track, target = packet.stream, tracks.get(packet.stream.index)
            if target is None:
                continue
            shift = round(zero / track.time_base)
            if target.codec_context.codec.canonical_name == track.codec_context.codec.canonical_name:
                if packet.pts is not None and (not start or packet.pts >= shift):
                    packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                    yield packet
                continue
            for sound in packet.decode():
                if not start or sound.pts >= shift:
                    sound.pts -= shift
                    yield from target.encode(sound)
        for target in tracks.values():
            if target.codec_context.is_encoder and target.codec_context.is_open:
                yield from target.encode(None)

    def _copy_sound(self, until: float) -> None:
        """Write the sound up to a time of the output, in seconds."""
        try:
            for packet in self._sound:
                ends = float(packet.pts * packet.time_base)
                self._output.mux(packet)
                if ends >= until:
                    break
        except self._av.FFmpegError as error:
            self._sound, self.problem = iter(()), f"its sound is damaged, and was kept up to there ({error.strerror})"

    def __exit__(self, *_: object) -> None:
        """Finish the file: what was written is kept, however the block ends."""
        if self._output is None:
            return
        ends = self._held.pts + round(TICKS / self._rate * self._video.settings.every)
        if self._video.is_exhausted and self._video.settings.end is None and self._source is not None:
            own = self._source.streams.video[0]
            length = own.duration * own.time_base if own.duration else Fraction(self._source.duration or 0, 1_000_000)
            ends = max(self._held.pts + 1, round((length - self._video.settings.start) * TICKS)) if length else ends
            self._encode(ends)
            self._copy_sound(float("inf"))
        else:
            self._encode(ends)
        self._output.mux(self._stream.encode(None))
        self._output.close()
        if self._source is not None:
            self._source.close()
