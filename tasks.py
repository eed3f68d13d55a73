"""Invoke tasks: flags in, one call, print the result. Errors become exit codes in labrig.cli; no logic here."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke import Context, task

from labrig import cli

ROOT = Path(__file__).resolve().parent
IMAGES = ROOT / "images"
cli.adapt_invoke()

TARGET = "a target of images/targets.toml; without it the one that fits this host"
AS_JSON = "print a JSON document"
INDEX = "NAME=URL or NAME=none: override an index of images/targets.toml (repeatable)"
OFFLINE = "open no network connection"
FORCE = "go on where it cannot work on this machine; noted, and shown by verify"
ENGINE = "docker, venv or conda; without it the target's first engine that this host can use"


@task(name="list", help={"json": AS_JSON})
@cli.door
def list_targets(c: Context, json: bool = False) -> None:
    """List the targets with all that is pinned or follows from the pins, and what each engine is known to do."""
    from labrig import catalogue, spec, support

    table = spec.read(IMAGES / spec.TABLE)
    if json:
        cli.print_json(catalogue.entries(table))
    else:
        cli.print_table(catalogue.COLUMNS, catalogue.rows(table), wrapped=catalogue.WRAPPED)
        cli.print_table(support.COLUMNS, catalogue.support_rows(table), wrapped=support.WRAPPED, title=support.TITLE)
        print(catalogue.NOTE)


@task(
    help={
        "for": 'another machine: "linux x86_64 driver=550.54.14 gpu=6.1 python=3.12", or a card: "GTX 1080", "M2"',
        "build": "a torch release instead of the targets: 2.13.0+cu130, or 2.13.0 (repeatable)",
        "inventory": "every machine of a room: a TOML file with a [[host]] table for each",
        "json": AS_JSON,
    },
    iterable=["build"],
)
@cli.door
def doctor(c: Context, for_: str = "", build: list[str] | None = None, inventory: str = "", json: bool = False) -> None:
    """Say what a machine is, which targets run there, why CUDA is not available, and what to do."""
    from labrig import doctor, spec

    table = spec.read(IMAGES / spec.TABLE)
    if inventory:
        room = doctor.examine_room(table, Path(inventory), alone=not (for_ or build))
        if json:
            cli.print_json(room)
        else:
            cli.print_table(doctor.ROOM_COLUMNS, doctor.room_rows(room), wrapped=doctor.ROOM_COLUMNS[-1:])
            print(doctor.tally(room))
    else:
        report = doctor.examine(table, for_, build or ())
        if json:
            cli.print_json(report)
        else:
            print(doctor.render(report, **cli.terminal()))


@task(
    help={
        "os": "linux, linux-arm, mac, windows or wsl2; without it this machine's",
        "package": "pip, uv, conda or docker",
        "compute": "auto, cpu, mps or a CUDA build such as cu130; auto is what the machine runs best",
        "torch": "a release; without it the newest that the tables have all of",
        "for": "another machine than this one, in the words of doctor --for",
        "json": AS_JSON,
    }
)
@cli.door
def select(
    c: Context,
    os: str = "",
    package: str = "pip",
    compute: str = "auto",
    torch: str = "",
    for_: str = "",
    json: bool = False,
) -> None:
    """Print the exact command that installs torch without labrig, as the selector on pytorch.org does, offline."""
    from labrig import selector, spec

    table = spec.read(IMAGES / spec.TABLE)
    found = selector.select(table, system=os, package=package, compute=compute, torch=torch, machine=for_)
    if json:
        cli.print_json(found.to_json())
    else:
        for line in selector.explain(found):
            print(line, file=sys.stderr)
        print(found.command)


@task(
    help={
        "target": "one target; without it all",
        "platform": "one platform of the target; without it all that can be locked here",
        "upgrade": "take the newest versions; without it the locked ones are kept where they fit",
        "engine": "conda: exact locks of conda environments instead, solved by micromamba or mamba",
        "base": 'ask the registry for the digest of the base instead, for rows with base = "registry"',
        "index": INDEX,
    },
    iterable=["index"],
)
@cli.door
def lock(
    c: Context,
    target: str = "",
    platform: str = "",
    upgrade: bool = False,
    engine: str = "",
    base: bool = False,
    index: list[str] | None = None,
) -> None:
    """Resolve the targets, every wheel by its digest, and render what follows."""
    from labrig import relock

    changed = relock.lock_all(
        ROOT, target or None, platform or None, engine=engine or None, base=base, upgrade=upgrade, overrides=index or ()
    )
    for file in changed:
        print(file.relative_to(ROOT))


@task(
    help={
        "check": "change nothing; exit 8 if the index has what the tables have not",
        "write": "add new releases to the tables, with what the index proves, and a row to try to the pin table",
        "index": INDEX,
        "json": AS_JSON,
    },
    iterable=["index"],
)
@cli.door
def update(
    c: Context, check: bool = False, write: bool = False, index: list[str] | None = None, json: bool = False
) -> None:
    """Compare the tables with the package index: new torch, CUDA lines that end, Pythons that lose their wheels."""
    from labrig import drift, spec

    table = spec.read(IMAGES / spec.TABLE)
    found = drift.read_index(table, index or (), check=check, write=write)
    changes = drift.compare(found, table, drift.now())
    if found.unreachable:
        print(f"PyTorch index: not compared, CUDA lines neither ({found.unreachable})", file=sys.stderr)
    if json:
        cli.print_json(drift.to_json(changes, found))
    elif changes:
        cli.print_table(drift.COLUMNS, drift.rows(changes), wrapped=drift.COLUMNS[1:])
    if check:
        drift.require_none(changes)
        print("nothing has changed since the tables were read", file=sys.stderr)
    else:
        written = drift.propose(found, table, drift.now())
        for file in written:
            print(file.relative_to(ROOT))
        then = "next: invoke lock --target=NAME for the new row, then make check" if written else "no new release"
        print(then, file=sys.stderr)


@task(help={"target": TARGET, "fresh": "make it anew from Debian's packages of today"})
@cli.door
def base(c: Context, target: str = "", fresh: bool = False) -> None:
    """Make the image under the wheels of a target, or find it made; prints what the engine calls it."""
    from labrig import environment

    print(environment.make_base(ROOT, target or None, fresh=fresh))


@task(help={"check": "change nothing; exit 8 if a committed file is not what a render gives"})
@cli.door
def render(c: Context, check: bool = False) -> None:
    """Render the files under images/ from the pin table, the locks and templates/."""
    from labrig import render, spec

    table = spec.read(IMAGES / spec.TABLE)
    files = render.render_all(table, ROOT / "templates")
    if check:
        render.check(table, files)
        print(f"{len(files)} rendered files are current", file=sys.stderr)
    else:
        for file in (*render.write(files), *render.remove_strays(table, files)):
            print(file.relative_to(ROOT))


@task(
    help={"target": TARGET, "platform": "for another platform than this host's", "index": INDEX, "offline": OFFLINE},
    iterable=["index"],
)
@cli.door
def fetch(
    c: Context, target: str = "", platform: str = "", index: list[str] | None = None, offline: bool = False
) -> None:
    """Bring every wheel of a target into the wheelhouse, verified; prints where that is."""
    from labrig import environment

    print(environment.fetch_by_name(ROOT, target or None, platform or None, overrides=index or (), offline=offline))


@task(
    help={
        "target": TARGET,
        "engine": "docker, venv or conda; without it the first that the target names",
        "builder": "layers (wheels become layers as they are) or dockerfile (BuildKit); without it the row's",
        "base": "another base for the image: oci:FOLDER[:TAG], or HOST/NAME@sha256:DIGEST",
        "bytecode": "--no-bytecode: leave out compiled modules; containers start slower, the image is smaller",
        "output": "write the image to this folder as an OCI layout, without an engine",
        "push": "send the image to HOST/NAME:TAG, without an engine",
        "platform": "with --output or --push: for another platform than this host's",
        "index": INDEX,
        "offline": OFFLINE,
        "force": FORCE,
        "json": AS_JSON,
    },
    iterable=["index"],
)
@cli.door
def build(
    c: Context,
    target: str = "",
    engine: str = "",
    builder: str = "",
    base: str = "",
    bytecode: bool = True,
    output: str = "",
    push: str = "",
    platform: str = "",
    index: list[str] | None = None,
    offline: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Make the environment of a target, or find it made; prints its path or reference."""
    from labrig import engines, environment

    wish = engines.Wish(builder, base, bytecode)
    if output or push or platform:
        found = environment.export(
            ROOT,
            target or None,
            engine or "docker",
            platform=platform,
            output=Path(output).absolute() if output else None,
            push=push,
            overrides=index or (),
            offline=offline,
            wish=wish,
        )
        if json:
            cli.print_json(found.to_json())
        else:
            print(*found.places, sep="\n")
        return
    made = environment.build(
        ROOT, target or None, engine or None, overrides=index or (), offline=offline, force=force, wish=wish
    )
    if json:
        cli.print_json(
            {"target": made.target.name, "engine": made.engine, "reference": made.reference, "lock": made.lock.digest}
        )
    else:
        print(made.reference)


