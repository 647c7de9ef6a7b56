"""Frames of a video file, a camera or a network stream, decoded in a thread ahead of their consumer."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from efficientdet.errors import ImageError, SettingError, require
from efficientdet.images.convert import RgbImage
from efficientdet.settings import changed
from efficientdet.text import without_password
from efficientdet.video.settings import VideoSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.video.settings import VideoOptions

VideoFile: TypeAlias = "str | int | os.PathLike[str]"
# Bytes of decoded frames that wait for their consumer, and the number of them at most.
BYTES_AHEAD, MOST_AHEAD = 2**27, 32
# Pixels of a frame; a header may claim any number.
MOST_PIXELS = 2**27
# Seconds after which a network stream that says nothing is taken for broken, and between two attempts to open one.
PATIENCE, PAUSE = 10.0, 1.0
# Where a camera is known by its number: the format that FFmpeg calls it by, and its name.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("vfwcap", "{}")}
SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .h264 .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv .y4m".split()
)


def is_video(source: str) -> bool:
    """Whether a name is that of a video file, a camera's number or a stream's URL, rather than of an image."""
    return source.isdecimal() or "://" in source or Path(source).suffix.lower() in SUFFIXES


def file_name(source: str) -> str:
    """A name for files about a source: the file itself, or the last part of a URL."""
    if "://" not in source:
        return source
    path = re.split(r"[?#]", without_password(source))[0].rstrip("/")
    return re.sub(r"[^\w.-]+", "_", path.rpartition("/")[2])


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: 0-based, counted from the first frame at or after `start`; frames that are left out count too.
        time: seconds since the beginning of the video; of a live source, since it was opened.
        image: (H, W, 3) uint8 RGB, upright.
    """

    number: int
    time: float
    image: RgbImage


