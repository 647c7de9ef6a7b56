"""Settings: fields of frozen dataclasses, each with its default, range and description in this one place.

The command line makes its options from these fields, checkpoints store their values, and `Settings` holds their types
and ranges. A setting is declared once:

    @dataclass(frozen=True)
    class PostprocessSettings(Settings):
        iou_threshold: float = setting(0.5, "IoU above which NMS drops a box.", minimum=0, maximum=1)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from efficientdet.errors import SettingError, unknown_name

_Settings = TypeVar("_Settings")
# Of a setting with limits, but without a maximum of its own.
LARGEST = 1e9


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: str | None = None,
    flag: str | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: its default.
        help: what the setting is, in a sentence; the command line shows it.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        above: values must be larger than this.
        below: values must be smaller than this.
        also: a second name that is accepted for it.
        flag: a short form on the command line, such as `-w`.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits, "also": also, "flag": flag})


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field may hold.

    Attributes:
        types: the plain types that are allowed, such as (int,) or (float,).
        choices: the values that are allowed, of a field annotated as Literal; else none. Of a field that takes both,
            such as `int | Literal["auto"]`, those beside the numbers.
        items: what an item may be, of a field annotated as tuple; else None.
        length: number of items of a tuple; None for any number.
        is_optional: whether None is allowed.
    """

    types: tuple[type, ...]
    choices: tuple[Any, ...] = ()
    items: Kind | None = None
    length: int | None = None
    is_optional: bool = False


@functools.cache
def kinds(cls: type) -> dict[str, Kind]:
    """What each field of a settings dataclass may hold, from its annotation."""
    hints = get_type_hints(cls)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(cls)}


def _kind(annotation: Any) -> Kind:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        found = [_kind(part) for part in parts if part is not type(None)]
        merged = tuple(one for kind in found for one in kind.types)
        rest = next((kind for kind in found if kind.choices or kind.items), found[0])
        return dataclasses.replace(rest, types=merged, is_optional=type(None) in parts)
    if origin is Literal:
        return Kind((type(parts[0]),), choices=parts)
    if origin is tuple:
        return Kind((tuple,), items=_kind(parts[0]), length=None if parts[-1] is Ellipsis else len(parts))
    return Kind((annotation,))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the settings dataclasses: types, choices and ranges are checked whenever one is made.

    A list of choices, or of numbers within limits, must not be empty unless it is so by default.

    Raises:
        UnknownNameError: a value is not among the choices; lists them and the nearest.
        SettingError: a value is of the wrong type or out of range; names the setting and its value.
    """

    def __post_init__(self) -> None:
        """Check every field."""
        allowed = kinds(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, list) and tuple in allowed[name].types:  # as JSON gives it
                value = tuple(value)
                object.__setattr__(self, name, value)
            _check(name, value, allowed[name])
            limits, items = field.metadata.get("limits", {}), allowed[name].items
            if value == () != field.default and items is not None and (items.choices or limits):
                raise SettingError(f"{name} is empty; give at least one value")
            for one in value if isinstance(value, tuple) else (value,):
                _check_limits(name, one, limits)


def _check(name: str, value: Any, kind: Kind) -> None:
    if value in kind.choices or (value is None and kind.is_optional):
        return
    # Beside its choices a field may take another type, such as a number beside `auto`.
    if kind.choices and (len(kind.types) == 1 or isinstance(value, type(kind.choices[0]))):
        raise unknown_name(name, str(value), map(str, kind.choices))
    if isinstance(value, tuple) and kind.items is not None:
        if kind.length is not None and len(value) != kind.length:
            raise SettingError(f"{name} is {value!r}; it must have {kind.length} values")
        for item in value:
            _check(name.removesuffix("s") if kind.items.choices else name, item, kind.items)
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, tuple(one for one in kind.types if one not in (int, float)))
    fits = fits or (int in kind.types and is_number and isinstance(value, int))
    fits = fits or (float in kind.types and is_number and math.isfinite(value))
    if not fits:
        words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", tuple: "a list"}
        expected = " or ".join(words.get(one, one.__name__) for one in kind.types)
        raise SettingError(f"{name} is {value!r}; it must be {expected}")


def _check_limits(name: str, value: Any, limits: Mapping[str, float]) -> None:
    if not limits or not isinstance(value, (int, float)):
        return
    if value > LARGEST:  # no library counts on
        limits = {"maximum": LARGEST, **limits}
    low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
    above, below = limits.get("above", -math.inf), limits.get("below", math.inf)
    if not (low <= value <= high and above < value < below):
        raise SettingError(f"{name} is {value}; it must be {describe_limits(limits)}")


def describe_limits(limits: Mapping[str, float]) -> str:
    """Such as `at least 0 and at most 1`."""
    words = {"minimum": "at least {:g}", "above": "above {:g}", "maximum": "at most {:g}", "below": "below {:g}"}
    return " and ".join(text.format(limits[name]) for name, text in words.items() if name in limits)


def names_of(*classes: type) -> dict[str, type]:
    """The settings that some dataclasses take by keyword, second names included, and the class of each."""
    found = {}
    for cls in classes:
        for field in dataclasses.fields(cls):
            found[field.name] = cls
            if field.metadata.get("also"):
                found[field.metadata["also"]] = cls
    return found


def changed(settings: _Settings, changes: Mapping[str, Any]) -> _Settings:
    """The settings with some fields changed; second names are understood.

    Raises:
        SettingError: a name is unknown, given twice, or a value is out of range; names it.
    """
    if not changes:
        return settings
    cls = type(settings)
    known = names_of(cls)
    second = {field.metadata.get("also"): field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise SettingError(str(unknown_name("setting", name, known)))
        field_name = second.get(name, name)
        if field_name in values:
            raise SettingError(f"{name} and {field_name} are the same setting; give one of them")
        values[field_name] = value
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def divided(changes: Mapping[str, Any], *classes: type) -> list[dict[str, Any]]:
    """Settings given by keyword, sorted into those of each dataclass.

    Raises:
        SettingError: a name belongs to none of them; gives the nearest.
    """
    owners = names_of(*classes)
    for name in changes:
        if name not in owners:
            raise SettingError(str(unknown_name("setting", name, owners)))
    return [{name: value for name, value in changes.items() if owners[name] is cls} for cls in classes]


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain types, ready for JSON; the dataclass takes them back as keywords."""
    return dataclasses.asdict(settings)