@task(
    help={
        "target": TARGET,
        "platform": "for another platform than this host's",
        "check": "exit 6 if the image is more than 5 % above its row's size_mb; above 2 % is a warning",
        "write": "put its layers into images/sizes.tsv, and render what shows them",
        "index": INDEX,
        "offline": OFFLINE,
        "json": AS_JSON,
    },
    iterable=["index"],
)
@cli.door
def sizes(
    c: Context,
    target: str = "",
    platform: str = "",
    check: bool = False,
    write: bool = False,
    index: list[str] | None = None,
    offline: bool = False,
    json: bool = False,
) -> None:
    """Say how many bytes the image of a target is to pull, layer by layer, against its budget."""
    from labrig import sizes

    found = sizes.examine(ROOT, target or None, platform, overrides=index or (), offline=offline)
    if json:
        cli.print_json(found.to_json())
    else:
        cli.print_table(sizes.SHOWN, sizes.rows(found.made, found.before), title=found.title)
    if write:
        for file in sizes.write(ROOT, found):
            print(f"written: {file}", file=sys.stderr)
    if check and (warning := sizes.check(found.target, found.made, found.before)):
        print(warning, file=sys.stderr)


@task(
    help={
        "target": TARGET,
        "registry": "where to: HOST/NAMESPACE; the target's name and its tags come behind it",
        "platform": "for another platform than this host's",
        "index": INDEX,
        "json": AS_JSON,
    },
    iterable=["index"],
)
@cli.door
def publish(
    c: Context,
    target: str = "",
    registry: str = "",
    platform: str = "",
    index: list[str] | None = None,
    json: bool = False,
) -> None:
    """Send the verified image of a target to a registry, and note it in images/published.toml; prints its reference."""
    from dataclasses import asdict

    from labrig import publishing

    entry = publishing.publish(ROOT, target or None, registry, platform=platform, overrides=index or ())
    if json:
        cli.print_json(asdict(entry))
    else:
        print(entry.reference)


