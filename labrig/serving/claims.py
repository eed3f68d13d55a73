"""What a cluster's objects have to agree on, and no schema sees: claims, those who write to them, and namespaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from labrig.serving import cluster, settings, traits
from labrig.serving.documents import Document
from labrig.serving.rules import ERROR, KUBERNETES, WARNING, Finding, at, correct, kubernetes

KIND = "PersistentVolumeClaim"
# kubernetes.io/docs/concepts/storage/persistent-volumes, access modes; the schemas take any text.
MANY = "ReadWriteMany"
MODES = (MANY, "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany")
NAMESPACE = "metadata.namespace"


def check(documents: Iterable[Document], told: settings.Cluster) -> Iterator[Finding]:
    """What is wrong with the claims of some objects, and between them and the Jobs that write to them."""
    whole = list(documents)
    claims = [one for one in whole if at(one.data, "kind") == KIND]
    jobs = [
        one for one in whole if at(one.data, "kind") == "Job" and str(at(one.data, "apiVersion")).startswith("batch/")
    ]
    wanted = [name for job in jobs for _, name in _mounted(job)]
    for job in jobs:
        yield from _claimed(job, claims, told)
        yield from _namespace(job, told)
    for claim in claims:
        yield from _modes(claim)
        yield from _storage(claim)
        if claim.file == cluster.CLAIM or at(claim.data, "metadata.name") in wanted:
            yield from _namespace(claim, told)


def _say(document: Document, key: str, what: str, fix: str, level: str = ERROR) -> Finding:
    return Finding(document.file, document.line(key), key, what, fix, level)


def _mounted(job: Document) -> Iterator[tuple[str, str]]:
    """The key of each claim's name in a Job, and the name."""
    above = "spec.template.spec.volumes"
    volumes = at(job.data, above)
    for number, one in enumerate(volumes if isinstance(volumes, list) else ()):
        if (name := at(one, "persistentVolumeClaim.claimName")) is not None:
            yield f"{above}.{number}.persistentVolumeClaim.claimName", str(name)


def _claimed(job: Document, claims: Sequence[Document], told: settings.Cluster) -> Iterator[Finding]:
    names = [str(at(one.data, "metadata.name")) for one in claims]
    for key, name in _mounted(job):
        if name != told.results:
            what = f"the claim {name[:80]!r} is not that of [cluster] results, {told.results}"
            yield _say(job, key, what, f"write {told.results}, or name the settings with --config")
        elif not claims:
            what = f"no file here makes the claim {name}; without it pods wait for ever"
            yield _say(job, key, what, f"add {cluster.CLAIM}, unless the claim is there already", WARNING)
        elif name not in names:
            what = f"no {KIND} here has the name {name}, so pods wait for ever"
            yield _say(job, key, what, f"{claims[0].file} makes {names[0][:80]}: write the same name in both")


def _namespace(document: Document, told: settings.Cluster) -> Iterator[Finding]:
    """A pod mounts claims of its own namespace only."""
    said = at(document.data, NAMESPACE)
    if said is None:
        what = "no namespace is named, so it comes into that of whoever applies it"
        yield _say(document, NAMESPACE, what, f"write {told.namespace}", WARNING)
    elif said != told.namespace:
        what = (
            f"it is {str(said)[:80]}, and [cluster] namespace is {told.namespace}: a Job finds claims of its own only"
        )
        yield _say(document, NAMESPACE, what, f"write {told.namespace}, or name the settings with --config")


def _modes(claim: Document) -> Iterator[Finding]:
    key = "spec.accessModes"
    found = at(claim.data, key)
    modes = [str(one) for one in found] if isinstance(found, list) else []
    if not modes:
        yield _say(claim, key, "no access mode is named, and a claim has one", f"write [{MANY}]")
    for number, mode in enumerate(modes):
        if mode not in MODES:
            near = traits.near(mode, MODES) or MANY
            yield _say(claim, f"{key}.{number}", f"there is no access mode {mode[:80]}", f"write {near}")
    if modes and MANY not in modes and all(mode in MODES for mode in modes):
        what = f"{', '.join(modes)}: pods of a Job on several nodes cannot all write to it, and wait"
        yield _say(claim, key, what, f"write {MANY}, unless there is one node", WARNING)


def _storage(claim: Document) -> Iterator[Finding]:
    key = "spec.resources.requests.storage"
    said = at(claim.data, key)
    if said is None:
        yield _say(claim, key, "no size is named, and a claim has one", "write 1Gi")
    elif kubernetes(said) is None:
        what = "it is no quantity of Kubernetes, so the cluster refuses the claim"
        yield _say(claim, key, what, f"write {correct(said, KUBERNETES)}")
