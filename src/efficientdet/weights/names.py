"""What a user calls weights -> the file they lie in: a path, or the name of a bundled model."""

from __future__ import annotations

from pathlib import Path

from efficientdet.errors import WeightsError, unknown_name

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the models that come inside the package."""
    return sorted(path.stem for path in BUNDLED_FOLDER.glob("*.safetensors"))


def find_weights(name_or_path: str | Path) -> Path:
    """Find the safetensors file that a name or path means.

    Raises:
        WeightsError: a path at which there is no file.
        UnknownNameError: a name that is not bundled; lists those that are.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in bundled_names():
        return BUNDLED_FOLDER / f"{name_or_path}.safetensors"
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    raise unknown_name("weights", str(name_or_path), bundled_names())
