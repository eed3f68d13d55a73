"""A student's seat: a real Chromium with a profile of its own, which logs in to a hub and works in JupyterLab."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chromium import SECONDS

if TYPE_CHECKING:
    from hubs import Hub, Student
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

ANOTHER = "cpu-next"
# A cell that is out of sight is not in the page (JupyterLab's windowed notebooks): scroll up until a plot is there.
PLOT = """
const found = [...document.querySelectorAll('.jp-OutputArea-output img')].find(i => i.naturalWidth > 300);
if (!found)
  document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer')
    .forEach(one => one.scrollBy(0, -150));
return found;
"""
# The button is there before the hub's script is, and a press before that is nobody's (jupyterhub, js/home.js).
HEARD = """
const jquery = window.require && require.defined('jquery') && require('jquery');
return Boolean(jquery && (jquery._data(document.getElementById('stop'), 'events') || {}).click);
"""
# Asks the kernel as JupyterLab does: over a WebSocket through the proxy (jupyter-client, docs: messaging).
RUN = """
const [base, kernel, code, done] = arguments;
const origin = location.origin.replace('http', 'ws');
const socket = new WebSocket(`${origin}${base}api/kernels/${kernel}/channels`);
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


def offer_another(made: Hub) -> None:
    """A second entry in what students choose from: the same image, which is here, under another name."""
    from labrig import lock, published, spec

    images = made.checkout / "images"
    (one,) = published.read(images)
    table = images / spec.TABLE
    row = table.read_text().partition(f"[targets.{one.target}]")[2].partition("\n[")[0]
    table.write_text(f"{table.read_text()}\n[targets.{ANOTHER}]{row}\n")
    asked = lock.inputs_digest(spec.read(table).targets[ANOTHER], one.platform)
    locked = replace(lock.read(lock.path(images, one.target, one.platform)), target=ANOTHER, inputs=asked)
    lock.write(locked, images)
    image, reference = (text.replace(f"/{one.target}", f"/{ANOTHER}") for text in (one.image, one.reference))
    published.keep(images, replace(one, target=ANOTHER, image=image, reference=reference, lock=locked.digest))


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What something gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.2)
    return found


