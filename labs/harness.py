"""What every lab needs and no lab should have to explain: flags, files, clocks, gates, progress, exit codes.

A lab is read from top to bottom, so its model, its loss and its training loop stay in the lab. Everything a
learner would skip lives here, in one file:

    lab = harness.start("06_images", title=..., paradigm=..., task=..., data=..., seconds=...)
    lab.device, lab.seed, lab.quick         the flags, already checked
    lab.read("houses.csv.gz")               a file of labs/data, if it is the one of the manifest
    lab.data / metric / baseline / gate     what goes into metrics.json
    lab.steps / log / resume                progress, curves.csv, Ctrl-C between steps, state.pt
    lab.plot                                one picture in the house style
    lab.finish()                            metrics.json, a summary, the exit code

Exit codes: 0 every gate held (or skipped, with the reason) · 1 a bug · 2 wrong flags · 3 the named device, or torch,
is absent · 4 data is not what it should be · 5 a gate was missed · 130 interrupted.

The file needs only the standard library until `start` runs; torch and numpy are imported there, after the number of
threads is fixed, and matplotlib only when a picture is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import operator
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

T0 = time.perf_counter()  # the first line of a lab imports this file, so this is the start of its clock

SCHEMA = "lab-metrics/1"
DATA = Path(__file__).resolve().parent / "data"
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq,
}  # fmt: skip

# One meaning per colour in every lab (Okabe and Ito's palette for colour-blind readers, a little darker for print).
COLOURS = {"ours": "#0b6fb8", "baseline": "#d9780f", "good": "#0a8a68", "bad": "#c2401c", "extra": "#9c4f8c",
           "ink": "#22262b", "muted": "#6b7280", "grid": "#e3e3df", "paper": "#fdfdfb"}  # fmt: skip
DPI = 120
MAX_PNG = 150_000  # bytes; a report of twenty labs then stays below 8 MB

EXIT_CODES = {"passed": 0, "skipped": 0, "failed": 5, "error": 1, "interrupted": 130}


class LabStop(Exception):
    """The lab ends here for a reason we can name; `code` is its exit code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


# ---------------------------------------------------------------------------------------------- the machine


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs this process may use: the smallest of its affinity and the cgroup limits above it, e.g. 1.5.

    OpenMP and OpenBLAS look at the host's cores and ignore a container's quota; with more threads than quota a lab
    runs several times slower, not faster.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    own = "/"
    with contextlib.suppress(OSError):
        own = next((li[3:] for li in membership.read_text().splitlines() if li.startswith("0::")), "/")
    group = root / own.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        with contextlib.suppress(OSError, ValueError):  # cgroup v2: "max 100000" or "150000 100000"
            limit, period = (folder / "cpu.max").read_text().split()
            cpus = min(cpus, int(limit) / int(period))
    with contextlib.suppress(OSError, ValueError):  # cgroup v1: -1 means no limit
        limit_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if limit_us > 0:
            cpus = min(cpus, limit_us / int((root / "cpu/cpu.cfs_period_us").read_text()))
    return cpus


def limit_threads(wanted: int) -> int:
    """Fix the thread pools before numpy and torch are loaded; never more threads than the quota allows."""
    allowed = max(1, math.floor(cpu_quota()))
    if wanted > allowed:
        say(f"--threads {wanted}: this process may use {allowed} CPU(s), so {allowed} it is (more would be slower)")
    threads = min(wanted, allowed)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = str(threads)
    return threads


def available_devices() -> list[str]:
    """The devices torch can compute on here, best first; cpu is always the last."""
    import torch

    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    if accelerator is not None:
        found = [accelerator.current_accelerator().type] if accelerator.is_available() else []
    else:
        found = [n for n, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
                 if there]  # fmt: skip
    return [*found, "cpu"]


def pick_device(name: str) -> str:
    """`auto` is the best device; a device that was named and is absent stops the lab with exit code 3."""
    found = available_devices()
    if name == "auto":
        return found[0]
    if name not in found:
        import torch

        raise LabStop(3, f"device {name} is absent: torch {torch.__version__} sees {', '.join(found)} here; "
                         f"use --device auto, or an environment whose torch is built for {name}")  # fmt: skip
    return name


