"""One server of tiny runs, one corpus and one undisturbed run for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children
from tiny_run import tiny_corpus

from regard.data.corpus import Corpus


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs in processes of their own lie, beside their corpus."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def corpus(runs: Path) -> Corpus:
    return tiny_corpus(runs / "corpus")


@pytest.fixture(scope="session")
def children(corpus: Corpus) -> Iterator[Children]:
    made = Children(corpus.folder)
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(children: Children, runs: Path) -> Path:
    """The finished run that nobody disturbed."""
    status, said = children.run(runs / "undisturbed")
    assert status == 0, said
    return runs / "undisturbed"
