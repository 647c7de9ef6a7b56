"""Frames of files and of live sources: all of them, in order, upright, at their times."""

from __future__ import annotations

import io
import threading
import time
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import ImageError, MissingExtraError, SettingError
from efficientdet.video.frames import Video, file_name, is_video

pytest.importorskip("av", reason="PyAV is missing (efficientdet[video])")
TIMES = [0, 0.1, 0.2, 0.5, 0.6, 1.0]  # not at one rate


def read(path: Path, **settings: Any) -> list[Any]:
    with Video(path, **settings) as video:
        return list(video)


@pytest.fixture(scope="module")
def varied(clip: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "varied.mp4", TIMES)


def test_every_frame_comes_in_order_at_its_own_time(varied: Path, numbers: Any) -> None:
    frames = read(varied)
    assert [frame.number for frame in frames] == [numbers(frame.image) for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx(TIMES)
    assert all(frame.image.shape == (64, 96, 3) and frame.image.dtype == np.uint8 for frame in frames)


def test_a_real_clip_is_read_to_its_end(shared_data: Path) -> None:
    with Video(shared_data / "video" / "car-detection.mp4", start=26) as video:
        assert video.count() == 52
        times = [frame.time for frame in video]
    assert times == pytest.approx([26 + number / 12.5 for number in range(52)])


@pytest.mark.parametrize(
    ("turned", "height", "corner"),
    [("clockwise", 96, (12, 56)), ("half", 64, (56, 84)), ("mirrored", 64, (8, 84))],
)
def test_frames_stand_upright(
    turned: str, height: int, corner: tuple[int, int], clip: Callable[..., Path], tmp_path: Path
) -> None:
    image = read(clip(tmp_path / "turned.mp4", [0], turned=turned))[0].image
    assert image.shape == (height, 160 - height, 3)
    red = (image[..., 0].astype(int) - image[..., 1] > 100).nonzero()
    assert [axis.mean() for axis in red] == pytest.approx(corner, abs=1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": 2}, [0, 2, 4]),
        ({"every": 4}, [0, 4]),
        ({"start": 0.15}, [2, 3, 4, 5]),
        ({"end": 0.5}, [0, 1, 2]),
        ({"start": 0.1, "end": 1.0, "every": 2}, [1, 3]),
    ],
)
def test_only_what_is_asked_for_is_read(
    settings: dict[str, Any], expected: list[int], varied: Path, numbers: Any
) -> None:
    frames = read(varied, **settings)
    assert [numbers(frame.image) for frame in frames] == expected
    assert [frame.time for frame in frames] == pytest.approx([TIMES[number] for number in expected])
    assert frames[0].number == 0


def test_a_start_after_the_end_is_refused(varied: Path) -> None:
    with pytest.raises(SettingError, match="start is 5.0; the video has 1.10 s"):
        Video(varied, start=5.0)


def test_a_time_without_frames_is_an_error(varied: Path) -> None:
    with pytest.raises(ImageError, match="no frame of it can be decoded from 1.05 s on"):
        read(varied, start=1.05)


def test_what_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is no video.")
    with pytest.raises(ImageError, match="text.mp4: cannot be opened as a video"):
        Video(tmp_path / "text.mp4")
    with pytest.raises(ImageError, match="missing.mp4: cannot be opened as a video .No such file"):
        Video(tmp_path / "missing.mp4")
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(ImageError, match="sound.mp4: there is no video in it that"):
        Video(tmp_path / "sound.mp4")


def test_a_file_that_was_cut_off_gives_what_is_there(clip: Callable[..., Path], tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mkv", [number / 10 for number in range(20)], size=(128, 128)).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    frames = read(path)
    assert 3 < len(frames) < 20


def test_damaged_packets_are_counted(clip: Callable[..., Path], tmp_path: Path) -> None:
    path = clip(tmp_path / "damaged.mov", [number / 10 for number in range(10)], codec="png")
    images = path.read_bytes().split(b"\x89PNG")
    images[5] = bytes(len(images[5]))
    path.write_bytes(b"\x89PNG".join(images))
    with Video(path) as video:
        frames = list(video)
    assert video.damaged == 1
    assert len(frames) == 9


def test_no_thread_is_left_when_reading_ends_early(varied: Path) -> None:
    with Video(varied) as video:
        next(iter(video))
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]
    with Video(varied):
        pass  # nothing is read at all


