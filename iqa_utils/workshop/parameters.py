"""Hold values against the types they were declared with: checked, never converted."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

_EXPONENT = re.compile(r"'[-+]?[\d.]+e[-+]?\d+'", re.IGNORECASE)  # in the repr of a value


def wrong_types(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Say in one sentence per value which are not of the type they were declared with.

    YAML takes ``1e-3`` for text: the sentence then says how to write the number.
    """
    wrong = []
    for name, kind in kinds.items():
        value = values[name]
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError:
            expected = str(kind) if get_args(kind) else getattr(kind, "__name__", str(kind))
            hint = " (in YAML write 1.0e-3, not 1e-3)" if _EXPONENT.search(repr(value)) else ""
            found = f"{value!r} ({type(value).__name__})"
            wrong.append(f"{name} must be {expected}, got {found}{hint}")
    return wrong


def check_overrides(
    overrides: Mapping[str, Mapping[str, Any]], names: Collection[str], kinds: Mapping[str, Any]
) -> None:
    """Refuse ``OVERRIDES`` with unknown trainings or settings, or values of the wrong type."""
    for name, values in overrides.items():
        if name not in names:
            raise ValueError(f"OVERRIDES: no training {name!r}, there are {', '.join(names)}")
        if unknown := sorted(set(values) - set(kinds)):
            raise ValueError(f"OVERRIDES of {name!r}: unknown {unknown}, there are {list(kinds)}")
        if wrong := wrong_types({key: kinds[key] for key in values}, values):
            raise ValueError(f"OVERRIDES of {name!r}: {'; '.join(wrong)}")
