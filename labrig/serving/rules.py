"""What no schema catches in a cluster's files: values that are possible, and would harm a course.

A profile of the chart and a Job's pod become one shape, so that one rule speaks for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labrig import image, matrix, secret
from labrig.serving import Offer, cluster, settings, traits
from labrig.serving.documents import Document

ERROR, WARNING = "error", "warning"
AGAIN = "render it again (invoke serve --cluster)"
DAY = 24 * 3600
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
# Suffixes of Kubernetes (resource.Quantity), and of JupyterHub (traitlets.ByteSpecification), whose M is 2**20.
UNITS = {f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGTPE", 1)}
THOUSANDS = {"": 1, "m": 0.001, **{letter: 1000**power for power, letter in enumerate("kMGTPE", 1)}}
POWERS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
CORES = {"": 1, "m": 0.001}
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?)([A-Za-z]*)")
# What looks like a secret by itself, whatever key it stands at: a private key, tokens of GitHub, GitLab, Slack, AWS.
LOOKS_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abp]-\w|\bAKIA[A-Z0-9]{16}\b"
)
NO_SECRET = ("existingSecret", "secretName", "claimName", "imagePullSecrets", "pullSecrets")  # names of some


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``line`` 0: not known; ``level``: an error, or what is to be known; ``meant``: the key
    that a misspelt one is taken for."""

    file: str
    line: int
    key: str
    what: str
    fix: str
    level: str = ERROR
    meant: str = ""

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it."""
        return {
            "level": self.level,
            "file": self.file,
            "line": self.line,
            "key": self.key,
            "what": self.what,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Pod:
    """What students or labs run in, wherever it is written. Memory is in bytes, None: not said, or ``unread``."""

    document: Document
    at: Mapping[str, str]  # of each part below, the key that it stands at
    image: str
    memory: float | None
    guarantee: float | None
    cpu: float | None
    cpu_guarantee: float | None
    gpus: str
    terms: Sequence[Any]
    labels: Mapping[str, Any]
    shm: Mapping[str, Any] | None  # the emptyDir at /dev/shm
    command: Any
    folder: Any
    user: Any
    escalation: Any
    dropped: Any
    unread: Mapping[str, str]  # of each part whose size cannot be read: what may be meant


Found = Iterator[tuple[str, str, str]]  # the part of a pod, what is wrong, what to do


def size_of(value: Any, units: Mapping[str, float]) -> float | None:
    """A quantity as a number; None where it is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(min(value, 1 << 1000))  # what is larger is no float
    found = QUANTITY.fullmatch(str(value))
    return float(found[1]) * units[found[2]] if found and found[2] in units else None


KUBERNETES = {**UNITS, **THOUSANDS}


def kubernetes(value: Any) -> float | None:
    """Memory or a disk's size as Kubernetes reads it, in bytes: ``1Gi``, and ``1G`` is a thousand million."""
    return size_of(value, KUBERNETES)


def correct(value: Any, units: Mapping[str, float]) -> str:
    """A size that can be read, for one that cannot: ``2G`` for ``2GB``."""
    found = QUANTITY.fullmatch(str(value))
    suffix = found[2].lower() if found else ""
    near = max((unit for unit in units if unit and suffix.startswith(unit.lower())), key=len, default="")
    if found and near:
        return f"{found[1][:20]}{near}"
    named = ", ".join(filter(None, units))
    return f"a number with one of {named} behind it" if named else "a number"


Sizes = Mapping[str, tuple[Any, Mapping[str, float]]]  # of parts of a pod: what is said, and its units


def unreadable(sizes: Sizes) -> dict[str, str]:
    """Of sizes that are said and cannot be read: what to write instead."""
    return {
        part: correct(value, units)
        for part, (value, units) in sizes.items()
        if value is not None and size_of(value, units) is None
    }


def mebibytes(size: float) -> str:
    """Bytes for people, so that two sizes can be compared: ``2048 MiB``."""
    return f"{size / (1 << 20):.1f}".removesuffix(".0") + " MiB"


