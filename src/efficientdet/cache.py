"""The cache folder: files that are made once, verified whenever they are used, and made again where they are damaged.

Where the folder cannot be written, a temporary one takes its place until the process ends. Engines are kept up to
`MOST_ENGINES` bytes.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from efficientdet.atomic_write import write_text
from efficientdet.errors import SettingError, unknown_name

VARIABLE = "EFFICIENTDET_CACHE"
# Bytes of the engines that are kept; of more, those that were not used for longest go.
MOST_ENGINES = 4 << 30
# What the folder holds, by kind: patterns of names. Nothing else in it is counted or removed, such as weights and
# datasets of the user's in a folder that holds both.
KINDS = {
    "engines": ("engines",),
    "weights": ("d[0-7]*.safetensors", "lite[0-4]*.safetensors", "*efficientdet_*-????????.pth"),
    "datasets": ("datasets/" + 24 * "[0-9a-f]",),
    "libraries": ("matplotlib", "inductor", "onnxruntime-web-*.tgz"),
}
_SEAL = ".sha256"


class Kept(NamedTuple):
    """How much the cache folder holds of one of `KINDS`."""

    kind: str
    files: int
    megabytes: float


def cache_dir() -> Path:
    """The cache folder: $EFFICIENTDET_CACHE, else `efficientdet` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        SettingError: there is no home folder.
    """
    own, shared = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser()
        # The XDG specification: a relative path is to be ignored.
        return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "efficientdet"
    except RuntimeError as error:
        raise SettingError(f"no folder for the cache ({error}); set {VARIABLE} to one") from error


def cache_folder(*parts: str) -> Path:
    """A folder below the cache folder that exists and can be written; in a temporary place where it cannot.

    Args:
        *parts: names of the folders from the cache folder down.
    """
    folder = cache_dir().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        folder = _temporary_folder(str(cache_dir()), error.strerror or str(error)).joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def may_be_written(folder: Path) -> bool:
    """Whether a folder can be written or, if it does not exist yet, its nearest parent that does."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False


def cached(name: str, is_whole: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """A file of the cache, made if it is missing or damaged.

    Args:
        name: path of the file below the cache folder.
        is_whole: whether an existing file is what it should be.
        make: writes the file to a path, whole or not at all.

    Returns:
        Where the file is.
    """
    folder, path = Path(name).parent.parts, cache_dir() / name
    if os.path.isfile(path):
        if is_whole(path):
            return path
        _say(f"{path} is damaged and is made again")
    elsewhere = cache_folder(*folder) / path.name
    if elsewhere == path or not (elsewhere.is_file() and is_whole(elsewhere)):
        make(elsewhere)
        _drop_unused_engines()
    return elsewhere


def kept() -> list[Kept]:
    """What the cache folder holds, by kind."""
    rows = []
    for kind in KINDS:
        sizes = [size for entry in _entries(kind) for size in _sizes(entry)]
        rows.append(Kept(kind, len(sizes), round(sum(sizes) / 1e6, 1)))
    return rows


def clear(kinds: Sequence[str] = ()) -> list[Kept]:
    """Remove what the cache folder holds of some kinds, or of all; it is made, or downloaded, again when it is needed.

    Returns:
        What was removed.

    Raises:
        UnknownNameError: there is no such kind; nothing is removed.
        OSError: a file cannot be removed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of file in the cache", kind, KINDS)
    removed = [row for row in kept() if row.kind in (kinds or KINDS)]
    for row in removed:
        for entry in _entries(row.kind):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return removed


def _entries(kind: str) -> list[Path]:
    return [entry for pattern in KINDS[kind] for entry in sorted(cache_dir().glob(pattern))]


def _sizes(entry: Path) -> list[int]:
    """Of a file, or of all below a folder; in bytes."""
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return [file.lstat().st_size for file in files if not file.is_dir()]


def _drop_unused_engines() -> None:
    """Keep the engines that were used last, up to `MOST_ENGINES` bytes. A file's use is that it was read or written."""
    files = []
    for path in (cache_dir() / "engines").rglob("*"):
        with suppress(OSError):  # another process may have removed it
            if path.is_file() and path.suffix != _SEAL:
                facts = path.stat()
                files.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > max(size, MOST_ENGINES):  # the last one stays, however large
            with suppress(OSError):  # in use, where such files cannot be removed
                path.unlink()
                _seal_of(path).unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Write a file's SHA-256 beside it, in `PATH.sha256`."""
    write_text(_seal_of(path), sha256_of(path))


def is_sealed(path: Path) -> bool:
    """Whether a file is the one that was sealed."""
    try:
        return _seal_of(path).read_text(encoding="ascii") == sha256_of(path)
    except (OSError, UnicodeDecodeError):
        return False


@contextmanager
def sealing(folder: Path, pattern: str) -> Iterator[None]:
    """For a library that keeps files of its own in a folder and does not verify them.

    Before the block, files that do not match their seal are removed. After it, new ones get a seal, and the permissions
    of any new file.

    Args:
        folder: of the files.
        pattern: of their names.
    """
    for path in folder.glob(pattern):
        if not is_sealed(path):
            if _seal_of(path).exists():
                _say(f"{path} is damaged and is made again")
            with suppress(OSError):
                path.unlink()
                _seal_of(path).unlink(missing_ok=True)
    yield
    for path in folder.glob(pattern):
        if not _seal_of(path).exists():
            with suppress(OSError):  # another process may remove it
                path.chmod(folder.stat().st_mode & 0o666)
                seal(path)
    _drop_unused_engines()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_SEAL}")


@functools.cache
def _temporary_folder(instead_of: str, reason: str) -> Path:
    """A folder that goes away with the process."""
    folder = tempfile.mkdtemp(prefix="efficientdet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _say(
        f"the cache folder {instead_of} cannot be written ({reason}); this run uses a temporary one. "
        f"Set {VARIABLE} to a folder that can be written"
    )
    return Path(folder)


def _say(text: str) -> None:
    print(f"efficientdet: {text}", file=sys.stderr)
