"""python -m labs list | run | verify | report | serve: see README.md. Exit codes: harness.py's, and 6 of verify."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from labs import check, harness
from labs.harness import LabStop, say
from labs.page import LABS, Page, discover


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m labs", description="Teaching labs that prove their own claims.")
    commands = top.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="what there is (loads no torch)")
    listing.add_argument("--json", action="store_true")

    run = commands.add_parser("run", help="run labs, write files and report.html")
    run.add_argument("ids", nargs="*", metavar="ID", help="01 or 01_tensors; all when none is named")
    run.add_argument("--lab", action="append", default=[], metavar="ID", help="the same, as a flag (repeatable)")
    run.add_argument("--paradigm", action="append", default=[], metavar="NAME",
                     help="all labs of a paradigm, such as supervised (repeatable)")  # fmt: skip
    run.add_argument("--jobs", type=_whole(1), help="labs side by side (default: 2, or fewer if the CPU quota is 1)")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    run.add_argument("--seed", type=_whole(0), default=0)
    size = run.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes, seconds; only exact gates are checked")
    size.add_argument("--full", action="store_true", help="sizes for a GPU")
    run.add_argument("--out", type=Path, default=Path("results/latest"), metavar="RUN")
    run.add_argument("--threads", type=_whole(1), default=1, help="CPU threads per lab")
    run.add_argument("--timeout", type=_limit, default=900.0, metavar="S", help="per lab, in seconds (default 900)")
    run.add_argument("--memory", type=_limit, default=4096.0, metavar="MIB", help="per lab, in MiB (default 4096)")
    run.add_argument("--progress", default="auto", choices=["auto", "plain", "json", "off"])
    run.add_argument("--json", action="store_true", help="print the results as a JSON array")
    run.add_argument(
        "--index-from",
        default="",
        metavar="NAME",
        help="run one lab only, the one at the index that the variable NAME holds: 0 is the first named",
    )
    run.add_argument(
        "--documents",
        type=Path,
        metavar="FOLDER",
        help="with --index-from: leave the result as FOLDER/INDEX-LAB.json, also where the lab cannot start",
    )

    verify = commands.add_parser("verify", help="check the gates of a run again from its files, without training")
    verify.add_argument("run", type=Path, metavar="RUN")
    verify.add_argument("--json", action="store_true")

    report = commands.add_parser("report", help="one self-contained HTML page of one run, or of several side by side")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html, or comparison.html")

    serve = commands.add_parser(
        "serve", help="copy the labs into a folder, where edited ones stay, and open JupyterLab"
    )
    serve.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    serve.add_argument("--port", type=_whole(1), default=8888)
    serve.add_argument("--ip", default="", help="listen at this address; without it 127.0.0.1, in a container its own")
    serve.add_argument("--only-copy", action="store_true", help="copy the labs, and open nothing")
    serve.add_argument(
        "--hub", action="store_true", help="for a JupyterHub, which says where to listen and who comes in"
    )
    return top


def _whole(low: int) -> Any:
    def whole_number(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    return whole_number


def _limit(text: str) -> float:
    if not 0 < (value := float(text)) < 1e7:
        raise argparse.ArgumentTypeError(f"{text} is not a limit above 0")
    return value


def select(ids: list[str], paradigms: list[str]) -> list[Page]:
    """The pages of the named labs and paradigms, each once, in reading order; all if nothing is named.

    Raises LabStop 2 for an unknown name, and says which there are.
    """
    pages = discover()
    if not ids and not paradigms:
        return list(pages.values())
    wanted = set()
    for name in paradigms:
        found = [lab for lab, page in pages.items() if page.paradigm == name]
        if not found:
            known = dict.fromkeys(page.paradigm for page in pages.values())
            raise LabStop(2, f"there is no paradigm {name}; there are: {', '.join(known)}")
        wanted.update(found)
    for name in ids:
        found = [lab for lab in pages if name in (lab, lab.partition("_")[0])]
        if not found:
            raise LabStop(2, f"there is no lab {name}; there are: {', '.join(pages)}")
        wanted.update(found)
    return [page for lab, page in pages.items() if lab in wanted]


def list_labs(as_json: bool) -> int:
    pages = discover().values()
    if as_json:
        fields = ("id", "title", "paradigm", "task", "data", "seconds")
        print(json.dumps([{name: getattr(page, name) for name in fields} for page in pages], indent=1))
        return 0
    for page in pages:
        print(f"{page.id:<14} {page.title:<36} {page.paradigm:<14} {page.data:<42} about {page.seconds:g} s")
    return 0


def run_labs(args: argparse.Namespace) -> int:
    from labs import report, runner

    pages = select([*args.ids, *args.lab], args.paradigm)
    index = runner.read_index(args.index_from, len(pages)) if args.index_from else None
    if args.documents and index is None:
        raise LabStop(2, "--documents is for the one lab of --index-from")
    pages = pages if index is None else [pages[index]]
    if args.documents:  # found out before minutes of training
        args.documents.mkdir(parents=True, exist_ok=True)
    jobs = args.jobs or min(2, max(1, int(harness.cpu_quota())))
    settings = runner.Settings(
        out=args.out, device=args.device, seed=args.seed, quick=args.quick, full=args.full, threads=args.threads,
        jobs=jobs, timeout=args.timeout, memory=args.memory, progress=args.progress,
    )  # fmt: skip
    runner.warn_about_load(settings)
    harness.stop_with_parent(grace=3 * runner.GRACE_S)
    try:
        results = runner.run(pages, settings)
    except LabStop as stop:
        if args.documents:
            runner.write_document(args.documents, index, runner.not_run(pages[0], stop))
        raise
    if args.documents:
        runner.write_document(args.documents, index, results[0])
    harness.write_atomically(args.out / runner.RESULTS, json.dumps(results, indent=1) + "\n")
    page = report.write([args.out], args.out / "report.html")
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        for result in results:
            note = f"  {result['reason']}" if result["reason"] else "  (reused)" if result["reused"] else ""
            print(f"{result['lab']:<14} {result['status']:<12} {result['device']:<5} {result['seconds']:7.1f} s{note}")
        print(f"report: {page}")
    return runner.exit_code(results)


def verify_run(run: Path, as_json: bool) -> int:
    """0 all believable and held, 5 a gate was missed or a lab did not finish, 6 the files contradict themselves."""
    from labs import runner

    memory = runner.read_run(run)["labs"]
    folders = {path.parent.name for path in run.glob("*/metrics.json")} | set(memory)
    if not folders:
        raise LabStop(2, f"{run} holds no lab results; a run is a folder that `python -m labs run --out` wrote")
    checked = []
    for lab in sorted(folders):
        entry = memory.get(lab, {})
        wrong = check.problems(run / lab, sha256=entry.get("metrics_sha256"))
        status = "unbelievable" if wrong else check.read_record(run / lab)["status"]
        if "status" in entry and entry["status"] not in (status, "error") and not wrong:
            wrong, status = [f"run.json says {entry['status']}, the record says {status}"], "unbelievable"
        elif entry.get("status") in ("error", "running", "interrupted"):
            status, wrong = entry["status"], [str(entry.get("reason") or "it did not finish")]
        checked.append({"lab": lab, "status": status, "problems": wrong})
    if as_json:
        print(json.dumps(checked, indent=1))
    else:
        for item in checked:
            print(f"{item['lab']:<14} {item['status']:<13} {'; '.join(item['problems'])}".rstrip())
    statuses = {str(item["status"]) for item in checked}
    return 6 if "unbelievable" in statuses else 5 if statuses - {"passed", "skipped"} else 0


def write_report(runs: list[Path], out: Path | None) -> int:
    from labs import report

    for run in runs:
        if not any(run.glob("*/metrics.json")):
            raise LabStop(2, f"{run} holds no lab results; a run is a folder that `python -m labs run --out` wrote")
    print(report.write(runs, out or runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")))
    return 0


def main() -> int:
    args = parser().parse_args()
    try:
        if args.command == "list":
            return list_labs(args.json)
        if args.command == "run":
            return run_labs(args)
        if args.command == "verify":
            return verify_run(args.run, args.json)
        if args.command == "serve":
            from labs import serve

            return serve.serve(args.to, port=args.port, ip=args.ip, only_copy=args.only_copy, hub=args.hub)
        return write_report(args.runs, args.out)
    except LabStop as stop:
        say(stop.reason)
        return stop.code
    except KeyboardInterrupt:
        exec("")  # noqa: S102 - else CPython dies of SIGINT where that came in an exec of text, as in many an import
        say("interrupted")
        return 130
    except BrokenPipeError:  # the reader (head) has gone; Python would complain once more while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        say(f"{error.filename or 'a file'} cannot be written: {error.strerror}; what was finished is kept")
        return 4


if __name__ == "__main__":
    assert LABS.is_dir()
    sys.exit(main())