def try_device(device: Any) -> None:
    """A device may be seen and yet compute nothing, as MPS in a virtual machine (actions/runner-images#9918)."""
    import torch

    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LabStop(3, f"device {device} is there but does not compute: {reason}; use --device cpu") from error


def peak_rss_mib() -> float:
    """The most memory this process ever held, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # macOS counts bytes


def cpu_seconds() -> float:
    """Processor time of this process and of those it started and waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def in_notebook() -> bool:
    return "ipykernel" in sys.modules


def default_out() -> Path:
    """Where files go without --out: results/by-hand of the folder one is in.

    A notebook's kernel is in the notebook's own folder, among the labs: there it is the folder above labs/, or the home
    folder where that cannot be written, as in an image.
    """
    if not in_notebook():
        return Path("results/by-hand")
    above = DATA.parents[1]
    return (above if os.access(above, os.W_OK) else Path.home()) / "results" / "by-hand"


def say(text: str, end: str = "\n") -> None:
    """To stderr; in a notebook, where that is printed on red, to stdout.

    Nobody may be reading any more, and that must not stop a lab from saving its state.
    """
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stdout if in_notebook() else sys.stderr, flush=True)


def write_atomically(path: Path, text: str) -> None:
    """Either the old file or the new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _version(package: str) -> str | None:
    import importlib.metadata  # half of this file's own import time, and most runs of the tests never ask

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------------------------------------- flags


def _parser(lab_id: str, title: str) -> argparse.ArgumentParser:
    def at_least(low: int) -> Callable[[str], int]:
        def whole_number(text: str) -> int:
            if (value := int(text)) < low:
                raise argparse.ArgumentTypeError(f"{value} is below {low}")
            return value

        return whole_number

    parser = argparse.ArgumentParser(prog=f"python labs/{lab_id}.py", description=title, allow_abbrev=False)
    add = parser.add_argument
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="auto = the accelerator, else cpu")
    add("--seed", type=at_least(0), default=0)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes, seconds; only exact gates are checked")
    size.add_argument("--full", action="store_true", help="sizes for a GPU")
    add("--out", type=Path, default=default_out(), metavar="DIR", help="files go to DIR/<lab id>")
    add("--threads", type=at_least(1), default=1, help="CPU threads (default 1: more is slower on a shared machine)")
    add("--resume", action="store_true", help="go on from state.pt of an interrupted run")
    add("--progress", default="auto", choices=["auto", "plain", "json", "off"])
    add("--no-plots", action="store_true")
    add("--list", action="store_true", help="print what this lab is, as JSON, and stop (loads no torch)")
    return parser


def start(lab_id: str, *, title: str, paradigm: str, task: str, data: str, seconds: float) -> Lab:
    """Read the flags, fix the threads, load torch, pick the device, open the files. The first call of every lab.

    `seconds` is the time to expect on one CPU core. The arguments are literals: `python -m labs list` reads them from
    the source without running it. Inside a notebook the kernel's own arguments are ignored; LAB_ARGS may hold flags.
    """
    argv = shlex.split(os.environ.get("LAB_ARGS", "")) if in_notebook() else sys.argv[1:]
    args = _parser(lab_id, title).parse_args(argv)
    if args.list:
        print(json.dumps({"id": lab_id, "title": title, "paradigm": paradigm, "task": task, "data": data,
                          "seconds": seconds}))  # fmt: skip
        raise SystemExit(0)
    lab = Lab({"id": lab_id, "title": title, "paradigm": paradigm, "task": task}, args)
    if not in_notebook():
        lab._catch_what_escapes()
    lab._open()
    return lab


# ---------------------------------------------------------------------------------------------- the lab


class Lab:
    """One run of one lab: its flags, its files and everything it has claimed so far."""

    def __init__(self, about: dict[str, str], args: argparse.Namespace) -> None:
        self.about = about
        self.seed: int = args.seed
        self.quick: bool = args.quick
        self.full: bool = args.full
        self.device: Any = None  # a torch.device once _open has run
        self.folder: Path = args.out / about["id"]
        self._args = args
        self._threads = limit_threads(args.threads)
        self._record: dict[str, Any] = {
            "data": [], "metrics": {}, "baselines": {}, "gates": [], "honest": [], "fallbacks": [], "plots": [],
            "splits": [],
        }  # fmt: skip
        self._import_s = 0.0
        self._train_s: float | None = None
        self._parts: dict[str, Any] = {}
        self._stop_asked = False
        self._in_steps = False
        self._progress = Progress(args.progress, about["id"])
        self._events: Any = None

    def _open(self) -> None:
        try:
            (self.folder / "plots").mkdir(parents=True, exist_ok=True)
            for name in ("metrics.json", "error.txt"):  # an old result must not survive a run that dies
                (self.folder / name).unlink(missing_ok=True)
            self._events = (self.folder / "events.jsonl").open("a" if self._args.resume else "w", encoding="utf-8")
            if not (self._args.resume and (self.folder / "curves.csv").exists()):
                (self.folder / "curves.csv").write_text("step,name,value\n", encoding="utf-8")
        except OSError as error:
            raise LabStop(2, f"--out {self._args.out}: {error.strerror}; name a folder that can be written") from error
        began = time.perf_counter()
        os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "0"  # a step that runs elsewhere is recorded, never silent
        try:
            import numpy as np
            import torch
        except ImportError as error:
            raise LabStop(3, f"{error.name} cannot be imported by {sys.executable}: {error}") from error
        self._import_s = time.perf_counter() - began
        torch.set_num_threads(self._threads)
        self.device = torch.device(pick_device(self._args.device))
        try_device(self.device)
        random.seed(self.seed)
        np.random.seed(self.seed)  # scikit-learn draws from this one
        torch.manual_seed(self.seed)
        self.event("start", asked=self._args.device, device=self.device.type, seed=self.seed, quick=self.quick)

    # ---- what the lab claims

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        if self._events is not None:
            line = {"t": round(time.perf_counter() - T0, 3), "event": event, **_plain(fields)}
            self._events.write(json.dumps(line, allow_nan=False) + "\n")
            self._events.flush()

    def data(self, name: str, *arrays: Any, licence: str, synthetic: bool = False, sha256: str = "") -> None:
        """Name the rows that this run used. With `sha256` given, other bytes stop the lab with exit code 4."""
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        if sha256 and digest.hexdigest() != sha256:
            raise LabStop(4, f"data set {name} is not the one this lab was measured on: expected sha256 {sha256[:16]}, "
                             f"found {digest.hexdigest()[:16]}")  # fmt: skip
        rows = len(arrays[0]) if arrays else 0
        self._record["data"].append(
            {"name": name, "sha256": digest.hexdigest(), "rows": rows, "licence": licence, "synthetic": synthetic}
        )

    def read(self, name: str) -> Any:
        """A file of labs/data: text of a .txt.xz, else a dict of arrays, one per column or entry.

        Columns of numbers are float64 with NaN where a cell is empty, the others are text. A file that is absent, or
        whose SHA-256 is not the manifest's, stops the lab with exit code 4.
        """
        import numpy as np

        path, again = DATA / name, "take the folder labs/data anew: git checkout labs/data, or another image"
        try:
            about = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"][name]
            content = path.read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} in manifest.json: {error}"
            raise LabStop(4, f"{path} cannot be read ({why}); {again}") from error
        if (digest := hashlib.sha256(content).hexdigest()) != about["sha256"]:
            raise LabStop(4, f"{path} is not the file this lab was measured on: expected sha256 "
                             f"{about['sha256'][:16]}, found {digest[:16]}; {again}")  # fmt: skip
        self._record["data"].append({"name": name, "sha256": digest, "rows": about["rows"], "licence": about["licence"],
                                     "synthetic": False})  # fmt: skip
        if name.endswith(".npz"):
            with np.load(io.BytesIO(content), allow_pickle=False) as entries:
                return dict(entries)
        if name.endswith(".xz"):
            return lzma.decompress(content).decode()
        rows = csv.reader(io.StringIO(gzip.decompress(content).decode()), delimiter="\t" if ".tsv" in name else ",",
                          quoting=csv.QUOTE_NONE if ".tsv" in name else csv.QUOTE_MINIMAL)  # fmt: skip
        header = next(rows)
        table = {}
        for column, cells in zip(header, zip(*rows, strict=True), strict=True):
            try:
                table[column] = np.array([float(cell or "nan") for cell in cells])
            except ValueError:
                table[column] = np.array(cells)
        return table

    def metric(self, name: str, value: float, unit: str = "", *, better: str = "higher") -> float:
        """A number of ours. Returned as a plain float."""
        entry = {"value": _number(value), "unit": unit, "better": better}
        self._record["metrics"][name] = entry
        self.event("metric", name=name, **entry)
        return float(value)

    def baseline(self, name: str, value: float, source: str) -> float:
        """Somebody else's number from the same run (`source` says whose); "published: ..." is for display only."""
        entry = {"value": _number(value), "source": source}
        self._record["baselines"][name] = entry
        self.event("baseline", name=name, **entry)
        return float(value)

    def gate(
        self, gate_id: str, text: str, *, metric: str, op: str, limit: float, baseline: str | None = None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        """A claim that must hold, about a metric recorded before.

        `exact` gates are true by mathematics and are enforced even by --quick; the others need the full sizes.
        """
        value: Any = self._record["metrics"][metric]["value"]
        bound: Any = _number(limit)
        checked = exact or not self.quick
        sign = -1 if op.startswith("<") else 1
        usable = value is not None and bound is not None
        entry = {
            "id": gate_id, "text": text, "metric": metric, "op": op, "value": value, "limit": bound,
            "baseline": baseline, "margin": sign * (value - bound) + 0.0 if usable else None, "exact": exact,
            "checked": checked, "passed": (usable and OPERATORS[op](value, bound)) if checked else None,
        }  # fmt: skip
        self._record["gates"].append(entry)
        self.event("gate", **entry)

    def honest(self, text: str, ours: float, theirs: float) -> None:
        """A comparison that we lose, or hardly win. It is shown on the report, never hidden."""
        self._record["honest"].append({"text": text, "ours": _number(ours), "theirs": _number(theirs)})

    def split(self, **values: float) -> None:
        """The values of one split, seed or fold, where a gate uses the mean of several."""
        self._record["splits"].append({name: _number(value) for name, value in values.items()})

    def fallback(self, op: str, *, to: str, why: str) -> None:
        """A step that this device cannot do and that ran elsewhere."""
        self._record["fallbacks"].append({"op": op, "from": self.device.type, "to": to, "why": why})

    # ---- loops

    def steps(self, first: int, last: int) -> Iterator[int]:
        """`range(first, last)` with a progress display; Ctrl-C ends it between two steps, with the state saved."""
        began, saved = time.perf_counter(), time.perf_counter()
        self._in_steps = True
        self._progress.begin(first, last)
        try:
            for step in range(first, last):
                if self._stop_asked:
                    self._save_own_state(step)
                    raise KeyboardInterrupt
                if time.perf_counter() - saved > 30:
                    self._save_own_state(step)
                    saved = time.perf_counter()
                yield step
                self._progress.show(step + 1)
            self._save_own_state(last)
        finally:
            self._in_steps = False
            self._train_s = (self._train_s or 0.0) + time.perf_counter() - began

    def log(self, step: int, **scalars: float) -> None:
        """Numbers worth a curve: curves.csv, events.jsonl and the progress line."""
        values = {name: float(value) for name, value in scalars.items()}
        with (self.folder / "curves.csv").open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([step, name, repr(value)] for name, value in values.items())
        self.event("step", step=step, **values)
        self._progress.scalars = values

    # ---- checkpoints

    def resume(self, **parts: Any) -> int:
        """The first step to do: 0, or where an interrupted run stopped (--resume, its state is then loaded).

        `parts` is all that training changes: model, optimizer, scheduler, generator. They are written to state.pt
        when the run is interrupted, every 30 seconds, and at the end.
        """
        self._parts = parts
        path = self.folder / "state.pt"
        if not self._args.resume:
            path.unlink(missing_ok=True)
            return 0
        if not path.exists():
            say(f"--resume: no {path.name} in {self.folder}, so this starts from the beginning")
            return 0
        step = self.load(path, **parts)
        rows = [row for row in (self.folder / "curves.csv").read_text(encoding="utf-8").splitlines()[1:]
                if int(row.partition(",")[0]) < step]  # fmt: skip
        write_atomically(self.folder / "curves.csv", "\n".join(["step,name,value", *rows]) + "\n")
        self.event("resume", step=step)
        say(f"--resume: goes on at step {step}")
        return step

    def _settings(self) -> dict[str, Any]:
        return {"lab": self.about["id"], "seed": self.seed, "quick": self.quick, "full": self.full,
                "device": self.device.type}  # fmt: skip

    def _save_own_state(self, step: int) -> None:
        if self._parts:
            self.save(self.folder / "state.pt", step, **self._parts)

    def save(self, path: Path, step: int, **parts: Any) -> None:
        """Everything that the next step depends on: the parts, the step and the state of every random generator."""
        import numpy as np
        import torch

        name, keys, *rest = np.random.get_state()
        version, numbers, gauss = random.getstate()
        state = {
            "settings": self._settings(), "step": step,
            "parts": {k: p.state_dict() if hasattr(p, "state_dict") else p.get_state() for k, p in parts.items()},
            "python": [version, list(numbers), gauss], "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(),
        }  # fmt: skip
        if self.device.type in ("cuda", "mps"):
            state["device"] = getattr(torch, self.device.type).get_rng_state()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path, **parts: Any) -> int:
        """Put back what `save` wrote and return the step. A state of other settings is refused."""
        import numpy as np
        import torch

        try:
            # On the CPU first: random states must stay there, and load_state_dict moves the rest by itself.
            state = torch.load(path, map_location="cpu", weights_only=True)
            settings = state["settings"]
        except Exception as error:
            raise LabStop(4, f"{path} cannot be read ({type(error).__name__}); run without --resume") from error
        if settings != self._settings():
            other = {k: v for k, v in settings.items() if self._settings().get(k) != v}
            raise LabStop(2, f"{path} was made with {other}; use the same flags or run without --resume")
        for name, part in parts.items():
            put = part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state
            put(state["parts"][name])
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if "device" in state:
            getattr(torch, self.device.type).set_rng_state(state["device"])
        return int(state["step"])

    # ---- clocks and pictures

    def seconds(self, function: Callable[[], Any], *, repeat: int = 5) -> float:
        """The best of `repeat` calls, in seconds, after one call to warm up; waits for the device to finish."""
        import torch

        def wait() -> None:
            if self.device.type != "cpu":
                getattr(torch, self.device.type).synchronize()

        function()
        best = math.inf
        for _ in range(repeat):
            wait()
            began = time.perf_counter()
            function()
            wait()
            best = min(best, time.perf_counter() - began)
        return best

    def plot(self, name: str, draw: Callable[[Any], None], *, alt: str, size: tuple[float, float] = (8, 4)) -> None:
        """Give `draw` an empty figure of `size` inches and save it as plots/<name>.png, with `alt` for who cannot see.

        Without matplotlib, or with --no-plots, the picture is left out and the reason recorded.
        """
        if self._args.no_plots:
            return self._no_plot(name, "--no-plots")
        try:
            import matplotlib as mpl
            from matplotlib.figure import Figure
        except ImportError:
            return self._no_plot(name, "matplotlib is not installed")
        path = self.folder / "plots" / f"{name}.png"
        with mpl.rc_context({
            "figure.facecolor": COLOURS["paper"], "axes.facecolor": COLOURS["paper"], "axes.edgecolor": "#b9bcc2",
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "grid.color": COLOURS["grid"],
            "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
            "axes.labelcolor": COLOURS["ink"], "text.color": COLOURS["ink"], "xtick.color": COLOURS["muted"],
            "ytick.color": COLOURS["muted"], "font.size": 9.5, "legend.frameon": False, "lines.linewidth": 2,
            "image.cmap": "Blues",
        }):  # fmt: skip
            figure = Figure(figsize=size, layout="constrained")
            figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches of air around everything
            draw(figure)
            temporary = path.with_name(f".{name}.png")
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Title": name, "Description": alt})
        if temporary.stat().st_size > MAX_PNG:
            from PIL import Image  # matplotlib depends on it

            with Image.open(temporary) as picture:
                smaller = picture.convert("RGB").quantize(128)
            smaller.save(temporary, format="png", optimize=True)
        temporary.replace(path)
        self._record["plots"].append({"file": f"plots/{name}.png", "alt": alt})
        if in_notebook():
            from IPython.display import Image, display

            display(
                Image(filename=str(path), metadata={"alt": alt})
            )  # the argument alt= came with IPython 8; Colab has 7
        return None

    def _no_plot(self, name: str, why: str) -> None:
        self._record["fallbacks"].append({"op": f"plot {name}", "from": "matplotlib", "to": "no picture", "why": why})

    # ---- the end

    def skip(self, reason: str) -> NoReturn:
        """This lab cannot show anything here; says why and exits 0."""
        self._write("skipped", reason)
        self._progress.end(f"{self.about['id']}: skipped, {reason}")
        raise SystemExit(0)

    def finish(self) -> None:
        """Write metrics.json, print the numbers, and leave with 0, or with 5 if a gate was missed."""
        gates = self._record["gates"]
        missed = [g["id"] for g in gates if g["passed"] is False]
        if not gates:
            raise RuntimeError("a lab without a gate proves nothing")
        reason = f"gate missed: {', '.join(missed)}" if missed else None
        status = "failed" if missed else "passed"
        self._write(status, reason)
        self._progress.end("")
        print(self._summary(status, reason), flush=True)
        if missed and in_notebook():
            raise LabStop(5, reason or "")
        if not in_notebook():
            sys.exit(EXIT_CODES[status])

    def _summary(self, status: str, reason: str | None) -> str:
        def row(mark: str, name: str, value: float | None, rest: str) -> str:
            shown = "not a number" if value is None else f"{value:.4g}"
            return f"  {mark:<12}{name:<34}{shown:>12}  {rest}"

        lines = ["", f"{self.about['id']}: {reason or status}"]
        lines += [row("measured", n, m["value"], m["unit"]) for n, m in self._record["metrics"].items()]
        lines += [row("baseline", n, b["value"], b["source"]) for n, b in self._record["baselines"].items()]
        for gate in self._record["gates"]:
            mark = {True: "held", False: "MISSED", None: "not checked"}[gate["passed"]]
            shown = "not a number" if gate["limit"] is None else f"{gate['limit']:.4g}"
            lines.append(row(mark, gate["id"], gate["value"], f"must be {gate['op']} {shown}"))
        return "\n".join([*lines, f"  files in {self.folder}"])

    def _write(self, status: str, reason: str | None) -> None:
        self.event("result", status=status, reason=reason)
        record = {
            "schema": SCHEMA, "lab": self.about, "status": status, "reason": reason,
            "args": {"device": self.device.type if self.device else self._args.device, "seed": self.seed,
                     "quick": self.quick, "full": self.full, "threads": self._threads},
            "env": self._environment(),
            "time": {"wall_s": round(time.perf_counter() - T0, 3), "cpu_s": round(cpu_seconds(), 3),
                     "import_s": round(self._import_s, 3),
                     "train_s": None if self._train_s is None else round(self._train_s, 3)},
            "memory": {"peak_rss_mib": round(peak_rss_mib(), 1), "device_peak_mib": self._device_peak_mib()},
            **self._record,
        }  # fmt: skip
        text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "metrics.json", text + "\n")

    def _environment(self) -> dict[str, Any]:
        torch = sys.modules.get("torch")
        kind = self.device.type if self.device else "unknown"
        name = torch.cuda.get_device_name() if torch and kind == "cuda" else _cpu_name()
        return {
            "torch": _version("torch"), "numpy": _version("numpy"), "sklearn": _version("scikit-learn"),
            "python": platform.python_version(), "os": _os_name(), "arch": platform.machine(), "device_name": name,
            "cpu_quota": cpu_quota(), "load_avg": [round(x, 2) for x in os.getloadavg()],
            "image_id": os.environ.get("LABRIG_IMAGE_ID"),
            "deterministic": bool(torch and torch.are_deterministic_algorithms_enabled()),
        }  # fmt: skip

    def _device_peak_mib(self) -> float | None:
        torch, kind = sys.modules.get("torch"), self.device.type if self.device else ""
        if torch and kind == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        if torch and kind == "mps":  # it keeps no peak, but its pool hardly ever shrinks
            return round(torch.mps.driver_allocated_memory() / 2**20, 1)
        return None

    def _catch_what_escapes(self) -> None:
        def asked_to_stop(_signal: int, _frame: Any) -> None:
            if self._in_steps and not self._stop_asked:
                self._stop_asked = True
                say("\nstops after this step (once more to stop at once)")
                return
            raise KeyboardInterrupt

        def escaped(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            if isinstance(error, KeyboardInterrupt):
                status, code, reason = "interrupted", 130, "interrupted; --resume goes on if there is a state.pt"
            elif isinstance(error, LabStop):
                status, code, reason = "error", error.code, error.reason
            else:
                status, code, reason = "error", 1, f"{kind.__name__}: {error}"
            with contextlib.suppress(OSError):
                if code == 1:
                    write_atomically(self.folder / "error.txt", "".join(traceback.format_exception(error)))
                self._write(status, reason)
            self._progress.end(f"{self.about['id']}: {reason}")
            with contextlib.suppress(OSError):
                if code == 1:
                    traceback.print_exception(error)
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # the interpreter would exit 1, and die of SIGINT after a Ctrl-C

        signal.signal(signal.SIGINT, asked_to_stop)
        signal.signal(signal.SIGTERM, asked_to_stop)
        sys.excepthook = escaped
        stop_with_parent(grace=10.0)


def stop_with_parent(*, grace: float) -> None:
    """Under LAB_PARENT_ON_STDIN=1 whoever started us holds our stdin open; when it dies, even by kill -9, a read ends.

    That is taken as Ctrl-C; after `grace` seconds the process ends whatever it does.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace)
        os._exit(130)

    if os.environ.pop("LAB_PARENT_ON_STDIN", ""):
        threading.Thread(target=watch, daemon=True).start()


def _number(value: float) -> float | None:
    """A float for JSON; None stands for what is not a number, and no gate accepts it."""
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return _number(value) if isinstance(value, float) else value


def _os_name() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return f"{platform.system()} {platform.release()}"


def _cpu_name() -> str:
    if sys.platform == "darwin":  # Python's own answer there is "arm"
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]  # "Apple M2", the name of the GPU as well
        with contextlib.suppress(OSError):
            if chip := subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip():
                return chip
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Progress:
    """One line that moves on a terminal, a line every 10 % elsewhere, JSON lines for the runner, or silence."""

    def __init__(self, style: str, lab_id: str) -> None:
        if style == "auto":
            style = "bar" if sys.stderr.isatty() and not in_notebook() else "plain"
        self.style = style
        self.lab_id = lab_id
        self.scalars: dict[str, float] = {}
        self._first = self._last = self._tenth = 0
        self._began = self._shown = 0.0

    def begin(self, first: int, last: int) -> None:
        self._first, self._last, self._tenth = first, last, 10 * first // max(1, last)
        self._began, self._shown = time.perf_counter(), 0.0

    def show(self, done: int) -> None:
        now = time.perf_counter()
        tenth = 10 * done // self._last
        due = tenth > self._tenth if self.style == "plain" else (now - self._shown > 0.2 or done == self._last)
        if self.style == "off" or not due:
            return
        self._tenth, self._shown = tenth, now
        left = (now - self._began) / (done - self._first) * (self._last - done)
        if self.style == "json":
            say(json.dumps({"lab": self.lab_id, "step": done, "total": self._last, "left_s": round(left, 1),
                            **_plain(self.scalars)}))  # fmt: skip
            return
        line = progress_line(done, self._last, left, self.scalars)
        if self.style == "bar":
            say(f"\r\x1b[2K{line}", end="")
        else:
            say(f"{self.lab_id}  {line}")

    def end(self, text: str) -> None:
        if self.style == "bar" and self._shown:
            say("\r\x1b[2K", end="")
        if text:
            say(text)


def progress_line(done: int, total: int, left: float, scalars: dict[str, float]) -> str:
    filled = 20 * done // total
    bar = "━" * filled + "╌" * (20 - filled)
    numbers = "".join(f"  {name} {value:.4g}" for name, value in scalars.items())
    return f"{bar} {100 * done // total:3d} %  step {done}/{total}{numbers}  {left:.0f} s left"
