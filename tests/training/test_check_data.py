from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import efficientdet as ed
from efficientdet.data.settings import CheckOptions, CheckSettings
from efficientdet.errors import SettingError
from efficientdet.settings import names_of

pytest.importorskip("imagehash", reason="imagehash is missing (extra data)")


def test_the_keywords_of_type_checkers_are_the_fields() -> None:
    assert get_type_hints(CheckOptions) == get_type_hints(CheckSettings)
    assert set(names_of(CheckSettings)) == set(get_type_hints(CheckOptions))


def test_a_dataset_is_reported_on(data: Path) -> None:
    told: list[str] = []
    report = ed.check_data(data, progress=lambda what, done, total: told.append(f"{what} {done}/{total}"))
    assert list(report.splits) == ["train", "val"] and report.splits["train"].images == 6
    assert not report.fails("error") and report.labels_by == ""
    assert told[-1] == "decoding 10/10"
    assert json.loads(json.dumps(report.to_json()))["data"] == str(data)


def test_two_ways_to_look_for_label_errors_are_refused(data: Path) -> None:
    with pytest.raises(SettingError, match="give one of them"):
        ed.check_data(data, weights="people", folds=3)


@pytest.mark.slow
def test_a_missing_box_is_found_out_of_fold(shapes: ModuleType, tmp_path: Path) -> None:
    """Of discs and squares, two boxes are removed: one is found at least, and nothing where no box was removed."""
    folder = shapes.write_shapes(tmp_path / "shapes", {"train": 60})
    path = folder / "train.json"
    content = json.loads(path.read_text())
    swapped, removed = content["annotations"][3:40:18], content["annotations"][10:70:30]
    for one in swapped:
        one["category_id"] = 10 - one["category_id"]
    content["annotations"] = [one for one in content["annotations"] if one not in removed]
    path.write_text(json.dumps(content))
    report = ed.check_data(path, folds=3, fold_epochs=30, image_size=96, decode=False)
    found = {one.image_id for one in report.findings if one.code == "label-missing"}
    assert found and found <= {one["image_id"] for one in removed}
    assert "3 models (lite0, 30 epochs)" in report.labels_by
