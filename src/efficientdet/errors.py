"""The error types that a user may meet, and the two checks that raise most of them.

Every message says what was wrong, where, and what to do about it. The command line prints the
message without a traceback and exits with 2 (or 1, when only some of the inputs failed).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from efficientdet.text import printable

# Of the names that are known, an error lists this many.
MOST_SHOWN = 100


class EfficientDetError(Exception):
    """Base of every error that this package raises on purpose."""


class ImageError(EfficientDetError):
    """A picture cannot be read: the message names the file and the reason."""


class DataError(EfficientDetError):
    """An annotation file or data set is at fault: the message names file, place and field."""


class MissingSplitError(DataError):
    """A data set has no such split: the message says where it was sought."""


class WeightsError(EfficientDetError):
    """A weights file does not fit, is damaged, or cannot be had: the message lists every mismatch."""


class UnknownNameError(EfficientDetError, ValueError):
    """A name is not among the known ones: the message lists them and the nearest."""


class SettingError(EfficientDetError, ValueError):
    """A setting is out of range or contradicts another: the message names the setting and its value."""


class MissingExtraError(EfficientDetError, ImportError):
    """An optional library is not installed: the message gives the pip command that mends it."""


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it passes every `except Exception`, and the command ends with 143."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not known, with the nearest known name and all of them."""
    choices = list(known)
    name = printable(name, 80)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{printable(near[0])}'?" if near else "."
    shown = ", ".join(printable(choice, 80) for choice in choices[:MOST_SHOWN])
    more = f" and {len(choices) - MOST_SHOWN} more" if len(choices) > MOST_SHOWN else ""
    return UnknownNameError(f"unknown {kind} '{name}'{hint} Known: {shown}{more}.")


def require(module: str, extra: str | None) -> Any:
    """Import an optional library, or say how to install it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of this package that installs it; None for a library of no extra, installed by its own name.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the module (or its parent) is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        library = module.split(".")[0]
        wanted = f"'efficientdet[{extra}]'" if extra else library
        raise MissingExtraError(f"{library} is not installed; run: pip install {wanted}") from error
