"""Labels and names, from the file through training, resuming, every export and every consumer: one image a class."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import efficientdet as ed
from efficientdet.data.dataset import DetectionDataset
from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.detections import Detections
from efficientdet.exporting.settings import FORMATS
from efficientdet.images.letterbox import IMAGENET
from efficientdet.network.anchors import make_anchors
from efficientdet.training.assignment import match_batch
from efficientdet.training.module import DetectionModule

# Names out of alphabetical order, category ids with gaps and out of order, and a class without any box.
CLASSES = {90: "apple", 7: "zebra", 3: "never", 4: "mango"}
COLORS = {"apple": (230, 40, 40), "zebra": (40, 230, 40), "mango": (60, 60, 240)}
# By label: in order of the ids.
NAMES, IDS = ("never", "mango", "zebra", "apple"), (3, 4, 7, 90)
LIBRARIES = {"onnx": "onnxscript", "openvino": "openvino", "executorch": "executorch", "tflite": "litert_torch"}
# Formats that `load` takes; the others are for programs without this package.
LOADED = ("onnx", "openvino")
IMAGES_OF_CLASS = 4


def write_dataset(folder: Path) -> Path:
    """Squares in the color of their class, one an image; the same images for training and validation."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    ids = {name: category_id for category_id, name in CLASSES.items()}
    for name, color in COLORS.items():
        for _ in range(IMAGES_OF_CLASS):
            number = len(images) + 1
            x, y = (int(v) for v in random.integers(4, 28, 2))
            pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            pixels[y : y + 32, x : x + 32] = color
            Image.fromarray(pixels).save(folder / "images" / f"{name}{number}.png")
            images.append({"id": number, "file_name": f"{name}{number}.png"})
            annotations.append({"id": number, "image_id": number, "category_id": ids[name], "bbox": [x, y, 32, 32]})
    categories = [{"id": category_id, "name": name} for category_id, name in CLASSES.items()]
    for split in ("train", "val"):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def one_of_each(folder: Path) -> dict[str, Path]:
    """An image of each class that has any, by its name."""
    return {name: next((folder / "images").glob(f"{name}*.png")) for name in COLORS}


def check(found: dict[str, Detections], step: str) -> None:
    for name, detections in found.items():
        assert len(detections), f"{step}: nothing found in the image of {name}"
        best = int(detections.scores.argmax())
        assert detections.class_names == NAMES, step
        assert detections.labels[best] == NAMES.index(name), f"{step}: {name}"
        assert detections.to_json()["detections"][best]["class_name"] == name, step
        assert detections.to_coco(1)[best]["category_id"] == IDS[NAMES.index(name)], step


def check_names(found: dict[str, str], step: str) -> None:
    assert found == {name: name for name in COLORS}, step