def at(data: Any, path: str) -> Any:
    """What stands at a path of keys; None where nothing does."""
    for part in path.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def table(data: Any, path: str) -> Mapping[str, Any]:
    """The table at a path of keys; an empty one where nothing or something else is (a schema says so)."""
    found = at(data, path)
    return found if isinstance(found, Mapping) else {}


def rows(data: Any, path: str) -> list[Any]:
    """The tables of a list at a path of keys; the chart takes a table of them as well."""
    found = at(data, path)
    inner = found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else []
    return [one for one in inner if isinstance(one, Mapping)]


# ------------------------------------------------------------------------------------------------ pods


def profiles(document: Document) -> Iterator[Pod]:
    """The pods of a chart's values: one a profile, or one where there are none."""
    user = table(document.data, "singleuser")
    listed = [
        (f"singleuser.profileList.{number}.kubespawner_override", table(row, "kubespawner_override"))
        for number, row in enumerate(rows(user, "profileList"))
    ]
    own = table(document.data, "hub.config.KubeSpawner")
    for key, override in listed or [("singleuser", {})]:
        whole = {**own, **override}
        name = f"{at(user, 'image.name') or ''}:{at(user, 'image.tag') or ''}"
        said = {
            part: f"{key}.{part}" if part in override else f"hub.config.KubeSpawner.{part}" if part in own else place
            for part, place in PLACES.items()
        }
        volumes = _by_name(rows(user, "storage.extraVolumes"))
        sizes: Sizes = {
            "memory": (whole.get("mem_limit", at(user, "memory.limit")), POWERS),
            "guarantee": (whole.get("mem_guarantee", at(user, "memory.guarantee")), POWERS),
            "cpu": (whole.get("cpu_limit", at(user, "cpu.limit")), {"": 1}),
            "cpu_guarantee": (whole.get("cpu_guarantee", at(user, "cpu.guarantee")), {"": 1}),
        }
        yield Pod(
            document=document,
            at={
                "image": said["image"],
                "memory": said["mem_limit"],
                "guarantee": said["mem_guarantee"],
                "cpu": said["cpu_limit"],
                "cpu_guarantee": said["cpu_guarantee"],
                "gpus": f"{key}.extra_resource_limits",
                "command": said["cmd"],
                "terms": f"{key}.node_affinity_required",
                "labels": "singleuser.nodeSelector",
                "user": said["uid"],
                "shm": "singleuser.storage.extraVolumes",
                "folder": said["working_dir"],
                "escalation": said["allow_privilege_escalation"],
                "dropped": said["container_security_context"],
            },
            image=str(whole.get("image", name)),
            memory=size_of(*sizes["memory"]),
            guarantee=size_of(*sizes["guarantee"]),
            cpu=size_of(*sizes["cpu"]),
            cpu_guarantee=size_of(*sizes["cpu_guarantee"]),
            unread=unreadable(sizes),
            gpus=str(
                (
                    table(whole, "extra_resource_limits")
                    if "extra_resource_limits" in whole
                    else table(user, "extraResource.limits")
                ).get(cluster.GPU, "")
            ),
            terms=[*rows(whole, "node_affinity_required"), *rows(user, "extraNodeAffinity.required")],
            labels={**table(user, "nodeSelector"), **table(whole, "node_selector")},
            shm=_shm(rows(user, "storage.extraVolumeMounts"), volumes),
            command=whole.get("cmd", user.get("cmd")),
            folder=whole.get("working_dir"),
            user=whole.get("uid", user.get("uid", image.UID)),
            escalation=whole.get("allow_privilege_escalation", user.get("allowPrivilegeEscalation", False)),
            dropped=at(whole, "container_security_context.capabilities.drop"),
        )


