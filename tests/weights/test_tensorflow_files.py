"""TensorFlow's checkpoints and Keras' h5, read without TensorFlow."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.errors import MissingExtraError, WeightsError
from efficientdet.weights.tensorflow_files import crc32c, read_tensorflow

# Written by TensorFlow 2.15's tf.compat.v1.train.Saver: six variables of different types.
REAL_INDEX = (
    "AAAGCAEaAggBABITYm94X25ldC9ib3gtMC9iaWFzCAESCBICCAISAggDKBg1wNs9FxIZFS9FeHBvbmVudGlhbE1vdmluZ0F2ZXJhZ2UIARII"
    "EgIIAhICCAMgGCgYNWDd2tQADQ1mcG5fY2VsbHMvV1NNCAESACAwKAQ1Xi/hpwALDWdsb2JhbF9zdGVwCAkSACA0KAg15E/pzgAEEWhhbGYI"
    "DhIEEgIIAiA8KAQ15eGb2AAEDXRleHQIBxIAIEAoCjXs4MApAAAAAAEAAAAAic2V7AAAAAABAAAAAMDyobAAAQN1AM4BAAAAAAEAAAAA/BXw"
    "O9MBCOABDwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABX+4CLJHVH2w=="
)
REAL_DATA = "AAAAAAAAgD8AAABAAABAQAAAgEAAAKBAAAAAAAAAAEAAAIBAAADAQAAAAEEAACBBAADAPwCsI/wGAAAAgD8gwAXZxpxDaGVsbG8="


# ---- a small writer of the same format
def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(pairs: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A block with its trailer; keys are compressed against the one before."""
    body, last = b"", b""
    for key, value in pairs:
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    body += struct.pack("<II", 0, 1)
    return body + bytes([kind]) + struct.pack("<I", masked(crc32c(body + bytes([kind]))))


def table(pairs: list[tuple[bytes, bytes]], per_block: int = 2, kind: int = 0) -> bytes:
    data, handles = b"", []
    for start in range(0, len(pairs), per_block):
        rows = pairs[start : start + per_block]
        written = block(rows, kind)
        handles.append((rows[-1][0], varint(len(data)) + varint(len(written) - 5)))
        data += written
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


CODES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}


def write_checkpoint(prefix: Path, values: dict[str, np.ndarray[Any, Any]], extra: bytes = b"", **how: Any) -> None:
    data, pairs = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name, value in sorted(values.items()):
        raw = value.tobytes()
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        entry = field(1, CODES[value.dtype.name]) + field(2, shape) + field(4, len(data)) + field(5, len(raw))
        entry += varint(6 << 3 | 5) + struct.pack("<I", masked(crc32c(raw))) + extra
        pairs.append((name.encode(), entry))
        data += raw
    prefix.with_name(prefix.name + ".index").write_bytes(table(pairs, **how))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