def run(*words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def best_name(rows: Iterable[dict[str, Any]], key: str) -> str:
    name: str = max(rows, key=lambda row: row["score"])[key]
    return name


@pytest.mark.slow
def test_each_class_keeps_its_label_and_name_through_everything(
    shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "coco")
    images = one_of_each(data)

    # The file.
    records = read_split(data, "train")
    assert (records.class_names, records.category_ids) == (NAMES, IDS)
    for record in records.images:
        assert record.file_name.startswith(NAMES[int(record.labels[0])])

    # A run that is interrupted and resumed, and its checkpoint.
    settings: dict[str, Any] = {
        "image_size": 64, "batch_size": 6, "epochs": 120, "learning_rate": 0.004, "ema_decay": 0.0, "device": "cpu",
        "precision": "fp32", "workers": 0, "scale_jitter": (0.9, 1.1), "evaluate_every": 120, "quiet": True, "seed": 1,
    }  # fmt: skip
    end_epoch = DetectionModule.on_train_epoch_end

    def interrupt(module: DetectionModule) -> None:
        end_epoch(module)
        if module.current_epoch == 60:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "on_train_epoch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ed.train(shapes.LITE, data, out=tmp_path / "run", **settings)
    trained = ed.train(shapes.LITE, data, out=tmp_path / "run", resume=True, quiet=True)
    assert trained.metrics is not None
    assert set(trained.metrics.per_class) == set(NAMES) and trained.metrics.per_class["never"] is None
    for checkpoint in (trained.best, trained.last):
        detector = ed.load(checkpoint, device="cpu")
        check({name: detector.predict(path) for name, path in images.items()}, str(checkpoint))

    # Evaluation, and the same dataset in every other format.
    metrics = ed.evaluate(trained.best, data)
    assert all(metrics.per_class_ap50[name] > 0.5 for name in COLORS), metrics.per_class_ap50  # type: ignore[operator]
    for to in ("voc", "yolo", "csv"):
        ed.data.convert(data, tmp_path / to, to)  # type: ignore[arg-type]
        other = ed.evaluate(trained.best, tmp_path / to)
        assert other.per_class_ap50 == metrics.per_class_ap50, to
    # A run that starts from the checkpoint keeps its class layer: the names and their order are the same.
    again = ed.train(
        shapes.LITE, tmp_path / "yolo", out=tmp_path / "again", weights=trained.best,
        **settings | {"epochs": 1, "evaluate_every": 1, "learning_rate": 1e-7},
    )  # fmt: skip
    detector = ed.load(again.best, device="cpu")
    for name, path in images.items():
        found = detector.predict(path)
        assert found.class_names[int(found.labels[found.scores.argmax()])] == name

    # Every export: raw outputs, which this package reads, and end to end, which the examples read without it.
    detector = ed.load(trained.best, device="cpu")
    written = []
    for to, form in FORMATS.items():
        if to in LIBRARIES and importlib.util.find_spec(LIBRARIES[to]) is None:
            continue
        if not form.suffix:  # a Triton repository: a folder around an end-to-end ONNX file
            continue
        path = tmp_path / f"raw{form.suffix}"
        ed.export(detector, path, images=data / "images")
        if to in LOADED:
            loaded = ed.load(path)
            check({name: loaded.predict(image) for name, image in images.items()}, path.name)
        if "end_to_end" in form.abilities:
            whole = tmp_path / f"whole{form.suffix}"
            ed.export(detector, whole, images=data / "images", end_to_end=True)
            check_names({name: example_says(to, whole, image) for name, image in images.items()}, f"example of {to}")
        written.append(to)
    assert "torch-export" in written

    # The command line, on the checkpoint and on a file.
    for weights in [trained.best, *(tmp_path / f"raw{FORMATS[to].suffix}" for to in LOADED if to in written)]:
        out = tmp_path / "out" / weights.suffix[1:]
        run("-m", "efficientdet", "predict", *images.values(), "--weights", weights, "--out", out, "--no-images")
        entries = json.loads((out / "detections.json").read_text())["images"]
        said = {name: best_name(entry["detections"], "class_name") for name, entry in zip(images, entries, strict=True)}
        check_names(said, str(weights))


def example_says(to: str, path: Path, image: Path) -> str:
    """The name of the best detection that an example prints, which reads the file without this package."""
    library = {"onnx": "onnxruntime"}.get(to, to.replace("-", "_"))
    text = run(Path(__file__).parents[2] / "examples" / f"{library}_detect.py", path, image)
    return best_name([json.loads(line) for line in text.splitlines()], "class")


# ---- the same dataset in three formats
def targets(records: Records) -> dict[str, tuple[Any, Any]]:
    """What each image trains: labels and deltas of all anchors."""
    dataset = DetectionDataset(records, (320, 320), IMAGENET, cache=False)
    anchors = make_anchors(ed.family.MODELS["lite0"], (320, 320))
    found = {}
    for index, image in enumerate(records.images):
        sample = dataset[index]
        matches = match_batch(anchors, [sample.boxes_xyxy], [sample.labels], [sample.ignored_xyxy])
        found[image.path.stem] = (matches.labels[0].numpy(), matches.deltas[0].numpy())
    return found


@pytest.mark.parametrize("name", ["cells", "coco_tiny"])
def test_twenty_images_give_the_same_targets_in_every_format(name: str, shared_data: Path, tmp_path: Path) -> None:
    """coco_tiny has crowds, and 80 classes with gaps between their ids."""
    source = shared_data / name
    source = source if (source / "train.json").is_file() else source / "instances.json"
    ed.data.subset(source, tmp_path / "coco", images=20, seed=3, to="coco")
    expected = targets(read_split(tmp_path / "coco", "train"))
    assert len(expected) == 20 and any((labels >= 0).any() for labels, _ in expected.values())
    for to in ("voc", "yolo", "csv"):
        lost = ed.data.convert(tmp_path / "coco", tmp_path / to, to).lost  # type: ignore[arg-type]
        assert not lost.keys() & {"boxes clipped", "boxes dropped: degenerate", "boxes at most one pixel wide or high"}
        found = targets(read_split(tmp_path / to, "train"))
        assert found.keys() == expected.keys()
        for stem, (labels, deltas) in expected.items():
            np.testing.assert_array_equal(found[stem][0], labels, err_msg=f"{to}: {stem}")
            # YOLO's fractions are rounded in the tenth digit.
            np.testing.assert_allclose(found[stem][1], deltas, atol=1e-5, err_msg=f"{to}: {stem}")