class Video:
    """A video: iterate it, once, for its frames, within a `with` block or until its end.

    A file gives its frames in order, as fast as they are taken. A live source (a camera, or a stream without an end)
    gives the latest frame whenever one is asked for; it is opened again when it breaks off.

    Attributes:
        source: the source, as text.
        name: the same for messages, without the user name and password of a URL.
        is_live: whether it is a camera or a stream without an end.
        settings: which frames are read.
        frame_rate: mean number of frames per second that the file names; None where it names none.
        duration: seconds; None of a live source.
        aspect_ratio: width of a pixel over its height; not 1 in some files of television.
        dropped: frames of a live source that nobody asked for in time.
        reconnects: times that a live source was opened again.
        damaged: packets that could not be decoded and were skipped.
        is_exhausted: whether the end of the file was reached.
    """

    def __init__(self, source: VideoFile, **settings: Unpack[VideoOptions]) -> None:
        """Open a video.

        Args:
            source: a path; the number of a camera; or the URL of a stream, such as `rtsp://camera/1`.
            **settings: fields of `VideoSettings`.

        Raises:
            ImageError: it cannot be opened, or has no video in it; names it and the reason.
            SettingError: a setting is out of range, or `start` is beyond the end.
            MissingExtraError: PyAV is not installed.
        """
        self.settings = changed(VideoSettings(), settings)
        self._av = require("av", "video")
        self.source = str(source) if isinstance(source, int) else os.fspath(source)
        self._is_camera = self.source.isdecimal()
        self.name = without_password(self.source)
        self.dropped = self.reconnects = self.damaged = 0
        self.is_exhausted = False
        self._container = self.open()
        stream = self._container.streams.video[0]
        length = self._container.duration
        self.is_live = self._is_camera or (length is None and "://" in self.source)
        self.duration = None if self.is_live or length is None else length / self._av.time_base
        self.frame_rate: Fraction | None = stream.average_rate or None
        self.aspect_ratio = stream.sample_aspect_ratio or Fraction(1)
        self._listed = stream.frames
        if self.duration is not None and self.settings.start >= self.duration:
            self._container.close()
            raise SettingError(f"{self.name}: start is {self.settings.start}; the video has {self.duration:.2f} s")
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._is_done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="decode", daemon=True)

    def open(self) -> Any:
        """The source as a new `av` container.

        Raises:
            ImageError: it cannot be opened, or has no video in it.
        """
        kind, name, options = None, self.source, {}
        if self._is_camera:
            kind, pattern = CAMERAS.get(sys.platform, CAMERAS["linux"])
            name = pattern.format(self.source)
        elif self.source.startswith("rtsp://"):
            options = {"rtsp_transport": "tcp"}
        elif "://" not in self.source:
            options = {"protocol_whitelist": "file"}  # a playlist of a stranger fetches nothing
        try:
            container = self._av.open(name, format=kind, options=options, timeout=PATIENCE)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{self.name}: cannot be opened as a video ({_reason(error)})") from error
        streams = container.streams.video
        if not streams or streams[0].codec_context is None:
            problem = "there is no video in it that FFmpeg can decode"
        elif streams[0].width * streams[0].height > MOST_PIXELS:
            problem = f"frames of {streams[0].width}x{streams[0].height} pixels are too large"
        else:
            return container
        container.close()
        raise ImageError(f"{self.name}: {problem}")

    def count(self) -> int | None:
        """Number of frames that there will be, as far as the file's header tells; None where it does not."""
        last = min(self.settings.end or float("inf"), self.duration or 0.0)
        if self.is_live or not self.duration or not (self.frame_rate or self._listed):
            return None
        whole: float = self._listed or self.duration * float(self.frame_rate or 0)
        return max(1, int(whole * (last - self.settings.start) / self.duration / self.settings.every + 0.5))

    def __enter__(self) -> Video:
        """The video itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop decoding, and close the source."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(2 * PATIENCE if self.is_live else None)
        elif not self._is_done:  # nobody has asked for a frame
            self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            ImageError: the file is damaged beyond this point, has no frame in the time asked for, or a live source has
                broken off for good.
            SettingError: the video was iterated before.
        """
        if self._thread.ident is not None:
            raise SettingError(f"{self.name}: its frames were read already; open the video again")
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_done)
                if not self._waiting:
                    break
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        """What the thread does: decode, and open a live source again."""
        try:
            frames = self._live_frames() if self.is_live else self._file_frames()
            with contextlib.closing(frames):
                for frame in frames:
                    if not self._put(frame):
                        return
            self.is_exhausted = True
        except self._av.FFmpegError as error:
            self._error = ImageError(f"{self.name}: damaged; nothing after this point can be read ({_reason(error)})")
        except BaseException as error:  # raised in the consumer's thread
            self._error = error
        finally:
            self._container.close()
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Hand a frame over, of a file when there is room for it; False once the video is closed."""
        room = 1 if self.is_live else max(2, min(MOST_AHEAD, BYTES_AHEAD // frame.image.nbytes))
        with self._changed:
            if self.is_live:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            self._changed.wait_for(lambda: self._is_closed or len(self._waiting) < room)
            self._waiting.append(frame)
            self._changed.notify_all()
            return not self._is_closed

    def _file_frames(self) -> Generator[Frame, None, None]:
        """Of a file: those of the time asked for, by their own time stamps."""
        start, end, every = self.settings.start, self.settings.end, self.settings.every
        stream = self._container.streams.video[0]
        first = stream.start_time or 0
        if start:
            self._container.seek(first + int(start / stream.time_base), stream=stream)
        number, decoded = -1, 0
        for frame in self._decoded(self._container):
            seconds = float((frame.pts - first) * frame.time_base) if frame.pts is not None else None
            seconds = float(decoded / (self.frame_rate or 25)) if seconds is None else seconds
            decoded += 1
            if seconds < start - 1e-6:
                continue
            if end is not None and seconds >= end - 1e-6:
                break
            number += 1
            if number % every == 0:
                yield Frame(number, seconds, _upright(frame))
        if number < 0:
            raise ImageError(f"{self.name}: no frame of it can be decoded" + (f" from {start} s on" if start else ""))

    def _live_frames(self) -> Generator[Frame, None, None]:
        """Of a live source, with the time of their arrival, until it stays away for too long."""
        begun = latest = time.monotonic()
        number = -1
        while not self._is_closed:
            with contextlib.suppress(self._av.FFmpegError):
                for frame in self._decoded(self._container):
                    latest = time.monotonic()
                    number += 1
                    if self.settings.end is not None and latest - begun >= self.settings.end:
                        return
                    if number % self.settings.every == 0 and latest - begun >= self.settings.start:
                        yield Frame(number, latest - begun, _upright(frame))
            self._container.close()
            self._reopen(latest)

    def _reopen(self, latest: float) -> None:
        """Open a live source that has broken off, as often as the settings allow."""
        while not self._is_closed:
            if time.monotonic() - latest >= self.settings.reconnect:
                seconds = f"{time.monotonic() - latest:.0f} s"
                raise ImageError(f"{self.name}: broke off, and has given no frame for {seconds}; see reconnect")
            time.sleep(PAUSE)
            try:
                self._container = self.open()
            except ImageError:
                continue
            self.reconnects += 1
            return

    def _decoded(self, container: Any) -> Iterator[Any]:
        """Frames of a container; damaged packets are counted and skipped."""
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except self._av.error.InvalidDataError:
                self.damaged += 1


def opened(source: VideoFile | Video, settings: dict[str, Any]) -> AbstractContextManager[Video]:
    """A video for a `with` block, which closes it if it opens it: an open one has its settings and its owner.

    Raises:
        SettingError: settings are given for a video that is open.
    """
    if not isinstance(source, Video):
        return Video(source, **settings)
    if settings:
        raise SettingError(f"{', '.join(settings)}: give it to Video(...), which is open already")
    return contextlib.nullcontext(source)


def _reason(error: BaseException) -> str:
    """Why, without the name of the source, which may hold a password."""
    return str(getattr(error, "strerror", None) or error).partition("\n")[0]


def _upright(frame: Any) -> RgbImage:
    """A frame's pixels, turned and mirrored as its display matrix says, as phones write it: (H, W, 3) uint8 RGB.

    A matrix (a, b; c, d) takes a point (x, y) of the stored frame to (ax + cy, bx + dy); only quarter turns are heeded.
    """
    image: RgbImage = frame.to_ndarray(format="rgb24")
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
