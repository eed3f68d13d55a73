"""Run labs: one process each, a few side by side, with a time limit, and go on where an earlier run stopped.

    <out>/run.json               what was asked and how each lab ended: the memory between two runs
    <out>/results.json           what `run --json` prints, of the last run
    <out>/<lab id>/              the lab's own files (see harness.py) and output.txt, what it printed

A lab that ended well is not run again while its key stands: the hash of its source, the harness, the data, the flags,
the versions and the device. An interrupted lab goes on from its state.pt under the same condition. The runner holds
each lab's stdin open, so that labs stop when it dies, even by kill -9.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from labs import check
from labs.harness import LabStop, _version, cpu_quota, progress_line, say, write_atomically
from labs.page import LABS, Page

SCHEMA = "lab-run/1"
DOCUMENT = "lab-document/1"  # of one lab of a run that many processes share
RESULTS = "results.json"
SAMPLE_S = 0.5  # between two looks at a lab's memory
GRACE_S = 10.0  # time to save the state after Ctrl-C; a lab that does not stop by then is killed


@dataclass(frozen=True)
class Settings:
    """The flags of one run. `timeout` is in seconds, `memory` in MiB, both per lab."""

    out: Path
    device: str = "auto"
    seed: int = 0
    quick: bool = False
    full: bool = False
    threads: int = 1
    jobs: int = 2
    timeout: float = 900.0
    memory: float = 4096.0
    progress: str = "auto"


@dataclass
class Job:
    """A lab that is running."""

    page: Page
    process: subprocess.Popen[str]
    output: IO[str]
    began: float
    latest: dict[str, Any] = field(default_factory=dict)
    told: int = 0  # the last tenth that was printed
    peak_mib: float = 0.0  # of the lab and the processes it started, as far as the samples saw
    sampled: float = 0.0  # when that was last asked
    reader: threading.Thread | None = None


def run(pages: list[Page], settings: Settings) -> list[dict[str, Any]]:
    """Run the labs and give one dict each, as `run --json` prints them (see `describe`).

    Raises LabStop: 2 when `out` cannot be written or is in use, 3 when the named device is absent.
    """
    with _locked(settings.out):
        (settings.out / RESULTS).unlink(missing_ok=True)
        device = resolve_device(settings.device)
        memory = read_run(settings.out)
        keys = {page.id: key(page, settings, device) for page in pages}
        results: dict[str, dict[str, Any]] = {}
        waiting: list[Page] = []
        for page in pages:
            entry = memory["labs"].get(page.id, {})
            if _can_reuse(settings.out / page.id, entry, keys[page.id]):
                results[page.id] = describe(page, settings.out, entry, device, reused=True)
            else:
                waiting.append(page)
        show = Display(settings.progress, [page.id for page in pages])
        for lab_id in results:
            show.finished += 1
            show.line(f"{lab_id}: {results[lab_id]['status']} before, nothing changed, reused")
        running: list[Job] = []

        worked = {"expected": 0.0, "taken": 0.0}  # seconds of the labs that ended, to scale what the others expect

        def ended(job: Job, reason: str | None = None) -> None:
            entry = judge(job, settings, device, keys[job.page.id], reason)
            memory["labs"][job.page.id] = entry
            write_run(settings.out, memory)
            results[job.page.id] = describe(job.page, settings.out, entry, device)
            worked["expected"] += job.page.seconds
            worked["taken"] += entry["seconds"]
            pace = worked["taken"] / worked["expected"] if worked["expected"] else 0.0
            show.ended(results[job.page.id], seconds_left(waiting, running, pace, settings.jobs))

        try:
            with _signals():
                while waiting or running:
                    while waiting and len(running) < settings.jobs:
                        page = waiting.pop(0)
                        resumable = _prepare(settings.out / page.id, memory["labs"].get(page.id, {}), keys[page.id])
                        memory["labs"][page.id] = {"key": keys[page.id], "status": "running"}
                        write_run(settings.out, memory)
                        running.append(_start(page, settings, device, resumable))
                        show.started(page)
                    time.sleep(0.05)
                    for job in list(running):
                        reason = over_limit(job, settings) if job.process.poll() is None else None
                        if reason:
                            stop([job], grace=2.0)
                        if job.process.poll() is None:
                            continue
                        running.remove(job)
                        ended(job, reason)
                    show.refresh(running)
        except KeyboardInterrupt:
            show.clear()
            say("stopping the labs; a second Ctrl-C kills them")
            stop(running, grace=GRACE_S)
            for job in running:
                ended(job, "interrupted")
            not_started = {"status": "interrupted", "reason": "not started"}
            results |= {page.id: describe(page, settings.out, not_started, device) for page in waiting}
        finally:
            show.clear()
            stop(running, grace=0)
        return [results[page.id] for page in pages]


def seconds_left(waiting: list[Page], running: list[Job], pace: float, jobs: int) -> float:
    """An estimate: what the labs expect, at the pace of those that ended, spread over the places."""
    now = time.monotonic()
    rests = [max(0.0, job.page.seconds * pace - (now - job.began)) for job in running]
    return max([(sum(page.seconds for page in waiting) * pace + sum(rests)) / jobs, *rests])


def exit_code(results: list[dict[str, Any]]) -> int:
    """0 all passed or skipped with a reason; else the gravest: 130, 1 crash, 3 device, 4 data, 2 flags, 5 gate."""
    codes = {result["exit"] for result in results}
    return next((code for code in (130, 1, 3, 4, 2, 5) if code in codes), 0)


# ---------------------------------------------------------------------------------------------- between two runs


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise LabStop(2, f"--out {out}: {error.strerror}; name a folder that can be written") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabStop(2, f"--out {out}: another run is writing there; wait for it or name another folder") from None
        yield


def read_run(out: Path) -> dict[str, Any]:
    """run.json, or an empty one; a damaged file only costs the reuse of what it remembered."""
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads((out / "run.json").read_text(encoding="utf-8"))
        if isinstance(memory, dict) and memory.get("schema") == SCHEMA and isinstance(memory.get("labs"), dict):
            return memory
    return {"schema": SCHEMA, "labs": {}}


def write_run(out: Path, memory: dict[str, Any]) -> None:
    write_atomically(out / "run.json", json.dumps(memory, indent=1) + "\n")


def key(page: Page, settings: Settings, device: str) -> str:
    """The hash of everything a result depends on: two runs with the same key would do the same work."""
    digest = hashlib.sha256()
    for path in (page.path, LABS / "harness.py", *sorted(p for p in (LABS / "data").rglob("*") if p.is_file())):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    versions = [_version(name) for name in ("torch", "numpy", "scikit-learn", "matplotlib")]
    flags = [device, settings.seed, settings.quick, settings.full, settings.threads]
    digest.update(json.dumps([platform.python_version(), platform.machine(), versions, flags]).encode())
    return digest.hexdigest()


def resolve_device(name: str) -> str:
    """What `name` means here, asked of torch in a process of its own. cpu needs no asking."""
    if name == "cpu":
        return name
    asked = subprocess.run(
        [sys.executable, "-c", "import json, sys; from labs.harness import available_devices; "
         "print(json.dumps(available_devices()))"],
        capture_output=True, text=True, timeout=300, cwd=LABS.parent, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise LabStop(3, f"torch cannot be asked for its devices by {sys.executable}: {last}")
    found = json.loads(asked.stdout.splitlines()[-1])
    if name != "auto" and name not in found:
        raise LabStop(3, f"device {name} is absent: torch {_version('torch')} sees {', '.join(found)} here; "
                         f"use --device auto, or an environment whose torch is built for {name}")  # fmt: skip
    return str(found[0]) if name == "auto" else name


def _can_reuse(folder: Path, entry: dict[str, Any], current: str) -> bool:
    if entry.get("status") != "passed" or entry.get("key") != current:
        return False
    return not check.problems(folder, sha256=entry.get("metrics_sha256"))


def _prepare(folder: Path, entry: dict[str, Any], current: str) -> bool:
    """True if the lab can go on from its state; otherwise what an earlier run left there is removed."""
    ended_well = entry.get("status") in ("passed", "failed", "skipped")
    if entry.get("key") == current and not ended_well and (folder / "state.pt").is_file():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


# ---------------------------------------------------------------------------------------------- one process per lab


def _start(page: Page, settings: Settings, device: str, resume: bool) -> Job:
    folder = settings.out / page.id
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(page.path), "--device", device, "--seed", str(settings.seed),
               "--threads", str(settings.threads), "--out", str(settings.out), "--progress", "json"]  # fmt: skip
    command += ["--quick"] * settings.quick + ["--full"] * settings.full + ["--resume"] * resume
    output = (folder / "output.txt").open("a" if resume else "w", encoding="utf-8")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, "LAB_PARENT_ON_STDIN": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # a group of its own: Ctrl-C comes from us, and the whole group can be killed
    )  # fmt: skip
    job = Job(page, process, output, time.monotonic())
    job.reader = threading.Thread(target=_read, args=(job,), daemon=True)
    job.reader.start()
    return job


def _read(job: Job) -> None:
    """Progress lines go to the display, everything else to output.txt."""
    assert job.process.stderr is not None
    for line in job.process.stderr:
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                job.latest = json.loads(line)
                continue
        job.output.write(line)
        job.output.flush()


def over_limit(job: Job, settings: Settings) -> str | None:
    """Why this lab must be stopped now, or None."""
    now = time.monotonic()
    if now - job.began > settings.timeout:
        return f"no result within {settings.timeout:g} s (--timeout), stopped"
    if now - job.sampled < SAMPLE_S:
        return None
    job.sampled = now
    job.peak_mib = max(job.peak_mib, group_memory_mib(job.process.pid))
    if job.peak_mib > settings.memory:
        return f"took {job.peak_mib:,.0f} MiB, more than {settings.memory:,.0f} (--memory), stopped"
    return None


def group_memory_mib(group: int) -> float:
    """What a process group holds: proportional set sizes (proc_pid_smaps(5)), so that shared pages count once."""
    if not Path("/proc/self/smaps_rollup").exists():  # macOS: resident sizes in KiB, shared pages counted each time
        listed = subprocess.run(["ps", "-axo", "pgid=,rss="], capture_output=True, text=True, timeout=10, check=False)
        pairs = [line.split() for line in listed.stdout.splitlines()]
        return sum(int(rss) for pgid, rss in pairs if int(pgid) == group) / 1024
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it may end while we look
            if os.getpgid(int(entry.name)) == group:
                lines = (entry / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def stop(jobs: list[Job], *, grace: float) -> None:
    """SIGINT, so that the state is saved; after `grace` seconds, or a second Ctrl-C, SIGKILL to the whole group."""
    alive = [job for job in jobs if job.process.poll() is None]
    with contextlib.suppress(KeyboardInterrupt):
        if grace:
            for job in alive:
                _signal(job, signal.SIGINT)
        until = time.monotonic() + grace
        while any(job.process.poll() is None for job in alive) and time.monotonic() < until:
            time.sleep(0.05)
    for job in alive:
        _signal(job, signal.SIGKILL)
        job.process.wait()


def _signal(job: Job, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid, number)


def judge(job: Job, settings: Settings, device: str, lab_key: str, reason: str | None) -> dict[str, Any]:
    """How a lab ended, from its exit code *and* its files: a lab that says passed has to prove it."""
    _signal(job, signal.SIGKILL)  # workers it may have left behind
    if job.reader:
        job.reader.join(timeout=5)
    if job.process.stdin:
        with contextlib.suppress(OSError):
            job.process.stdin.close()
    job.output.close()
    folder, code = settings.out / job.page.id, job.process.returncode
    entry: dict[str, Any] = {"key": lab_key, "seconds": round(time.monotonic() - job.began, 3),
                             "peak_mib": round(job.peak_mib, 1)}  # fmt: skip
    if reason == "interrupted" or (reason is None and code == 130):
        return {**entry, "status": "interrupted", "exit": 130, "reason": "interrupted; the next run goes on"}
    if reason is not None:
        return {**entry, "status": "error", "exit": 1, "reason": reason}
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return {**entry, "status": "error", "exit": 1, "reason": f"killed by {name}{hint}"}
    found = check.problems(folder)
    if found:
        why = _last_line(folder / "output.txt") if code not in (0, 5) else "; ".join(found)
        _keep_error(folder)
        return {**entry, "status": "error", "exit": code if code in (2, 3, 4) else 1, "reason": why or "; ".join(found)}
    record = check.read_record(folder)
    entry["metrics_sha256"] = hashlib.sha256((folder / "metrics.json").read_bytes()).hexdigest()
    status, why = record["status"], record["reason"]
    if (ran_on := record["args"]["device"]) != device:
        return {**entry, "status": "error", "exit": 1, "reason": f"asked for {device}, ran on {ran_on}"}
    expected = {"passed": 0, "skipped": 0, "failed": 5}.get(status)
    if expected is not None and expected != code:
        return {**entry, "status": "error", "exit": 1, "reason": f"its record says {status}, its exit code is {code}"}
    if status == "skipped" and not why:
        return {**entry, "status": "error", "exit": 1, "reason": "skipped without a reason"}
    return {**entry, "status": status, "exit": code, "reason": why}


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        return (path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    return ""


def _keep_error(folder: Path) -> None:
    """A lab that died before the harness could say why still leaves an error.txt."""
    if not (folder / "error.txt").exists() and (folder / "output.txt").exists():
        write_atomically(folder / "error.txt", (folder / "output.txt").read_text(encoding="utf-8", errors="replace"))


def describe(page: Page, out: Path, entry: dict[str, Any], device: str, *, reused: bool = False) -> dict[str, Any]:
    """One element of `run --json`."""
    try:
        record = check.read_record(out / page.id)
    except check.Unreadable:
        record = {"args": {"device": device}, "time": {"wall_s": entry.get("seconds", 0.0)}, "metrics": {},
                  "baselines": {}, "gates": [], "plots": []}  # fmt: skip
    return {
        "lab": page.id, "title": page.title, "paradigm": page.paradigm, "status": entry["status"],
        "device": record["args"]["device"], "seconds": record["time"]["wall_s"], "metrics": record["metrics"],
        "baselines": record["baselines"], "gates": record["gates"], "plots": record["plots"],
        "peak_mib": entry.get("peak_mib"), "reason": entry.get("reason"), "reused": reused,
        "exit": entry.get("exit", 130),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- one lab of many


def read_index(variable: str, many: int) -> int:
    """Which of `many` labs this process is for, by an environment variable such as JOB_COMPLETION_INDEX, which
    Kubernetes gives to the pods of an Indexed Job. Raises LabStop 2 where it holds no such index."""
    value = os.environ.get(variable, "")
    if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) >= many:
        raise LabStop(2, f"--index-from {variable}: it holds {value[:40]!r}; an index from 0 to {many - 1} is needed")
    return int(value)


def not_run(page: Page, stop: LabStop) -> dict[str, Any]:
    """The result of a lab that could not start."""
    return {"lab": page.id, "title": page.title, "paradigm": page.paradigm, "status": "error", "reason": stop.reason,
            "exit": stop.code}  # fmt: skip


def write_document(folder: Path, index: int, result: dict[str, Any]) -> None:
    """Leave one lab's result as INDEX-LAB.json, whole or not at all: others write into the same folder.

    Raises OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": DOCUMENT, "index": index, "host": platform.node(), "image": os.environ.get("LABRIG_IMAGE", ""),
        "torch": _version("torch"), "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "result": result,
    }  # fmt: skip
    write_atomically(folder / f"{index:02d}-{result['lab']}.json", json.dumps(document, indent=1) + "\n")


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and a closed terminal are Ctrl-C: stop the labs, keep what is finished."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------- what a person sees


