"""Names with their errors, and libraries that are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from efficientdet.errors import MissingExtraError, UnknownNameError, find_name, require, unknown_name

KNOWN = ["nas-fpn", "d0_ap", "SSD"]


@pytest.mark.parametrize(
    ("name", "known"), [("nas-fpn", "nas-fpn"), ("NAS_FPN", "nas-fpn"), ("d0-ap", "d0_ap"), ("ssd", "SSD")]
)
def test_case_hyphens_and_underscores_make_no_difference(name: str, known: str) -> None:
    assert find_name("network", name, KNOWN) == known


def test_an_unknown_name_gives_the_nearest_and_all() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown network 'nas-fpm'; did you mean 'nas-fpn'. Known: nas-fpn, d0_ap, SSD"
    ):
        find_name("network", "nas-fpm", KNOWN)


def test_a_long_name_is_cut_in_the_message() -> None:
    assert len(str(unknown_name("network", "x" * 100_000, KNOWN))) < 200


def test_a_program_that_sigterm_ends_says_nothing_and_exits_with_143() -> None:
    script = """
from efficientdet.errors import Terminated
try:
    raise Terminated("how to go on")
except Exception:
    print("caught")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed; run: pip install 'efficientdet\[convert\]'"):
        require("h5py", "convert")
    assert require("json", "convert").loads("1") == 1
