"""Syntax trees are kept for the tests of one file: they are large."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.house.layout import files_of, walk


@pytest.fixture(scope="module", autouse=True)
def _forget_trees() -> Iterator[None]:
    yield
    files_of.cache_clear()
    walk.cache_clear()
