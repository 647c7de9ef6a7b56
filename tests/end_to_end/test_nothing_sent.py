"""No command connects to anything, nor writes a file outside the cache and its output folder, whatever is installed.

Libraries that collect usage data do it from Python or from native code, at import or from a thread of their own. So
the commands run as real processes in which a connection is fatal: by an audit hook for Python, which also notes every
file opened to be written, and by the kernel (seccomp) for native code, on Linux. The home and the temporary folder are
empty before, and must be after.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Imported by Python as it starts.
SITECUSTOMIZE = """
import ctypes, os, platform, struct, sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ALLOWED = tuple(os.environ["ALLOWED"].split(os.pathsep)) + ("/dev/", "/proc/")


def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[0]
        if event == "socket.getaddrinfo" or isinstance(address, tuple):
            os.write(2, f"FORBIDDEN {event} {address}\\n".encode())
            os._exit(99)
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITES)
        path = os.path.abspath(os.fsdecode(path))
        if writes and not path.startswith(ALLOWED):
            os.write(2, f"FORBIDDEN write {path}\\n".encode())
            os._exit(98)


def forbid_native_connections():
    # connect(2) with an address of the length of an IPv4 or IPv6 one kills the process.
    connect = {"x86_64": 42, "aarch64": 203}.get(platform.machine())
    if sys.platform != "linux" or connect is None:
        return
    load, jump_equal, give = 0x20, 0x15, 0x06  # BPF: load a word, jump if equal, return
    steps = [
        (load, 0, 0, 0),  # the number of the system call
        (jump_equal, 0, 4, connect),
        (load, 0, 0, 32),  # its third argument, the length of the address
        (jump_equal, 1, 0, 16),
        (jump_equal, 0, 1, 28),
        (give, 0, 0, 0x80000000),  # SECCOMP_RET_KILL_PROCESS
        (give, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_ulong
    libc.prctl(38, word(1), word(0), word(0), word(0))  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, word(2), ctypes.byref(header), word(0), word(0)) != 0:  # PR_SET_SECCOMP
        os.write(2, b"no seccomp here\\n")


forbid_native_connections()
sys.addaudithook(hook)
"""
COMMAND = [sys.executable, "-m", "efficientdet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run, with a home, a temporary folder and a place for what they write."""
    for name in ("home", "temporary", "cache", "out", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return tmp_path


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a process that may neither connect nor write elsewhere."""
    paths = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    kept = ("PATH", "OMP_NUM_THREADS", "SYSTEMROOT", "LD_LIBRARY_PATH", "EFFICIENTDET_BACKEND")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {
        "ALLOWED": os.pathsep.join(str(folder / name) for name in ("temporary", "cache", "out")),
        "EFFICIENTDET_CACHE": str(folder / "cache"),
        "HOME": str(folder / "home"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TMPDIR": str(folder / "temporary"),
        "USERPROFILE": str(folder / "home"),
    }
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=folder / "out", env=environment, capture_output=True, text=True,
        timeout=1800, check=False,
    )  # fmt: skip


def check(folder: Path, *arguments: object) -> None:
    """The command ends well, and has left nothing where it should not."""
    done = run(folder, *arguments)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    for name in ("home", "temporary"):
        assert list((folder / name).rglob("*")) == [], f"{arguments[0]} wrote to the {name} folder"


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import ctypes, struct; c = ctypes.CDLL(None); s = c.socket(2, 1, 0); "
        "c.connect(s, struct.pack('<HHI8x', 2, 0x0900, 0x0100007F), 16)",
        "open('../elsewhere', 'w')",
    ],
    ids=["python", "native", "file"],
)
def test_what_is_forbidden_is_noticed(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ctypes" in program and sys.platform != "linux":
        pytest.skip("the kernel is asked on Linux alone")
    monkeypatch.setattr(sys.modules[__name__], "COMMAND", [sys.executable, "-c"])
    assert run(folder, program).returncode not in (0, 1)


def test_predict(folder: Path, checkpoint: Path, data: Path) -> None:
    """The second command finds the graph that the first has translated."""
    image = next((data / "images").iterdir())
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        check(folder, "predict", image, "--weights", checkpoint, "--backend", backend, "--score-threshold", 0)


@pytest.mark.slow
def test_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_BACKEND", "auto")
    check(folder, "demo")


@pytest.mark.slow
def test_train_and_evaluate(folder: Path, data: Path) -> None:
    options = ("--epochs", 1, "--image-size", 64, "--batch-size", 2, "--device", "cpu", "--out", folder / "out" / "run")
    check(folder, "train", "lite0", "--data", data, *options)
    check(folder, "evaluate", folder / "out" / "run" / "best.safetensors", "--data", data)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("x.onnx", "--end-to-end"), ("x.xml",), ("x.pt2",)], ids=["onnx", "xml", "pt2"])
def test_export(folder: Path, checkpoint: Path, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("openvino")
    check(folder, "export", checkpoint, "--out", *arguments)


@pytest.mark.slow
def test_quantize(folder: Path, checkpoint: Path, data: Path) -> None:
    pytest.importorskip("nncf")
    check(folder, "quantize", checkpoint, "--data", data, "--out", "x.xml", "--calibration-images", 2)
