"""What a cluster is given, rendered from the published images and serve.toml."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import offered
import pytest
import yaml

from labrig import image, matrix
from labrig.errors import UsageError
from labrig.serving import checks, cluster, configuration, documents, offers, settings

OAUTH = "oauthenticator.github.GitHubOAuthenticator"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offered.checkout(tmp_path_factory.mktemp("cluster") / "checkout")


def values(root: Path, told: settings.Settings | None = None) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(offered.files(root, told)["values.yaml"])
    return found


def parse(text: str) -> settings.Settings:
    import tomllib

    return settings.parse(tomllib.loads(text), Path("serve.toml"), text)


def test_there_is_a_profile_and_a_job_for_each_published_target(root: Path) -> None:
    files = offered.files(root)
    assert list(files) == [
        "values.yaml", "labs-results.yaml", "labs-job-cpu.yaml", "labs-job-cuda.yaml", "labs-job-cuda-legacy.yaml",
    ]  # fmt: skip
    listed = yaml.safe_load(files["values.yaml"])["singleuser"]["profileList"]
    assert [one["slug"] for one in listed] == ["cpu", "cuda", "cuda-legacy"]
    assert [one["default"] for one in listed] == [True, False, False]
    for offer, one in zip(offered.offered(root), listed, strict=True):
        job = yaml.safe_load(files[f"labs-job-{offer.target}.yaml"])
        own = job["spec"]["template"]["spec"]["containers"][0]
        assert one["kubespawner_override"]["image"] == own["image"] == offer.reference
        assert job["spec"]["completions"] == 20 == len([word for word in own["command"] if word[:2].isdigit()])
        gpu = {"nvidia.com/gpu": "1"} if offer.device == "cuda" else {}
        assert one["kubespawner_override"].get("extra_resource_limits", {}) == gpu
        assert {k: v for k, v in own["resources"]["limits"].items() if k.startswith("nvidia")} == gpu


def test_the_first_image_is_one_by_digest_as_the_chart_joins_it(root: Path) -> None:
    found = values(root)["singleuser"]["image"]
    assert f"{found['name']}:{found['tag']}" == offered.offered(root)[0].reference


def holds(term: list[dict[str, Any]], labels: dict[str, str]) -> bool:
    """Whether a node of these labels is selected, as the scheduler decides (kubernetes.io/docs, node affinity)."""
    return all(
        one["key"] in labels
        and (
            labels[one["key"]] in one["values"]
            if one["operator"] == "In"
            else int(labels[one["key"]]) > int(one["values"][0])
        )
        for one in term
    )


@pytest.mark.parametrize("target", ["cuda", "cuda-legacy"])
def test_nodes_are_those_on_which_the_image_runs(root: Path, target: str) -> None:
    """Against the tables' own answer, for every card that they know and drivers around the lowest."""
    offer = next(one for one in offered.offered(root) if one.target == target)
    lowest = tuple(map(int, offer.min_driver.split(".")))
    drivers = {
        "470.42.01",
        "525.60.12",
        "525.60.13",
        "525.60.14",
        "525.59.99",
        "525.61.0",
        "579.99.99",
        "580.0.0",
        "580.65.6",
        "610.1.1",
    }
    cards = sorted({row["cc"] for row in matrix.read_table(matrix.DATA / "gpus.tsv")})
    taken = 0
    for card, driver in itertools.product(cards, drivers):
        major, minor = map(int, card.split("."))
        runs = any(int(one.split(".")[0]) == major and int(one.split(".")[1]) <= minor for one in offer.capabilities)
        numbers = driver.split(".")
        labels = {
            cluster.MAJOR: str(major),
            cluster.MINOR: str(minor),
            **dict(zip(cluster.DRIVER, numbers, strict=True)),
        }
        expected = runs and tuple(map(int, numbers)) >= lowest
        assert any(holds(term, labels) for term in cluster.select_nodes(offer)) == expected, (card, driver)
        taken += expected
    assert taken > 5
    assert not any(holds(term, {}) for term in cluster.select_nodes(offer))  # a node without a GPU has no such labels


