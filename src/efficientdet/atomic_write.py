"""Files that are whole or not there: written in a temporary folder beside their place, then moved into it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from efficientdet.errors import SettingError
from efficientdet.text import in_json


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file to, which takes the place of `path` when the block ends well.

    If the block raises, the temporary file is removed, and what was at `path` stays. The temporary path has the same
    file name, in a folder of its own beside `path`, so no name is too long and no other process or thread uses it. The
    file gets the permissions of any new file, and is on the disk before it is moved. What else was written beside the
    temporary file is moved before it. Missing folders are made.

    Args:
        path: the file to write; an existing one is replaced in one step.

    Yields:
        The path to write to.

    Raises:
        OSError: a folder cannot be made, or the file cannot be moved.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{uuid.uuid4().hex[:12]}.part"
    folder.mkdir()
    try:
        temporary = folder / path.name
        yield temporary
        for part in (*(other for other in folder.iterdir() if other != temporary), temporary):
            # Some writers give the file to its owner alone; the folder shows what the umask allows.
            part.chmod(folder.stat().st_mode & 0o666)
            _to_disk(part)
            os.replace(part, path.with_name(part.name))
        with suppress(OSError):  # not every system can do this for a folder
            _to_disk(path.parent)
    finally:  # after an interrupt too
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a new temporary folder to fill, which takes the name `path` when the block ends well.

    If the block raises, the temporary folder is removed, and what was at `path` stays.

    Args:
        path: the folder to make.
        overwrite: replace what is there; it is removed once the new folder has its name.

    Raises:
        SettingError: there is something at `path`, and it is not to be replaced.
        OSError: a folder cannot be made or moved.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex[:12]}.part"
    temporary.mkdir()
    try:
        yield temporary
        _refuse_existing(path, overwrite)
        old = path.parent / f".{uuid.uuid4().hex[:12]}.old"
        if os.path.lexists(path):
            os.replace(path, old)
        os.replace(temporary, path)
        if old.is_symlink() or old.is_file():
            old.unlink()
        elif old.exists():
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise SettingError(f"{path} exists; choose another folder, or set overwrite (--overwrite) to replace it")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, in_json(json.dumps(content, indent=2, ensure_ascii=False)))