# Where a trait of KubeSpawner stands in the chart's values.
PLACES = {
    "image": "singleuser.image",
    "mem_limit": "singleuser.memory.limit",
    "mem_guarantee": "singleuser.memory.guarantee",
    "cpu_limit": "singleuser.cpu.limit",
    "cpu_guarantee": "singleuser.cpu.guarantee",
    "cmd": "singleuser.cmd",
    "uid": "singleuser.uid",
    "allow_privilege_escalation": "singleuser.allowPrivilegeEscalation",
    "working_dir": "hub.config.KubeSpawner.working_dir",
    "container_security_context": "hub.config.KubeSpawner.container_security_context",
}


def workers(document: Document) -> Iterator[Pod]:
    """The pods of a Job: one a container."""
    spec, above = table(document.data, "spec.template.spec"), "spec.template.spec"
    volumes = _by_name(rows(spec, "volumes"))
    for number, one in enumerate(rows(spec, "containers")):
        key = f"{above}.containers.{number}"
        limits, requests = table(one, "resources.limits"), table(one, "resources.requests")
        sizes: Sizes = {
            "memory": (limits.get("memory"), KUBERNETES),
            "guarantee": (requests.get("memory"), KUBERNETES),
            "cpu": (limits.get("cpu"), CORES),
            "cpu_guarantee": (requests.get("cpu"), CORES),
        }
        yield Pod(
            document=document,
            at={
                "image": f"{key}.image",
                "memory": f"{key}.resources.limits.memory",
                "cpu": f"{key}.resources.limits.cpu",
                "guarantee": f"{key}.resources.requests.memory",
                "cpu_guarantee": f"{key}.resources.requests.cpu",
                "gpus": f"{key}.resources.limits",
                "terms": f"{above}.affinity",
                "labels": f"{above}.nodeSelector",
                "shm": f"{above}.volumes",
                "command": f"{key}.command",
                "folder": f"{key}.workingDir",
                "user": f"{above}.securityContext",
                "escalation": f"{key}.securityContext.allowPrivilegeEscalation",
                "dropped": f"{key}.securityContext.capabilities",
            },
            image=str(one.get("image", "")),
            memory=size_of(*sizes["memory"]),
            guarantee=size_of(*sizes["guarantee"]),
            cpu=size_of(*sizes["cpu"]),
            cpu_guarantee=size_of(*sizes["cpu_guarantee"]),
            unread=unreadable(sizes),
            gpus=str(limits.get(cluster.GPU, "")),
            terms=rows(spec, "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"),
            labels=table(spec, "nodeSelector"),
            shm=_shm(rows(one, "volumeMounts"), volumes),
            command=one.get("command"),
            folder=one.get("workingDir"),
            user=table(one, "securityContext").get("runAsUser", at(spec, "securityContext.runAsUser")),
            escalation=at(one, "securityContext.allowPrivilegeEscalation"),
            dropped=at(one, "securityContext.capabilities.drop"),
        )


def _by_name(listed: Sequence[Any]) -> dict[str, Any]:
    return {one["name"]: one for one in listed if isinstance(one.get("name"), str)}


