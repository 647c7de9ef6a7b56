"""Downloads from a local server that behaves as badly as real ones."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import socket
import ssl
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from efficientdet.errors import WeightsError
from efficientdet.weights import download as module
from efficientdet.weights.download import download

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclasses.dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes = CONTENT
    length: int | None = len(CONTENT)  # that it announces
    stall: bool = False  # silence after the body


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []  # one a request; the last is repeated
        self.requests = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.close_connection = True
        self.send_response(answer.status)
        if answer.length is not None:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if answer.status == 200:
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                self.wfile.write(answer.body)
                self.wfile.flush()
        if answer.stall:
            self.server.released.wait(20)


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


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the download would have slept; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


def fetch(server: Server, target: Path, *answers: Answer, sha: str = SHA256) -> None:
    server.answers = list(answers) or [Answer()]
    download(server.url, target, sha)


def left_over(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


# ---- what goes well
@pytest.mark.parametrize("sha", [SHA256, SHA256[:8], SHA256.upper()])
def test_a_file_is_complete_and_alone(server: Server, target: Path, sha: str) -> None:
    fetch(server, target, sha=sha)
    assert target.read_bytes() == CONTENT
    assert left_over(target) == ["weights.pth"]


def test_an_existing_file_is_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"<html>proxy login</html>")
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_may_leave_the_length_out(server: Server, target: Path) -> None:
    fetch(server, target, Answer(length=None))
    assert target.read_bytes() == CONTENT


def test_the_bar_shows_on_a_terminal_only(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, target)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(server, target)
    assert "weights.pth" in capsys.readouterr().err


# ---- what may pass is tried again
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, target: Path, status: int, naps: list[float]) -> None:
    fetch(server, target, *[Answer(status=status, length=0)] * 3, Answer())
    assert target.read_bytes() == CONTENT
    assert naps == [1.0, 2.0, 4.0]


def test_a_broken_connection_is_tried_again(server: Server, target: Path) -> None:
    fetch(server, target, Answer(body=CONTENT[:300_000]), Answer(body=b""), Answer())
    assert target.read_bytes() == CONTENT
    assert left_over(target) == ["weights.pth"]


def test_a_silent_server_counts_as_dead(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    fetch(server, target, Answer(body=CONTENT[:300_000], stall=True), Answer())
    assert target.read_bytes() == CONTENT
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with pytest.raises(WeightsError, match=r"nothing came for 0\.2 s \(1 attempts\)"):
        fetch(server, target, Answer(body=b"", stall=True))


def test_a_lasting_failure_is_given_up(server: Server, target: Path, naps: list[float]) -> None:
    with pytest.raises(WeightsError, match=r"the connection ended after 300000 of 1024000 bytes \(5 attempts\)"):
        fetch(server, target, Answer(body=CONTENT[:300_000]))
    assert server.requests == 5 and len(naps) == 4
    assert left_over(target) == []


def test_a_refused_connection_is_tried_again(target: Path, naps: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"the connection failed \(Connection refused\) \(5 attempts\)"):
        download(f"http://127.0.0.1:{port}/x", target, SHA256)
    assert len(naps) == 4


# ---- what will not pass is said at once
@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_final_no_is_not_asked_again(server: Server, target: Path, status: int) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(server, target, Answer(status=status, length=0))
    assert server.requests == 1
    assert f"{server.url} cannot be downloaded: the server answers {status}" in str(caught.value)


def test_a_wrong_file_is_refused_and_leaves_nothing(server: Server, target: Path) -> None:
    with pytest.raises(WeightsError, match=f"not that file: its SHA-256 is {SHA256[:8]}, not 00000000"):
        fetch(server, target, sha="00000000")
    assert left_over(target) == []
    assert server.requests == 1


@pytest.mark.parametrize("answer", [Answer(length=50_000_000_000), Answer(body=CONTENT * 4, length=None)])
def test_a_file_that_is_too_large_is_refused(
    answer: Answer, server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 2_000_000)
    with pytest.raises(WeightsError, match="it is larger than 2,000,000 bytes"):
        fetch(server, target, answer)
    assert left_over(target) == []
    assert server.requests == 1


def test_without_network_the_error_says_which_file_to_put_where(
    target: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(target.parent))
    with pytest.raises(WeightsError) as caught:
        download("https://example.invalid/d0.pth", target, SHA256)
    message = str(caught.value)
    assert "https://example.invalid/d0.pth cannot be downloaded: the connection failed (Temporary failure" in message
    assert f"download that file elsewhere and put it at {target.parent / 'd0.pth'}" in message
    assert naps == []


def test_a_wrong_certificate_is_not_tried_again(
    target: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(WeightsError, match=r"the connection failed \(certificate verify failed\)"):
        download("https://example.invalid/d0.pth", target, SHA256)
    assert naps == []


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match=r"file/weights\.pth: cannot be written"):
        fetch(server, tmp_path / "file" / "weights.pth")
    assert server.requests == 0


# ---- several at once
def test_threads_end_with_one_whole_file(server: Server, target: Path) -> None:
    server.answers = [Answer()]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            download(server.url, target, SHA256)
            assert target.read_bytes() == CONTENT
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert left_over(target) == ["weights.pth"]


def _in_process(url: str, target: str) -> bool:
    download(url, Path(target), SHA256)
    return Path(target).read_bytes() == CONTENT


@pytest.mark.slow
def test_processes_end_with_one_whole_file(server: Server, target: Path) -> None:
    server.answers = [Answer()]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_in_process, [(server.url, str(target))] * 3) == [True] * 3
    assert left_over(target) == ["weights.pth"]
