"""A page as a browser without a screen shows it: Chromium of the system, or the one that playwright has fetched."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FETCHED = "chromium*/chrome-*/*"


@functools.cache
def find_browser() -> str | None:
    """Chromium's program: $CHROME, one on the path, one of playwright's; null if there is none."""
    found = [os.environ.get("CHROME", ""), *(shutil.which(name) or "" for name in NAMES)]
    caches = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    fetched = sorted(caches.glob(FETCHED)) if caches.is_dir() else []
    found += [str(path) for path in fetched if path.name in ("chrome", "headless_shell", "chrome-headless-shell")]
    return next((path for path in found if path), None)


def open_page(page: Path, profile: Path, width: int = 1200) -> tuple[str, list[str]]:
    """Open a page.

    Args:
        page: A file.
        profile: A directory that the browser may write to.
        width: Of its window, in pixels.

    Returns:
        The page's elements as the browser has understood them, and what it has written to its console.
    """
    browser = find_browser()
    if browser is None:
        pytest.skip("No Chromium is here to open the page in: install one, or set CHROME to it.")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += [f"--user-data-dir={profile}", f"--window-size={width},900", "--disable-background-networking"]
    command = [browser, *options, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
