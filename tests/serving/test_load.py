"""Many clients at once, a tenth of whose requests are damaged: no 5xx, no lost answer, memory flat."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load

CLIENTS = 8
JSON = {"Content-Type": "application/json"}


def jpegs() -> list[bytes]:
    files = []
    with Image.open(sample_image()) as photo:
        for side in (120, 200, 320, 480):
            photo.convert("RGB").resize((side, side * 3 // 4)).save(file := BytesIO(), "JPEG")
            files.append(file.getvalue())
    return files


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of any claimed size, with any content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


IMAGES = jpegs()
ZEROS = zlib.compress(bytes(40_000_000), 9)
# Body, headers, and the status that must be answered.
DAMAGED: list[tuple[bytes, dict[str, str], int]] = [
    (IMAGES[3][: len(IMAGES[3]) // 3], {}, 422),
    (IMAGES[3][:20], {}, 422),
    (png(60_000, 60_000, ZEROS), {}, 422),
    (png(3000, 4000, ZEROS[: len(ZEROS) // 2]), {}, 422),
    (png(0, 10, b""), {}, 422),
    (b"", {}, 400),
    (b"%PDF-1.7 not an image", {"Content-Type": "application/pdf"}, 422),
    (b"\x1f\x8b" + ZEROS, {"Content-Encoding": "gzip"}, 422),
    (bytes(1_100_000), {}, 413),
    (b'{"images": ["' + b"A" * 1001 + b'"]}', JSON, 400),
    (b'{"images": ["file:///etc/passwd"]}', JSON, 400),
    (b"[" * 100_000, JSON, 400),
    (json.dumps({"images": ["AAAA"], "threshold": ["x"]}).encode(), JSON, 400),
    (b"--x\r\nContent-Disposition: form-data", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
    (IMAGES[0], {"Content-Type": "multipart/form-data"}, 400),
]


def send_nonsense(port: int) -> None:
    """What is not even HTTP, and a request whose sender goes away in the middle."""
    for text in (
        b"\x00\x01\x02 nonsense\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nabc",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(text)


class Client:
    """Sends requests one after the other over one connection."""

    def __init__(self, server: Any, detector_answers: list[Any], number: int) -> None:
        self.server, self.expected, self.number = server, detector_answers, number
        self.answered, self.seconds = 0, list[float]()

    def run(self, requests: int, seconds: float = float("inf"), damaged: int = 10) -> None:
        """Send requests; each `damaged`th is."""
        end, random = time.monotonic() + seconds, np.random.default_rng(self.number)
        with self.server.connect() as connection:
            for turn in range(requests):
                if time.monotonic() > end:
                    break
                if turn % damaged == damaged - 1:
                    body, headers, status = DAMAGED[(turn // damaged + 2 * self.number) % len(DAMAGED)]
                    answer = self.server.ask("POST", "/v1/detect", body, headers, connection)
                    assert answer.status == status, (answer, body[:40])
                    assert answer.content["error"]["message"]
                else:
                    choice = int(random.integers(len(IMAGES)))
                    start = time.perf_counter()
                    answer = self.server.ask("POST", "/v1/detect", IMAGES[choice], None, connection)
                    self.seconds.append(time.perf_counter() - start)
                    assert answer.status == 200, answer
                    check(answer.content["images"][0]["detections"], self.expected[choice])
                self.answered += 1
                if turn % 50 == 3:
                    send_nonsense(self.server.port)


def check(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for key, tolerance in (("box_xyxy", 0.01), ("score", 1e-4), ("label", 0)):
        np.testing.assert_allclose([one[key] for one in found], [one[key] for one in expected], atol=tolerance)


def run_clients(server: Any, detector: Detector, **limits: Any) -> list[Client]:
    """All clients at once; raises what any of them found wrong."""
    expected = [detector.predict(image).to_json()["detections"] for image in IMAGES]
    clients = [Client(server, expected, number) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client.run, **limits) for client in clients]:
            done.result()
    return clients


def counted(server: Any) -> tuple[int, float]:
    """Requests answered with 5xx, and the server's memory in bytes."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    failed = sum(
        n for name, n in values.items() if name.startswith("efficientdet_requests_total") and 'status="5' in name
    )
    return int(failed), values["process_resident_memory_bytes"]


def test_clients_at_once_whose_requests_are_damaged(start_here: Callable[..., Any], tiny: Path) -> None:
    detector = load(tiny, backend="eager", score_threshold=0.0095)
    server = start_here(detector, max_megabytes=1)
    clients = run_clients(server, detector, requests=4, damaged=2)  # each kind of damage once
    assert [client.answered for client in clients] == [4] * CLIENTS
    assert counted(server)[0] == 0


@pytest.mark.slow
def test_a_minute_of_clients_a_tenth_of_whose_requests_are_damaged(start_process: Callable[..., Any]) -> None:
    detector = load("people")
    server = start_process("--weights", "people", "--max-megabytes", 1)
    run_clients(server, detector, requests=50)  # until what is allocated once is there
    before = counted(server)[1]
    clients = run_clients(server, detector, requests=10**6, seconds=60)
    failed, after = counted(server)
    waits = np.concatenate([client.seconds for client in clients])
    print(
        f"{sum(client.answered for client in clients)} requests in 60 s, p99 {np.percentile(waits, 99) * 1000:.0f} ms, "
        f"memory {before / 2**20:.0f} to {after / 2**20:.0f} MiB"
    )
    assert failed == 0
    assert after < before + 32 * 2**20
    assert server.other_lines == []
