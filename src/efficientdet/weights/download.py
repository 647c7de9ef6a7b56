"""Download a file once: resumed, verified, retried where that helps, never half there, by any number of processes."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from efficientdet.errors import WeightsError

_CHUNK = 1 << 18
_LONGEST_WAIT = 60.0
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_Advance = Callable[[int, int | None], None]


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up.

    Attributes:
        attempts: how many attempts in a row may fail without a single new byte.
        backoff: seconds before the second attempt; doubled for each further one, at most 60.
        stall_timeout: seconds without a byte after which a connection counts as dead.
    """

    attempts: int = 5
    backoff: float = 1.0
    stall_timeout: float = 30.0


class _TryAgain(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _StartOver(_TryAgain):
    """The part that is there does not fit what the server sends: throw it away."""


def cache_dir() -> Path:
    """Folder of downloaded weights: $EFFICIENTDET_CACHE, else `efficientdet` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("EFFICIENTDET_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "efficientdet"


def download(
    url: str,
    destination: str | Path,
    sha256_prefix: str | None = None,
    size: int | None = None,
    progress: bool = True,
    retry: RetryPolicy | None = None,
) -> Path:
    """Fetch a file, unless it is there already and is the right one.

    The bytes gather in `DESTINATION.part`, are verified, and take the name in one step: a file of that name is whole. A
    broken download is resumed, by a later call too. Of several processes one downloads and the others wait for it.

    Args:
        url: http or https.
        destination: where the file shall lie; folders are made.
        sha256_prefix: first hexadecimal digits of the file's SHA-256; None: not checked.
        size: of the file in bytes; None: not checked, beyond what the server announces.
        progress: show a bar, if standard error is a terminal.
        retry: when to give up; None: the defaults.

    Returns:
        The destination.

    Raises:
        WeightsError: it cannot be had, or is not what was asked for; says why, and which file to put where by hand.
    """
    destination = Path(destination)
    task = _Task(url, destination, sha256_prefix, size, retry or RetryPolicy())
    if not re.match(r"https?://", url):
        raise WeightsError(f"{url}: only http and https addresses are downloaded")
    try:
        # A file under its final name was verified when it got it; what a person put there is verified now.
        if destination.is_file() and task.fault_of(destination) is None:
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination.with_name(f".{destination.name}.lock")):
            if destination.is_file() and task.fault_of(destination) is None:
                return destination
            with _progress_bar(destination.name, progress) as advance:
                task.run(advance)
    except OSError as error:
        raise WeightsError(f"{destination}: cannot be written ({error.strerror or error})") from error
    return destination


@dataclass(frozen=True)
class _Task:
    url: str
    destination: Path
    sha256_prefix: str | None
    size: int | None
    retry: RetryPolicy

    @property
    def part(self) -> Path:
        return self.destination.with_name(self.destination.name + ".part")

    @property
    def validator(self) -> Path:
        """Beside the part: the ETag of the file that it is a part of."""
        return self.destination.with_name(self.destination.name + ".part.etag")

    def run(self, advance: _Advance) -> None:
        failures, best, corrupt = 0, self._have(), 0
        while True:
            try:
                self._attempt(advance)
                fault = self.fault_of(self.part)
                if fault is None:
                    break
                corrupt += 1
                self._discard()
                if corrupt == 2:
                    raise WeightsError(self._advice(f"what the server sends is not the published file: {fault}"))
                raise _TryAgain(fault, 0.0)
            except _TryAgain as error:
                if isinstance(error, _StartOver):
                    self._discard()
                # A long file over a bad line may break off often, as long as it grows.
                failures = 1 if self._have() > best else failures + 1
                best = max(best, self._have())
                if failures >= self.retry.attempts:
                    raise WeightsError(self._advice(f"{error} ({failures} attempts)")) from error
                wait = self.retry.backoff * 2 ** (failures - 1) if error.wait is None else error.wait
                time.sleep(min(wait, _LONGEST_WAIT))
        os.replace(self.part, self.destination)
        self.validator.unlink(missing_ok=True)

    def fault_of(self, path: Path) -> str | None:
        """What is wrong with a complete file, if anything."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size} bytes, expected {self.size}"
        if self.sha256_prefix is not None:
            found = _sha256(path)
            if not found.startswith(self.sha256_prefix.lower()):
                return f"its SHA-256 begins {found[: max(8, len(self.sha256_prefix))]}, expected {self.sha256_prefix}"
        return None

    # ---- one attempt
    def _attempt(self, advance: _Advance) -> None:
        """Get what is missing of the part; returns when the server has no more to give."""
        have, validator = self._have(), self._read_validator()
        # Without either, nobody could tell that the rest belongs to another version of the file.
        if have and validator is None and self.sha256_prefix is None:
            self._discard()
            have = 0
        headers = {"User-Agent": "efficientdet", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator is not None:
                headers["If-Range"] = validator
        response = self._open(headers, have)
        if response is not None:
            with response:
                self._receive(response, have, advance)

    def _open(self, headers: dict[str, str], have: int) -> Any:
        """The server's answer; None if what is there is all of the file."""
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=self.retry.stall_timeout)
        except urllib.error.HTTPError as error:
            with error:
                total = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
                if error.code == 416 and total is not None and int(total.group(1)) == have:
                    return None
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            # Waiting a few seconds brings neither a network nor another certificate.
            if isinstance(cause, (socket.gaierror, ssl.SSLCertVerificationError)):
                raise WeightsError(self._advice(self._network_reason(cause))) from error
            raise _TryAgain(self._network_reason(cause)) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        reason = f"the server answers {error.code} {error.reason}"
        if error.code == 416:
            return _StartOver(reason, 0.0)
        if error.code in _RETRIED_STATUS:
            return _TryAgain(reason, _retry_after(error.headers.get("Retry-After")))
        return WeightsError(self._advice(reason))

    def _receive(self, response: Any, have: int, advance: _Advance) -> None:
        begin, total = _extent(response)
        if begin not in (0, have):
            raise _StartOver(f"the server sends bytes from {begin} instead of {have}", 0.0)
        if self.size is not None and total is not None and total != self.size:
            raise WeightsError(self._advice(f"the server announces {total} bytes, expected {self.size}"))
        if begin == 0:  # the first attempt, a server that knows no ranges, or a file that has changed
            have = 0
            self._write_validator(response.headers.get("ETag", ""))
        with self.part.open("ab" if have else "wb") as file:
            advance(have, total)
            while chunk := self._read(response):
                file.write(chunk)
                have += len(chunk)
                advance(have, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and have != total:
            kind = _TryAgain if have < total else _StartOver
            raise kind(f"the connection ended after {have} of {total} bytes")

    def _read(self, response: Any) -> bytes:
        try:
            return bytes(response.read1(_CHUNK))
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(self._network_reason(error)) from error

    def _network_reason(self, error: object) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing came for {self.retry.stall_timeout:g} s"
        if isinstance(error, http.client.IncompleteRead):
            return "the connection ended early"
        reason = getattr(error, "strerror", None) or error
        return f"no connection ({reason})"

    # ---- what is there
    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)

    def _read_validator(self) -> str | None:
        return self.validator.read_text(encoding="latin-1") if self.validator.is_file() else None

    def _write_validator(self, tag: str) -> None:
        # A weak tag promises the same meaning, not the same bytes.
        if tag and not tag.startswith("W/"):
            self.validator.write_text(tag, encoding="latin-1")
        else:
            self.validator.unlink(missing_ok=True)

    def _advice(self, reason: str) -> str:
        return (
            f"{self.url} cannot be downloaded: {reason}. If this machine is offline, fetch that address elsewhere and "
            f"put the file at {self.destination}"
        )


def _extent(response: Any) -> tuple[int, int | None]:
    """Where the bytes of an answer begin in the file, and how long the file is, if the server says so."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise _StartOver("the server sends a part of the file without saying which", 0.0)
        return int(match.group(1)), int(match.group(2)) if match.group(2) != "*" else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, by a number or a date; None if it says nothing that can be read."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; the operating system lets go of the lock even if the holder dies."""
    with path.open("ab") as file:
        _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                return
            except OSError:
                continue
    import fcntl

    # Some network file systems know no locks: then processes that start together may spoil each other's part, which
    # the checksum finds.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def _progress_bar(name: str, wanted: bool) -> Iterator[_Advance]:
    """A bar on standard error that goes away when done; nothing where nobody watches."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda have, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
