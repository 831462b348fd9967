"""Fixtures: a world of eight tokens, so that these tests need no shipped model."""

from __future__ import annotations

import os

# Before anything imports torch: models this small run no faster on two threads, and spinning ones ruin a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import pytest
from toys import Words, toy_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The toy tokenizer; environments only read it."""
    return toy_tokenizer()


@pytest.fixture
def toy(tokenizer) -> dict[str, Any]:
    """Keyword arguments of a small text environment."""
    return {"task": Words(), "tokenizer": tokenizer, "max_prompt_tokens": 6, "max_new_tokens": 8}