def _shm(mounts: Sequence[Any], volumes: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    name = next((one.get("name") for one in mounts if one.get("mountPath") == cluster.SHM), None)
    found = table(volumes.get(name) if isinstance(name, str) else None, "emptyDir")
    return found if found.get("medium") == "Memory" else None


def check_pod(pod: Pod, offers: Sequence[Offer]) -> Iterator[Finding]:
    """What is wrong with a pod; which offer it is for, its image says."""
    offer = next((one for one in offers if one.reference == pod.image), None)
    found = [*_image(pod, offers), *_limits(pod), *_memory_file(pod), *_rights(pod)]
    if offer:
        found += [*_gpu(pod, offer), *_nodes(pod, offer)]
    for part, what, fix in found:
        key = pod.at[part]
        yield Finding(pod.document.file, pod.document.line(key), key, what, fix)


def _image(pod: Pod, offers: Sequence[Offer]) -> Found:
    if not DIGEST.fullmatch(pod.image):
        yield (
            "image",
            f"{pod.image[:120]} is no image by digest, so it can come to mean another",
            "write NAME@sha256:DIGEST",
        )
    elif pod.image not in [one.reference for one in offers]:
        yield (
            "image",
            f"{pod.image[:160]} is none of the published images",
            (f"write {offers[0].reference}, or another of images/published.toml"),
        )
    if cluster.is_here(pod.image):
        yield "image", f"it is {cluster.NOT_HERE}", cluster.ELSEWHERE


def _limits(pod: Pod) -> Found:
    for part, meant in pod.unread.items():
        yield part, "no size that can be read: its unit is wrong, or its number", f"write {meant}"
    for part, value in (("memory", pod.memory), ("cpu", pod.cpu)):
        if not value and part not in pod.unread:
            yield part, f"no limit of {part}, so one student can take a whole node", "write one"
    for part, limit, guarantee, say in (
        ("guarantee", pod.memory, pod.guarantee, mebibytes),
        ("cpu_guarantee", pod.cpu, pod.cpu_guarantee, "{:g} cores".format),
    ):
        if limit and guarantee and guarantee > limit:
            yield (
                part,
                f"what is guaranteed ({say(guarantee)}) is above the limit ({say(limit)})",
                "make the limit at least as large",
            )


def _memory_file(pod: Pod) -> Found:
    if pod.shm is None:
        yield (
            "shm",
            f"no emptyDir of medium Memory at {cluster.SHM}: 64 MB, with which DataLoader workers die",
            "mount one",
        )
        return
    said = pod.shm.get("sizeLimit")
    size = kubernetes(said)
    if said is not None and size is None:
        yield "shm", f"the sizeLimit of {cluster.SHM} cannot be read", f"write {correct(said, KUBERNETES)}"
    elif size is None:
        yield "shm", f"{cluster.SHM} has no sizeLimit, so it can fill the node's memory", "write one"
    elif pod.memory and size > pod.memory:
        yield (
            "shm",
            f"{cluster.SHM} ({mebibytes(size)}) is part of the pod's memory, and larger ({mebibytes(pod.memory)})",
            "make it smaller",
        )


def _rights(pod: Pod) -> Found:
    if not isinstance(pod.user, int) or pod.user == 0:
        yield "user", f"it runs as user {pod.user}; labs run as nobody's root", f"write {image.UID}"
    if pod.escalation is not False:
        yield "escalation", "a program in it can get more rights than it was started with", "write false"
    if pod.dropped != ["ALL"]:
        yield "dropped", "capabilities are not dropped, and labs need none", "write drop: [ALL]"
    if pod.folder != str(image.LABS):
        yield (
            "folder",
            f"the command is run in {pod.folder}; the labs are a package in {image.LABS}",
            f"write {image.LABS}",
        )


def _gpu(pod: Pod, offer: Offer) -> Found:
    if offer.device != "cuda":
        if pod.gpus:
            yield (
                "gpus",
                f"{offer.target} computes on the CPU, and takes {pod.gpus} GPU from somebody who needs it",
                (f"leave {cluster.GPU} out"),
            )
        return
    if not re.fullmatch(r"[1-9][0-9]*", pod.gpus):
        yield "gpus", f"{offer.target} needs a GPU and asks for none", f'write {cluster.GPU}: "1"'
    cards = {row["cc"] for row in matrix.read_table(matrix.DATA / "gpus.tsv")}
    stray = sorted((one for one in cards if _admits(pod, one) and not _runs(offer, one)), key=float)
    if stray and any(cluster.MAJOR in str(term) for term in pod.terms):
        what = f"it can come to nodes with a GPU of {', '.join(stray)}, for which {offer.target} has no code"
        yield "terms", what, AGAIN
    told = [one for term in pod.terms for one in rows(term, "matchExpressions")]
    for label, why in ((cluster.MAJOR, "whose GPU the image has code for"), (cluster.DRIVER[0], "with its driver")):
        if label not in pod.labels and label not in [one.get("key") for one in told]:
            yield (
                "terms",
                f"nothing takes {offer.target} to nodes {why}: no {label}",
                AGAIN,
            )


def _runs(offer: Offer, card: str) -> bool:
    """Whether an image has code for a GPU: of its major version, and no newer minor (labrig/data/README.md)."""
    major, minor = card.split(".")
    pairs = [one.split(".") for one in offer.capabilities]
    return any(own == major and int(lowest) <= int(minor) for own, lowest in pairs)


def _admits(pod: Pod, card: str) -> bool:
    """Whether a node with a GPU of that capability can be taken; any term is enough, and all of it has to hold."""
    labels = dict(zip((cluster.MAJOR, cluster.MINOR), card.split("."), strict=True))
    terms = [[one for one in rows(term, "matchExpressions") if str(one.get("key")) in labels] for term in pod.terms]
    return any(all(_holds(one, labels[one["key"]]) for one in term) for term in terms)


def _holds(one: Mapping[str, Any], label: str) -> bool:
    """An expression of a node selector term (kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node)."""
    listed = one.get("values")
    values = [str(value) for value in listed] if isinstance(listed, list) else []
    match one.get("operator"):
        case "In":
            return label in values
        case "NotIn":
            return label not in values
        case "Gt" | "Lt" as operator if len(values) == 1 and re.fullmatch(r"[0-9]{1,18}", values[0]):
            return int(label) > int(values[0]) if operator == "Gt" else int(label) < int(values[0])
        case "Exists":
            return True
        case _:
            return False


def _nodes(pod: Pod, offer: Offer) -> Found:
    arch = cluster.ARCHS[offer.platform]
    if pod.labels.get(cluster.ARCH) != arch:
        yield (
            "labels",
            f"{offer.target} is for {arch}, and nothing says so to the scheduler",
            f"write {cluster.ARCH}: {arch}",
        )


# ------------------------------------------------------------------------------------------------ values

Row = tuple[str, str, str]  # a key, what is wrong, what to do
NOBODY = (None, "dummy", "null", "jupyterhub.auth.DummyAuthenticator", "jupyterhub.auth.NullAuthenticator")
NOT_PULLED = "images are not on the nodes before students are: a first start takes minutes, or times out"
# One key, what of it is wrong, in words, and what to do.
OF_VALUES: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    ("prePuller.hook.enabled", lambda value: value is False, NOT_PULLED, "write true"),
    ("prePuller.continuous.enabled", lambda value: value is False, NOT_PULLED, "write true"),
    ("prePuller.pullProfileListImages", lambda value: value is False, NOT_PULLED, "write true"),
    ("singleuser.networkPolicy.enabled", lambda value: value is False,
     "students reach each other, the cluster and its metadata", "write true"),
    ("singleuser.networkPolicy.egressAllowRules.cloudMetadataServer", lambda value: value is True,
     "students can read the cloud's credentials of the node", "write false"),
    ("singleuser.storage.type", lambda value: value == "none", "what students write is gone when their server stops",
     "write dynamic"),
    ("singleuser.storage.homeMountPath", lambda value: value != image.WORK,
     f"students work in {image.WORK}, which is not kept", f"write {image.WORK}"),
    ("hub.config.JupyterHub.authenticator_class", lambda value: value in NOBODY, "anybody comes in, or nobody",
     "name an authenticator's class"),
)  # fmt: skip


