"""Options and rules of the whole test suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import proofs
import pytest

# The environments under test are ours: what Python compiles there once need not be compiled at each of many starts.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
REQUIRED = "docker" in os.environ.get("LABRIG_REQUIRE", "").split(",")
NOT_RUN = pytest.StashKey[int]()  # container tests, for want of an engine
PROOFS = pytest.StashKey[set[str]]()  # what tests that passed have proved of targets and engines
SUPPORT = pytest.StashKey[list[str]]()  # where the table of support says something else
BY_HAND = {
    "cuda_image": "tests of the images for CUDA",
    "cuda_wheels": "tests of the tables against the wheels for CUDA",
    "full": "tests of labs that train for minutes",
    "rebuild": "test that makes the labs' data files again",
}
NOT_SELECTED = pytest.StashKey[dict[str, int]]()  # how many of those, unless -m asks for them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--verify-context", help="JSON written by `invoke verify`: the environment that is checked")


def docker_error() -> str:
    """Why no Docker engine answers here, or an empty text."""
    from labrig.host import read_host

    host = read_host()
    return "" if host.docker else host.docker_error or "no engine"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an engine, container tests are deselected and counted in one closing line, never as passed."""
    config.stash[NOT_SELECTED] = {}
    for marker in BY_HAND:
        if marker not in config.option.markexpr:
            marked = [item for item in items if item.get_closest_marker(marker)]
            config.stash[NOT_SELECTED][marker] = len(marked)
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
    container = [item for item in items if item.get_closest_marker("docker")]
    config.stash[NOT_RUN] = 0
    if container and not REQUIRED and docker_error():
        config.stash[NOT_RUN] = len(container)
        config.hook.pytest_deselected(items=container)
        items[:] = [item for item in items if item not in container]


@pytest.fixture
def docker_engine() -> None:
    """For container tests: under LABRIG_REQUIRE=docker a missing engine fails them."""
    if reason := docker_error():
        pytest.fail(f"LABRIG_REQUIRE=docker, and there is no Docker engine: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROOFS] = set()
    config.pluginmanager.register(Prover(config))


class Prover:
    """Gathers what passed tests prove, in the controller of pytest-xdist as in a run without it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.config.stash[PROOFS] |= {str(value) for name, value in report.user_properties if name == "proves"}


def is_whole(config: pytest.Config) -> bool:
    """Whether all tests were asked for: then, and only then, what is not proved is a difference."""
    chosen = [Path(place).resolve() for place in config.args]
    whole = {config.rootpath / place for place in config.getini("testpaths")}
    return (
        set(chosen) == whole
        and not config.option.keyword
        and not config.option.markexpr
        and not getattr(config.option, "lf", False)
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its count on: only the controller prints, and compares."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["not_run"] = config.stash.get(NOT_RUN, 0)
        config.workeroutput["not_selected"] = config.stash.get(NOT_SELECTED, {})
    elif is_whole(config) and session.exitstatus == pytest.ExitCode.OK:
        from labrig import spec, support

        table = spec.read(config.rootpath / "images" / spec.TABLE)
        without = ["docker"] if config.stash.get(NOT_RUN, 0) else []
        config.stash[SUPPORT] = proofs.differences(support.lines(table), config.stash[PROOFS], without=without)
        if config.stash[SUPPORT]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects everything, so each has the whole count."""
    node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", 0)
    node.config.stash[NOT_SELECTED] = getattr(node, "workeroutput", {}).get("not_selected", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.stash.get(NOT_RUN, 0)
    if count:
        terminalreporter.write_line(f"{count} container tests NOT RUN: no engine", yellow=True)
    for difference in config.stash.get(SUPPORT, []):
        terminalreporter.write_line(f"support table (labrig/support.py): {difference}", red=True)
    if config.stash.get(SUPPORT, None) == []:
        terminalreporter.write_line(f"the support table is what this run proved: {len(config.stash[PROOFS])} proofs")
    for marker, count in config.stash.get(NOT_SELECTED, {}).items():
        if count:
            terminalreporter.write_line(f"{count} {BY_HAND[marker]} not selected: pytest -m {marker}")
