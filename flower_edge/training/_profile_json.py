"""The JSON form of a profile: read from files that nobody vouches for."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

FORMAT = "flower_edge.profile"
VERSION = 2

MAX_CHARACTERS = 16 * 2**20
MAX_NUMBER = 2**62
"""Of any integer: bytes, multiply-accumulates, sizes."""


def encode(profile: Any) -> str:
    """Return the document of a profile."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(profile)}, allow_nan=False)


def decode(text: str, profile: type) -> Any:
    """Return the profile of a document.

    Raises
    ------
    ValueError
        If it is not valid JSON, a field is missing, unknown or of another type, a number is negative or not
        finite, or an index points nowhere.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"profile: received {len(text)} characters, expected at most {MAX_CHARACTERS}")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number here")

    try:
        document = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"profile: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"profile: received a JSON {type(document).__name__}, expected an object")
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if document.pop(name, None) != expected:
            raise ValueError(f"profile: expected {name} {expected!r}: this is something else")
    decoded = _read(document, profile, "profile")
    _check_indices(decoded)
    return decoded


def _read(value: Any, expected: Any, where: str) -> Any:
    if is_dataclass(expected):
        return _read_record(value, expected, where)
    if get_origin(expected) is tuple:
        items = get_args(expected)
        if not isinstance(value, list) or (items[-1] is not ... and len(value) != len(items)):
            raise ValueError(f"{where}: received {value!r:.70}, expected a list")
        kinds = [items[0]] * len(value) if items[-1] is ... else items
        return tuple(
            _read(item, kind, f"{where}[{i}]")
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        )
    return _SCALARS[expected](value, where)


def _read_record(value: Any, record: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: received {value!r:.70}, expected an object")
    names = [field.name for field in fields(record)]
    if value.keys() != set(names):
        wrong = sorted(value.keys() ^ set(names))
        raise ValueError(
            f"{where}: field {wrong[0]!r:.70} is missing or unknown, expected {', '.join(names)}"
        )
    hints = get_type_hints(record)
    return record(**{name: _read(value[name], hints[name], f"{where}.{name}") for name in names})


def _integer(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{where}: received {value!r:.70}, expected an integer of at least 0")
    return value


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{where}: received {value!r:.70}, expected a number of at least 0")
    return float(value)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: received {value!r:.70}, expected a string")
    return value


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {int: _integer, float: _number, str: _string}


def _check_indices(profile: Any) -> None:
    names = {tensor.name for tensor in profile.tensors}
    for seconds in ("forward_seconds", "backward_seconds"):
        if not math.isfinite(getattr(profile, seconds)) or getattr(profile, seconds) <= 0:
            raise ValueError(f"profile.{seconds}: received {getattr(profile, seconds)}, expected more than 0")
    for index, operation in enumerate(profile.operations):
        where = f"profile.operations[{index}]"
        for source in operation.inputs:
            if source >= index:
                raise ValueError(f"{where}: input {source}, expected the index of an earlier operation")
        uses = [use.name for use in operation.tensors]
        if len(set(uses)) < len(uses) or not names.issuperset(uses):
            raise ValueError(f"{where}: tensors {uses!r:.70}, expected names of profile.tensors, each once")
        for saved in (operation.saved, *(use.saved for use in operation.tensors)):
            if any(storage >= len(profile.saved_sizes) for storage in saved):
                raise ValueError(f"{where}: saved {saved!r:.70}, expected indices into profile.saved_sizes")
