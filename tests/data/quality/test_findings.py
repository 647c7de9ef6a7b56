from __future__ import annotations

import json

import pytest

from efficientdet.data.quality.findings import RULES, SEVERITIES, Finding, by_severity, grouped, without_consequences


def test_rules_are_in_the_order_of_their_severity() -> None:
    severities = [SEVERITIES.index(rule.severity) for rule in RULES.values()]
    assert severities == sorted(severities) and set(severities) == {0, 1, 2}


@pytest.mark.parametrize("code", RULES)
def test_every_rule_says_what_is_wrong_and_what_to_do(code: str) -> None:
    rule = RULES[code]
    assert rule.title[0].isupper() and not rule.title.endswith(".")
    assert rule.advice.endswith(".")
    assert len({one.title for one in RULES.values()}) == len(RULES)


def test_a_finding_says_where() -> None:
    finding = Finding("box-empty", "what", "train", "images/a.jpg", 7, (3, 4), ((1.0, 2.0, 1.0, 2.0),))
    assert finding.short_place == "train, a.jpg, image id 7, annotation id 3, 4"
    assert Finding("split-missing", "what").short_place == ""
    content = json.loads(json.dumps(finding.to_json()))
    assert (content["severity"], content["annotation_ids"], content["image_id"]) == ("error", [3, 4], 7)
    assert content["what_to_do"] == RULES["box-empty"].advice


def test_findings_are_grouped_the_worst_first() -> None:
    found = [
        Finding("images-empty", "a"), Finding("box-cut", "b", weight=0.2), Finding("box-cut", "c", weight=0.9),
        Finding("box-empty", "d"),
    ]  # fmt: skip
    groups = grouped(found)
    assert list(groups) == ["box-empty", "box-cut", "images-empty"]
    assert [one.what for one in groups["box-cut"]] == ["c", "b"]
    assert by_severity(found) == {"error": 1, "warning": 2, "note": 1}


def test_boxes_of_a_turned_image_are_mentioned_once() -> None:
    turned = Finding("exif-rotation", "a", "train", image_id=1)
    found = [
        Finding("box-outside", "b", "train", image_id=1),
        turned,
        Finding("exif-rotation", "c", "train", image_id=1),
        Finding("box-outside", "d", "train", image_id=2),
        Finding("box-outside", "e", "val", image_id=1),
        Finding("box-tiny", "f", "train", image_id=1),
    ]
    assert [one.what for one in without_consequences(found)] == ["a", "d", "e", "f"]