def test_a_video_is_iterated_once(varied: Path) -> None:
    with Video(varied) as video:
        assert len(list(video)) == 6
        with pytest.raises(SettingError, match="open the video again"):
            next(iter(video))


def test_frames_that_are_too_large_are_refused(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efficientdet.video.frames.MOST_PIXELS", 64 * 96 - 1)
    with pytest.raises(ImageError, match="frames of 96x64 pixels are too large"):
        Video(varied)


def test_a_playlist_fetches_nothing(tmp_path: Path, camera: Camera) -> None:
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{camera.url}\n#EXT-X-ENDLIST\n")
    with pytest.raises(ImageError):
        read(tmp_path / "list.m3u8")
    assert camera.connections == 0


def test_names_of_videos() -> None:
    videos = ["clip.mp4", "CLIP.MOV", "0", "rtsp://camera/1", "http://camera/live.mjpg"]
    assert all(map(is_video, videos))
    assert not any(map(is_video, ["photo.jpg", "-", "photos/", "*.png", "0.png"]))
    assert file_name("a/clip.mp4") == "a/clip.mp4"
    assert file_name("rtsp://me:secret@camera/live/1?key=2") == "1"
    assert file_name("rtsp://me:secret@camera:554") == "camera_554"


def test_a_password_is_never_told(camera: Camera) -> None:
    url = camera.url.replace("http://", "http://me:secret@").replace("live", "nowhere")
    with pytest.raises(ImageError, match="http://127.0.0.1:.*/nowhere.mjpg: cannot be opened") as caught:
        Video(url)
    assert "secret" not in str(caught.value)


def test_a_missing_library_is_named(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[video\]'"):
        Video(varied)


# Live sources


class Camera:
    """An IP camera on the loopback interface: motion JPEG over HTTP, whose frames tell their number.

    Attributes:
        url: where it is.
        connections: how often somebody has connected.
        frames: that it sends on each connection, before it breaks off.
        sent: frames so far.
        is_up: whether it accepts connections.
    """

    def __init__(self, frames: int = 40, interval: float = 0.02) -> None:
        self.connections = self.sent = 0
        self.frames, self.is_up = frames, True
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                camera.connections += 1
                if not camera.is_up or self.path != "/live.mjpg":
                    return self.send_error(503)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for _ in range(camera.frames):
                    image = io.BytesIO()
                    Image.new("RGB", (64, 48), (40 + camera.sent % 25 * 8,) * 3).save(image, "JPEG")
                    head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {image.tell()}\r\n\r\n".encode()
                    try:
                        self.wfile.write(head + image.getvalue() + b"\r\n")
                    except OSError:
                        return
                    camera.sent += 1
                    time.sleep(interval)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/live.mjpg"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    monkeypatch.setattr("efficientdet.video.frames.PAUSE", 0.05)
    camera = Camera()
    yield camera
    camera.server.shutdown()
    camera.server.server_close()


def test_a_live_source_gives_the_latest_frame_and_counts_the_others(camera: Camera) -> None:
    camera.frames = 10_000
    taken = []
    with Video(camera.url) as video:
        assert video.is_live
        assert video.count() is None
        for frame in video:
            taken.append(frame)
            before = camera.sent
            while camera.sent < before + 5:  # a slow consumer
                time.sleep(0.01)
            if len(taken) == 6:
                break
    assert video.dropped > 6
    steps = np.diff([frame.number for frame in taken])
    assert steps.min() >= 1 and steps.max() > 1
    assert all(later.time > earlier.time for earlier, later in zip(taken, taken[1:], strict=False))


def test_a_live_source_is_opened_again(camera: Camera) -> None:
    with Video(camera.url) as video:
        last = next(frame for frame in video if video.reconnects == 2)
    assert last.number > 40
    assert camera.connections >= 3


def test_a_live_source_that_stays_away_is_given_up(camera: Camera) -> None:
    with Video(camera.url, reconnect=0.3) as video:
        frames = iter(video)
        next(frames)
        camera.is_up = False
        with pytest.raises(ImageError, match="broke off, and has given no frame for"):
            for _ in frames:
                pass


def test_a_live_source_ends_when_told(camera: Camera) -> None:
    camera.frames = 10_000
    with Video(camera.url, end=0.5, every=2) as video:
        frames = list(video)
    assert frames[-1].time < 0.5
    assert all(frame.number % 2 == 0 for frame in frames)


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(ImageError, match="^87: cannot be opened as a video"):
        Video(87)
