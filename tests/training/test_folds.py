from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efficientdet.data.coco import read_coco
from efficientdet.data.read_split import read_split
from efficientdet.errors import SettingError
from efficientdet.training import folds as folds_module
from efficientdet.training.folds import out_of_fold, write_images
from efficientdet.training.run_folder import TrainingRun


def test_no_model_looks_at_what_it_was_trained_on(
    shapes: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image gets detections, each from a model that was trained on all the other parts and not on its own."""
    splits = [read_split(data, split) for split in ("train", "val")]
    trained: list[set[str]] = []
    looked: list[list[str]] = []
    train, load = folds_module.train, folds_module.load

    def watched_train(model: Any, folder: Path, **settings: Any) -> TrainingRun:
        trained.append({Path(record.path).resolve().name for record in read_split(folder, "train").images})
        return train(model, folder, **settings)

    def watched_load(*arguments: Any, **settings: Any) -> Any:
        detector = load(*arguments, **settings)
        predict = detector.predict_many

        def watched_predict(paths: list[Path], **more: Any) -> Any:
            looked.append([path.name for path in paths])
            return predict(paths, **more)

        monkeypatch.setattr(detector, "predict_many", watched_predict)
        return detector

    monkeypatch.setattr(folds_module, "train", watched_train)
    monkeypatch.setattr(folds_module, "load", watched_load)
    lines: list[str] = []
    settings = {name: value for name, value in shapes.SETTINGS.items() if name != "quiet"} | {"epochs": 1}
    found = out_of_fold(splits, shapes.TINY, 3, 0.01, lines.append, **settings)
    names = {record.path.name for records in splits for record in records.images}
    assert sorted(name for part in looked for name in part) == sorted(names)
    for theirs, own in zip(trained, looked, strict=True):
        assert theirs == names - set(own)
    assert [len(part) for part in found] == [len(records) for records in splits]
    for records, part in zip(splits, found, strict=True):
        for record, detections in zip(records.images, part, strict=True):
            assert detections.source == str(record.path)
    assert len(lines) == 3 and lines[0].startswith("part 1 of 3: training on ")


def test_the_images_of_a_part_are_read_as_they_were(data: Path, tmp_path: Path) -> None:
    records = read_split(data, "train")
    write_images(tmp_path / "part", records.images[:3], records)
    part = read_coco(tmp_path / "part" / "train.json")
    assert (part.class_names, part.category_ids) == (records.class_names, records.category_ids)
    for mine, theirs in zip(part.images, records.images[:3], strict=True):
        assert mine.boxes_xyxy.tolist() == theirs.boxes_xyxy.tolist()
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert mine.path.read_bytes() == theirs.path.read_bytes()


def test_too_few_images_and_other_classes_are_refused(shapes: ModuleType, data: Path, tmp_path: Path) -> None:
    train = read_split(data, "train")
    with pytest.raises(SettingError, match="folds is 9, but there are 6 images"):
        out_of_fold([train], shapes.TINY, 9, 0.05, print)
    other = read_split(shapes.write_shapes(tmp_path / "other", {"val": 4}, ("owl", "square")), "val")
    with pytest.raises(SettingError, match="different classes"):
        out_of_fold([train, other], shapes.TINY, 3, 0.05, print)
