"""Variants of tests that start processes: `make test` runs the first, `make test-long` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["others_long"]


def others_long(values: Iterable[Any]) -> list[Any]:
    """Return parameters for `pytest.mark.parametrize`, all but the first with the mark `long`.

    :param values: one value for each parameter set, a tuple where it has several arguments.
    """
    first, *others = values
    return [first, *(_long(value) for value in others)]


def _long(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.long)
