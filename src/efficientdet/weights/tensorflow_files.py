"""Variables of TensorFlow's files without TensorFlow: checkpoints of version 2 (`.index`, `.data-*`), and Keras' h5.

An index is a table in LevelDB's format (blocks of prefix-compressed keys, a footer that points to the block of blocks)
whose values are protocol buffers: BundleHeaderProto under the empty key, else BundleEntryProto, which says where in the
data files a variable lies. Tried on files that TensorFlow 2.15 wrote, of graphs and of Keras models.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import WeightsError, require

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after a block: how it is compressed, and a checksum
_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_CRC_MASK = 0xA282EAD8
_BFLOAT16 = 14
# tensorflow/core/framework/types.proto; strings and resources are no weights.
_DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64, 10: np.bool_,
    _BFLOAT16: np.uint16, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_Message = dict[int, list[Any]]


class _Damaged(Exception):
    """A file that breaks off or contradicts itself; becomes a WeightsError that names the file."""


def read_tensorflow(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read every numeric variable of a checkpoint or of an h5 file.

    Args:
        path: an `.h5` file; a checkpoint's prefix (`model.ckpt-123`), its `.index` file, or the folder that holds one.

    Returns:
        The variable's name as the file has it to its value, in TensorFlow's layout.

    Raises:
        WeightsError: missing, damaged, of another format, or of several shards of which one is missing; names the file.
        MissingExtraError: h5py is needed and not installed.
    """
    path = Path(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _read_h5(path)
    index = _find_index(path)
    try:
        return _read_checkpoint(index)
    except (_Damaged, IndexError, ValueError, struct.error) as error:
        raise WeightsError(f"{index}: a damaged TensorFlow checkpoint ({error})") from error
    except OSError as error:
        raise WeightsError(f"{index}: cannot be read ({error})") from error


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    h5py = require("h5py", "convert")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    values: dict[str, NDArray[Any]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
            values[name] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise WeightsError(f"{path}: not an h5 file, or a damaged one ({error})") from error
    return values


def _find_index(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            raise WeightsError(
                f"{path}: holds {len(found)} TensorFlow checkpoints; name one: {[p.stem for p in found]}"
            )
        return found[0]
    index = path if path.suffix == ".index" else path.with_name(path.name + ".index")
    if not index.is_file():
        raise WeightsError(
            f"{index}: no such file; a TensorFlow checkpoint is a pair of files, PREFIX.index and PREFIX.data-*"
        )
    return index


# ---- the checkpoint
def _read_checkpoint(index: Path) -> dict[str, NDArray[Any]]:
    entries = dict(_table(index.read_bytes()))
    header = _message(entries.pop(b"", b""))
    shards = int(_field(header, 1, 1))
    if _field(header, 2, 0):
        raise WeightsError(f"{index}: written on a big-endian machine, which this reader does not support")
    data: dict[int, bytes] = {}
    values = {}
    for key, entry_bytes in entries.items():
        entry = _message(entry_bytes)
        if int(_field(entry, 1, 0)) not in _DTYPES:
            continue
        shard = int(_field(entry, 3, 0))
        if shard not in data:
            data[shard] = _shard_bytes(index, shard, shards)
        values[key.decode()] = _variable(key.decode(), entry, data[shard])
    return values


def _shard_bytes(index: Path, shard: int, shards: int) -> bytes:
    path = index.with_suffix(f".data-{shard:05d}-of-{shards:05d}")
    if not path.is_file():
        raise WeightsError(f"{path}: missing; it holds the values that {index.name} lists")
    return path.read_bytes()


def _variable(name: str, entry: _Message, data: bytes) -> NDArray[Any]:
    if 7 in entry:
        raise _Damaged(f"variable '{name}' is partitioned, which this reader does not support")
    code = int(_field(entry, 1, 0))
    sizes = [int(_field(_message(dim), 1, 0)) for dim in _message(_field(entry, 2, b"")).get(2, [])]
    offset, size = int(_field(entry, 4, 0)), int(_field(entry, 5, 0))
    dtype = np.dtype(_DTYPES[code])
    if min(sizes, default=0) < 0 or size != int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize:
        raise _Damaged(f"variable '{name}' has shape {sizes}, but {size} bytes")
    if offset + size > len(data):
        raise _Damaged(f"the data file ends before variable '{name}'")
    raw = data[offset : offset + size]
    if _masked(crc32c(raw)) != _field(entry, 6, 0):
        raise _Damaged(f"the checksum of variable '{name}' is wrong")
    array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(sizes)
    if code == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


# ---- LevelDB's table
def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    footer = data[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise _Damaged("it does not end as an index does; is it of the old format, version 1?")
    _, at = _handle(footer, 0)
    block_of_blocks, _ = _handle(footer, at)
    for _, handle in _block(data, *block_of_blocks):
        yield from _block(data, *_handle(handle, 0)[0])


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER_BYTES]
    if len(trailer) < _TRAILER_BYTES:
        raise _Damaged("it ends within a block")
    kind, checksum = struct.unpack("<BI", trailer)
    if _masked(crc32c(block + trailer[:1])) != checksum:
        raise _Damaged("the checksum of a block is wrong")
    if kind != 0:
        raise _Damaged(f"a block is compressed (kind {kind}), which TensorFlow does not do by itself")
    (restarts,) = struct.unpack("<I", block[-4:])
    at, end, key = 0, len(block) - 4 * (restarts + 1), b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


# ---- protocol buffers
def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Damaged("a number does not end")


def _message(data: bytes) -> _Message:
    """A protocol buffer's fields by number, each with every value that it has."""
    fields: _Message = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise _Damaged(f"a field of unknown kind {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _field(message: _Message, number: int, default: Any) -> Any:
    values = message.get(number, [default])
    if not isinstance(values[-1], type(default)):
        raise _Damaged(f"field {number} has the wrong kind")
    return values[-1]


# ---- checksums
def _crc_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_CRC_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), over many pieces at once: a checksum of megabytes would take Python seconds.

    The remainder is linear: that of a whole is the exclusive or of its pieces', each moved on by the bytes behind it.
    """
    width = max(64, int(len(data) ** 0.5))
    head = len(data) % width
    state = 0xFFFFFFFF
    for byte in data[:head]:
        state = int(_CRC[(state ^ byte) & 0xFF]) ^ (state >> 8)
    pieces = np.frombuffer(data, np.uint8, offset=head).reshape(-1, width)
    remainders = np.zeros(len(pieces), np.uint32)
    for column in range(width if len(pieces) else 0):
        remainders = _CRC[(remainders ^ pieces[:, column]) & 0xFF] ^ (remainders >> np.uint32(8))
    move = _moved_on(width)
    for remainder in remainders.tolist():
        moved = int(move[0][state & 0xFF] ^ move[1][state >> 8 & 0xFF] ^ move[2][state >> 16 & 0xFF])
        state = moved ^ int(move[3][state >> 24]) ^ remainder
    return state ^ 0xFFFFFFFF


def _moved_on(count: int) -> NDArray[np.uint32]:
    """(4, 256): what a remainder's four bytes, lowest first, become after `count` bytes of zero."""
    state = np.arange(256, dtype=np.uint32)[None, :] << np.array([0, 8, 16, 24], np.uint32)[:, None]
    for _ in range(count):
        state = _CRC[state & 0xFF] ^ (state >> np.uint32(8))
    return state


def _masked(checksum: int) -> int:
    """As stored: turned and shifted, so that a checksum of checksums is not trivial."""
    return (((checksum >> 15) | (checksum << 17)) + _CRC_MASK) & 0xFFFFFFFF
