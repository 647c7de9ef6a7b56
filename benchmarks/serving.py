"""Images per second through the server, beside `predict_many` on the same images in a process of its own.

    python benchmarks/serving.py --weights people --clients 8

The server and `predict_many` take turns, round by round, in whichever engine is installed; the clients, threads of
this process, compute on the same cores. Exit code 1: an answer is lost, wrong, or not 200, or the median ratio is
under 0.9.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import IO, Any

from PIL import Image

from efficientdet.images.find import sample_image

LEAST_RATIO = 0.9
PREDICT_MANY = """
import sys, time, json, pickle
import efficientdet as ed
images = pickle.load(sys.stdin.buffer)
detector = ed.load(sys.argv[1])
list(detector.predict_many(images[:8]))
print(json.dumps([one.to_json() for one in detector.predict_many(images)]), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in detector.predict_many(images * int(line)):
        pass
    print(time.perf_counter() - start, flush=True)
"""


def make_images(count: int) -> list[bytes]:
    """Crops of 640 x 480 pixels of the sample image, as JPEG files."""
    images = []
    with Image.open(sample_image()) as whole:
        large = whole.convert("RGB").resize((1024, 1200))
        for number in range(count):
            left, top = 37 * number % 384, 91 * number % 720
            large.crop((left, top, left + 640, top + 480)).save(file := BytesIO(), "JPEG", quality=90)
            images.append(file.getvalue())
    return images


class Clients:
    """Clients of a server, each of which sends an image when it has the answer to its last one."""

    def __init__(self, port: int, images: list[bytes], expected: list[Any], count: int) -> None:
        self.port, self.images, self.expected, self.count = port, images, expected, count
        self.local, self.seconds = threading.local(), list[float]()

    def send(self, number: int) -> None:
        """Send an image; raises SystemExit if its answer is another one than `predict_many` gave."""
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        start = time.perf_counter()
        connection.request("POST", "/v1/detect", self.images[number], {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        self.seconds.append(time.perf_counter() - start)
        if answer.status != 200 or not same(content["images"][0], self.expected[number]):
            raise SystemExit(f"image {number}: {answer.status} {content}")

    def run(self, times: int) -> float:
        """Send all images so many times; the seconds that it takes."""
        self.seconds = []
        start = time.perf_counter()
        with ThreadPoolExecutor(self.count) as pool:
            list(pool.map(self.send, [*range(len(self.images))] * times))
        return time.perf_counter() - start


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether both have the same boxes, to 0.01 pixels and 0.0001 in score."""
    pairs = list(zip(found["detections"], expected["detections"], strict=False))
    return len(found["detections"]) == len(expected["detections"]) and all(
        abs(one["score"] - other["score"]) < 1e-4
        and all(abs(a - b) < 1e-2 for a, b in zip(one["box_xyxy"], other["box_xyxy"], strict=True))
        for one, other in pairs
    )


def line_of(pipe: IO[bytes] | None) -> str:
    """The next line of a process."""
    assert pipe is not None
    return pipe.readline().decode()


def main() -> None:
    """The command."""
    import pickle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="people")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--times", type=int, default=1, help="how often all images are sent in a round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    images = make_images(options.images)
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-m", "efficientdet", "serve", "--weights", options.weights, "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server,
        subprocess.Popen([sys.executable, "-c", PREDICT_MANY, options.weights], **piped) as many,  # type: ignore[call-overload]
    ):
        found = re.search(r":(\d+) ", line_of(server.stdout))
        assert found and many.stdin
        many.stdin.write(pickle.dumps(images))
        many.stdin.flush()
        clients = Clients(int(found.group(1)), images, json.loads(line_of(many.stdout)), options.clients)
        clients.run(1)
        rates, waits = [], []
        for _ in range(options.rounds):
            many.stdin.write(f"{options.times}\n".encode())
            many.stdin.flush()
            direct = float(line_of(many.stdout))
            served, count = clients.run(options.times), options.times * options.images
            waits += clients.seconds
            rates.append((count / direct, count / served))
            print(f"predict_many {count / direct:.1f} images/s, server {count / served:.1f} images/s", flush=True)
        many.stdin.close()
        server.terminate()
    ratio = statistics.median(served / direct for direct, served in rates)
    half, last = (statistics.quantiles(waits, n=100)[place] * 1000 for place in (49, 98))
    print(f"{options.clients} clients: {ratio:.0%} of predict_many; median {half:.0f} ms, p99 {last:.0f} ms an image")
    if ratio < LEAST_RATIO:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
