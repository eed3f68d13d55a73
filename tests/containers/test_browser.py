"""A real browser opens what `invoke start` prints, runs a lab's notebook from the menu, and sees the plot."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import chromium
import pytest
from chromium import SECONDS

from labrig import home, server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET, LAB = "cpu", "02_autograd"
ARTIFACTS = Path(os.environ.get("LABRIG_ARTIFACTS") or ROOT / "results" / "browser")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A JupyterLab started as a student starts it, beside whatever else runs here."""
    cache = tmp_path / "cache"
    shutil.copytree(home.layers(), cache / "layers", copy_function=os.symlink)
    for one in home.root().iterdir():
        if one.name not in ("layers", home.servers().name):
            (cache / one.name).symlink_to(one)
    monkeypatch.setenv("LABRIG_CACHE", str(cache))
    command = [*INVOKE, "start", f"--target={TARGET}", "--engine=docker", f"--folder={tmp_path / 'work'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    yield done.stdout.strip()
    server.stop(ROOT, TARGET)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium.opened(tmp_path / "profile", "1400,1000") as found:
        yield found


def notebook(work: Path) -> str:
    """The lab's notebook in the student's folder; where the labs have none, one that is made of the script's cells."""
    ready = work / "labs" / "notebooks" / f"{LAB}.ipynb"
    if not ready.exists():
        cells = []
        for cell in (work / "labs" / f"{LAB}.py").read_text(encoding="utf-8").split("# %%")[1:]:
            head, _, body = cell.partition("\n")
            if "[markdown]" in head:
                lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip('"\n').splitlines()]
                cells.append({"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)})
            else:
                code = {"execution_count": None, "outputs": [], "source": body.strip()}
                cells.append({"cell_type": "code", "metadata": {}, **code})
        python = {"display_name": "Python 3", "language": "python", "name": "python3"}
        document = {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 4}
        ready = work / "labs" / f"{LAB}.ipynb"
        ready.write_text(json.dumps(document), encoding="utf-8")
        os.chown(ready, work.stat().st_uid, work.stat().st_gid)
    return ready.relative_to(work).as_posix()


def test_a_student_opens_the_address_runs_a_lab_and_sees_its_plot(url: str, browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def see(css: str = "", xpath: str = "") -> object:
        by, where = (By.CSS_SELECTOR, css) if css else (By.XPATH, xpath)
        return WebDriverWait(browser, SECONDS).until(
            lambda page: next((one for one in page.find_elements(by, where) if one.is_displayed()), None)
        )

    work = tmp_path / "work"
    page = notebook(work)
    try:
        browser.get(url)
        see("#jp-main-dock-panel")
        assert "token=" not in browser.current_url, "the token does not stay in the address bar"
        see(".jp-DirListing-item")  # the file browser shows the student's folder
        first = urllib.parse.urlsplit(browser.current_url).path
        assert first.startswith("/lab/tree/labs/"), first

        browser.get(f"{url.partition('?')[0]}lab/tree/{page}")
        see(".jp-NotebookPanel .jp-Cell")
        # Its kernel runs: before that, JupyterLab asks which one to take.
        see(xpath="//*[@id='jp-main-statusbar']//*[contains(text(), '| Idle')]")
        see(xpath="//div[contains(@class, 'lm-MenuBar-itemLabel')][text()='Run']").click()  # type: ignore[attr-defined]
        see(xpath="//div[contains(@class, 'lm-Menu-itemLabel')][text()='Run All Cells']").click()  # type: ignore[attr-defined]
        plot = WebDriverWait(browser, SECONDS).until(
            lambda page: page.execute_script(
                "return [...document.querySelectorAll('.jp-OutputArea-output img')].find(i => i.naturalWidth > 300)"
            )
        )
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        WebDriverWait(browser, SECONDS).until(lambda page: plot.is_displayed() and plot.size["width"] > 300)
        # Nothing failed before it, and nobody was asked anything: a dialog would lie over the page.
        assert (
            browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output[data-mime-type*='stderr'] .ansi-red-fg") == []
        )
        assert browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog, .Toastify__toast") == []
    finally:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(ARTIFACTS / f"{LAB}.png"))
    assert asked_elsewhere(browser) == set()
    assert (ARTIFACTS / f"{LAB}.png").stat().st_size > 30_000
    assert list(work.rglob("metrics.json")), "the lab came to its end and left its record with the student"


def asked_elsewhere(browser: Chrome) -> set[str]:
    """The hosts that the page asked for anything, other than this machine."""
    hosts = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            with contextlib.suppress(KeyError):
                place = urllib.parse.urlsplit(message["params"]["request"]["url"])
                hosts |= {place.hostname or ""} if place.scheme in ("http", "https", "ws", "wss") else set()
    return hosts - {"127.0.0.1"}
