"""The manifests of docs/kubernetes, held to the schemas of Kubernetes and KEDA."""

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from pydantic import ValidationError

from halp_producer.keys import RunKeys
from halp_worker.cli import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "kubernetes"
MANIFESTS = [
    manifest
    for path in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]

KUBERNETES = ("1.29", "1.37")
"""The oldest and the newest version that the manifests are checked for."""

SCALER = {"stream", "streamLength", "databaseIndex", "enableTLS", "unsafeSsl"}
"""What KEDA's redis-streams scaler reads from `metadata`, without what is for consumer groups."""

SCALER_SECRET = {"address", "username", "password", "ca", "cert", "key", "keyPassword", "tls"}
"""What it reads from a TriggerAuthentication."""


def of_kind(kind):
    [found] = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    return found


def check(manifest, version=KUBERNETES[0]):
    """Raises for a name or a value that the API would not know."""
    if manifest["apiVersion"] == "keda.sh/v1alpha1":
        getattr(keda, manifest["kind"]).model_validate(manifest, extra="forbid", strict=True)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def paths(value, path=()):
    """Every key of a manifest, by the way to it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(key, str):
            yield (*path, key)
        if isinstance(inner, dict | list):
            yield from paths(inner, (*path, key))


def test_the_manifests_are_those_of_the_documentation():
    """Workers and who reaches them; how many there are and how KEDA gets at the stream."""
    kinds = sorted(manifest["kind"] for manifest in MANIFESTS)
    assert kinds == ["Deployment", "NetworkPolicy", "ScaledObject", "TriggerAuthentication"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])
def test_the_api_knows_every_field(manifest, version):
    """Kubernetes and KEDA take the manifests, by strict schemas."""
    check(manifest, version)


def misspelt(manifest, path):
    """A copy with one letter too many in the last key of `path`."""
    changed = copy.deepcopy(manifest)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1] + "x"] = inner.pop(path[-1])
    return changed


@pytest.mark.parametrize("kind", ["ScaledObject", "TriggerAuthentication"])
def test_a_misspelt_field_of_keda_is_found(kind):
    """Whichever name is misspelt, the check above fails: KEDA would ignore it in silence."""
    manifest = of_kind(kind)
    chosen_by_users, tells_the_api = {"metadata"}, {"apiVersion", "kind"}
    tried = [
        path
        for path in paths(manifest)
        if path[0] not in tells_the_api and not chosen_by_users & set(path[:-1])
    ]
    assert len(tried) > 5
    for path in tried:
        with pytest.raises(ValidationError):
            check(misspelt(manifest, path))


POD = ("spec", "template", "spec")


@pytest.mark.parametrize(
    "path",
    [
        (*POD, "terminationGracePeriodSeconds"),
        (*POD, "securityContext", "runAsNonRoot"),
        (*POD, "containers", 0, "livenessProbe"),
        (*POD, "containers", 0, "env", 0, "valueFrom", "secretKeyRef"),
    ],
    ids=lambda path: path[-1],
)
def test_a_misspelt_field_of_kubernetes_is_found(path):
    """At any depth of the deployment."""
    with pytest.raises(kubernetes_validate.ValidationError):
        check(misspelt(of_kind("Deployment"), path))


def test_the_trigger_is_the_length_of_the_runs_stream():
    """Its name is the server's name for it, and no field makes KEDA look at anything else."""
    [trigger] = of_kind("ScaledObject")["spec"]["triggers"]
    asked = trigger["metadata"]
    assert trigger["type"] == "redis-streams"
    assert set(asked) <= SCALER
    assert not {"consumerGroup", "pendingEntriesCount", "lagCount"} & set(asked)
    assert int(asked["streamLength"]) > 0
    environment = {one["name"]: one.get("value") for one in container()["env"]}
    assert asked["stream"] == RunKeys(environment["HALP_RUN"]).jobs
    assert "fallback" not in of_kind("ScaledObject")["spec"]


def test_the_password_comes_from_a_secret_and_travels_encrypted():
    """KEDA and the workers read the same secret; no manifest holds a password or an address."""
    authentication = of_kind("TriggerAuthentication")
    asked = authentication["spec"]["secretTargetRef"]
    assert {one["parameter"] for one in asked} <= SCALER_SECRET
    [trigger] = of_kind("ScaledObject")["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert trigger["metadata"]["enableTLS"] == "true"
    [url] = [one for one in container()["env"] if one["name"] == "HALP_REDIS_URL"]
    secrets = {one["name"] for one in asked} | {url["valueFrom"]["secretKeyRef"]["name"]}
    assert secrets == {"halp-queue"}
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    keys = {one["key"] for one in asked} | {url["valueFrom"]["secretKeyRef"]["key"]}
    assert set(re.findall(r"--from-literal=(\w+)=", page)) == keys


def container():
    [found] = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def test_scaling_is_keda_s_alone():
    """The deployment names no number, and KEDA names the deployment."""
    deployment = of_kind("Deployment")
    assert "replicas" not in deployment["spec"]
    target = of_kind("ScaledObject")["spec"]["scaleTargetRef"]["name"]
    assert target == deployment["metadata"]["name"]


def test_workers_run_confined():
    """Not root, no capabilities, an image that cannot be written, no token of the cluster."""
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    confined = container()["securityContext"]
    assert confined["readOnlyRootFilesystem"] is True
    assert confined["allowPrivilegeEscalation"] is False
    assert confined["capabilities"] == {"drop": ["ALL"]}
    [images] = [one for one in container()["volumeMounts"] if one["mountPath"] == "/data"]
    assert images["readOnly"] is True


def test_a_worker_has_a_gpu_and_the_time_to_stop():
    """One GPU, and the two minutes that Compose gives as well."""
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    grace = of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert compose["services"]["worker"]["stop_grace_period"] == f"{grace}s"


def test_probes_and_settings_are_the_commands_own():
    """Probes run a command that exists, and each HALP_* variable is one that `run` reads."""
    commands = typer.main.get_command(app).commands
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        name, command = container()[probe]["exec"]["command"]
        assert name == "halp-worker"
        assert command in commands
    assert container()["args"] == ["run"]
    known = {option.envvar for option in commands["run"].params}
    assert {one["name"] for one in container()["env"]} <= known


def test_an_outage_of_the_server_does_not_restart_workers_at_once():
    """`health` fails while the server is away: a quarter of an hour passes before that costs a
    loaded model."""
    probe = container()["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 900
