"""Opens a page in a Chromium without a window."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def drawn(page: Path, folder: Path, awaited: str = "") -> str:
    """The page's elements after its script has run. folder: for the browser's profiles.

    awaited: what the script draws once the browser says that a place is in sight. Under load the browser now and then
    ends before it says so; it is then asked again, twice at most, and the caller sees what came of the last attempt.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed to open the page with")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,5000"]
    elements = ""
    for attempt in range(3):
        profile = f"--user-data-dir={folder / f'profile-{page.stem}-{attempt}'}"
        done = subprocess.run(
            [*command, profile, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
        elements = done.stdout
        if awaited in elements:
            break
    return elements
