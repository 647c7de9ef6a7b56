"""Downloads from a local server that behaves as badly as real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import re
import socket
import ssl
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from efficientdet.errors import WeightsError
from efficientdet.weights import download as module
from efficientdet.weights.download import RetryPolicy, cache_dir, download

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = RetryPolicy(attempts=3, backoff=0.0, stall_timeout=5.0)


@dataclasses.dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes = CONTENT
    ranges: bool = True
    etag: str | None = '"v1"'
    stop_after: int | None = None  # bytes of this answer, then the connection is cut
    stall_after: int | None = None  # bytes of this answer, then silence
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []  # one a request; the last is repeated
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        answer = self.server.next_answer()
        self.close_connection = True
        begin, status = self.range_of(answer)
        if status == 416:
            self.start(answer, 416, {"Content-Range": f"bytes */{len(answer.body)}", "Content-Length": "0"})
            return
        if answer.status != 200:
            self.start(answer, answer.status, {"Content-Length": "0"})
            return
        body = answer.body[begin:]
        extent = {"Content-Range": f"bytes {begin}-{len(answer.body) - 1}/{len(answer.body)}"} if status == 206 else {}
        self.start(answer, status, {"Content-Length": str(len(body))} | extent)
        limits = [limit for limit in (answer.stop_after, answer.stall_after) if limit is not None]
        self.wfile.write(body[: min(limits, default=len(body))])
        self.wfile.flush()
        if answer.stall_after is not None:
            self.server.released.wait(20)

    def range_of(self, answer: Answer) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, answer.etag)
        if asked is None or not answer.ranges or not same or answer.status != 200:
            return 0, answer.status
        begin = int(asked.group(1))
        return (begin, 206) if begin < len(answer.body) else (0, 416)

    def start(self, answer: Answer, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        if answer.etag:
            self.send_header("ETag", answer.etag)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the download would have slept; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


def fetch(server: Server, target: Path, *answers: Answer, sha: str | None = SHA256[:8], **how: Any) -> Path:
    server.answers = list(answers) or [Answer()]
    return download(server.url, target, sha, **({"retry": FAST} | how))


def left_over(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")}


# ---- what goes well
def test_a_file_is_fetched_once(server: Server, target: Path) -> None:
    assert fetch(server, target, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert left_over(target) == {"weights.pth"}
    fetch(server, target)
    assert len(server.requests) == 1


def test_without_checksum_what_is_there_counts(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    assert fetch(server, target, sha=None).read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize("how", [{"sha": SHA256[:8]}, {"sha": None, "size": len(CONTENT)}])
def test_a_wrong_file_under_the_name_is_replaced(server: Server, target: Path, how: dict[str, Any]) -> None:
    target.parent.mkdir()
    target.write_bytes(b"<html>proxy login</html>")
    fetch(server, target, **how)
    assert target.read_bytes() == CONTENT


def test_upper_case_checksums_are_the_same(server: Server, target: Path) -> None:
    assert fetch(server, target, sha=SHA256.upper()).is_file()


# ---- broken connections
@pytest.mark.parametrize("sha", [SHA256[:8], None])
def test_a_cut_download_is_resumed(server: Server, target: Path, sha: str | None) -> None:
    fetch(server, target, Answer(stop_after=300_000), Answer(stop_after=200_000), Answer(), sha=sha)
    assert target.read_bytes() == CONTENT
    assert [request.get("range") for request in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert server.requests[1]["if-range"] == '"v1"'
    assert left_over(target) == {"weights.pth"}


def test_a_later_call_resumes(server: Server, target: Path, naps: list[float]) -> None:
    with pytest.raises(WeightsError, match=r"the connection ended after 300000 of 1024000 bytes \(3 attempts\)"):
        fetch(server, target, Answer(stop_after=300_000), Answer(stop_after=0))
    assert left_over(target) == {"weights.pth.part", "weights.pth.part.etag"}
    server.requests.clear()
    fetch(server, target)
    assert server.requests[0]["range"] == "bytes=300000-"
    assert target.read_bytes() == CONTENT


def test_a_bad_line_that_makes_headway_is_borne_with(server: Server, target: Path) -> None:
    fetch(server, target, *[Answer(stop_after=100_000) for _ in range(10)], Answer())
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 11


def test_a_server_without_ranges_begins_anew(server: Server, target: Path) -> None:
    fetch(server, target, Answer(stop_after=300_000, ranges=False), Answer(ranges=False))
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_cuts_is_given_up(server: Server, target: Path) -> None:
    with pytest.raises(WeightsError, match=r"ended after 300000 of 1024000 bytes \(3 attempts\)"):
        fetch(server, target, Answer(stop_after=300_000, ranges=False))


def test_a_file_that_changed_meanwhile_begins_anew(server: Server, target: Path) -> None:
    old = Answer(body=b"x" * 1_024_000, etag='"v0"', stop_after=300_000)
    fetch(server, target, old, Answer(), sha=None)
    assert target.read_bytes() == CONTENT


def test_without_validator_and_checksum_nothing_is_resumed(server: Server, target: Path) -> None:
    fetch(server, target, Answer(etag='W/"v"', stop_after=300_000), Answer(etag=None), sha=None)
    assert "range" not in server.requests[1]
    assert target.read_bytes() == CONTENT


def test_with_a_checksum_alone_it_is_resumed(server: Server, target: Path) -> None:
    fetch(server, target, Answer(etag=None, stop_after=300_000), Answer(etag=None))
    assert server.requests[1]["range"] == "bytes=300000-"
    assert target.read_bytes() == CONTENT


def test_a_silent_server_counts_as_dead(server: Server, target: Path) -> None:
    patience = dataclasses.replace(FAST, stall_timeout=0.2)
    fetch(server, target, Answer(stall_after=300_000), Answer(), retry=patience)
    assert target.read_bytes() == CONTENT
    target.unlink()
    with pytest.raises(WeightsError, match=r"nothing came for 0\.2 s \(2 attempts\)"):
        fetch(server, target, Answer(stall_after=0), retry=dataclasses.replace(patience, attempts=2))


def test_a_complete_part_is_only_verified(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(CONTENT)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[0]["range"] == "bytes=1024000-"


def test_a_part_that_is_too_long_is_thrown_away(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(CONTENT + b"more")
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [request.get("range") for request in server.requests] == ["bytes=1024004-", None]


@pytest.mark.parametrize("extent", ["bytes 5-1023999/1024000", "rubbish"])
def test_a_part_from_elsewhere_is_not_pasted_in(server: Server, target: Path, extent: str) -> None:
    wrong = Answer(headers={"Content-Range": extent})
    fetch(server, target, Answer(stop_after=300_000), wrong, Answer())
    assert target.read_bytes() == CONTENT
    assert "range" not in server.requests[2]


# ---- damage
def test_a_corrupt_part_is_thrown_away(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(b"x" * 1000)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [request.get("range") for request in server.requests] == ["bytes=1000-", None]


def test_a_corrupt_file_is_refused(server: Server, target: Path) -> None:
    with pytest.raises(WeightsError, match="not the published file: its SHA-256 begins [0-9a-f]{8}, expected 0{8}"):
        fetch(server, target, sha="00000000")
    assert left_over(target) == set()
    assert len(server.requests) == 2


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server: Server, target: Path) -> None:
    with pytest.raises(WeightsError, match="announces 1024000 bytes, expected 77"):
        fetch(server, target, size=77)
    assert left_over(target) == set()


# ---- answers that are no file
@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_final_no_is_not_asked_again(server: Server, target: Path, status: int) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(server, target, Answer(status=status))
    assert len(server.requests) == 1
    assert f"{server.url} cannot be downloaded: the server answers {status}" in str(caught.value)
    assert f"put the file at {target}" in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_no_is_asked_again(server: Server, target: Path, status: int, naps: list[float]) -> None:
    patient = RetryPolicy(attempts=4, backoff=1.5)
    fetch(server, target, *[Answer(status=status)] * 3, Answer(), retry=patient)
    assert target.read_bytes() == CONTENT
    assert naps == [1.5, 3.0, 6.0]


def test_a_lasting_no_is_given_up(server: Server, target: Path, naps: list[float]) -> None:
    with pytest.raises(WeightsError, match=r"the server answers 500 .* \(3 attempts\)"):
        fetch(server, target, Answer(status=500))
    assert len(server.requests) == 3
    assert len(naps) == 2


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (lambda: "7", 7, 7),
        (lambda: "86400", 60, 60),
        (lambda: formatdate(time.time() + 30, usegmt=True), 28, 30),
        (lambda: formatdate(time.time() - 30, usegmt=True), 0, 0),
        (lambda: "soon", 1, 1),
    ],
)
def test_the_server_says_how_long_to_wait(
    server: Server, target: Path, naps: list[float], value: Callable[[], str], low: float, high: float
) -> None:
    busy = Answer(status=429, headers={"Retry-After": value()})
    fetch(server, target, busy, Answer(), retry=RetryPolicy(backoff=1.0))
    assert len(naps) == 1
    assert low <= naps[0] <= high


# ---- no server
def test_without_network_the_error_says_which_file_to_put_where(
    target: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(WeightsError) as caught:
        download("https://example.invalid/d0.pth", target)
    message = str(caught.value)
    assert "https://example.invalid/d0.pth cannot be downloaded: no connection" in message
    assert f"put the file at {target}" in message
    assert naps == []


def test_a_wrong_certificate_is_not_tried_again(
    target: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(WeightsError, match=r"no connection \(certificate verify failed\)"):
        download("https://example.invalid/d0.pth", target)
    assert naps == []


def test_a_refused_connection_is_tried_again(target: Path, naps: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"no connection \(Connection refused\) \(3 attempts\)"):
        download(f"http://127.0.0.1:{port}/x", target, retry=RetryPolicy(attempts=3))
    assert naps == [1.0, 2.0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "/etc/passwd"])
def test_only_the_web_is_downloaded(url: str, target: Path) -> None:
    with pytest.raises(WeightsError, match="only http and https"):
        download(url, target)


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match=r"file/weights\.pth: cannot be written"):
        fetch(server, tmp_path / "file" / "weights.pth")


# ---- several at once
def test_threads_share_one_download(server: Server, target: Path) -> None:
    server.answers = [Answer()]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            assert download(server.url, target, SHA256[:8], retry=FAST).read_bytes() == CONTENT
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(server.requests) == 1


def _in_process(url: str, target: str) -> bool:
    return Path(download(url, target, SHA256[:8], retry=FAST)).read_bytes() == CONTENT


@pytest.mark.slow
def test_processes_share_one_download(server: Server, target: Path) -> None:
    server.answers = [Answer()]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_in_process, [(server.url, str(target))] * 3) == [True] * 3
    assert len(server.requests) == 1


# ---- the folder
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EFFICIENTDET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "efficientdet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "efficientdet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "efficientdet"
    monkeypatch.setenv("EFFICIENTDET_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


def test_the_bar_shows_on_a_terminal_only(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, target)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    target.unlink()
    fetch(server, target)
    assert "weights.pth" in capsys.readouterr().err
    target.unlink()
    fetch(server, target, progress=False)
    assert capsys.readouterr().err == ""