class Display:
    """A line per running lab that moves on a terminal, a line every 10 % elsewhere, JSON lines, or silence."""

    def __init__(self, style: str, labs: list[str]) -> None:
        if style == "auto":
            style = "bar" if sys.stderr.isatty() else "plain"
        self.style = style
        self.width = max((len(lab) for lab in labs), default=0)
        self.total, self.finished = len(labs), 0
        self._drawn = 0
        self._next = 0.0

    def line(self, text: str, **fields: Any) -> None:
        if self.style == "json":
            say(json.dumps({"text": text, **fields}))
        elif self.style != "off":
            self.clear()
            say(text)

    def started(self, page: Page) -> None:
        if self.style in ("plain", "json"):
            about = f", about {page.seconds:.0f} s at full size" if page.seconds else ""
            self.line(f"{page.id:<{self.width}}  started ({page.title}{about})", lab=page.id, event="started")

    def ended(self, result: dict[str, Any], left: float) -> None:
        mark = {"passed": "✓", "skipped": "–"}.get(result["status"], "✗")
        reason = f": {result['reason']}" if result["reason"] else ""
        self.finished += 1
        rest = f", about {left:.0f} s left" if self.finished < self.total else ""
        self.line(f"{mark} {result['lab']:<{self.width}}  {result['status']} in {result['seconds']:.1f} s{reason}  "
                  f"({self.finished} of {self.total}{rest})",
                  lab=result["lab"], event="ended", status=result["status"], left_s=round(left, 1))  # fmt: skip

    def refresh(self, running: list[Job]) -> None:
        if self.style == "off" or (self.style == "bar" and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + 0.2
        lines = []
        for job in running:
            latest = dict(job.latest)
            done, total, left = latest.pop("step", 0), latest.pop("total", 0), latest.pop("left_s", 0.0)
            latest.pop("lab", None)
            known = total and isinstance(done, int)
            bar = progress_line(done, total, left, latest) if known else f"{time.monotonic() - job.began:4.0f} s"
            lines.append(f"  {job.page.id:<{self.width}}  {bar}")
            tenth = 10 * done // total if known else -1
            if self.style != "bar" and tenth > job.told:
                job.told = tenth
                self.line(lines[-1].strip(), lab=job.page.id, event="step", step=done, total=total)
        if self.style == "bar":
            self.clear()
            columns = shutil.get_terminal_size().columns
            for line in lines:
                print(line[: columns - 1], file=sys.stderr)
            self._drawn = len(lines)
            sys.stderr.flush()

    def clear(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="", file=sys.stderr, flush=True)
            self._drawn = 0


def warn_about_load(settings: Settings) -> None:
    wanted, allowed = settings.jobs * settings.threads, cpu_quota()
    if wanted > max(1.0, allowed):
        say(f"{settings.jobs} labs of {settings.threads} thread(s) want {wanted} CPUs, but {allowed:g} may be used: "
            "slower than one after the other")  # fmt: skip
