"""What a cluster is given: values for the chart Zero to JupyterHub, and a Job for each target that runs all labs once.

Everything follows from the offers and serve.toml, as the hub on one server does. Nothing here talks to a cluster.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from labrig import image, network, notebooks, secret
from labrig.errors import UsageError
from labrig.files import write_atomically
from labrig.serving import Offer, chart, logins, offers, settings

PLATFORM = "linux_x86_64"  # of a cluster's nodes, where nobody says otherwise
VALUES, CLAIM = "values.yaml", "labs-results.yaml"
JOB = "labs-job-{}.yaml"
COMMAND = (*image.SERVE, "--hub")
SHM, RESULTS, RUN = "/dev/shm", "/results", "/tmp/run"  # noqa: S108 - inside a pod
INDEX = (
    "JOB_COMPLETION_INDEX"  # kubernetes.io/docs/concepts/workloads/controllers/job: the index of an Indexed Job's pod
)
GPU = "nvidia.com/gpu"  # the resource of NVIDIA's device plugin
# Labels that NVIDIA's GPU feature discovery gives to nodes (NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery).
MAJOR, MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
DRIVER = tuple(f"nvidia.com/cuda.driver-version.{part}" for part in ("major", "minor", "revision"))
ARCH = "kubernetes.io/arch"  # kubernetes.io/docs/reference/labels-annotations-taints
ARCHS = {"linux_x86_64": "amd64", "linux_aarch64": "arm64"}
SECRET = "labrig-hub"  # noqa: S105 - a Secret's name
TLS = "labrig-hub-tls"
UNPRINTED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
SHARED_CLASS = "SharedPasswordAuthenticator"
TIMEOUT, RETRIES, SIDE_BY_SIDE = 900, 1, 4  # seconds of a lab; of an index; pods of a Job at once
PULL = 1800  # seconds for a node to pull an image of gigabytes before its first lab
KEPT = 7 * 24 * 3600  # seconds that a finished Job and its logs stay


@dataclass(frozen=True)
class Hidden:
    """A trait whose value is a secret: what it is called in the Secret, and in the hub's environment."""

    owner: str  # the class
    trait: str
    reference: str  # env:NAME or file:PATH; empty: to be made

    @property
    def variable(self) -> str:
        """``LABRIG_CLIENT_SECRET``."""
        return f"LABRIG_{self.trait.upper()}"

    @property
    def source(self) -> str:
        """What ``kubectl create secret --from-file`` reads, so that the secret is on no command line."""
        kind, _, where = self.reference.partition(":")
        return shlex.quote(where) if kind == "file" else f'<(printf %s "${where}")' if kind == "env" else self.trait

    @property
    def flag(self) -> str:
        """Its part of ``kubectl create secret generic``."""
        return f" --from-file={self.trait}={self.source}"


def write_for(root: Path, config: Path | None, folder: str) -> list[Path]:
    """Render for a settings file (None: the defaults) and write; gives the files. Says on stderr what no node can pull.

    Raises:
        UsageError: no folder is named.
        as :func:`render` and :func:`write`, and what ``settings.read`` and ``offers.read`` raise.
    """
    if not folder:
        raise UsageError("no folder for the files", fix="--cluster --output=FOLDER")
    told = settings.read(config)
    offered = offers.read(root, PLATFORM, told.targets)
    written = write(render(root, told, offered), Path(folder))
    warn_of_here(offered)
    return written


def warn_of_here(offered: Sequence[Offer]) -> bool:
    """Say on stderr which images no node can pull; whether there are any."""
    here = [offer.target for offer in offered if is_here(offer.reference)]
    if here:
        print(f"warning: {', '.join(here)}: {NOT_HERE}; {ELSEWHERE}", file=sys.stderr)
    return bool(here)


NOT_HERE = "published to a registry of this machine alone, from which no node of a cluster can pull"
ELSEWHERE = "invoke publish --target=TARGET --registry=HOST:PORT/NAME to one that the nodes reach, and render again"


