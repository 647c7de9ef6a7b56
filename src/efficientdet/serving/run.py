"""From settings to a running server: the socket, uvicorn, signals, logs."""

from __future__ import annotations

import ctypes
import logging
import platform
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from efficientdet.errors import SettingError, Terminated
from efficientdet.serving.app import create_app
from efficientdet.serving.observe import JsonLines
from efficientdet.serving.settings import ServeSettings

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector

# What glibc's mallopt is told, by its numbers in malloc.h: M_ARENA_MAX (heaps), M_MMAP_THRESHOLD (bytes from which a
# block is the system's own and goes back at once), M_TRIM_THRESHOLD (free bytes at the end of a heap that go back).
MEMORY = ((-8, 2), (-3, 8 * 2**20), (-1, 16 * 2**20))


def name_models(weights: list[str]) -> dict[str, str]:
    """Names for the models of a server, and the weights of each: `NAME=WEIGHTS`, or weights named after their file.

    Raises:
        SettingError: two have the same name.
    """
    named: dict[str, str] = {}
    for text in weights:
        name, found, source = text.partition("=")
        if not found:
            name, source = PurePath(text).stem, text
        if name in named:
            raise SettingError(f"two models are named '{name}'; name one of them: --weights NAME={source}")
        named[name] = source
    return named


def stop_seconds(settings: ServeSettings) -> int:
    """The most seconds that the server takes to stop: twice the time limit of an accepted request, and 5."""
    return int(2 * settings.time_limit) + 5


def run_server(
    detectors: Mapping[str, Detector], settings: ServeSettings, api_key: str | None, tell: Callable[[str], object]
) -> None:
    """Serve until SIGINT or SIGTERM; then answer what was accepted, and end.

    Args:
        detectors: by name; the first is the default.
        settings: where to listen, and what to accept.
        api_key: what requests must send; None for nothing.
        tell: called with the address, once requests are taken.

    Raises:
        KeyboardInterrupt: SIGINT ended it.
        Terminated: SIGTERM ended it.
        OSError: the port is taken, or the address is not of this machine.
    """
    _log_as_json()
    _give_memory_back()
    # uvicorn gives signals back to whoever had them, and raises them again, once it has stopped. A shell's background
    # processes are started without a handler of SIGINT.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app = create_app(detectors, settings, api_key)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family) as listener:
        host, port = listener.getsockname()[:2]
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=stop_seconds(settings),
        )
        uvicorn.Server(config).run(sockets=[listener])


def _give_memory_back() -> None:
    """Let glibc give the system what an image took; other C libraries do that by themselves.

    By default it has a heap for each thread, and once it has seen large blocks it keeps up to 64 MiB in each.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in MEMORY:
            library.mallopt(option, value)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    for name in ("efficientdet.serving", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a damaged body is answered, which suffices


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated
