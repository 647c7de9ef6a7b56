"""Annotated videos: every frame at its time, the sound as it was, and a file that plays whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import SettingError
from efficientdet.video.frames import Video
from efficientdet.video.write import VideoWriter

av = pytest.importorskip("av", reason="PyAV is missing (efficientdet[video])")
TIMES = [0, 0.1, 0.2, 0.5, 0.6, 1.0]


def copy(source: Path, target: Path, **settings: Any) -> Path:
    """Write a video's frames as they are."""
    with Video(source, **settings) as video, VideoWriter(target, video) as writer:
        for frame in video:
            writer.write(Image.fromarray(frame.image), frame.time)
        assert writer.problem is None
    return target


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def packets_of(path: Path) -> list[bytes]:
    """The sound, packet by packet."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def length_of(path: Path, kind: str) -> float:
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return float((stream.duration or 0) * stream.time_base)


@pytest.fixture(scope="module")
def varied(clip: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "varied.mp4", TIMES, sound="aac")


def test_frames_keep_their_times_and_the_sound_its_packets(varied: Path, numbers: Any, tmp_path: Path) -> None:
    path = copy(varied, tmp_path / "new" / "out.mp4")
    assert times_of(path) == pytest.approx(TIMES)
    assert packets_of(path) == packets_of(varied)
    for kind in ("video", "audio"):
        assert length_of(path, kind) == pytest.approx(length_of(varied, kind), abs=0.001)
    with av.open(str(path)) as container:
        stream = container.streams.video[0].codec_context
        assert (stream.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 96, 64)
        assert [numbers(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)] == list(range(6))
    assert path.read_bytes().rindex(b"moof") < path.read_bytes().rindex(b"moov")  # a usual MP4 once it is finished


def test_colors_are_kept(tmp_path: Path, clip: Callable[..., Path], varied: Path) -> None:
    bars = np.zeros((64, 96, 3), np.uint8)
    for place, color in enumerate([(220, 30, 60), (40, 190, 80), (60, 80, 220)]):
        bars[:, 32 * place : 32 * place + 32] = color
    with Video(varied) as video, VideoWriter(tmp_path / "bars.mp4", video) as writer:
        writer.write(Image.fromarray(bars), 0)
    with Video(tmp_path / "bars.mp4") as video:
        found = next(iter(video)).image
    for place in range(3):
        middle = found[:, 32 * place + 12 : 32 * place + 20].reshape(-1, 3).mean(0)
        assert middle == pytest.approx(bars[0, 32 * place], abs=8)


@pytest.mark.parametrize(("name", "sound"), [("a.mkv", "flac"), ("a.mkv", "pcm_s16le"), ("a.mkv", "libopus")])
def test_sound_of_other_kinds_is_kept_as_it_is(
    name: str, sound: str, clip: Callable[..., Path], tmp_path: Path
) -> None:
    source = clip(tmp_path / name, TIMES, sound=sound)
    path = copy(source, tmp_path / "out.mp4")
    assert b"".join(packets_of(path)) == b"".join(packets_of(source))
    assert times_of(path) == pytest.approx(TIMES)


def test_sound_that_mp4_cannot_hold_is_encoded_anew(clip: Callable[..., Path], tmp_path: Path) -> None:
    path = copy(clip(tmp_path / "a.mov", TIMES, sound="pcm_mulaw"), tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(heard) / 48_000 == pytest.approx(1.0, abs=0.1)
    pitch = np.abs(np.fft.rfft(heard[10_000:34_000])).argmax() * 2  # Hz, of half a second
    assert pitch == pytest.approx(440, abs=2)


def test_a_part_has_its_own_part_of_the_sound(varied: Path, tmp_path: Path) -> None:
    path = copy(varied, tmp_path / "part.mp4", start=0.45, end=0.95)
    assert times_of(path) == pytest.approx([0.05, 0.15])
    whole = packets_of(varied)
    part = packets_of(path)
    begin = whole.index(part[0])
    assert whole[begin : begin + len(part)] == part
    assert begin * 1024 / 48_000 == pytest.approx(0.45, abs=0.05)
    assert len(part) * 1024 / 48_000 == pytest.approx(0.4, abs=0.15)  # up to the end of the last frame


def test_every_second_frame_is_shown_for_twice_as_long(clip: Callable[..., Path], tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", [number / 10 for number in range(10)])
    path = copy(source, tmp_path / "out.mp4", every=2)
    assert times_of(path) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert length_of(path, "video") == pytest.approx(1.0, abs=0.001)


def test_an_odd_row_and_column_are_repeated(varied: Path, tmp_path: Path) -> None:
    with Video(varied) as video, VideoWriter(tmp_path / "odd.mp4", video) as writer:
        writer.write(Image.new("RGB", (63, 47), (200, 200, 200)), 0)
        writer.write(Image.new("RGB", (126, 94), (200, 200, 200)), 0.1)  # another size is scaled
    with Video(tmp_path / "odd.mp4") as video:
        frames = list(video)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 2
    assert all(frame.image.min() > 190 for frame in frames)


def test_a_video_is_never_written_over_itself(varied: Path) -> None:
    before = varied.read_bytes()
    with Video(varied) as video, pytest.raises(SettingError, match="would be overwritten while it is read"):
        VideoWriter(varied, video)
    assert varied.read_bytes() == before


def test_what_is_written_until_an_error_plays(varied: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Video(varied) as video, VideoWriter(tmp_path / "out.mp4", video) as writer:
        for frame in video:
            writer.write(Image.fromarray(frame.image), frame.time)
            if frame.number == 3:
                raise KeyboardInterrupt
    assert times_of(tmp_path / "out.mp4") == pytest.approx(TIMES[:4])


def test_nothing_is_written_without_a_frame(varied: Path, tmp_path: Path) -> None:
    with Video(varied) as video, VideoWriter(tmp_path / "out.mp4", video):
        pass
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_plays_whose_process_was_killed(clip: Callable[..., Path], tmp_path: Path) -> None:
    source, target = clip(tmp_path / "a.mp4", [number / 10 for number in range(20)], sound="aac"), tmp_path / "out.mp4"
    program = f"""
