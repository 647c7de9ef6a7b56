"""Libraries that are in no extra, since each wants an environment of its own."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from efficientdet.errors import MissingExtraError


def require_apart(module: str, advice: str) -> Any:
    """Import a module of such a library, whose imports warn of their own code.

    Raises:
        MissingExtraError: it is not installed; gives the pip command in `advice`, and another way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; run: pip install {advice}, or export to onnx"
        ) from error
