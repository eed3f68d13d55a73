"""What takes a cluster's files apart from inside: rights that students would get, files and logins that would be lost.

Each table has rows: a key, when its value is wrong, what that opens, what to do. KubeSpawner's traits are looked at
wherever they can be said: the chart's own keys, ``hub.config``, profiles, their options, code in ``hub.extraConfig``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labrig import image
from labrig.errors import UsageError
from labrig.serving import Offer, cluster, settings, traits
from labrig.serving.documents import Document
from labrig.serving.rules import DIGEST, ERROR, NOBODY, RUN, WARNING, Finding, at, name, rows, table

Danger = tuple[str, str, str, str]  # a key, what is wrong, what to do, the level
Rule = tuple[str, Callable[[Any], bool], str, str, str]
OWN = re.compile(r"\{\w*user\w*\}")  # KubeSpawner fills in {username}, {user_server} and their kind, and {userid}


def is_on(value: Any) -> bool:
    """Whether something is said to be so."""
    return value is True


def is_off(value: Any) -> bool:
    """Whether something is said not to be so."""
    return value is False


def is_root(value: Any) -> bool:
    """Whether a user's number is root's."""
    return type(value) is int and value == 0


def is_given(value: Any) -> bool:
    """Whether anything is said."""
    return value not in (None, False, "", [], {})


def is_below(lowest: int) -> Callable[[Any], bool]:
    """Whether a number is below another; what is no number is a schema's business."""
    return lambda value: type(value) in (int, float) and value < lowest


# ------------------------------------------------------------------------------------------------ students' pods

NODE = "a student's program is root of the node, and reads everybody's files"
TOKEN = "students' programs get a token of the cluster's API"  # noqa: S105 - in words
OF_POD: tuple[Rule, ...] = (
    ("hostNetwork", is_on, "students are in the node's network, past every network policy", "leave it out", ERROR),
    ("hostPID", is_on, "students see, and can stop, the node's processes", "leave it out", ERROR),
    ("hostIPC", is_on, "students share memory with the node's processes", "leave it out", ERROR),
    ("automountServiceAccountToken", is_on, TOKEN, "write false", ERROR),
    ("serviceAccountName", is_given, TOKEN, "leave it out", ERROR),
    ("securityContext.runAsUser", is_root, "it runs as root", f"write {image.UID}", ERROR),
)  # fmt: skip
OF_CONTAINER: tuple[Rule, ...] = (
    ("privileged", is_on, NODE, "leave it out", ERROR),
    ("allowPrivilegeEscalation", is_on, "a program in it can get more rights than it was started with", "write false",
     ERROR),
    ("capabilities.add", is_given, "labs need no capability, and each opens something of the node", "leave it out",
     ERROR),
    ("runAsUser", is_root, "it runs as root", f"write {image.UID}", ERROR),
    ("runAsNonRoot", is_off, "an image may start as root", "write true", ERROR),
)  # fmt: skip


