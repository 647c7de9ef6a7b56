"""The image that serves without PyTorch: its install steps, in a virtual environment."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from efficientdet.exporting.export import export
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import load

ROOT = Path(__file__).resolve().parents[2]
LARGEST_MB = 500


def test_the_image_installs_what_it_names() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    steps = re.findall(r"^(FROM|COPY|USER|ENTRYPOINT) (.+)$", text, re.MULTILINE)
    assert [word for word, _ in steps] == ["FROM", "COPY", "COPY", "USER", "ENTRYPOINT"]
    assert "--no-deps /tmp/efficientdet" in text
    command = json.loads(dict(steps)["ENTRYPOINT"])
    help_text = subprocess.run([sys.executable, "-m", *command[:2], "--help"], capture_output=True, text=True).stdout
    assert all(option in help_text for option in command if option.startswith("--"))


@pytest.mark.slow
def test_an_environment_of_these_packages_serves_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(load("people", device="cpu", image_size=128), tmp_path / "model.onnx", end_to_end=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, "--requirement", ROOT / "docker" / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    packages = tmp_path / "venv" / "lib"
    assert not list(packages.glob("*/site-packages/torch"))
    megabytes = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    assert megabytes < LARGEST_MB, megabytes
    command = [python, "-m", "efficientdet", "serve", "--weights", f"model={tmp_path / 'model.onnx'}", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "http://" in line)
        address = re.search(r"http://[\w.]+:\d+", line)
        assert address is not None, line
        request = urllib.request.Request(f"{address.group()}/v1/detect?threshold=0.3", sample_image().read_bytes())
        (image,) = json.load(urllib.request.urlopen(request))["images"]
        assert [found["class_name"] for found in image["detections"]] == ["person"]
        (model,) = json.load(urllib.request.urlopen(f"{address.group()}/v1/models"))["models"]
        assert model["lowest_threshold"] == model["settings"]["score_threshold"] == 0.3
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{address.group()}/v1/detect?threshold=0.1", sample_image().read_bytes())
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
    assert server.returncode == 143