VALUES: dict[str, Any] = {
    "class_net/class-0/bias": np.arange(4, dtype=np.float32),
    "class_net/class-0/depthwise_kernel": np.arange(18, dtype=np.float64).reshape(3, 3, 2, 1),
    "class_net/class-1/bias": np.array([1, -2], np.int32),
    "fpn_cells/cell_0/fnode0/WSM": np.array(1.5, np.float16),
    "global_step": np.array(1 << 40, np.int64),
    "training": np.array([True, False]),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model.ckpt-7", VALUES)
    return tmp_path / "model.ckpt-7"


# ---- checkpoints
def test_a_file_that_tensorflow_wrote(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-7.index").write_bytes(base64.b64decode(REAL_INDEX))
    (tmp_path / "model.ckpt-7.data-00000-of-00001").write_bytes(base64.b64decode(REAL_DATA))
    values = read_tensorflow(tmp_path / "model.ckpt-7")
    assert set(values) == {
        "box_net/box-0/bias", "box_net/box-0/bias/ExponentialMovingAverage", "fpn_cells/WSM", "global_step", "half",
    }  # fmt: skip
    assert values["box_net/box-0/bias"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values["box_net/box-0/bias/ExponentialMovingAverage"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert values["fpn_cells/WSM"].shape == ()
    assert values["fpn_cells/WSM"] == 1.5
    assert values["global_step"] == 30_000_000_000
    assert values["half"].dtype == np.float32  # bfloat16
    assert values["half"].tolist() == [1.0, -2.5]


def test_the_writer_of_these_tests_writes_what_tensorflow_writes(tmp_path: Path) -> None:
    values = {"box_net/box-0/bias": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_checkpoint(tmp_path / "x", values)
    entry = base64.b64decode(REAL_INDEX).partition(b"box_net/box-0/bias")[2][:19]
    # TensorFlow leaves out the offset 0, as protocol buffers may.
    assert entry.replace(b"\x28\x18", b"\x20\x00\x28\x18") in (tmp_path / "x.index").read_bytes()


@pytest.mark.parametrize("per_block", [1, 2, 100])
def test_every_variable_is_read(tmp_path: Path, per_block: int) -> None:
    write_checkpoint(tmp_path / "m", VALUES, per_block=per_block)
    values = read_tensorflow(tmp_path / "m")
    assert values.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert values[name].dtype == value.dtype
        assert values[name].shape == value.shape
        assert np.array_equal(values[name], value)


@pytest.mark.parametrize("name", ["model.ckpt-7", "model.ckpt-7.index", ""])
def test_prefix_index_and_folder_mean_the_same(checkpoint: Path, name: str) -> None:
    assert len(read_tensorflow(checkpoint.parent / name)) == len(VALUES)


def test_a_folder_of_several_checkpoints_is_ambiguous(checkpoint: Path) -> None:
    write_checkpoint(checkpoint.with_name("model.ckpt-8"), VALUES)
    with pytest.raises(
        WeightsError, match=r"holds 2 TensorFlow checkpoints; name one: \['model.ckpt-7', 'model.ckpt-8'\]"
    ):
        read_tensorflow(checkpoint.parent)


def test_what_is_missing_is_named(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"other\.index: no such file"):
        read_tensorflow(checkpoint.with_name("other"))
    checkpoint.with_name(checkpoint.name + ".data-00000-of-00001").unlink()
    with pytest.raises(WeightsError, match=r"model\.ckpt-7\.data-00000-of-00001: missing"):
        read_tensorflow(checkpoint)


@pytest.mark.parametrize("keep", [0, 10, 60, -30, -1])
def test_a_cut_index_is_refused(checkpoint: Path, keep: int) -> None:
    index = checkpoint.with_name(checkpoint.name + ".index")
    index.write_bytes(index.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.ckpt-7\.index: a damaged TensorFlow checkpoint"):
        read_tensorflow(checkpoint)


def test_any_flipped_byte_of_the_index_is_noticed(checkpoint: Path) -> None:
    index = checkpoint.with_name(checkpoint.name + ".index")
    whole = index.read_bytes()
    # The footer's handles are not under a checksum and end in padding; all else is.
    for at in range(len(whole) - 48):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(WeightsError, match="damaged"):
            read_tensorflow(checkpoint)


def test_damaged_values_are_refused(checkpoint: Path) -> None:
    data = checkpoint.with_name(checkpoint.name + ".data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[:3] + b"\xff" + whole[4:])
    with pytest.raises(WeightsError, match="the checksum of variable 'class_net/class-0/bias' is wrong"):
        read_tensorflow(checkpoint)
    data.write_bytes(whole[:-20])
    with pytest.raises(WeightsError, match="the data file ends before variable"):
        read_tensorflow(checkpoint)


def test_shape_and_size_must_agree(tmp_path: Path) -> None:
    wrong = field(2, field(2, field(1, 5)))
    write_checkpoint(tmp_path / "m", {"a": np.zeros(4, np.float32)}, extra=wrong)
    with pytest.raises(WeightsError, match=r"variable 'a' has shape \[5\], but 16 bytes"):
        read_tensorflow(tmp_path / "m")


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"extra": field(7, b"")}, "'a' is partitioned"),
        ({"kind": 1}, "a block is compressed"),
        ({"extra": b"\x0b"}, "unknown kind 3"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, how: dict[str, Any], what: str) -> None:
    write_checkpoint(tmp_path / "m", {"a": np.zeros(4, np.float32)}, **how)
    with pytest.raises(WeightsError, match=what):
        read_tensorflow(tmp_path / "m")


# ---- checksums
def test_crc32c_of_the_standard_texts() -> None:
    # RFC 3720, appendix B.4, and the check value of the CRC catalogs.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@given(st.binary(max_size=700))
def test_crc32c_in_pieces_is_that_of_the_bytes_in_order(data: bytes) -> None:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


# ---- h5
def test_h5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed; run: pip install 'efficientdet\[convert\]'"):
        read_tensorflow(tmp_path / "a.h5")


def test_h5_as_keras_writes_it(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = ["class_net"]
        file["class_net/class_net/class-0/bias:0"] = np.arange(3, dtype=np.float32)
        file["fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"] = np.float32(0.5)
        file["fpn_cells/name"] = "no weight"
    values = read_tensorflow(tmp_path / "a.h5")
    assert set(values) == {"class_net/class_net/class-0/bias:0", "fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"}
    assert values["fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"].shape == ()


def test_a_damaged_h5_is_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(WeightsError, match=r"none\.h5: no such file"):
        read_tensorflow(tmp_path / "none.h5")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\nrubbish")
    with pytest.raises(WeightsError, match=r"a\.h5: not an h5 file, or a damaged one"):
        read_tensorflow(tmp_path / "a.h5")