import sys
from PIL import Image
from efficientdet.video.frames import Video
from efficientdet.video.write import VideoWriter
with Video({str(source)!r}) as video, VideoWriter({str(target)!r}, video) as writer:
    image = Image.fromarray(next(iter(video)).image)
    for number in range(200):
        writer.write(image, number / 10)
    print("now", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    times = times_of(target)
    assert len(times) >= 96
    assert times == pytest.approx([number / 10 for number in range(len(times))])


def check_with_ffprobe(source: Path, target: Path) -> list[Any]:
    """The streams of the source, which those of the target equal."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is missing; install the system's package ffmpeg")
    found, lengths, rates = [], [], []
    for path in (source, target):
        command = ["ffprobe", "-v", "error", "-count_packets", "-show_streams", "-of", "json", str(path)]
        streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        keys = ("codec_name", "width", "height", "pix_fmt", "nb_read_packets", "sample_rate")
        found.append([{key: stream.get(key) for key in keys} for stream in streams])
        lengths.append([float(stream["duration"]) for stream in streams])
        rates.append(float(Fraction(streams[0]["avg_frame_rate"])))
    assert found[0] == found[1]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.02)
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)  # time stamps are whole ticks
    return found[0]


def test_ffprobe_finds_the_same_as_in_the_source(varied: Path, tmp_path: Path) -> None:
    assert len(check_with_ffprobe(varied, copy(varied, tmp_path / "out.mp4"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["car-detection.mp4", "bottle-detection.mp4"])
def test_ffprobe_finds_the_same_as_in_the_real_clips(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "video" / name
    streams = check_with_ffprobe(source, copy(source, tmp_path / "out.mp4"))
    assert name != "car-detection.mp4" or streams[0]["nb_read_packets"] == "377"