def _under(key: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple((f"{key}.{row[0]}", *row[1:]) for row in rules)


OF_SPAWNERS: tuple[Rule, ...] = (
    ("privileged", is_on, NODE, "leave it out", ERROR),
    *_under("container_security_context", OF_CONTAINER),
    *_under("extra_container_config.securityContext", OF_CONTAINER),
    *_under("extra_pod_config", OF_POD),
    ("pod_security_context.runAsUser", is_root, "it runs as root", f"write {image.UID}", ERROR),
    ("service_account", is_given, TOKEN, "leave it out", ERROR),
    ("automount_service_account_token", is_on, TOKEN, "write false", ERROR),
    ("start_timeout", is_below(60), "a start that pulls an image, or waits for a node, is given up",
     "write 600", ERROR),
    ("pvc_name_template", lambda value: isinstance(value, str) and value != "" and not OWN.search(value),
     "all students share one claim, and each other's files", "write claim-{user_server}", ERROR),
)  # fmt: skip
# What rules.py looks at in a profile, and nobody in its options and in code.
OF_CHOICES: tuple[Rule, ...] = (
    ("allow_privilege_escalation", is_on, "a program in it can get more rights than it was started with",
     "write false", ERROR),
    ("uid", is_root, "it runs as root", f"write {image.UID}", ERROR),
)  # fmt: skip
SPAWNERS = ("KubeSpawner", "Spawner")
LISTS = ("singleuser.profileList", "hub.config.KubeSpawner.profile_list")  # where profiles can stand
# Traits of KubeSpawner that the chart has keys for.
CHART = {
    "extra_pod_config": "singleuser.extraPodConfig",
    "service_account": "singleuser.serviceAccountName",
    "start_timeout": "singleuser.startTimeout",
    "pvc_name_template": "singleuser.storage.dynamic.pvcNameTemplate",
    "volumes": "singleuser.storage.extraVolumes",
    "volume_mounts": "singleuser.storage.extraVolumeMounts",
    "init_containers": "singleuser.initContainers",
    "extra_containers": "singleuser.extraContainers",
}


@dataclass(frozen=True)
class Place:
    """Traits of KubeSpawner, and where they stand. ``lines``: of code, that of each trait."""

    traits: Mapping[str, Any]
    above: str  # "" where CHART says it
    is_choice: bool = False  # an option of a profile, or code: what rules.py does not see
    lines: Mapping[str, int] | None = None

    def key(self, path: str) -> str:
        """The whole key of a path that begins with a trait."""
        if self.above:
            return self.above + path
        first, _, rest = path.partition(".")
        return ".".join(part for part in (CHART[first], rest) if part)


def find(data: Any, path: str) -> tuple[str, Any]:
    """What stands at a path of keys, however they are written: KubeSpawner takes ``hostNetwork`` and ``host_network``.
    Gives the path as it is written."""
    written: list[str] = []
    for part in path.split("."):
        key = next((one for one in data if _same(one, part)), None) if isinstance(data, Mapping) else None
        if key is None:
            return path, None
        written.append(str(key))
        data = data[key]
    return ".".join(written), data


def _same(one: Any, other: str) -> bool:
    return isinstance(one, str) and one.replace("_", "").lower() == other.replace("_", "").lower()


def listed(data: Any, path: str) -> list[tuple[str, Mapping[Any, Any]]]:
    """The tables of a list (or of a table, which the chart takes as well), each with its path."""
    found = find(data, path)[1]
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found) if isinstance(found, list) else ()
    return [(f"{path}.{key}", one) for key, one in pairs if isinstance(one, Mapping)]


def look(data: Any, rules: Sequence[Rule]) -> Iterator[Danger]:
    """What of a table is wrong by rows."""
    for path, is_wrong, what, fix, level in rules:
        key, value = find(data, path)
        if is_wrong(value):
            yield key, what, fix, level


def places(data: Any) -> Iterator[Place]:
    """Everywhere that values say traits of KubeSpawner."""
    yield Place({trait: at(data, key) for trait, key in CHART.items()}, "")
    for owner in SPAWNERS:
        yield Place(table(data, f"hub.config.{owner}"), f"hub.config.{owner}.")
    for key, profile in (pair for above in LISTS for pair in listed(data, above)):
        yield Place(table(profile, "kubespawner_override"), f"{key}.kubespawner_override.")
        for path, choice in choices(profile):
            yield Place(table(choice, "kubespawner_override"), f"{key}.{path}.kubespawner_override.", is_choice=True)
    for key, text in table(data, "hub.extraConfig").items():
        found = [row for row in assigned(text) if row[1] in SPAWNERS]
        given = {trait: value for _, _, trait, value in found if value is not ...}
        lines = {trait: line for line, _, trait, _ in found}
        yield Place(given, f"hub.extraConfig.{key}: c.KubeSpawner.", is_choice=True, lines=lines)