def test_a_cpu_image_goes_anywhere_of_its_machine(root: Path) -> None:
    assert cluster.select_nodes(offered.offered(root)[0]) == []
    assert values(root)["singleuser"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_the_pod_that_kubespawner_makes_of_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real KubeSpawner with what the chart hands on, for the GPU's profile."""
    from kubernetes_asyncio.client import ApiClient
    from kubespawner import KubeSpawner
    from kubespawner import spawner as module
    from traitlets.config import Config

    monkeypatch.setattr(module, "load_config", lambda **_: None)  # there is no cluster to find
    monkeypatch.setattr(module, "shared_client", lambda *_: None)
    data = values(root)
    user, own = data["singleuser"], data["hub"]["config"]["KubeSpawner"]
    handed = {
        **own, "cmd": user["cmd"], "uid": user["uid"], "fs_gid": user["fsGid"], "mem_limit": user["memory"]["limit"],
        "mem_guarantee": user["memory"]["guarantee"], "cpu_limit": user["cpu"]["limit"],
        "allow_privilege_escalation": user["allowPrivilegeEscalation"], "profile_list": user["profileList"],
        "volumes": user["storage"]["extraVolumes"], "volume_mounts": user["storage"]["extraVolumeMounts"],
        "node_selector": user["nodeSelector"],
    }  # fmt: skip

    async def make() -> Any:
        spawner = KubeSpawner(config=Config(KubeSpawner=handed), _mock=True)
        spawner.user_options = {"profile": "cuda"}
        await spawner.load_user_options()
        spawner.get_env = dict  # no server listens yet that it could name
        async with ApiClient() as api:
            return api.sanitize_for_serialization(await spawner.get_pod_manifest())

    pod = asyncio.run(make())
    offer = offered.offered(root)[1]
    document = documents.Document("pod.yaml", {**pod, "kind": "Pod", "apiVersion": "v1"})
    assert not list(checks.check_object(document, (), (), checks.supported("1.32")))
    one = pod["spec"]["containers"][0]
    assert one["image"] == offer.reference
    assert one["args"] == list(cluster.COMMAND)
    assert one["workingDir"] == str(image.LABS)
    assert one["securityContext"] == {
        "runAsUser": image.UID, "runAsGroup": image.GID, "runAsNonRoot": True, "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert pod["spec"]["securityContext"]["fsGroup"] == image.GID
    assert one["resources"]["limits"] == {"cpu": 1.0, "memory": settings.Student().memory, "nvidia.com/gpu": "1"}
    assert {mount["mountPath"] for mount in one["volumeMounts"]} == {"/dev/shm", image.HOME, "/tmp"}
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["matchExpressions"] for term in required["nodeSelectorTerms"]] == cluster.select_nodes(offer)


def test_secrets_are_references_to_a_secret_of_the_cluster(root: Path) -> None:
    told = parse(
        f'[login]\nauthenticator = "{OAUTH}"\nusers = ["ada"]\nadmins = ["teacher"]\n'
        '[login.settings]\nclient_id = "id"\n'
        'client_secret = "env:GITHUB_SECRET"\noauth_callback_url = "https://hub.example.edu/hub/oauth_callback"\n'
    )
    text = offered.files(root, told)["values.yaml"]
    data = yaml.safe_load(text)["hub"]
    assert data["config"]["GitHubOAuthenticator"] == {
        "client_id": "id", "oauth_callback_url": "https://hub.example.edu/hub/oauth_callback",
    }  # fmt: skip
    assert data["config"]["Authenticator"] == {
        "allowed_users": ["ada"], "allow_existing_users": False, "admin_users": ["teacher"],
    }  # fmt: skip
    reference = data["extraEnv"]["LABRIG_CLIENT_SECRET"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "labrig-hub", "key": "client_secret"}
    assert (
        'c.GitHubOAuthenticator.client_secret = os.environ["LABRIG_CLIENT_SECRET"]'
        in data["extraConfig"]["labrig-secrets"]
    )
    assert '--from-file=client_secret=<(printf %s "$GITHUB_SECRET")' in text
    assert "one password for all" not in text


def test_nobody_comes_in_whom_nobody_named(root: Path) -> None:
    """Beside allow_all an authenticator's own list counts for nothing; a class knows the whole world."""
    told = parse(f'[login]\nauthenticator = "{OAUTH}"\n[login.settings]\nallowed_organizations = ["course"]\n')
    config = yaml.safe_load(offered.files(root, told)["values.yaml"])["hub"]["config"]
    assert config["Authenticator"] == {"allow_existing_users": False, "admin_users": []}
    assert config["GitHubOAuthenticator"] == {"allowed_organizations": ["course"]}
    with pytest.raises(UsageError, match="nothing says who may come in"):
        offered.files(root, parse(f'[login]\nauthenticator = "{OAUTH}"\nadmins = ["teacher"]\n'))


def test_a_shared_password_is_warned_of_and_made_by_the_admin(root: Path) -> None:
    text = offered.files(root, parse('[login]\nadmins = ["teacher"]\n'))["values.yaml"]
    assert "WARNING: one password for all" in text
    assert "openssl rand" in text
    assert "--from-file=user_password=user_password --from-file=admin_password=admin_password" in text
    assert set(yaml.safe_load(text)["hub"]["extraEnv"]) == {"LABRIG_USER_PASSWORD", "LABRIG_ADMIN_PASSWORD"}
    named = offered.files(root, parse('[login]\npassword = "file:/etc/lab rig/password"\n'))["values.yaml"]
    assert "--from-file=user_password='/etc/lab rig/password'" in named


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[login]\nauthenticator = "pam"\n', "cannot work in a cluster"),
        (f'[login]\nauthenticator = "{OAUTH}"\n[login.settings]\nclient_secret = "abc"\n', "client_secret would stand"),
        (f'[login]\nauthenticator = "{OAUTH}"\n[login.settings]\nscope = ["env:A"]\n', "scope would stand"),
    ],
)
def test_what_a_cluster_cannot_do_is_said(root: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        offered.files(root, parse(text))
    assert "abc" not in str(error.value)


def test_a_host_has_an_ingress_with_a_certificate(root: Path) -> None:
    found = values(root, parse('[cluster]\nhost = "hub.example.edu"\nstorage_class = "fast"\nresults = "docs"\n'))
    assert found["ingress"] == {
        "enabled": True, "hosts": ["hub.example.edu"],
        "tls": [{"hosts": ["hub.example.edu"], "secretName": "labrig-hub-tls"}],
    }  # fmt: skip
    assert found["singleuser"]["storage"]["dynamic"] == {"storageClass": "fast"}
    assert values(root)["ingress"] == {"enabled": False}


def test_texts_of_people_stay_texts(root: Path) -> None:
    odd = replace(offered.offered(root)[0], why='a "quoted": {{ thing }} # and\nmore')
    text = cluster.render(root, settings.Settings(), [odd])["values.yaml"]
    assert yaml.safe_load(text)["singleuser"]["profileList"][0]["description"] == odd.why


def test_the_task_writes_and_checks(root: Path, tmp_path: Path) -> None:
    """As an admin does: write, check, break one thing, check again."""
    shutil.copy(offered.ROOT / "tasks.py", root)
    (root / "labrig").symlink_to(offered.ROOT / "labrig")

    def invoke(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "invoke", "serve", *flags]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    folder = tmp_path / "cluster"
    written = invoke("--cluster", f"--output={folder}")
    assert written.returncode == 0, written.stderr
    assert written.stdout.split() == [str(folder / name) for name in offered.files(root)]
    good = invoke("--check", f"--output={folder}")
    assert good.returncode == 0, good.stderr
    assert "0 errors" in good.stderr and "labrig's own table" in good.stderr
    values = folder / "values.yaml"
    values.write_text(
        values.read_text().replace("  allowPrivilegeEscalation: false", "  alowPrivilegeEscalation: false")
    )
    bad = invoke("--check", f"--output={folder}", "--json")
    assert bad.returncode == 6
    found = [one for one in json.loads(bad.stdout)["findings"] if one["level"] == "error"]
    assert [(one["file"], one["key"], one["fix"]) for one in found] == [
        ("values.yaml", "singleuser.alowPrivilegeEscalation", "write allowPrivilegeEscalation")
    ]
    assert found[0]["line"] == values.read_text().split("alowPriv")[0].count("\n") + 1
    assert invoke("--check", "--chart=/nowhere").returncode == 2
    table = root / "images" / "published.toml"
    before = table.read_text()
    table.write_text(before.replace("registry.example.org/", "127.0.0.1:5000/"))
    here = invoke("--cluster", f"--output={tmp_path / 'here'}")
    checked = invoke("--check", f"--output={tmp_path / 'here'}")
    fresh = invoke("--check")
    table.write_text(before)
    assert fresh.returncode == 0 and "jupyterhub_config.py: 0 errors" in fresh.stderr, fresh.stderr
    assert "only the hub's file is checked" in fresh.stderr
    assert here.returncode == 0 and "warning: cpu, cuda, cuda-legacy: published to a registry of this" in here.stderr
    assert "warning" not in written.stderr
    assert checked.returncode == 6 and "no node of a cluster can pull" in " ".join(checked.stdout.split())
    for wrong in ([], ["--cluster"], ["--cluster", "--check", "--output=x"], ["--cluster", "--output=x", "--chart=y"]):
        assert invoke(*wrong).returncode == 2, wrong


def test_a_fresh_check_looks_at_the_hubs_file_as_well(root: Path) -> None:
    report = checks.run(root, None, "", "")
    assert report.files[0] == "jupyterhub_config.py" and not report.errors, report.findings
    told, given = settings.read(None), offers.read(root, cluster.PLATFORM)
    draft = configuration.draft(told, given, root)
    for old, new, says in [
        ("mem_limit", "mem_limt", "has no trait mem_limt"),
        (given[0].config, f"sha256:{'0' * 64}", "is none of the published images"),
        ("pull_policy = 'never'" if "'never'" in draft else 'pull_policy = "never"', "pull_policy = 5", "does not fit"),
    ]:
        assert old in draft
        found = list(checks.check_config(draft.replace(old, new, 1), "jupyterhub_config.py", given))
        assert [says in one.what for one in found] == [True], found