def check_values(document: Document, offers: Sequence[Offer], told: settings.Settings) -> Iterator[Finding]:
    """What is wrong with values, beyond the chart's own schema."""
    data = document.data
    found: list[Row] = []
    for pod in profiles(document):
        yield from check_pod(pod, offers)
        if pod.command != list(cluster.COMMAND):
            found.append((pod.at["command"], "it does not start the labs' JupyterLab", f"write {[*cluster.COMMAND]}"))
    found += [(key, what, fix) for key, is_wrong, what, fix in OF_VALUES if is_wrong(at(data, key))]
    if at(data, "ingress.enabled") and not at(data, "ingress.tls"):
        found.append(("ingress.tls", "passwords cross the network unencrypted", "name hosts and a secretName"))
    found += [*_first_image(data, offers), *_capacity(data)]
    yield from name(document, found)
    kept = told.student.idle == 0 or told.student.idle * 60 > DAY  # serve.toml says it on purpose
    yield from name(document, _culling(data), WARNING if kept else ERROR)
    if at(data, "hub.config.JupyterHub.authenticator_class") == settings.SHARED:
        shared = "one password for all: whoever knows it is any student they say they are"
        fix = "for more than a first hour name an authenticator's class"
        yield from name(document, [("hub.config.JupyterHub.authenticator_class", shared, fix)], WARNING)


