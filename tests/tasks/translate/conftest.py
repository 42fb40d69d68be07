"""The two small models of this folder, made once a session."""

from __future__ import annotations

import pytest
from tiny_translators import random_translator, taught_translator

from regard.tasks.translate.translator import Translator


@pytest.fixture(scope="session")
def untrained() -> Translator:
    """See `random_translator`."""
    return random_translator()


@pytest.fixture(scope="session")
def trained() -> Translator:
    """See `taught_translator`."""
    return taught_translator()