def is_here(reference: str) -> bool:
    """Whether an image's registry is an address that each machine has for itself: 127.0.0.1, localhost."""
    try:
        return network.is_loopback(urlsplit(f"//{reference}").hostname or "")
    except ValueError:  # an address that is none, as somebody has edited it
        return False


def find_labs(root: Path) -> tuple[str, ...]:
    """The labs of the course, by name and in order, as the images have them."""
    return tuple(file.stem for file in notebooks.scripts(root / "labs"))


def render(root: Path, told: settings.Settings, offered: Sequence[Offer]) -> dict[str, str]:
    """The files of a cluster: name -> text.

    Raises:
        UsageError: serve.toml says what a cluster cannot do or not who comes in, or holds a secret where a reference
            has to be.
    """
    from labrig.render import jinja

    labs = find_labs(root)
    hidden, traits = sort_traits(told.login)
    logins.require_list(told)
    shared: dict[str, Any] = {
        "told": told, "labs": labs, "uid": image.UID, "home": image.HOME, "work": image.WORK, "folder": image.LABS,
        "command": COMMAND, "shm": SHM, "gpu": GPU, "arch_label": ARCH, "mebibytes": mebibytes, "megabytes": megabytes,
        "secret": SECRET,
    }  # fmt: skip
    environment = jinja(root / "templates" / "serving")
    environment.filters["yaml"] = as_yaml
    values = environment.get_template("values.yaml.j2").render(
        **shared,
        offers=[(offer, select_nodes(offer)) for offer in offered],
        arch=ARCHS[offered[0].platform],
        first=_split(offered[0].reference),
        authenticator=SHARED_CLASS if told.login.authenticator == settings.SHARED else told.login.authenticator,
        is_shared=told.login.authenticator == settings.SHARED,
        traits=traits,
        hidden=hidden,
        tls=TLS,
        repo=chart.REPOSITORY,
        version=chart.VERSION,
    )
    job = environment.get_template("labs-job.yaml.j2")
    files = {VALUES: values, CLAIM: environment.get_template("labs-results.yaml.j2").render(**shared)}
    for offer in offered:
        files[JOB.format(offer.target)] = job.render(
            **shared,
            offer=offer,
            terms=select_nodes(offer),
            arch=ARCHS[offer.platform],
            run=run_command(offer, labs, told.student.memory),
            results=RESULTS,
            retries=RETRIES,
            parallel=min(SIDE_BY_SIDE, len(labs)),
            deadline=PULL + math.ceil(len(labs) / SIDE_BY_SIDE) * (RETRIES + 1) * TIMEOUT,
            kept=KEPT,
        )
    return files