def name(document: Document, found: Iterable[Row], level: str = ERROR) -> Iterator[Finding]:
    """Rows as findings, with the line of their keys."""
    return (Finding(document.file, document.line(key), key, what, fix, level) for key, what, fix in found)


def _first_image(data: Any, offers: Sequence[Offer]) -> Iterator[Row]:
    """The image that the chart takes and pulls besides those of profiles; it joins name and tag with a colon."""
    whole = f"{at(data, 'singleuser.image.name')}:{at(data, 'singleuser.image.tag')}"
    if not rows(data, "singleuser.profileList") or not table(data, "singleuser.image"):
        return  # looked at as a pod's image
    if whole not in [one.reference for one in offers]:
        tags = ", ".join(one.reference.rpartition(":")[2] for one in offers)
        what = f"{whole[:160]} is none of the published images"
        yield "singleuser.image.tag", what, f"write a digest (name NAME@sha256, tag the digits): {tags}"


def _capacity(data: Any) -> Iterator[Row]:
    said = at(data, "singleuser.storage.capacity")
    if said is not None and kubernetes(said) is None:
        what = "it is no quantity of Kubernetes, so no student gets a volume"
        yield "singleuser.storage.capacity", what, f"write {correct(said, KUBERNETES)}"


def _culling(data: Any) -> Iterator[Row]:
    timeout = at(data, "cull.timeout")
    if at(data, "cull.enabled") is False:
        yield "cull.enabled", "servers run, and hold memory, until somebody stops them", "write true"
    elif isinstance(timeout, int) and timeout > DAY:
        yield "cull.timeout", f"an idle server is kept for {timeout // 3600} hours", f"write at most {DAY}"


# What the hub's container has besides: by the chart (templates/hub/deployment.yaml), by every Linux, and for each
# service by Kubernetes.
HAS = ("PYTHONUNBUFFERED", "HELM_RELEASE_NAME", "POD_NAMESPACE", "CONFIGPROXY_AUTH_TOKEN", "PATH", "HOME", "HOSTNAME",
       "LANG", "LC_ALL")  # fmt: skip
SERVICE = re.compile(r"[A-Z0-9_]+_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\w+)?)")
# `kubectl create secret generic NAME`, as the file's first lines tell.
TOLD_SECRET = re.compile(r"(?m)^[ \t]*#.*\bkubectl create secret generic ([^\s\\]+)(.*)")
TOLD_KEY = re.compile(r"--from-(?:file|literal)=([^\s=]+)=")


