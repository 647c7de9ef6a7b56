"""info, convert and push, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import efficientdet
from efficientdet.weights import model_card
from efficientdet.weights.checkpoint import load_checkpoint, read_info
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign

Command = Callable[..., Any]


def test_info_of_a_model_counts_from_the_code(command: Command) -> None:
    facts = json.loads(command("info", "d0", "--json").out)
    assert facts["parameters"] == "3,880,067"
    assert facts["strides"] == "8, 16, 32, 64, 128"
    assert facts["anchors"].startswith("49104 ")
    assert "80 of them in use" in facts["classes"]


def test_info_of_a_checkpoint_writes_a_card(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    done = command("info", checkpoint, "--card", card)
    assert done.code == 0
    assert "disc, square" in done.out
    text = card.read_text()
    assert text.startswith("---\n") and "\npipeline_tag: object-detection\n" in text and "\n---\n\n# tiny\n" in text
    assert "**License of the weights:** not stated" in text


def test_info_of_the_environment_says_versions_devices_and_backends(command: Command) -> None:
    found = json.loads(command("info", "--environment", "--json").out)
    assert found["versions"]["efficientdet"] == efficientdet.__version__ and "torch" in found["versions"]
    assert found["devices"][0] == "cpu"
    assert found["backends"]["eager"] == "ready" and found["backend auto"] in found["backends"]
    assert str(Path.home()) not in json.dumps(found)
    lines = command("info", "--environment").out
    assert "backend onnxruntime" in lines and "not installed" in lines


@pytest.mark.parametrize("arguments", [[], ["people", "--environment"], ["--environment", "--card", "x.md"]])
def test_info_is_of_one_thing(command: Command, arguments: list[str]) -> None:
    done = command("info", *arguments)
    assert done.code == 2 and "or --environment alone" in done.err


def test_info_of_nothing_known_lists_what_is(command: Command) -> None:
    done = command("info", "poeple")
    assert done.code == 2
    assert "unknown weights 'poeple'" in done.err
    assert "lite0" in done.err


def test_convert_keeps_the_function_and_the_facts(command: Command, tmp_path: Path) -> None:
    model = create_model("lite0", 2).eval()
    torch.save(to_foreign(model), tmp_path / "theirs.pth")
    out = tmp_path / "ours.safetensors"
    done = command(
        "convert", tmp_path / "theirs.pth", "--to", out, "--classes", "cat, dog", "--license", "MIT", "--model", "lite0"
    )  # fmt: skip
    assert done.code == 0, done.err
    converted, info = load_checkpoint(out)
    assert info.class_names == ("cat", "dog")
    assert info.about["license"] == "MIT"
    pairs = zip(converted.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_convert_of_our_own_file_halves_it(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.safetensors"
    assert command("convert", checkpoint, "--to", out, "--half", "--note", "small").code == 0
    assert out.stat().st_size < 0.8 * checkpoint.stat().st_size
    assert read_info(out).about == {"note": "small"}
    assert read_info(out).class_names == read_info(checkpoint).class_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.pth", "--to", "out.safetensors"], "gone.pth: no such weights file"),
        (["gone.pth", "--to", "out.pth"], "must end in .safetensors"),
    ],
)
def test_convert_refuses(command: Command, arguments: list[str], message: str) -> None:
    done = command("convert", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_pickle_with_a_program_in_it_is_refused(command: Command, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    done = command("convert", tmp_path / "trap.pth", "--to", tmp_path / "out.safetensors")
    assert done.code == 2
    assert "trap.pth: refused" in done.err
    assert not (tmp_path / "sprung").exists()


def test_push_sends_the_checkpoint(command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        model_card, "push_to_hub", lambda *given, **options: sent.append((*given, options)) or "address"
    )
    done = command("push", checkpoint, "me/mine", "--private")
    assert done.out.strip() == "address"
    assert sent == [(checkpoint, "me/mine", {"private": True})]


def test_the_cache_is_listed_and_cleared(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path))
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.onnx").write_bytes(bytes(1_500_000))
    listed = json.loads(command("cache", "list", "--json").out)
    assert listed["folder"] == str(tmp_path)
    assert listed["kept"][0] == {"kind": "engines", "files": 1, "megabytes": 1.5}
    assert "1.5" in command("cache", "list").out
    assert command("cache", "clear", "engine").code == 2 and (tmp_path / "engines").exists()
    assert command("cache", "clear", "engines").out == "removed 1 file of engines, 1.5 MB\n"
    assert json.loads(command("cache", "clear", "--json").out)["removed"][0]["files"] == 0
