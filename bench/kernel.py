"""A cell run as JupyterLab runs it: a kernel by REST, the rest through its websocket (jupyter-client, "Messaging")."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
import uuid
from http.client import HTTPConnection
from typing import Any

PATIENCE = 120.0  # seconds for one message; the first import of torch takes a while


def execute(url: str, code: str) -> str:
    """Run code in a new kernel of the JupyterLab at ``url`` (as `invoke start` prints it); gives what it printed.

    Raises RuntimeError with the kernel's own words where the code fails.
    """
    import websocket

    place = urllib.parse.urlsplit(url)
    token = urllib.parse.parse_qs(place.query)["token"][0]
    kernel = ask(url, "POST", "/api/kernels", {"name": "python3"})["id"]
    connection = websocket.create_connection(
        f"ws://{place.netloc}/api/kernels/{kernel}/channels", header={"Authorization": f"token {token}"},
        timeout=PATIENCE, http_no_proxy=["127.0.0.1"],
    )  # fmt: skip
    with contextlib.closing(connection):
        printed = converse(connection, code)
    ask(url, "DELETE", f"/api/kernels/{kernel}")
    return printed


def converse(connection: Any, code: str) -> str:
    """Run code over the websocket of a kernel; gives what it printed.

    Raises RuntimeError with the kernel's own words where the code fails, or where the kernel died.
    """
    asked = _message(code)
    connection.send(json.dumps(asked))
    printed = ""
    while True:
        said = json.loads(connection.recv())
        content = said["content"]
        if said["msg_type"] == "status" and content["execution_state"] in ("restarting", "dead"):
            raise RuntimeError("the kernel died")  # out of memory, as a rule; Jupyter Server starts another
        if said["parent_header"].get("msg_id") != asked["header"]["msg_id"]:
            continue
        if said["msg_type"] == "stream":
            printed += content["text"]
        elif said["msg_type"] == "error":
            raise RuntimeError(f"{content['ename']}: {content['evalue']}")
        elif said["msg_type"] == "status" and content["execution_state"] == "idle":
            return printed


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    """One request to the REST interface of Jupyter Server; gives the document that it answers."""
    place = urllib.parse.urlsplit(url)
    token = urllib.parse.parse_qs(place.query)["token"][0]
    with contextlib.closing(HTTPConnection(place.netloc, timeout=PATIENCE)) as connection:
        text = json.dumps(body) if body is not None else None
        connection.request(method, path, text, {"Authorization": f"token {token}"})
        answer = connection.getresponse()
        said = answer.read()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {said.decode(errors='replace')[:300]}")
    return json.loads(said) if said else None


def _message(code: str) -> dict[str, Any]:
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": uuid.uuid4().hex,
              "version": "5.3"}  # fmt: skip
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": True}
    return {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "content": content}