def check_environment(document: Document) -> Iterator[Finding]:
    """What the hub's code reads from its environment against what is set, and the Secret that this refers to."""
    env = at(document.data, "hub.extraEnv")
    listed = dict(enumerate(env)) if isinstance(env, list) else env if isinstance(env, Mapping) else {}
    given = {
        str(one["name"]) if isinstance(one, Mapping) and "name" in one else str(key) for key, one in listed.items()
    }
    for key, text in table(document.data, "hub.extraConfig").items():
        for variable in traits.variables(str(text)):
            if variable not in (*given, *HAS) and not SERVICE.fullmatch(variable):
                what = (
                    f"hub.extraConfig.{key} reads it and nothing sets it: the hub ends with a KeyError when it starts"
                )
                yield from name(document, [(f"hub.extraEnv.{variable}", what, "set it, from a Secret if it is one")])
    named = {
        f"hub.extraEnv.{key}.valueFrom.secretKeyRef.name": str(found)
        for key, one in listed.items()
        if (found := at(one, "valueFrom.secretKeyRef.name")) is not None
    }
    told = TOLD_SECRET.findall(document.text)
    made = [one for one, _ in told]
    # Without those lines all have to name one: ours, where any does.
    known = made or [cluster.SECRET if cluster.SECRET in named.values() else next(iter(named.values()), "")]
    why = "the first lines of this file do not make it" if made else "others name another"
    for key, other in named.items():
        if other not in known:
            what = f"the Secret {other[:80]}: {why}, and the hub does not start without it"
            yield from name(document, [(key, what, f"write {known[0]}, or add how {other[:80]} is made")])
    keys = {one: TOLD_KEY.findall(flags) for one, flags in told if not flags.endswith("\\")}  # the rest stands below
    for number, one in ((key, at(one, "valueFrom.secretKeyRef")) for key, one in listed.items()):
        there, wanted = keys.get(str(at(one, "name")), []), at(one, "key")
        if there and wanted is not None and wanted not in there:
            what = (
                f"the Secret that the first lines of this file make has no {str(wanted)[:80]}: the hub does not start"
            )
            path = f"hub.extraEnv.{number}.valueFrom.secretKeyRef.key"
            yield from name(document, [(path, what, f"write {', '.join(there)[:200]}, or add it there")])


def check_hub(document: Document, offers: Sequence[Offer], chart: str, hub: str) -> Iterator[Finding]:
    """The hub of a chart against the jupyterhub of the images."""
    key = "singleuser.profileList"
    for offer in offers:
        if not offer.hub:
            what = f"the image of {offer.target} has no jupyterhub, so no hub can start it"
            fix = f"add jupyterhub to its packages, invoke lock and publish --target={offer.target}"
            yield from name(document, [(key, what, fix)])
        elif offer.hub.split(".")[0] != hub.split(".")[0]:
            tried = "tried, and a login and a kernel worked" if (hub, offer.hub) == TRIED else "not tried together"
            pair = f"the hub of {chart} is jupyterhub {hub}, {offer.target} has {offer.hub}"
            what = f"{pair}, another major version: {tried}"
            yield from name(document, [(key, what, "try a login before the course does")], WARNING)


# Tried on 2026-11-27 with DockerSpawner and the image of cpu: a login (the hub's OAuth), JupyterLab's page, a kernel.
TRIED = ("5.5.0", "6.1.1")


# ------------------------------------------------------------------------------------------------ Jobs

OF_JOBS: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    ("spec.template.spec.restartPolicy", lambda value: value != "Never",
     "a failed lab is run in the same pod again, and podFailurePolicy does not count it", "write Never"),
    ("spec.completionMode", lambda value: value != "Indexed", "pods get no index, so none has a lab", "write Indexed"),
    ("spec.backoffLimitPerIndex", lambda value: not isinstance(value, int),
     "retries are shared: a lab that fails takes them from the others", "write 1"),
    ("spec.podFailurePolicy", lambda value: not value,
     "a drained node counts as a failed lab, and a missed gate is tried again", AGAIN),
    ("spec.activeDeadlineSeconds", lambda value: not isinstance(value, int),
     "a Job that no node can take waits for ever", "write seconds"),
    ("spec.ttlSecondsAfterFinished", lambda value: not isinstance(value, int), "finished pods stay for ever",
     "write seconds"),
)  # fmt: skip


