"""A real browser for tests: Debian's Chromium through Debian's driver."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SECONDS = 60  # for a step of a page, on a machine that others use as well


@contextlib.contextmanager
def opened(profile: Path, size: str) -> Iterator[Chrome]:
    """A browser with a profile and a size ("1200,850") of its own: nothing is downloaded, nobody's profile is used.

    Its performance log has each request.
    """
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and program):
        if "docker" in os.environ.get("LABRIG_REQUIRE", "").split(","):
            pytest.fail("no chromium or chromedriver here: sh .ci/engine installs both")
        pytest.skip("no chromium or chromedriver here (Debian: apt install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage",
                 "--no-proxy-server", f"--window-size={size}", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with Chrome(options=options, service=Service(driver)) as found:
        found.set_script_timeout(SECONDS)
        yield found
