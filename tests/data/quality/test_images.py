from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from efficientdet.data.coco import read_coco
from efficientdet.data.quality.findings import Finding
from efficientdet.data.quality.images import CANDIDATE_BITS, SIMILAR_CORRELATION, Look, check_images, similar_pairs
from efficientdet.data.records import Records

pytest.importorskip("imagehash", reason="imagehash is missing (extra data)")
BOX = [(1, [10.0, 10.0, 30.0, 20.0])]


def read(folder: Path, *splits: str) -> dict[str, Records]:
    return {split: read_coco(folder / f"{split}.json") for split in splits}


def by_code(findings: list[Finding]) -> dict[str, list[Finding]]:
    return {one.code: [other for other in findings if other.code == one.code] for one in findings}


def test_different_images_are_not_mentioned(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    write(tmp_path, "train", [written(f"{n}.jpg", BOX) for n in range(8)])
    write(tmp_path, "val", [written(f"v{n}.jpg", BOX) for n in range(8)])
    told: list[tuple[int, int]] = []
    assert list(check_images(read(tmp_path, "train", "val"), lambda *done: told.append(done))) == []
    assert told == [(done, 16) for done in range(1, 17)]


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    """Its header is whole, so that only decoding finds it."""
    write(tmp_path, "train", [written("a.jpg", BOX), written("b.jpg", BOX)])
    path = tmp_path / "images" / "b.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    (finding,) = check_images(read(tmp_path, "train"))
    assert (finding.code, finding.image_id, finding.file) == ("image-unreadable", 2, str(path))
    assert "b.jpg" in finding.what


def test_the_same_image_twice_and_in_two_splits(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    """The same pixels in another file format are the same image."""
    write(tmp_path, "val", [written("v.png", BOX, seed=1), written("w.png", BOX, seed=3)])
    write(
        tmp_path, "train", [written("a.png", BOX, seed=1), written("b.bmp", BOX, seed=2), written("c.png", BOX, seed=2)]
    )
    found = by_code(list(check_images(read(tmp_path, "train", "val"))))
    assert set(found) == {"split-overlap", "image-repeated"}
    (across,), (within,) = found["split-overlap"], found["image-repeated"]
    assert (across.split, across.image_id) == ("val", 1) and "a.png" in across.what
    assert across.other_file == str(tmp_path / "images" / "a.png")
    assert (within.split, within.image_id) == ("train", 3) and "b.bmp" in within.what


@pytest.mark.parametrize("change", ["smaller", "worse", "brighter"])
def test_nearly_the_same_image_is_found(tmp_path: Path, write: Callable[..., Path], written: Any, change: str) -> None:
    write(tmp_path, "train", [written("a.png", BOX, seed=1), written("b.png", BOX, seed=2)])
    image = Image.open(tmp_path / "images" / "a.png")
    if change == "smaller":
        image = image.resize((100, 75))
    elif change == "worse":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=20)
        image = Image.open(file)
    else:
        image = ImageEnhance.Brightness(image).enhance(1.15)
    image.save(tmp_path / "images" / "v.png")
    write(tmp_path, "val", [written("v.png", [(1, [5.0, 5.0, 20.0, 20.0])], image.width, image.height)])
    (finding,) = check_images(read(tmp_path, "train", "val"))
    assert (finding.code, finding.split, finding.image_id) == ("split-similar", "val", 1)
    assert "nearly the same image as a.png (image id 1, train)" in finding.what


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_for_the_image_before_its_rotation_are_told(
    tmp_path: Path, write: Callable[..., Path], written: Any, orientation: int
) -> None:
    """Upright the image is 160x120; in the file it is 120x160, which a box at the bottom fits alone."""
    trap = written("a.jpg", [(1, [10, 130, 40, 25]), (1, [5, 5, 20, 20])], orientation=orientation, states_size=False)
    plain = written("b.jpg", [(1, [10, 60, 40, 25])], orientation=orientation, states_size=False)
    beyond = written("c.jpg", [(1, [150, 110, 40, 40])], orientation=orientation, states_size=False)
    write(tmp_path, "train", [trap, plain, beyond])
    found = by_code(list(check_images(read(tmp_path, "train"))))
    assert [one.image_id for one in found["exif-rotation"]] == [1]
    assert "160x120" in found["exif-rotation"][0].what and "120x160" in found["exif-rotation"][0].what
    assert [one.image_id for one in found["exif-orientation"]] == [2, 3]


# The search for pairs


def look(bits: np.ndarray, thumbnail: np.ndarray) -> Look:
    return Look(b"", bits, thumbnail.astype(np.float32) / np.float32(np.linalg.norm(thumbnail)), 1, (24, 24))


def test_every_pair_within_the_limits_is_found() -> None:
    """The same pairs as from comparing each with each."""
    random = np.random.default_rng(0)
    bits, thumbnails = random.random((30, 64)) < 0.5, random.normal(size=(30, 24, 24))
    looks = []
    for index in range(120):
        source, flips = int(random.integers(30)), int(random.integers(0, 14))
        changed = bits[source].copy()
        changed[random.choice(64, flips, replace=False)] ^= True
        looks.append(look(changed, thumbnails[source] + 0.3 * random.random() * random.normal(size=(24, 24))))
        assert len(looks) == index + 1
    expected = {
        (first, second)
        for first in range(len(looks))
        for second in range(first + 1, len(looks))
        if (looks[first].bits != looks[second].bits).sum() <= CANDIDATE_BITS
        and float((looks[first].thumbnail * looks[second].thumbnail).sum()) >= SIMILAR_CORRELATION
    }
    assert len(expected) > 10
    assert set(similar_pairs(looks)) == expected
    assert list(similar_pairs(looks[:1])) == []
