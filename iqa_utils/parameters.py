"""Hold values against the types they were declared with: checked, never converted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

_EXPONENT = re.compile(r"'[-+]?[\d.]+e[-+]?\d+'", re.IGNORECASE)  # in the repr of a value


def wrong_types(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Say which values are not of the type they were declared with.

    Args:
        kinds: Name to type, as annotated.
        values: Name to value, for every name of ``kinds``.

    Returns:
        One sentence a wrong value, in the order of ``kinds``; empty if all are right. YAML takes
        ``1e-3`` for text: where such a value stands, the sentence says how to write the number.
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
