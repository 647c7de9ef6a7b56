"""A server as users run it: a process of its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
BOUNDARY = "5f0e7f2a"


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running server."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.address = f"http://{host}:{port}"

    def connect(self) -> contextlib.closing[http.client.HTTPConnection]:
        """A connection for several requests; the block closes it."""
        return contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=600))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
        **query: object,
    ) -> Answer:
        """Send a request and read the answer."""
        if connection is None:
            with self.connect() as own:
                return self.ask(method, path, body, headers, own, **query)
        connection.request(method, f"{path}?{urlencode(query, doseq=True)}" if query else path, body, headers or {})
        reply = connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    @staticmethod
    def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
        """A multipart body of (field, file name or None, content), and its headers."""
        body = b""
        for name, file, content in parts:
            of_file = f'; filename="{file}"' if file is not None else ""
            head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'
            body += head.encode() + content + b"\r\n"
        return body + f"--{BOUNDARY}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def detect(self, body: bytes, headers: dict[str, str] | None = None, **query: object) -> Answer:
        return self.ask("POST", "/v1/detect", body, headers, **query)


class ServerProcess(Server):
    """`efficientdet serve` in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        """Start it, and wait until it takes requests."""
        command = [sys.executable, "-m", "efficientdet", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        assert found, f"{line}\n{self.other_lines}"
        super().__init__(found.group(1), int(found.group(2)))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.other_lines.append(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=600)
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code


@pytest.fixture(scope="session")
def tiny(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that has learnt nothing, and finds something everywhere above a score of 0.009."""
    import torch

    from efficientdet.weights.checkpoint import save_checkpoint
    from efficientdet.weights.create import create_model
    from efficientdet.weights.info import CheckpointInfo, default_preprocessing

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    info = CheckpointInfo(
        shapes.LITE, ("disc", "square"), (3, 7), default_preprocessing(shapes.LITE), {"score_threshold": 0.009}
    )
    save_checkpoint(path, create_model(shapes.LITE, 2).state_dict(), info)
    return path


@pytest.fixture(scope="module")
def start_process() -> Iterator[Callable[..., ServerProcess]]:
    """Starts `efficientdet serve`; processes that still run at the end of the module must stop as they should."""
    servers: list[ServerProcess] = []

    def start(*arguments: object) -> ServerProcess:
        servers.append(ServerProcess(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            assert server.stop(signal.SIGINT) == 130


@pytest.fixture(scope="module")
def start_here() -> Iterator[Callable[..., Server]]:
    """Starts servers in threads of this process, with a detector (`tiny`, perhaps an `other`) and settings."""
    import uvicorn

    from efficientdet.serving.app import create_app
    from efficientdet.serving.settings import ServeSettings

    with contextlib.ExitStack() as stack:

        def start(detector: Any, api_key: str | None = None, other: Any = None, **settings: Any) -> Server:
            detectors = {"tiny": detector} | ({"other": other} if other else {})
            app = create_app(detectors, ServeSettings(**settings), api_key)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            running = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, running, "should_exit", True)
            return Server("127.0.0.1", listener.getsockname()[1])

        yield start