def rest(student: Student, method: str, path: str, body: object = None) -> tuple[int, str]:
    """The hub's REST API, as a student who is logged in."""
    key = next(cookie.value for cookie in student.cookies if cookie.name == "_xsrf" and cookie.path == "/hub/")
    request = urllib.request.Request(  # noqa: S310 - an address of ours
        f"{student.made.url}hub/api/{path}", json.dumps(body).encode() if body is not None else None,
        {"X-XSRFToken": str(key), "Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    try:
        with student.opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def started(student: Student, **options: str) -> None:
    """Start a student's server through the REST API, unless it is there, and wait until it can be used."""
    if not servers(student):
        body = {"user_options": options} if options else None
        status, text = rest(student, "POST", f"users/{student.name}/server", body)
        assert status in (201, 202), text
    until(lambda: servers(student).get("", {}).get("ready"), 120)


def servers(student: Student) -> dict[str, Any]:
    """What the hub says of a student's servers."""
    status, text = rest(student, "GET", f"users/{student.name}")
    assert status == 200, text
    return dict(json.loads(text)["servers"])


def run(student: Student, code: str) -> str:
    """What a new kernel of a student's server prints for some code, asked as JupyterLab does, see RUN."""
    import websocket

    base = f"user/{student.name}/"
    status, url, _ = student.ask(f"{base}lab")  # through OAuth, which leaves the cookies
    assert status == 200, url
    origin = url.partition("/user/")[0]
    request = urllib.request.Request(f"{origin}/{base}api/kernels", b"{}")  # noqa: S310 - an address of ours
    key = next(str(one.value) for one in student.cookies if one.name == "_xsrf" and one.path == f"/{base}")
    request.add_header("X-XSRFToken", key)
    with student.opener.open(request, timeout=60) as answer:
        kernel = json.load(answer)["id"]
    header = {
        "msg_id": "1",
        "msg_type": "execute_request",
        "session": "1",
        "username": "",
        "version": "5.3",
        "date": "",
    }
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    asked = {
        "channel": "shell",
        "parent_header": {},
        "metadata": {},
        "buffers": [],
        "header": header,
        "content": content,
    }
    said = ""
    with contextlib.closing(websocket.create_connection(
        f"{origin.replace('http', 'ws', 1)}/{base}api/kernels/{kernel}/channels", timeout=SECONDS,
        cookie=request.get_header("Cookie"), origin=origin, http_no_proxy=["*"],
        sslopt={"ca_certs": str(student.made.ca)} if student.made.ca else {},
    )) as socket:  # fmt: skip
        socket.send(json.dumps(asked))
        while True:
            message = json.loads(socket.recv())
            if message["parent_header"].get("msg_id") != "1":
                continue
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return said


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
        """What a function of the page gives once it is true; a page that changes meanwhile is asked again."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        passing = (StaleElementReferenceException, ElementClickInterceptedException)
        return WebDriverWait(self.page, SECONDS, ignored_exceptions=passing).until(what)

    def see(self, css: str = "", xpath: str = "") -> WebElement:
        """The first element of that kind that can be seen, once there is one."""
        return self.wait(lambda page: self._shown(css, xpath))  # type: ignore[no-any-return]

    def press(self, css: str = "", xpath: str = "") -> None:
        """Click on it."""
        self.wait(lambda page: (one := self._shown(css, xpath)) and (one.click(), True))

    def _shown(self, css: str, xpath: str) -> WebElement | None:
        from selenium.webdriver.common.by import By

        by, where = (By.CSS_SELECTOR, css) if css else (By.XPATH, xpath)
        return next((one for one in self.page.find_elements(by, where) if one.is_displayed()), None)

    def log_in(self, password: str) -> None:
        """Through the hub's page; afterwards the choice of an image is shown, or the server starts."""
        self.open("/hub/login")
        self.see("#username_input").send_keys(self.name)
        self.see("#password_input").send_keys(password)
        self.press("#login_submit")
        self.wait(lambda page: "/hub/login" not in page.current_url)

    def choose(self, target: str) -> None:
        self.press(f"input[value='{target}']")
        self.press("#spawn_form button[type=submit]")

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
        self.press(xpath=f"//div[contains(@class, 'lm-MenuBar-itemLabel')][text()='{bar}']")
        self.press(xpath=f"//div[contains(@class, 'lm-Menu-itemLabel')][text()='{entry}']")

    def save_notebook(self) -> None:
        """Save it, and wait until the page says that it is.

        It is not asked for meanwhile: a server that reads a half-written notebook puts the former one into its place,
        and the save fails (jupyter_server, services/contents: seen with 2 readers in 1 of 20 saves).
        """
        self.menu("File", "Save Notebook")
        dirty = "return !document.querySelector('.lm-TabBar-tab.lm-mod-current.jp-mod-dirty')"
        self.wait(lambda page: page.execute_script(dirty))

    def see_plot(self) -> WebElement:
        plot: WebElement = self.wait(lambda page: page.execute_script(PLOT))
        self.page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        self.wait(lambda page: plot.is_displayed() and plot.size["width"] > 300)
        return plot

    def kernel(self, path: str) -> str:
        """The id of a notebook's kernel."""
        status, text = self.fetch("GET", f"{self.base}api/sessions")
        assert status == 200, text
        return next(str(one["kernel"]["id"]) for one in json.loads(text) if one["path"] == path)

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
        self.wait(lambda page: page.execute_script(HEARD))
        self.press("#stop")
        self.wait(lambda page: not any(one.is_displayed() for one in page.find_elements(By.ID, "stop")))

    def start_server(self) -> None:
        self.open("/hub/home")
        self.press("#start")
