"""Settings are declared once: types, choices, ranges and second names are held by the declaration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.inference.settings import (
    DetectorOptions,
    DetectorSettings,
    EnsembleOptions,
    EnsembleSettings,
    PostprocessSettings,
    StreamOptions,
)
from efficientdet.settings import Kind, Settings, changed, divided, kinds, names_of, setting, to_dict
from efficientdet.video.settings import TrackSettings, VideoSettings


@dataclass(frozen=True)
class Example(Settings):
    rate: float = setting(0.5, "A rate.", minimum=0, maximum=1, also="speed")
    count: int | None = setting(None, "A count.", minimum=1)
    kind: Literal["soft", "hard"] = setting("soft", "A kind.")
    jitter: tuple[float, float] = setting((0.5, 1.5), "A range.", above=0)
    names: tuple[str, ...] = setting((), "Some names.")
    sizes: tuple[Literal["s", "l"], ...] = setting(("s",), "Some sizes.")
    words: tuple[str, ...] = setting(("a",), "Some words.")
    on: bool = setting(False, "A switch.")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 1.5}, "rate is 1.5; it must be at least 0 and at most 1"),
        ({"rate": float("nan")}, "rate is nan; it must be a finite number"),
        ({"rate": True}, "rate is True"),
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"count": 2.0}, "count is 2.0; it must be a whole number"),
        ({"count": 10**30}, "count is 10{30}; it must be at least 1 and at most 1e\\+09"),
        ({"jitter": (0, 1)}, "jitter is 0; it must be above 0"),
        ({"jitter": (1, 1e300)}, "jitter is 1e\\+300; it must be .*at most 1e\\+09"),
        ({"jitter": (1.0,)}, "it must have 2 values"),
        ({"names": ("a", 3)}, "names is 3; it must be a text"),
        ({"sizes": ()}, "sizes is empty"),
        ({"on": 1}, "on is 1; it must be true or false"),
        ({"rate": None}, "rate is None"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Example(**values)


def test_an_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'soft'"):
        Example(kind="sof")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown size 'm'"):
        Example(sizes=("l", "m"))  # type: ignore[arg-type]


def test_settings_change_by_either_name_but_not_by_both() -> None:
    assert changed(Example(), {"speed": 0.1}) == changed(Example(), {"rate": 0.1}) == Example(rate=0.1)
    with pytest.raises(SettingError, match="same setting"):
        changed(Example(), {"speed": 0.1, "rate": 0.2})
    with pytest.raises(SettingError, match="unknown setting 'raet'; did you mean 'rate'"):
        changed(Example(), {"raet": 0.1})


def test_other_lists_may_be_empty() -> None:
    assert Example(words=()).words == ()


def test_a_list_from_json_is_a_tuple() -> None:
    values = {**to_dict(Example()), "jitter": [0.1, 2]}
    assert Example(**values).jitter == (0.1, 2)


def test_keywords_are_divided_among_their_owners() -> None:
    ours, theirs = divided({"device": "cpu", "threshold": 0.4}, DetectorSettings, PostprocessSettings)
    assert ours == {"device": "cpu"} and theirs == {"threshold": 0.4}


def test_kinds_come_from_annotations() -> None:
    found = kinds(Example)
    assert found["kind"].choices == ("soft", "hard")
    assert found["count"].is_optional and found["count"].types[0] is int
    assert (found["jitter"].items, found["jitter"].length) == (Kind((float,)), 2)
    assert (found["names"].items, found["names"].length) == (Kind((str,)), None)


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        (DetectorOptions, (DetectorSettings, PostprocessSettings)),
        (EnsembleOptions, (EnsembleSettings, DetectorSettings, PostprocessSettings)),
        (StreamOptions, (PostprocessSettings, VideoSettings, TrackSettings)),
    ],
)
def test_the_keywords_of_type_checkers_are_the_fields(options: type, classes: tuple[type, ...]) -> None:
    hints, fields = get_type_hints(options), names_of(*classes)
    assert set(hints) == set(fields)
    for cls in classes:
        own = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            assert hints[field.name] == own[field.name], field.name