def as_yaml(value: Any) -> str:
    """A value as JSON, which is YAML but for characters that YAML takes for ends of lines or does not take at all."""
    text = json.dumps(value, ensure_ascii=False)
    return UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write rendered files into a folder; gives their paths.

    Raises:
        OSError: it cannot be written; each file is then as it was, or new.
    """
    for name, text in files.items():
        write_atomically(folder / name, text)
    return [folder / name for name in files]


def run_command(offer: Offer, labs: Sequence[str], memory: int) -> list[str]:
    """What a pod of a Job runs: the lab of its index, of those that are named, with its document into the claim.

    A lab that takes nine tenths of the pod's ``memory`` (bytes) is stopped by the runner and leaves a document; at ten
    the kernel would end the runner with it.
    """
    return [
        "python", "-m", "labs", "run", *labs, f"--index-from={INDEX}", f"--documents={RESULTS}/{offer.target}",
        f"--out={RUN}", f"--device={offer.device}", "--jobs=1", f"--timeout={TIMEOUT}",
        f"--memory={(memory >> 20) * 9 // 10}", "--progress=plain",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ which nodes


def select_nodes(offer: Offer) -> list[list[dict[str, Any]]]:
    """What nodes can run an image: alternatives, each a list of expressions over labels that have to hold together.

    A GPU X.y runs code for X.z with z <= y (labrig/data/README.md), so one of each major from its lowest minor on; and
    the driver is the offer's or newer. Empty for an image that needs no GPU.
    """
    if offer.device != "cuda":
        return []
    gpus, drivers = list(_gpus(offer.capabilities)), list(_drivers(offer.min_driver))
    return [[*gpu, *driver] for gpu, driver in itertools.product(gpus, drivers)]


def _gpus(capabilities: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    lowest: dict[int, int] = {}
    for major, minor in (map(int, one.split(".")) for one in capabilities):
        lowest[major] = min(minor, lowest.get(major, minor))
    if whole := [major for major, minor in lowest.items() if minor == 0]:
        yield [_is(MAJOR, *whole)]
    for major, minor in lowest.items():
        if minor:
            yield [_is(MAJOR, major), _above(MINOR, minor - 1)]


def _drivers(lowest: str) -> Iterator[list[dict[str, Any]]]:
    """``580.65.06`` or newer, in numbers: 580.65.r with r above 5, 580.m with m above 65, or above 580."""
    numbers = [int(part) for part in lowest.split(".")] if lowest else []
    for many in range(len(numbers), 0, -1):
        last = numbers[many - 1] - (1 if many == len(numbers) else 0)
        same = [_is(label, number) for label, number in zip(DRIVER, numbers[: many - 1], strict=False)]
        yield [*same, _above(DRIVER[many - 1], last)]
    if not numbers:
        yield []


def _is(label: str, *numbers: int) -> dict[str, Any]:
    return {"key": label, "operator": "In", "values": [str(number) for number in numbers]}


def _above(label: str, number: int) -> dict[str, Any]:
    return {"key": label, "operator": "Gt", "values": [str(number)]}


# ------------------------------------------------------------------------------------------------ who comes in


def sort_traits(login: settings.Login) -> tuple[list[Hidden], dict[str, Any]]:
    """What of [login.settings] is a secret, and what can stand in a file.

    Raises:
        UsageError: PAM, which has no users in a cluster; a secret that is no reference; a reference inside a list.
    """
    if login.authenticator == settings.PAM:
        raise UsageError(
            "[login] authenticator = \"pam\" cannot work in a cluster", found="the hub's pod has no users",
            fix="name a class, such as oauthenticator.github.GitHubOAuthenticator, or shared-password",
        )  # fmt: skip
    owner = SHARED_CLASS if login.authenticator == settings.SHARED else login.authenticator.rpartition(".")[2]
    hidden, traits = [], {}
    if login.authenticator == settings.SHARED:
        hidden.append(Hidden(owner, "user_password", login.password))
        if login.admins and "admin_password" not in login.settings:  # without one no admin comes in
            hidden.append(Hidden(owner, "admin_password", ""))
    for trait, value in login.settings.items():
        if secret.is_reference(value):
            hidden.append(Hidden(owner, trait, value))
        elif (plain := next(secret.find_plain(value, trait), "")) or _refers(value):
            raise UsageError(
                f"[login.settings] {(plain or trait)[:80]} would stand in {VALUES} for everybody to read",
                found=type(value).__name__,
                fix=f"write {secret.MEANT}, as the whole value; set a table in hub.extraConfig, from os.environ",
            )  # fmt: skip
        else:
            traits[trait] = value
    return hidden, traits


def _refers(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return secret.is_reference(value) or any(_refers(one) for one in inner)


# ------------------------------------------------------------------------------------------------ numbers


def megabytes(size: int) -> str:
    """Bytes as JupyterHub writes them, where M is 2**20: ``2048M``."""
    return f"{size >> 20}M"


def mebibytes(size: int) -> str:
    """Bytes as Kubernetes writes them: ``2048Mi``."""
    return f"{size >> 20}Mi"


def _split(reference: str) -> tuple[str, str]:
    """A reference by digest as the chart's ``name`` and ``tag``, which it joins with a colon: that of ``sha256:``."""
    name, _, digest = reference.rpartition(":")
    return name, digest
