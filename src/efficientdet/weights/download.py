"""Download a file: verified, tried again where that helps, and whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from efficientdet.atomic_write import replacing
from efficientdet.cache import cache_dir
from efficientdet.errors import WeightsError

ATTEMPTS = 5
# Seconds before the second attempt; doubled for each further one.
BACKOFF = 1.0
# Seconds without a byte after which a connection counts as dead.
TIMEOUT = 30.0
# Bytes of a file; the largest released one has 0.3 GB.
LARGEST = 1 << 31
_CHUNK = 1 << 18
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)


class _Interrupted(Exception):
    """An attempt failed in a way that may pass."""


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file to a path, which it takes in one step once it is complete and verified.

    A server that is busy and a connection that breaks are tried again, a few seconds apart.

    Args:
        url: address of the file.
        path: where to put it; an existing file is replaced.
        sha256: its SHA-256 in hexadecimal digits, or the first of them.

    Raises:
        WeightsError: the file cannot be downloaded or written, is too large, or is not the one with this SHA-256; says
            where to put it by hand.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch(url, path, sha256)
        except _Interrupted as error:
            if attempt == ATTEMPTS:
                raise _failure(url, f"{error} ({attempt} attempts)") from error
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        except OSError as error:
            raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from error


def _fetch(url: str, path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(sha256.lower()):
            found = digest.hexdigest()[: len(sha256)]
            raise _failure(url, f"what the server sends is not that file: its SHA-256 is {found}, not {sha256}")


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes of a file, with a progress bar on a terminal."""
    received = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "efficientdet"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", "")
            total = int(announced) if announced.isdigit() else None
            bar = wrap_file(
                response, total or 0, description=url.rpartition("/")[2], transient=True,
                console=Console(stderr=True), disable=not sys.stderr.isatty(),
            )  # fmt: skip
            with bar as reader:
                while chunk := reader.read(_CHUNK):
                    received += len(chunk)
                    if max(received, total or 0) > LARGEST:
                        raise _failure(url, f"it is larger than {LARGEST:,} bytes")
                    yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
        raise (_Interrupted(reason) if error.code in _RETRIED_STATUS else _failure(url, reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _network_error(url, error) from error
    if total is not None and received < total:
        raise _Interrupted(f"the connection ended after {received} of {total} bytes")


def _network_error(url: str, error: Exception) -> Exception:
    cause = getattr(error, "reason", error)
    reason = f"the connection failed ({getattr(cause, 'strerror', None) or cause})"
    if isinstance(cause, TimeoutError):
        reason = f"nothing came for {TIMEOUT:g} s"
    # Waiting a few seconds brings neither a network nor another certificate.
    is_final = isinstance(cause, (socket.gaierror, ssl.SSLCertVerificationError))
    return _failure(url, reason) if is_final else _Interrupted(reason)


def _failure(url: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{url} cannot be downloaded: {reason}. If this machine is offline, download that file elsewhere and put it at "
        f"{cache_dir() / url.rpartition('/')[2]}"
    )
