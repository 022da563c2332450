"""Values as plain JSON, as a program's file holds them: for reading, not for coming back as they were."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

__all__ = ["plain"]

AS_TEXT = (decimal.Decimal, fractions.Fraction, uuid.UUID, pathlib.PurePath, datetime.timedelta, complex)
DATED = (datetime.date, datetime.time)


def plain(value: Any) -> Any:
    """A value in the form that upstream's ``save`` gives it, and of kinds which that does not take the obvious one.

    Raises:
        TypeError: There is none.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(plain(name)): plain(each) for name, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    if isinstance(value, (list, tuple, range)):
        return [plain(each) for each in value]
    if isinstance(value, DATED):
        return value.isoformat()
    if isinstance(value, AS_TEXT):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return _structured(value)


def _structured(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "toDict"):
        return plain(value.toDict())
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} has no form in JSON")
