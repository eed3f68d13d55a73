"""A student's seat: a real Chromium with a profile of its own, which logs in to a hub and works in JupyterLab."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hubs import Hub
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SECONDS = 120  # for a step of a page, on a machine that others use as well
PLOT = "return [...document.querySelectorAll('.jp-OutputArea-output img')].find(i => i.naturalWidth > 300)"
# Asks the kernel as JupyterLab does: over a WebSocket through the proxy (jupyter-client, docs: messaging).
RUN = """
const [base, kernel, code, done] = arguments;
const socket = new WebSocket(`ws://${location.host}${base}api/kernels/${kernel}/channels`);
const id = String(Math.random());
let said = '';
socket.onopen = () => socket.send(JSON.stringify({
  channel: 'shell', parent_header: {}, metadata: {}, buffers: [],
  header: {msg_id: id, msg_type: 'execute_request', session: id, username: '', version: '5.3', date: ''},
  content: {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false},
}));
socket.onerror = () => done('no socket');
socket.onmessage = event => {
  const message = JSON.parse(event.data);
  if (message.parent_header.msg_id !== id) return;
  if (message.msg_type === 'stream') said += message.content.text;
  if (message.msg_type === 'error') said += message.content.ename + ': ' + message.content.evalue;
  if (message.msg_type === 'status' && message.content.execution_state === 'idle') { socket.close(); done(said); }
};
"""
# A request to the student's server or the hub, with what a page of theirs would send.
FETCH = """
const [method, path, body, done] = arguments;
const key = ('; ' + document.cookie).split('; _xsrf=').pop().split(';')[0];
fetch(path, {method, body: body || undefined, headers: {'X-XSRFToken': key, 'Content-Type': 'application/json'}})
  .then(answer => answer.text().then(text => done([answer.status, text])))
  .catch(error => done([0, String(error)]));
"""


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Chrome]:
    """Debian's Chromium through Debian's driver: nothing is downloaded, and no profile of anybody is used."""
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
                 "--no-proxy-server", "--window-size=1200,850", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(flag)
    with Chrome(options=options, service=Service(driver)) as found:
        found.set_script_timeout(SECONDS)
        yield found


@dataclass
class Seat:
    """Somebody at a browser."""

    page: Chrome
    hub: Hub
    name: str

    @property
    def base(self) -> str:
        return f"/user/{self.name}/"

    def open(self, path: str) -> None:
        self.page.get(self.hub.url.rstrip("/") + path)

    def wait(self, what: Callable[[Chrome], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.page, SECONDS).until(what)

    def see(self, css: str = "", xpath: str = "") -> WebElement:
        """The first element of that kind that can be seen, once there is one."""
        from selenium.webdriver.common.by import By

        by, where = (By.CSS_SELECTOR, css) if css else (By.XPATH, xpath)
        return self.wait(  # type: ignore[no-any-return]
            lambda page: next((one for one in page.find_elements(by, where) if one.is_displayed()), None)
        )

    def log_in(self, password: str) -> None:
        """Through the hub's page; afterwards the choice of an image is shown, or the server starts."""
        self.open("/hub/login")
        self.see("#username_input").send_keys(self.name)
        self.see("#password_input").send_keys(password)
        self.see("#login_submit").click()
        self.wait(lambda page: "/hub/login" not in page.current_url)

    def choose(self, target: str) -> None:
        self.see(f"input[value='{target}']").click()
        self.see("#spawn_form button[type=submit]").click()

    def in_lab(self) -> str:
        """Wait for JupyterLab; gives the path of what it opens with."""
        self.see("#jp-main-dock-panel")
        self.see(".jp-DirListing-item")
        return str(self.page.execute_script("return location.pathname"))

    def open_notebook(self, path: str) -> None:
        """A notebook in JupyterLab, with a kernel that is ready."""
        self.open(f"{self.base}lab/tree/{path}")
        self.see(".jp-NotebookPanel .jp-Cell")
        self.see(xpath="//*[@id='jp-main-statusbar']//*[contains(text(), '| Idle')]")

    def menu(self, bar: str, entry: str) -> None:
        self.see(xpath=f"//div[contains(@class, 'lm-MenuBar-itemLabel')][text()='{bar}']").click()
        self.see(xpath=f"//div[contains(@class, 'lm-Menu-itemLabel')][text()='{entry}']").click()

    def see_plot(self) -> WebElement:
        plot: WebElement = self.wait(lambda page: page.execute_script(PLOT))
        self.page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        self.wait(lambda page: plot.is_displayed() and plot.size["width"] > 300)
        return plot

    def kernel(self) -> str:
        """The id of the one kernel that runs."""
        status, text = self.fetch("GET", f"{self.base}api/kernels")
        assert status == 200, text
        (found,) = json.loads(text)
        return str(found["id"])

    def run(self, kernel: str, code: str) -> str:
        """What a kernel prints for some code, asked from this page."""
        return str(self.page.execute_async_script(RUN, self.base, kernel, code))

    def fetch(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """A request from this page, as the student."""
        status, text = self.page.execute_async_script(FETCH, method, path, json.dumps(body) if body else "")
        return int(status), str(text)

    def stop_server(self) -> None:
        """As the hub's control panel does it."""
        from selenium.webdriver.common.by import By

        self.open("/hub/home")
        self.see("#stop").click()
        self.wait(lambda page: not any(one.is_displayed() for one in page.find_elements(By.ID, "stop")))

    def start_server(self) -> None:
        self.open("/hub/home")
        self.see("#start").click()
