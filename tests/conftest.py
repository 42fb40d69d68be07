"""Fixtures that every test folder shares, and an end for tests that hang."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from process_tree import descendants, kill

REPOSITORY = Path(__file__).resolve().parents[1]
LONG_SECONDS = 3600  # what a test marked long may take; others: `timeout` in pyproject.toml
# pytest-timeout fails a test whose time is up as soon as Python runs again. Where it does not, in native code, all of
# pytest ends so many seconds later, with a word on where it hung.
GRACE_SECONDS = 60

running_before = pytest.StashKey[set[int]]()
uncaptured = pytest.StashKey[int]()

# CI tries the same examples every time, so that a change is judged by what it changed; whoever runs the tests by hand
# tries new ones, and an example that fails becomes a case of its own. Times say nothing on a busy machine.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("by hand", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "by hand")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora beside the repository; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.stash[uncaptured] = os.dup(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))
    if item.config.getoption("usepdb"):  # somebody looks around
        return (yield)
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=item.config.stash[uncaptured])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[running_before] = set(descendants(os.getpid()))
    return (yield from _nothing_left_running(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _nothing_left_running(item))


def _nothing_left_running(item: pytest.Item) -> Generator[None, object, object]:
    """Where a test fails, or its time is up, the processes that it has started go with it."""
    try:
        return (yield)
    except pytest.skip.Exception:
        raise
    except BaseException:
        kill([one for one in descendants(os.getpid()) if one not in item.stash[running_before]])
        raise
