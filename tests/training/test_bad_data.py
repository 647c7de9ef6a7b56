"""Every bad annotation and odd image behaves in training as its manifest says: refused by name, or counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from efficientdet.data.records import BOXES_CLIPPED, BOXES_DEGENERATE, BOXES_OUTSIDE, IGNORED_REGIONS, IMAGES_SKIPPED
from efficientdet.errors import DataError, EfficientDetError, ImageError
from efficientdet.images.read import image_size
from efficientdet.training.run import train

# What is counted in the report of a run with a file that is accepted.
COUNTED = {
    "box_partly_outside.json": BOXES_CLIPPED,
    "box_fully_outside.json": BOXES_OUTSIDE,
    "negative_width.json": BOXES_DEGENERATE,
    "zero_area.json": BOXES_DEGENERATE,
    "crowd_only.json": IGNORED_REGIONS,
}


def place(name: str, source: Path, folder: Path) -> Path:
    """A file of bad annotations as a dataset to train on."""
    if name.endswith(".json"):
        shutil.copytree(source / "images", folder / "images")
        shutil.copyfile(source / name, folder / "train.json")
    elif name.endswith(".xml"):
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        shutil.copyfile(source / "images" / "a.jpg", folder / "JPEGImages" / "a.jpg")
        shutil.copyfile(source / name, folder / "Annotations" / "a.xml")
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
        (folder / "classes.txt").write_text("x\ny\n")
    else:
        for part in ("images/train", "labels/train"):
            (folder / part).mkdir(parents=True)
        shutil.copyfile(source / "images" / "a.jpg", folder / "images" / "train" / "a.jpg")
        shutil.copyfile(source / name, folder / "labels" / "train" / "a.txt")
        (folder / "data.yaml").write_text("names: [x, y]\n")
    return folder


def test_every_bad_annotation_behaves_as_its_manifest_says(
    shared_data: Path, shapes: ModuleType, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    source = shared_data / "bad_annotations"
    manifest: dict[str, Any] = json.loads((source / "manifest.json").read_text())
    # Some have a single image, of which batch norms want more than one cell.
    settings = shapes.SETTINGS | {"epochs": 1, "image_size": 192}
    assert set(COUNTED) <= set(manifest)
    for name, entry in manifest.items():
        with subtests.test(name):
            folder = place(name, source, tmp_path / name / "set")
            out = tmp_path / name / "run"
            if entry["expect"] == "reject":
                with pytest.raises(DataError) as caught:
                    train(shapes.TINY, folder, out=out, **settings)
                assert str(folder) in str(caught.value)
                assert not out.exists()
                continue
            if entry["training_boxes"] == 0:
                with pytest.raises(DataError, match="not one box to train on"):
                    train(shapes.TINY, folder, out=out, **settings)
                assert not out.exists()
            done = train(shapes.TINY, folder, out=out, allow_no_boxes=entry["training_boxes"] == 0, **settings)
            assert done.report["train"]["boxes"] == entry["training_boxes"]
            counted = {BOXES_CLIPPED, BOXES_OUTSIDE, BOXES_DEGENERATE, IGNORED_REGIONS}
            found = {what: done.report["train"][what] for what in counted if done.report["train"].get(what)}
            assert found == ({COUNTED[name]: 1} if name in COUNTED else {})


def test_an_image_file_that_is_missing_is_skipped_when_asked(
    shared_data: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    folder = place("missing_image_file.json", shared_data / "bad_annotations", tmp_path / "set")
    done = train(shapes.TINY, folder, out=tmp_path / "run", skip_missing=True, **shapes.SETTINGS | {"epochs": 1})
    assert done.report["train"][IMAGES_SKIPPED] == 1


def write_odd(source: Path, names: list[str], folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """A dataset of odd images with a box on each."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        shutil.copyfile(source / name, folder / "images" / name)
        height, width = sizes.get(name, (8, 8))
        images.append({"id": number, "file_name": name})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, width, height]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def is_decodable(path: Path) -> bool:
    """Whether this machine has the decoder; the manifest allows formats whose decoder is missing to be refused."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


def test_every_odd_image_that_can_be_read_trains(shared_data: Path, shapes: ModuleType, tmp_path: Path) -> None:
    source = shared_data / "odd_images"
    manifest: dict[str, Any] = json.loads((source / "manifest.json").read_text())
    good = [name for name, entry in manifest.items() if entry["expect"] == "ok" and is_decodable(source / name)]
    assert len(good) > 20
    sizes = {name: (manifest[name]["height"], manifest[name]["width"]) for name in good}
    assert {name: image_size(source / name) for name in good} == sizes
    folder = write_odd(source, good, tmp_path / "set", sizes)
    done = train(
        shapes.TINY,
        folder,
        out=tmp_path / "run",
        batch_norm="frozen",
        **shapes.SETTINGS | {"epochs": 1, "batch_size": 4},
    )
    assert done.report["train"]["images"] == len(good) and done.report["train"]["boxes"] == len(good)
    assert done.report["skipped_steps"] == []


def test_every_odd_image_that_cannot_be_read_is_named(
    shared_data: Path, shapes: ModuleType, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    source = shared_data / "odd_images"
    manifest: dict[str, Any] = json.loads((source / "manifest.json").read_text())
    bad = [name for name, entry in manifest.items() if entry["expect"] == "reject"]
    assert len(bad) > 5
    for name in bad:
        with subtests.test(name):
            # Beside a good one, for a batch needs two.
            folder = write_odd(source, [name, "flower.webp"], tmp_path / name / "set", {})
            with pytest.raises((DataError, ImageError)) as caught:
                train(shapes.TINY, folder, out=tmp_path / name / "run", **shapes.SETTINGS | {"epochs": 1})
            assert name in str(caught.value)
            assert isinstance(caught.value, EfficientDetError)
