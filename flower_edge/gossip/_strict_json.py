"""JSON from files that nobody vouches for: sizes are checked before anything is read, NaN is refused."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 32 * 2**20
"""The complete graph of 1024 nodes and a plan that uses all of it take 23 MB."""

MAX_BRACKETS = 2**20
"""Of any kind: an empty list takes two bytes of text, and 56 or more once parsed. As many as the complete
graph of 1024 nodes has, once as a base graph and once as a plan."""


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file of at most `MAX_BYTES`; a larger or unreadable one is a ValueError that names it."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
        with path.open("rb") as file:
            # A device has no size, and a file may grow.
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path} has more than {MAX_BYTES} bytes, expected no more")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error


def check_text(text: str, what: str) -> None:
    """Raise a ValueError that begins with `what` for a text that is not parsed, because it is too large."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{what}: received {len(text)} characters, expected at most {MAX_BYTES}")
    if (brackets := text.count("[") + text.count("{")) > MAX_BRACKETS:
        raise ValueError(f"{what}: received {brackets} lists and objects, expected at most {MAX_BRACKETS}")


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object; anything else is a ValueError that begins with `what`."""
    check_text(text, what)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number here")

    try:
        parsed = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{what}: received a JSON {type(parsed).__name__}, expected an object")
    return parsed


def is_int(value: object) -> bool:
    """Whether a parsed value is an integer; JSON's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a parsed value is a finite number that fits a float; JSON's true and false are none."""
    # JSON may hold integers that no float reaches.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max