@task(help={"target": TARGET, "force": FORCE, "json": AS_JSON})
@cli.door
def pull(c: Context, target: str = "", force: bool = False, json: bool = False) -> None:
    """Bring the published image of a target into the Docker engine, proven by its digest; prints its name there."""
    from labrig import pulling

    pulled = pulling.pull(ROOT, target or None, force=force)
    if json:
        cli.print_json(pulled.to_json())
    else:
        print(pulled.entry.image)


@task(
    help={
        "target": TARGET,
        "engine": ENGINE,
        "lab": "one lab, such as 06 or 06_images (repeatable); without it all",
        "paradigm": "all labs of one, such as supervised (repeatable)",
        "quick": "tiny sizes, seconds; only exact gates are enforced",
        "device": "auto, cpu, cuda or mps; a named device that is absent is an error",
        "jobs": "labs side by side, one thread each (default: 2, or fewer if the CPU quota is 1)",
        "out": "folder for results and report; without it results/TARGET-ENGINE (-quick)",
        "offline": OFFLINE,
        "force": FORCE,
        "json": AS_JSON,
    },
    iterable=["lab", "paradigm"],
)
@cli.door
def labs(
    c: Context,
    target: str = "",
    engine: str = "",
    lab: list[str] | None = None,
    paradigm: list[str] | None = None,
    quick: bool = False,
    device: str = "auto",
    jobs: int = 0,
    out: str = "",
    offline: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Run the labs inside the environment; ends with a table and where the report lies."""
    from labrig import environment, labs

    made = environment.use(ROOT, target or None, engine or None, offline=offline, force=force)
    labs.run(
        ROOT,
        made,
        lab or (),
        paradigms=paradigm or (),
        out=Path(out).absolute() if out else None,
        device=device,
        quick=quick,
        jobs=jobs,
        as_json=json,
    )


@task(
    help={
        "target": TARGET,
        "engine": ENGINE,
        "image": "this image of the Docker engine instead of the one that was built here",
        "require_device": "fail where the target's device is absent, instead of skipping with the reason",
        "offline": OFFLINE,
        "inventory": "the hosts of a room instead: a TOML file with a [[host]] table for each (docs/rooms.md)",
        "host": "@local: what provision --host=@local brought to the machine you sit at",
        "only_bad": "show only hosts that something is to be done about",
        "watch": "ask again every 30 (or so many) seconds, until Ctrl-C",
        "limit": "only these: names with commas, room:NAME, or @failed of the last run",
        "labs": "quick: run the labs on every host, and compare what they measured",
        "deep": "hash every byte, and run the declared checks on a sample (all: on every native host)",
        "budget": "seconds that a host may take",
        "junit": "write JUnit XML to this file",
        "html": "write the table as one page to this file",
        "json": AS_JSON,
    },
    optional=["watch", "deep"],
)
@cli.door
def verify(
    c: Context,
    target: str = "",
    engine: str = "",
    image: str = "",
    require_device: bool = False,
    offline: bool = False,
    json: bool = False,
    inventory: str = "",
    host: str = "",
    only_bad: bool = False,
    watch: str = "",
    limit: str = "",
    labs: str = "",
    deep: str = "",
    budget: float = 0.0,
    junit: str = "",
    html: str = "",
) -> None:
    """Run every declared check against the environment, or ask the hosts of a room; exit 6 if a check fails."""
    from labrig import environment, verify
    from labrig.fleet import audit

    wish = audit.read_wish(only_bad, watch, limit, labs, deep, budget, junit, html)
    one = bool(target or engine or image or require_device or offline)
    audit.require_sense(inventory or host, wish, one=one, json=json)
    if inventory or host:
        found = (audit.watch if wish.watch else audit.verify)(ROOT, inventory, host, wish)
        audit.show(ROOT, found, json=json)
        if not wish.watch:
            found.raise_for_failures()
        return
    if image:
        made = environment.find_image(ROOT, target or None, image)
    else:
        made = environment.use(ROOT, target or None, engine or None, offline=offline)
    record = verify.verify(made, require_device=require_device)
    if json:
        cli.print_json(record.to_json())
    else:
        title = f"{record.target} ({record.engine})"
        cli.print_table(verify.COLUMNS, verify.rows(record), wrapped=verify.WRAPPED, title=title)
        print(verify.tally(record))
    record.raise_for_failures()


@task(
    help={
        "target": TARGET,
        "engine": ENGINE,
        "command": "run this one command line instead of a shell",
        "offline": OFFLINE,
    }
)
@cli.door
def shell(c: Context, target: str = "", engine: str = "", command: str = "", offline: bool = False) -> None:
    """Open a shell inside the environment."""
    from labrig import environment

    environment.enter(ROOT, target or None, engine or None, command, offline=offline)


@task(
    help={
        "target": TARGET,
        "engine": ENGINE,
        "folder": "the student's folder; without it ~/labrig-work",
        "port": "port of 127.0.0.1; without it 8888, or the next that is free",
        "open": "open a browser",
        "offline": OFFLINE,
        "force": FORCE,
        "json": AS_JSON,
    }
)
@cli.door
def start(
    c: Context,
    target: str = "",
    engine: str = "",
    folder: str = "",
    port: int = 0,
    open_: bool = False,
    offline: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Start JupyterLab with the labs and wait until it answers; prints the address to open."""
    from labrig import server

    running = server.start(
        ROOT,
        target or None,
        engine or None,
        folder=Path(folder).expanduser() if folder else None,
        port=port,
        offline=offline,
        force=force,
    )
    if json:
        cli.print_json(running.to_json())
    else:
        print(running.url, flush=True)
    if open_:
        server.open_browser(running)


@task(help={"target": "a target that was started; without it every one"})
@cli.door
def stop(c: Context, target: str = "") -> None:
    """Stop what was started; the student's folder stays as it is."""
    from labrig import server

    stopped = server.stop(ROOT, target or None)
    for one in stopped:
        print(f"stopped {one.target} ({one.engine}); the work is in {one.folder}")
    if not stopped:
        print("nothing was running", file=sys.stderr)


@task(help={"json": AS_JSON})
@cli.door
def status(c: Context, json: bool = False) -> None:
    """Show what was started: whether it runs, where, and in which folder."""
    from labrig import server

    found = server.status()
    if json:
        cli.print_json([{**one.to_json(), "state": state} for one, state in found])
    elif found:
        cli.print_table(server.COLUMNS, server.rows(found), wrapped=["folder"])
        for one, state in found:
            if state == server.RUNNING:
                print(f"{one.target}: {one.url}")
    else:
        print("nothing was started", file=sys.stderr)


@task(
    help={
        "target": "a target that was started; needed only where several were",
        "follow": "go on until it ends, or Ctrl-C",
    }
)
@cli.door
def logs(c: Context, target: str = "", follow: bool = False) -> None:
    """Print what a started JupyterLab has said."""
    from labrig import server

    cli.print_bytes(server.logs(ROOT, target or None, follow=follow))


@task(
    help={
        "target": "only this target's environments",
        "all": "the wheelhouse and uv's cache too: everything labrig can make again",
        "dry_run": "only say what would go",
    }
)
@cli.door
def clean(c: Context, target: str = "", all: bool = False, dry_run: bool = False) -> None:
    """Remove environments that no lock names any more (with --target: that target's)."""
    from labrig import cleaning

    for place in cleaning.clean(ROOT, target or None, everything=all, dry_run=dry_run):
        print(place)


@task(
    help={
        "target": TARGET,
        "index": INDEX,
        "offline": OFFLINE,
        "force": FORCE,
        "quick": "run the labs with tiny sizes",
        "json": AS_JSON,
    },
    iterable=["index"],
)
@cli.door
def up(
    c: Context,
    target: str = "",
    index: list[str] | None = None,
    offline: bool = False,
    force: bool = False,
    quick: bool = False,
    json: bool = False,
) -> None:
    """Do the main job for this host: lock check, fetch, build, labs, verify; ends with one table."""
    from labrig import up

    summary = up.up(ROOT, target or None, overrides=index or (), offline=offline, quick=quick, force=force)
    if json:
        cli.print_json(summary.to_json())
    else:
        cli.print_table(up.COLUMNS, [summary.row()])
        print(f"report: {summary.report}")
    if summary.failure:
        raise summary.failure


@task(
    help={
        "target": f"{TARGET} (repeatable)",
        "output": "a new folder, or a file that ends with .tar",
        "platform": "for another platform than this host's",
        "image": "--no-image: leave out the container image",
        "wheels": "--no-wheels: leave out the wheels, which native environments are made of",
        "index": INDEX,
        "offline": OFFLINE,
        "json": AS_JSON,
    },
    iterable=["target", "index"],
)
@cli.door
def export(
    c: Context,
    output: str,
    target: list[str] | None = None,
    platform: str = "",
    image: bool = True,
    wheels: bool = True,
    index: list[str] | None = None,
    offline: bool = False,
    json: bool = False,
) -> None:
    """Write an offline kit: image, wheels, locks, labs, checksums and a script that needs no labrig."""
    from labrig import kit

    written = kit.export(
        ROOT,
        target or (),
        Path(output).expanduser().resolve(),
        platform=platform,
        with_image=image,
        with_wheels=wheels,
        overrides=index or (),
        offline=offline,
    )
    if json:
        cli.print_json(written.to_json())
    else:
        print(written.place)


@task(name="import", help={"kit": "the folder or the .tar that invoke export wrote", "json": AS_JSON})
@cli.door
def import_kit(c: Context, kit: str, json: bool = False) -> None:
    """Prove an offline kit, and take its wheels and its image, so that --offline works here."""
    from labrig import kit as kits

    found = kits.import_kit(ROOT, Path(kit).expanduser().absolute())
    if json:
        cli.print_json([vars(one) for one in found])
    else:
        for one in found:
            print(one.reference if one.loaded else one.lock)


@task(
    help={
        "inventory": "the room: a TOML file with a [[host]] table for each machine",
        "host": "@local, the machine you sit at, instead of a room",
        "plan": "change nothing; exit 8 if changes are pending, 7 if a host is refused or does not answer",
        "limit": "only these: names with commas, room:NAME, or @failed of the last run",
        "max_fail": "begin no more hosts once more than N, or N%, have failed",
        "retries": "times that a host which failed is tried again",
        "budget": "seconds that a host has (without it 60 to answer a plan, 1800 for an apply)",
        "parallel": "hosts at once",
        "wave": "hosts that pull an image at once; without it as many as the link of --megabits can take",
        "cold": "pull also where the room's cache does not hold the image",
        "megabits": "of the cache's link, a second (default: 1000)",
        "json": AS_JSON,
    }
)
@cli.door
def provision(
    c: Context,
    inventory: str = "",
    host: str = "",
    plan: bool = False,
    limit: str = "",
    max_fail: str = "",
    retries: int = 0,
    budget: int = 0,
    parallel: int = 0,
    wave: int = 0,
    cold: bool = False,
    megabits: int = 1000,
    json: bool = False,
) -> None:
    """Bring the machines of a room to what they should have: engine, image or environment, labs, a start command."""
    from dataclasses import asdict

    from labrig.fleet import apply

    room = apply.find_room(inventory, host)
    options = apply.read_options(limit, max_fail, retries, budget, parallel, wave, cold, megabits)
    rows = (apply.plan if plan else apply.apply)(ROOT, room, options)
    if json:
        cli.print_json([asdict(row) for row in rows])
    else:
        apply.show(rows, planned=plan)
    (apply.require_planned if plan else apply.require_applied)(rows)


@task(
    help={
        "inventory": "the room: a TOML file with a [[host]] table for each machine, and its cache",
        "target": "this target's image only; without it every one that a host of the room wants",
        "megabits": "of the link to the registry, a second, for the estimate (default: 1000)",
        "json": AS_JSON,
    }
)
@cli.door
def warm(c: Context, inventory: str, target: str = "", megabits: int = 1000, json: bool = False) -> None:
    """Fill the room's registry cache by one pull of each image, and prove that it holds every byte of them."""
    from labrig.fleet import cache

    warmed = cache.warm(ROOT, Path(inventory), target, megabits=megabits)
    if json:
        cli.print_json([one.to_json() for one in warmed])
    else:
        cli.print_table(cache.COLUMNS, cache.rows(warmed), wrapped=cache.COLUMNS[-1:])


@task(
    help={
        "inventory": "the room: a TOML file whose [room] table names the cache",
        "output": "folder for the files; without it cache-NAME beside the inventory",
        "upstream": "the registry behind the cache, https://HOST; without it the one that images were published to",
        "tls": "the cache has a certificate; without it hosts speak http to it",
    }
)
@cli.door
def cache(c: Context, inventory: str, output: str = "", upstream: str = "", tls: bool = False) -> None:
    """Write the configuration of the room's registry cache, and what the engines of its hosts need to use it."""
    from labrig.fleet import mirror

    room = Path(inventory)
    folder = Path(output) if output else room.parent / f"cache-{room.stem}"
    for file in mirror.write(ROOT, room, folder, upstream=upstream, tls=tls):
        print(file)


@task(
    help={
        "from": "an Ansible inventory, INI or YAML: the text of a room's file is printed",
        "inventory": "the room: a TOML file with a [[host]] table for each machine; goes out to --output",
        "output": "folder for an Ansible inventory, a playbook and what it copies",
        "limit": "only these hosts of --inventory: names with commas, or room:NAME",
    }
)
@cli.door
def ansible(c: Context, from_: str = "", inventory: str = "", output: str = "", limit: str = "") -> None:
    """Take an Ansible inventory over, or write one with a playbook that does what provision does."""
    from labrig.fleet import ansible

    if ansible.is_import(from_, inventory, output):
        found = ansible.import_room(Path(from_))
        for note in found.notes:
            print(note, file=sys.stderr)
        print(found.text, end="")
    else:
        from labrig.fleet import playbook

        for file in playbook.export(ROOT, Path(inventory), Path(output), limit):
            print(file)


@task(
    help={
        "inventory": "a room: a TOML file with a [[host]] table for each machine",
        "replace": "a host whose key may be another than the one that is known (repeatable)",
        "json": AS_JSON,
    },
    iterable=["replace"],
)
@cli.door
def keys(c: Context, inventory: str, replace: list[str] | None = None, json: bool = False) -> None:
    """Collect the host keys of a room, once, and tell machines that are clones of each other."""
    from labrig.fleet import keys

    rows = keys.collect(keys.addressed(inventory), replacing=replace or ())
    if json:
        cli.print_json([row.to_json() for row in rows])
    else:
        cli.print_table(keys.COLUMNS, [row.cells() for row in rows], wrapped=keys.WRAPPED)
    keys.require_known(rows)


@task(
    help={
        "hub": "bring a JupyterHub up on this machine",
        "config": "serve.toml; without it everything has its default",
        "foreground": "with --hub: stay, print what it says, end it on Ctrl-C (for systemd)",
        "status": "how the hub is, and which students' servers run",
        "logs": "what the hub and its proxy have said",
        "follow": "with --logs: go on until it ends, or Ctrl-C",
        "down": "end the hub and students' servers; their files stay",
        "json": AS_JSON,
    }
)
@cli.door
def serve(
    c: Context,
    hub: bool = False,
    config: str = "",
    foreground: bool = False,
    status: bool = False,
    logs: bool = False,
    follow: bool = False,
    down: bool = False,
    json: bool = False,
) -> None:
    """Labs for many from the published images: a JupyterHub on this machine."""
    from labrig.serving import hub as hubs

    cli.require_one(hub=hub, status=status, logs=logs, down=down)
    settings = Path(config) if config else None
    if hub and foreground:
        cli.print_bytes(hubs.foreground(ROOT, settings))
    elif hub:
        print(hubs.up(ROOT, settings).url)
    elif status:
        found = hubs.status()
        if json:
            cli.print_json(found.to_json())
        else:
            hubs.tell(found)
    elif logs:
        cli.print_bytes(hubs.logs(follow=follow))
    else:
        for line in hubs.down():
            print(line)
