"""The error types of this package, and the three checks that raise most of them.

Every message says what is wrong, where, and what to do about it. The command line prints the message without a
traceback and exits with 2, or with 1 when only some of the inputs failed.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from efficientdet.text import printable, printable_lines

# Known names that an error lists.
MOST_SHOWN = 100


class EfficientDetError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        """The message, safe to print and of bounded length whatever it quotes."""
        return printable_lines(super().__str__())


class ImageError(EfficientDetError):
    """An image cannot be read; the message names the file and the reason."""


class DataError(EfficientDetError):
    """A dataset or annotation file is at fault; the message names the file, the place in it and the field.

    Attributes:
        code: kind of fault, by which `data check` groups them; see `data.quality.findings.RULES`.
    """

    def __init__(self, message: str = "", code: str = "annotation-unreadable") -> None:
        super().__init__(message)
        self.code = code


class MissingSplitError(DataError):
    """A dataset has no such split; the message says where it was expected."""


class WeightsError(EfficientDetError):
    """Weights are missing, damaged, or do not fit the network; the message lists every mismatch."""


class UnknownNameError(EfficientDetError, ValueError):
    """A name is not known; the message lists the known ones and the nearest."""


class SettingError(EfficientDetError, ValueError):
    """A setting is out of range or contradicts another; the message names the setting and its value."""


class MissingExtraError(EfficientDetError, ImportError):
    """An optional library is not installed; the message gives the pip command that installs it."""


class Terminated(SystemExit):
    """SIGTERM arrived; like KeyboardInterrupt it passes every `except Exception`. A program that it ends gives 143."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.code = 143


@contextmanager
def as_error(kind: type[EfficientDetError], message: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into an error of ours: the message and the reason's first line.

    Libraries raise nearly anything where a file is damaged. Our own errors pass as they are.
    """
    try:
        yield
    except EfficientDetError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise kind(f"{message} ({reason})") from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Make the error for a name that is not known: it gives the nearest known name, and all of them."""
    choices = list(known)
    name = printable(name, 80)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{printable(near[0])}'?" if near else "."
    shown = ", ".join(printable(choice, 80) for choice in choices[:MOST_SHOWN])
    more = f" and {len(choices) - MOST_SHOWN} more" if len(choices) > MOST_SHOWN else ""
    return UnknownNameError(f"unknown {kind} '{name}'{hint} Known: {shown}{more}.")


def find_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The known name that a name means: upper and lower case, `_` and `-` make no difference.

    Args:
        kind: what is named, for the message, such as `model`.
        name: as the user wrote it.
        known: the names to choose from.

    Raises:
        UnknownNameError: no known name fits; lists them, and gives the nearest.
    """
    choices = {one.lower().replace("_", "-"): one for one in known}
    found = choices.get(name.lower().replace("_", "-"))
    if found is None:
        raise unknown_name(kind, name, choices.values())
    return found


def sent_error(traceback: str) -> EfficientDetError | None:
    """The error of this package that another process raised, from its traceback; None if it raised none."""
    found = list(re.finditer(rf"^{__name__}\.(\w+): ", traceback, re.MULTILINE))
    if not found:
        return None
    kind: type[EfficientDetError] = globals()[found[-1][1]]
    return kind(traceback[found[-1].end() :].rstrip())


def require(module: str, extra: str | None) -> Any:
    """Import an optional library, with its collection of usage data switched off for this process.

    Args:
        module: dotted name of the module to import.
        extra: the extra of this package that installs it; None for a library of no extra, installed by its own name.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the library is not installed; gives the pip command.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it as it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # and Ray as a cluster starts
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO and NNCF do without it
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        library = module.split(".")[0]
        wanted = f"'efficientdet[{extra}]'" if extra else library
        raise MissingExtraError(f"{library} is not installed; run: pip install {wanted}") from error