def check_job(document: Document, offers: Sequence[Offer], labs: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with a Job of labs, beyond Kubernetes' own schema."""
    data = document.data
    for pod in workers(document):
        yield from check_pod(pod, offers)
    yield from name(document, [row[:1] + row[2:] for row in OF_JOBS if row[1](at(data, row[0]))])
    most, many = at(data, "spec.maxFailedIndexes"), at(data, "spec.completions")
    if isinstance(most, int) and isinstance(many, int) and most < many:
        what = "labs that fail end the Job before the others have run"
        yield from name(document, [("spec.maxFailedIndexes", what, f"write {many}")])
    yield from name(document, _results(data))
    yield from name(document, _labs(data, labs))


def _results(data: Any) -> Iterator[Row]:
    spec = table(data, "spec.template.spec")
    claims = [one.get("name") for one in rows(spec, "volumes") if at(one, "persistentVolumeClaim.claimName")]
    places = [place for one in rows(spec, "containers") for place in rows(one, "volumeMounts")]
    kept = [str(place.get("mountPath")).rstrip("/") for place in places if place.get("name") in claims]
    folder = _flag(_command(data), "--documents")
    if not any(folder == place or folder.startswith(f"{place}/") for place in kept):
        what = f"no claim is mounted where the documents go ({folder or 'nowhere'}): they are lost with the pod"
        yield "spec.template.spec.volumes", what, f"mount a persistentVolumeClaim at {cluster.RESULTS}"


def _labs(data: Any, labs: Sequence[str]) -> Iterator[Row]:
    key, words = "spec.template.spec.containers.0.command", _command(data)
    if words[: len(RUN)] != list(RUN) or not _flag(words, "--index-from"):
        yield key, "it does not run the lab of its index", f"write {' '.join(RUN)} LABS --index-from={cluster.INDEX}"
        return
    named = [word for word in words[len(RUN) :] if not word.startswith("-")]
    for lab in named:
        if lab not in labs:
            yield key, f"no lab is called {lab}", "leave it out"
    for lab in labs:
        if lab not in named:
            yield key, f"lab {lab} is missing", "add it, and one to completions"
    if (many := at(data, "spec.completions")) != len(named):
        yield "spec.completions", f"it is {many}, and {len(named)} labs are named", f"write {len(named)}"


RUN = ("python", "-m", "labs", "run")


def _command(data: Any) -> list[str]:
    """The words of the first container's command."""
    found = next((one.get("command") for one in rows(data, "spec.template.spec.containers")), None)
    return [str(word) for word in found] if isinstance(found, list) else []


def _flag(words: Sequence[str], flag: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), "")


# ------------------------------------------------------------------------------------------------ secrets


def find_secrets(document: Document) -> Iterator[Finding]:
    """Values that look like secrets; they are not shown."""
    what = "a secret would stand here for everybody who reads the file"
    fix = f"put it into the Secret {cluster.SECRET} (the first lines of {cluster.VALUES})"
    for key, whose, value in _texts(document.data, "", ""):
        named = secret.NAMED.search(whose) and whose not in NO_SECRET
        if value and (named or LOOKS_SECRET.search(value)):
            yield from name(document, [(key, what, fix)])


def _texts(data: Any, above: str, whose: str) -> Iterator[tuple[str, str, str]]:
    """Each text of a document: its path, the name it stands at, itself. What stands at ``value`` has the name of the
    variable: beside it, or above it."""
    if isinstance(data, Mapping):
        beside = str(data.get("name") or whose)
        for key, value in data.items():
            # An annotation or a label, ``nginx.ingress.kubernetes.io/auth-tls-secret``, names a thing;
            # in extraConfig it is a piece of code, at which checks.check_config looks.
            own = "" if "/" in str(key) or above == "hub.extraConfig" else whose if whose == "consumers" else str(key)
            yield from _texts(value, f"{above}.{key}".lstrip("."), beside if key == "value" else own)
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _texts(value, f"{above}.{number}", whose)
    elif isinstance(data, str):
        yield above, whose, data