def choices(profile: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """What a profile's options let a student choose, each with its path."""
    for path, option in listed(profile, "profile_options"):
        yield from ((f"{path}.{key}", one) for key, one in listed(option, "choices"))
        if isinstance(unlisted := option.get("unlisted_choice"), Mapping):
            yield f"{path}.unlisted_choice", unlisted


def assigned(text: Any) -> list[tuple[int, str, str, Any]]:
    """The assignments of code; none where it is no Python, which is said elsewhere."""
    try:
        return list(traits.assignments(str(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _of_place(place: Place, base: Mapping[str, Any], offers: Sequence[Offer]) -> Iterator[Danger]:
    yield from look(place.traits, OF_SPAWNERS + (OF_CHOICES if place.is_choice else ()))
    yield from host_paths(place.traits, "volumes")
    yield from host_paths(place.traits, "extra_pod_config.volumes")
    for kind in ("init_containers", "extra_containers"):
        yield from beside(place.traits, kind, offers)
    yield from _work(place, base)
    if place.is_choice and "image" in place.traits and (what := _unpublished(place.traits["image"], offers)):
        yield "image", what, "write a reference of images/published.toml", ERROR


def host_paths(data: Any, path: str) -> Iterator[Danger]:
    """Volumes that are folders of the node."""
    for key, volume in listed(data, path):
        written, found = find(volume, "hostPath")
        if found is not None:
            folder = str(at(found, "path"))
            what = f"it is {folder[:80]} of the node: what other students and the cluster itself have there"
            if folder.endswith(".sock"):
                what = f"{folder[:80]} is the engine of the node: {NODE}"
            yield f"{key}.{written}", what, "use a claim or an emptyDir", ERROR


def beside(data: Any, path: str, offers: Sequence[Offer]) -> Iterator[Danger]:
    """Containers besides the students': their images are a site's choice, so a warning; their rights are not."""
    for key, one in listed(data, path):
        if what := _unpublished(one.get("image"), offers):
            yield f"{key}.image", what, "name it by digest, if your site means it", WARNING
        for inner, what, fix, level in look(one.get("securityContext"), OF_CONTAINER):
            # A container that prepares a volume may have to be root, and a site may mean it.
            yield f"{key}.securityContext.{inner}", what, fix, WARNING if inner.startswith("run") else level


def _unpublished(reference: Any, offers: Sequence[Offer]) -> str:
    if reference in [one.reference for one in offers]:
        return ""
    shown = f"{str(reference)[:120]}"
    if not DIGEST.fullmatch(str(reference)):
        return f"{shown} is no image by digest, so it can come to mean another"
    return f"{shown} is none of the published images"


def _work(place: Place, base: Mapping[str, Any]) -> Iterator[Danger]:
    """A mount over the students' folder, or mounts that replace the chart's, with the claim among them."""
    mounts = [(key, _clean(one.get("mountPath"))) for key, one in listed(place.traits, "volume_mounts")]
    volumes = rows({**base, **place.traits}, "volumes")
    kept = {str(one.get("name")) for one in volumes if OWN.search(str(at(one, "persistentVolumeClaim.claimName")))}
    own = [key for key, folder in mounts if folder == image.WORK]
    for key, one in listed(place.traits, "volume_mounts"):
        volume = str(one.get("name"))
        if key in own and (not place.above or not (volume in kept or OWN.search(volume))):
            what = f"it lies over {image.WORK}, where a student's claim is: what they write is not kept, or not theirs"
            yield f"{key}.mountPath", what, "mount it at another folder", ERROR
    if place.above and isinstance(place.traits.get("volume_mounts"), list) and not own:
        what = "it replaces the chart's mounts, so the student's claim is mounted nowhere"
        yield "volume_mounts", what, "use singleuser.storage.extraVolumeMounts", ERROR


def _clean(folder: Any) -> str:
    return posixpath.normpath(folder) if isinstance(folder, str) else ""


# ------------------------------------------------------------------------------------------------ values

REACHED = "students reach the cluster's own network: other students, databases, the API"
OF_VALUES: tuple[Rule, ...] = (
    ("singleuser.networkPolicy.egressAllowRules.privateIPs", is_on, REACHED,
     "write false, and name the one host that they need in singleuser.networkPolicy.egress", ERROR),
    ("singleuser.cloudMetadata.blockWithIptables", is_off,
     "where network policies are not enforced students read the cloud's credentials of the node; a site whose policies "
     "are enforced may mean it", "write true", WARNING),
    ("hub.networkPolicy.enabled", is_off, "every pod of the cluster reaches the hub's inner ports", "write true",
     ERROR),
    ("proxy.chp.networkPolicy.enabled", is_off, "students reach the API that says where logins go", "write true",
     ERROR),
    ("hub.config.JupyterHub.admin_access", is_on, "whoever is admin opens every student's server; a site may mean it",
     "leave it out", WARNING),
    ("cull.users", is_on, "students who are away are deleted from the hub with their rights", "write false", ERROR),
    ("hub.db.type", lambda value: value == "sqlite-memory",
     "the hub forgets users, rights and running servers when it restarts; for a first hour a site may mean it",
     "write sqlite-pvc", WARNING),
)  # fmt: skip
OF_PROFILE = ("display_name", "slug", "description", "default", "kubespawner_override", "profile_options")
OF_OPTION = ("display_name", "choices", "unlisted_choice")
OF_CHOICE = ("display_name", "default", "kubespawner_override")
OF_UNLISTED = ("enabled", "display_name", "display_name_in_choices", "validation_regex", "validation_message",
               "kubespawner_override")  # fmt: skip
# Scopes that reach others (jupyterhub.readthedocs.io, reference to rbac/scopes); names alone are no such.
FAR = re.compile(r"(admin[:-].*|((delete|access|read):)?(users|servers|groups|tokens)(:(activity|auth_state|tokens))?"
                 r"|inherit|proxy|shutdown)")  # fmt: skip


def check_values(document: Document, offers: Sequence[Offer], told: settings.Settings) -> Iterator[Finding]:
    """What of a chart's values opens the cluster, loses files, or lets in whom nobody meant."""
    data = document.data
    base = {trait: at(data, key) for trait, key in CHART.items()}
    for place in places(data):
        for path, what, fix, level in _of_place(place, base, offers):
            key = place.key(path)
            line = document.line(key)
            if place.lines is not None:
                line = document.line(key.partition(": ")[0]) + place.lines.get(path.partition(".")[0], 0)
            yield Finding(document.file, line, key, what, fix, level)
    found = [*look(data, OF_VALUES), *_network(data), *_roles(data), *_profiles(data), *_storage(data), *_users(data),
             *_login(data)]  # fmt: skip
    yield from _named(document, [*found, *_encrypted(data), *_passwords(data, told), *_culling(data)])


def _named(document: Document, found: Sequence[Danger]) -> Iterator[Finding]:
    for key, what, fix, level in found:
        yield from name(document, [(key, what, fix)], level)


def _network(data: Any) -> Iterator[Danger]:
    for key, rule in listed(data, "singleuser.networkPolicy.egress"):
        wide = [at(one, "ipBlock.cidr") for one in rows(rule, "to")]
        if not is_given(rule.get("to")) or "0.0.0.0/0" in wide or "::/0" in wide:
            yield key, f"it allows every address: {REACHED}", "name the hosts that students need", ERROR


def _roles(data: Any) -> Iterator[Danger]:
    """Roles that every user has, with scopes that reach others."""
    found = [(key, key.rpartition(".")[2], role) for key, role in listed(data, "hub.loadRoles")]
    found += [(key, "", role) for key, role in listed(data, "hub.config.JupyterHub.load_roles")]
    for key, owner, trait, value in _written(data):
        inner = listed({trait: value}, "load_roles") if owner == "JupyterHub" else []
        found += [(f"{key.removesuffix(trait)}{path}", "", role) for path, role in inner]
    for key, given, role in found:
        scopes = role.get("scopes")
        far = [
            str(one)
            for one in (scopes if isinstance(scopes, list) else [])
            if FAR.fullmatch(str(one).partition("!")[0]) and str(one).partition("!")[2] not in ("user", "server")
        ]
        if far and "user" in (given, role.get("name")):
            what = f"every student gets {', '.join(far)[:80]}: they reach each other's servers, or are admins"
            yield f"{key}.scopes", what, "give it to a role of its own, with its users", ERROR


def _profiles(data: Any) -> Iterator[Danger]:
    for above in LISTS:
        yield from _of_profiles(listed(data, above))


def _of_profiles(found: Sequence[tuple[str, Mapping[Any, Any]]]) -> Iterator[Danger]:
    defaults = [key for key, one in found if one.get("default") is True]
    for key in defaults[1:]:
        yield f"{key}.default", f"{defaults[0]} is the default already, so this one is not", "write false", ERROR
    slugs: dict[str, str] = {}
    for key, one in found:
        slug = str(one.get("slug") or one.get("display_name")).lower()
        if slug in slugs:
            what = f"{slugs[slug]} is called {slug[:60]} as well, so students cannot choose this one"
            yield f"{key}.slug", what, "write another", ERROR
        slugs.setdefault(slug, key)
        yield from _keys(key, one, OF_PROFILE)
        for path, option in listed(one, "profile_options"):
            yield from _keys(f"{key}.{path}", option, OF_OPTION)
        for path, choice in choices(one):
            is_free = path.endswith(".unlisted_choice")
            yield from _keys(f"{key}.{path}", choice, OF_UNLISTED if is_free else OF_CHOICE)
            yield from _overrides(f"{key}.{path}.kubespawner_override", choice.get("kubespawner_override"))
            if is_free and is_given(choice.get("enabled")):
                what = "students write a value of their own, such as an image that nobody published"
                yield f"{key}.{path}.enabled", what, "list the choices, and leave unlisted_choice out", ERROR


def _keys(above: str, data: Mapping[Any, Any], known: Sequence[str]) -> Iterator[Danger]:
    """Keys that KubeSpawner does not read there, so that what they say does not hold."""
    for key in data:
        if key not in known:
            near = traits.near(str(key), known)
            what = f"KubeSpawner reads no {str(key)[:60]} there, so it does nothing"
            yield f"{above}.{key}", what, f"write {near}" if near else f"use {', '.join(known)}", ERROR
    if not isinstance(data.get("kubespawner_override", {}), Mapping):
        yield f"{above}.kubespawner_override", "it is no table of KubeSpawner's traits", "write a table", ERROR


def _overrides(above: str, override: Any) -> Iterator[Danger]:
    for trait, value in override.items() if isinstance(override, Mapping) else ():
        # What stands in braces is filled in when a student chooses.
        filled = ... if "{" in str(value) else value
        if wrong := traits.check_trait("KubeSpawner", str(trait), filled):
            yield f"{above}.{trait}", wrong[1], wrong[2], ERROR


def _storage(data: Any) -> Iterator[Danger]:
    path = at(data, "singleuser.storage.static.subPath")
    if at(data, "singleuser.storage.type") == "static" and path is not None and not OWN.search(str(path)):
        what = "all students have one folder, and each other's files"
        yield "singleuser.storage.static.subPath", what, 'write "{username}"', ERROR


def _users(data: Any) -> Iterator[Danger]:
    for owner, inner in table(data, "hub.config").items():
        if not isinstance(inner, Mapping):
            continue
        users, admins = ({str(one) for one in inner.get(key, ())} if isinstance(inner.get(key), list) else set()
                         for key in ("allowed_users", "admin_users"))  # fmt: skip
        if len(users) > 1 and users <= admins:
            what = "everybody who comes in is an admin, and opens every student's server"
            yield f"hub.config.{owner}.admin_users", what, "name the teachers only", ERROR
    given = list(_doors(data))
    lists = [(key, trait) for key, trait, value in given if settings.is_list(trait) and is_given(value)]
    for key, trait, value in given if lists else ():
        if trait == "allow_all" and value is True:
            what = f"{lists[0][1]} counts for nothing beside it: everybody whom the authenticator knows comes in"
            yield key, what, "leave one of the two out", ERROR
    named = [key for key, trait in lists if trait == "allowed_users"]
    kept = [(key, value) for key, trait, value in given if trait == "allow_existing_users"]
    stays = "who has come in once comes in again after they were taken from allowed_users"
    if named and not kept:
        above = named[0].rpartition(".")[0]
        yield f"{above}.allow_existing_users", f"most classes take it as true: {stays}", "write false", ERROR
    for key, value in kept:
        if value is True:
            yield key, f"{stays}; a site that adds users in the admin panel may mean it", "write false", WARNING


def _doors(data: Any) -> Iterator[tuple[str, str, Any]]:
    """What authenticators' classes are told, wherever: a key, the trait, its value. A table of a base's name counts for
    what extends it, so all count together."""
    written = _written(data)
    chosen = [value for _, owner, trait, value in written if (owner, trait) == ("JupyterHub", "authenticator_class")]
    name = str(chosen[-1] if chosen else at(data, "hub.config.JupyterHub.authenticator_class")).rpartition(".")[2]
    given = [
        (f"hub.config.{owner}.{trait}", str(owner), str(trait), value)
        for owner, inner in table(data, "hub.config").items()
        for trait, value in (inner.items() if isinstance(inner, Mapping) else ())
    ]
    for key, owner, trait, value in given + written:
        # What a class extends has the end of its name: Local-GitHub-OAuthenticator. A short name may be any class.
        if owner.endswith("Authenticator") if not name.endswith("Authenticator") else name.endswith(owner):
            yield key, trait, value


def _written(data: Any) -> list[tuple[str, str, str, Any]]:
    """What hub.extraConfig assigns: a key, the class, the trait, the value."""
    return [
        (f"hub.extraConfig.{key}: c.{owner}.{trait}", owner, trait, value)
        for key, text in table(data, "hub.extraConfig").items()
        for _, owner, trait, value in assigned(text)
    ]


def _login(data: Any) -> Iterator[Danger]:
    """The same as of hub.config (rules.OF_VALUES), by code, which counts for more."""
    for key, owner, trait, value in _written(data):
        if (owner, trait) == ("JupyterHub", "authenticator_class") and value in NOBODY:
            yield key, "anybody comes in, or nobody", "name an authenticator's class", ERROR


def _encrypted(data: Any) -> Iterator[Danger]:
    kind = at(data, "proxy.service.type") or "LoadBalancer"  # the chart's own
    if kind in ("LoadBalancer", "NodePort") and at(data, "proxy.https.enabled") is not True:
        what = f"a {kind} brings the hub to the network without TLS: passwords cross it unencrypted"
        fix = "write ClusterIP and use the ingress, or set proxy.https.enabled with a certificate"
        yield "proxy.service.type", what, fix, ERROR
    if at(data, "ingress.enabled") is not True or not is_given(at(data, "ingress.tls")):
        return
    covered = set()
    for key, one in listed(data, "ingress.tls"):
        if not is_given(one.get("secretName")):
            what = "no certificate is named, so the ingress shows its own, which no browser believes"
            yield f"{key}.secretName", what, f"write {cluster.TLS}", ERROR
        hosts = one.get("hosts")
        covered |= {str(host) for host in hosts} if isinstance(hosts, list) else set()
    hosts = at(data, "ingress.hosts")
    bare = [str(host) for host in (hosts if isinstance(hosts, list) else []) if not _is_covered(str(host), covered)]
    if bare:
        what = f"no certificate is for {', '.join(bare)[:120]}: passwords cross the network unencrypted"
        yield "ingress.tls", what, "name the hosts of ingress.hosts", ERROR


def _is_covered(host: str, covered: set[str]) -> bool:
    return host in covered or f"*.{host.partition('.')[2]}" in covered


def _passwords(data: Any, told: settings.Settings) -> Iterator[Danger]:
    """Secrets of the authenticator that nothing hands to the hub."""
    chosen = str(at(data, "hub.config.JupyterHub.authenticator_class"))
    owner = cluster.SHARED_CLASS if chosen == settings.SHARED else chosen.rpartition(".")[2]
    try:
        needed = {one.trait for one in cluster.sort_traits(told.login)[0] if one.owner == owner}
    except UsageError:  # serve.toml is for something else than a cluster
        needed = set()
    if owner == cluster.SHARED_CLASS:
        needed.add("user_password")
    given = {trait for _, _, trait, _ in _written(data)} | {str(one) for one in table(data, f"hub.config.{owner}")}
    for trait in sorted(needed - given):
        what = f"nothing gives the hub {owner}.{trait}, so nobody comes in"
        yield "hub.extraConfig", what, "put the block labrig-secrets back (invoke serve --cluster)", ERROR


def _culling(data: Any) -> Iterator[Danger]:
    if at(data, "cull.enabled") is False:
        return
    timeout, every = at(data, "cull.timeout"), at(data, "cull.every")
    if is_below(1)(timeout):
        yield "cull.timeout", "every server is stopped as soon as it is looked at", "write seconds, 3600", ERROR
    elif type(timeout) is int and type(every) is int and every > timeout:
        what = f"idle servers are looked for every {every} s, so they are kept longer than {timeout} s"
        yield "cull.every", what, f"write at most {timeout}", ERROR


# ------------------------------------------------------------------------------------------------ Jobs

SPEC = "spec.template.spec"
QUEUE = "kueue.x-k8s.io/queue-name"  # kueue.sigs.k8s.io: a queue resumes what it has labelled
# Of `python -m labs run`; a test holds them against its parser.
FLAGS = ("--lab", "--paradigm", "--jobs", "--device", "--seed", "--quick", "--full", "--out", "--threads", "--timeout",
         "--memory", "--progress", "--json", "--index-from", "--documents")  # fmt: skip
OF_JOB: tuple[Rule, ...] = (
    ("spec.parallelism", is_root, "no pod is ever started", "write 4", ERROR),
    *_under(SPEC, OF_POD),
    (f"{SPEC}.automountServiceAccountToken", lambda value: value is None, TOKEN, "write false", ERROR),
)


def check_job(document: Document, offers: Sequence[Offer]) -> Iterator[Finding]:
    """What of a Job gives labs rights, or loses what they leave."""
    data = document.data
    found = [*look(data, OF_JOB), *_suspended(data), *host_paths(data, f"{SPEC}.volumes")]
    for key, one in listed(data, f"{SPEC}.containers"):
        found += [(f"{key}.securityContext.{row[0]}", *row[1:]) for row in look(one.get("securityContext"), OF_JOBS)]
        found += _mounts(data, key, one)
    for key, one in listed(data, f"{SPEC}.initContainers"):
        if what := _unpublished(one.get("image"), offers):
            found.append((f"{key}.image", what, "leave it out, labs need none", ERROR))
        inner = look(one.get("securityContext"), OF_CONTAINER)
        found += [(f"{key}.securityContext.{row[0]}", *row[1:]) for row in inner]
    yield from _named(document, [*found, *_sidecars(data), *_command(data, offers)])


# Of a Job's container rules.py looks at the user and at escalation.
OF_JOBS = tuple(row for row in OF_CONTAINER if row[0] not in ("allowPrivilegeEscalation", "runAsUser"))


def _suspended(data: Any) -> Iterator[Danger]:
    if at(data, "spec.suspend") is True:
        labels = table(data, "metadata.labels")
        what = "nothing runs until somebody resumes it" + ("; a queue does" if QUEUE in labels else "")
        yield "spec.suspend", what, "leave it out", WARNING if QUEUE in labels else ERROR


def _sidecars(data: Any) -> Iterator[Danger]:
    for key, _ in listed(data, f"{SPEC}.containers")[1:]:
        what = "the pod ends only when this container does too, and its exit code counts as the lab's"
        yield key, what, "leave it out", ERROR


def _mounts(data: Any, key: str, container: Mapping[Any, Any]) -> Iterator[Danger]:
    volumes = {str(one.get("name")): one for one in rows(data, f"{SPEC}.volumes")}
    writable = []
    for place, one in listed(container, "volumeMounts"):
        volume = volumes.get(str(one.get("name")))
        if volume is None:
            what = f"there is no volume {str(one.get('name'))[:60]}, so no pod starts"
            yield f"{key}.{place}.name", what, "name one of the volumes", ERROR
        elif at(volume, "persistentVolumeClaim") and is_on(one.get("readOnly")):
            yield f"{key}.{place}.readOnly", "documents cannot be written to the claim", "leave it out", ERROR
        if not is_on(one.get("readOnly")):
            writable.append(_clean(one.get("mountPath")))
    if at(container, "securityContext.readOnlyRootFilesystem") is True:
        for folder in ("/tmp", image.HOME):  # noqa: S108 - inside a pod
            if not any(_is_in(str(folder), one) for one in writable):
                what = f"nothing can be written in {folder}, and labs do"
                yield f"{key}.volumeMounts", what, f"mount an emptyDir at {folder}", ERROR


def _is_in(folder: str, mount: str) -> bool:
    return mount != "" and (folder == mount or folder.startswith(f"{mount.rstrip('/')}/"))


def _command(data: Any, offers: Sequence[Offer]) -> Iterator[Danger]:
    """What the first container runs."""
    for volume, one in listed(data, f"{SPEC}.volumes"):
        if at(one, "persistentVolumeClaim.readOnly") is True:
            what = "documents cannot be written to the claim"
            yield f"{volume}.persistentVolumeClaim.readOnly", what, "leave it out", ERROR
    container = next((one for _, one in listed(data, f"{SPEC}.containers")), {})
    words, key = _words(container), f"{SPEC}.containers.0.command"
    if words[: len(RUN)] != list(RUN):
        return  # rules.py says so
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    labs = [word for word in words[len(RUN) :] if not word.startswith("-")]
    found = [*_flags(flags), *_device(flags, container, offers), *_deadline(flags, data)]
    found += [
        f"lab {lab} is named twice, and run twice" for lab in sorted({one for one in labs if labs.count(one) > 1})
    ]
    folder = flags.get("--documents", "")
    if ".." in folder.split("/") and not any(_is_in(_clean(folder), one) for one in _claimed(data, container)):
        found.append(f"--documents is {_clean(folder)[:80]}, outside of the claim: they are lost with the pod")
    yield from ((key, what, "render it again (invoke serve --cluster)", ERROR) for what in found)


def _words(container: Any) -> list[str]:
    """A command and its arguments, which Kubernetes puts behind it."""
    parts = [at(container, key) for key in ("command", "args")]
    return [str(word) for part in parts if isinstance(part, list) for word in part]


def _claimed(data: Any, container: Any) -> list[str]:
    claims = [one.get("name") for one in rows(data, f"{SPEC}.volumes") if at(one, "persistentVolumeClaim")]
    return [_clean(one.get("mountPath")) for one in rows(container, "volumeMounts") if one.get("name") in claims]


def _flags(flags: Mapping[str, str]) -> Iterator[str]:
    for flag in flags:
        if flag not in FLAGS:
            near = traits.near(flag, FLAGS)
            yield f"python -m labs run has no flag {flag[:60]}" + (f"; it has {near}" if near else "")
    if (source := flags.get("--index-from", cluster.INDEX)) != cluster.INDEX:
        yield f"--index-from is {source[:60]}; the pod's index is in {cluster.INDEX}"


def _device(flags: Mapping[str, str], container: Any, offers: Sequence[Offer]) -> Iterator[str]:
    offer = next((one for one in offers if one.reference == at(container, "image")), None)
    device = flags.get("--device", "auto")
    if offer and device != offer.device:
        yield f"--device is {device[:40]}, and {offer.target} is for {offer.device}"


def _deadline(flags: Mapping[str, str], data: Any) -> Iterator[str]:
    deadline, timeout = at(data, "spec.activeDeadlineSeconds"), flags.get("--timeout", str(cluster.TIMEOUT))
    if type(deadline) is int and re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", timeout) and deadline < float(timeout):
        yield f"spec.activeDeadlineSeconds is {deadline}, and one lab may take {timeout} s: all are ended before"
