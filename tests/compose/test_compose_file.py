"""What docker-compose.yml and the Dockerfiles promise, read from the files. run.sh runs them."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from halp_worker.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
WORKERS = ("worker", "worker-cpu")
OURS = (*WORKERS, "dashboard", "producer")
MONITORING = ("prometheus", "grafana")
PUBLISHED = {
    "server": "127.0.0.1:${HALP_REDIS_PORT:-6379}:6379",
    "dashboard": "127.0.0.1:${HALP_DASHBOARD_PORT:-8050}:8050",
    "prometheus": "127.0.0.1:${HALP_PROMETHEUS_PORT:-9090}:9090",
    "grafana": "127.0.0.1:${HALP_GRAFANA_PORT:-3000}:3000",
}


def instructions(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile, one a line, without comments."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_services_are_those_of_the_documentation():
    """No more and no fewer, and docs/compose.md has a line for each."""
    assert set(SERVICES) == {"server", *OURS, *MONITORING}
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    assert not [name for name in SERVICES if f"| `{name}` |" not in page]


def test_every_variable_of_the_file_is_documented():
    """What the file reads from the environment is named in docs/compose.md."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    assert not [name for name in re.findall(r"\$\{(HALP_\w+)", text) if f"`{name}`" not in page]


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_loopback_only(service):
    """One port each for those that are to be reached, on 127.0.0.1; nobody shares the host's
    network."""
    ports = SERVICES[service].get("ports", [])
    assert ports == ([PUBLISHED[service]] if service in PUBLISHED else [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "network_mode" not in SERVICES[service]


def test_the_server_keeps_jobs_on_disk_and_never_evicts():
    """Append-only file synced every second, no eviction, data in a named volume."""
    server = SERVICES["server"]
    command = server["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert server["volumes"] == ["queue:/data"]
    assert "queue" in COMPOSE["volumes"]


@pytest.mark.parametrize("service", OURS)
def test_data_is_read_only(service):
    """No service of ours can change the dataset."""
    mounts = [v for v in SERVICES[service]["volumes"] if ":/data" in v]
    assert mounts == ["${HALP_DATA:-./data}:/data:ro"]


def test_only_the_worker_asks_for_a_gpu():
    """`docker compose up` uses the GPU; the variant needs none and is else the same."""
    devices = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(d["driver"], d["capabilities"]) for d in devices] == [("nvidia", ["gpu"])]
    gpu_only, cpu_only = {"deploy"}, {"profiles"}
    same = {k: v for k, v in SERVICES["worker"].items() if k not in gpu_only}
    assert same == {k: v for k, v in SERVICES["worker-cpu"].items() if k not in cpu_only}
    assert "deploy" not in SERVICES["producer"]


def test_up_starts_server_worker_and_dashboard():
    """What is only for some, or only for one command, is in a profile."""
    always = {name for name in SERVICES if "profiles" not in SERVICES[name]}
    assert always == {"server", "worker", "dashboard"}
    assert {SERVICES[name]["profiles"][0] for name in MONITORING} == {"monitoring"}


def test_the_dashboard_needs_no_gpu_and_changes_nothing():
    """It waits for the server alone, reads the workers' store, and can write nowhere."""
    dashboard = SERVICES["dashboard"]
    assert dashboard["depends_on"] == {"server": {"condition": "service_healthy"}}
    assert "deploy" not in dashboard
    assert all(mount.endswith(":ro") for mount in dashboard["volumes"])
    worker = SERVICES["worker"]
    assert {m.removesuffix(":ro") for m in dashboard["volumes"]} <= {
        m.removesuffix(":ro") for m in worker["volumes"]
    }
    told = dashboard["environment"]
    assert told == {name: worker["environment"][name] for name in told}
    assert not {"HF_TOKEN", "HF_HUB_OFFLINE"} & set(told)


def test_the_dashboard_is_started_with_options_that_it_has():
    """The command, its port in the health check and in what is published, are the program's."""
    dashboard = SERVICES["dashboard"]
    name, *arguments = dashboard["command"]
    command = typer.main.get_command(app).commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {one for one in arguments if one.startswith("--")} <= known
    assert set(dashboard["environment"]) <= {parameter.envvar for parameter in command.params}
    port = arguments[arguments.index("--port") + 1]
    assert PUBLISHED["dashboard"].endswith(f":{port}")
    assert f"http://127.0.0.1:{port}/healthz" in dashboard["healthcheck"]["test"][-1]


def test_grafana_shows_and_nothing_else():
    """Anonymous viewers, no account and so no password, no other host name, no talk to outside."""
    told = SERVICES["grafana"]["environment"]
    assert told["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert told["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert told["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert told["GF_AUTH_BASIC_ENABLED"] == "false"
    assert told["GF_SERVER_ENFORCE_DOMAIN"] == "true"
    assert told["GF_SERVER_ROOT_URL"].startswith(f"http://{told['GF_SERVER_DOMAIN']}:")
    assert told["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    assert not [name for name in told if "PASSWORD" in name]


@pytest.mark.parametrize("service", MONITORING)
def test_monitoring_is_pinned_and_configured_from_files_it_cannot_change(service):
    """An exact version, and mounts of files that are here, read-only."""
    settings = SERVICES[service]
    assert re.search(r":v?\d+\.\d+\.\d+$", settings["image"])
    mounts = [mount.split(":") for mount in settings["volumes"] if mount.startswith("./")]
    assert mounts
    assert all(mode == "ro" and (ROOT / path).exists() for path, _, mode in mounts)


@pytest.mark.parametrize("service", SERVICES)
def test_services_run_confined(service):
    """Not root, no capabilities, no new privileges, an image that cannot be written."""
    settings = SERVICES[service]
    assert re.fullmatch(r"(\$\{HALP_USER:-)?[1-9]\d*:[1-9]\d*\}?", settings["user"])
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["read_only"] is True
    assert "privileged" not in settings


@pytest.mark.parametrize("service", WORKERS)
def test_workers_can_be_scaled_and_stop_in_order(service):
    """No fixed name, a signal that arrives, and two minutes for the batch in hand."""
    settings = SERVICES[service]
    assert "container_name" not in settings
    assert settings["init"] is True
    assert settings["stop_grace_period"] == "120s"
    assert settings["depends_on"] == {"server": {"condition": "service_healthy"}}


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_is_healthy_while_it_asks_for_work(service):
    """Judged by its own command, with time for loading a model."""
    check = SERVICES[service]["healthcheck"]
    assert check["test"] == ["CMD", "halp-worker", "health"]
    assert "health" in typer.main.get_command(app).commands
    assert check["start_period"] == "600s"


def test_every_option_of_the_worker_can_be_set():
    """Each HALP_* variable of `halp-worker run` reaches the service; --until-empty would make it
    start again and again."""
    known = {option.envvar for option in typer.main.get_command(app).commands["run"].params}
    assert "HALP_MODEL" in known
    passed = set(SERVICES["worker"]["environment"])
    assert {name for name in passed if name.startswith("HALP_")} == known - {"HALP_UNTIL_EMPTY"}


@pytest.mark.parametrize("service", WORKERS)
def test_workers_tell_their_numbers(service):
    """On the port where Prometheus asks, within the project; no port is published for it."""
    assert SERVICES[service]["environment"]["HALP_METRICS_PORT"] == "${HALP_METRICS_PORT:-9100}"
    assert "ports" not in SERVICES[service]


def test_producer_and_worker_agree():
    """Same server, same run, same place of the images."""
    worker, producer = SERVICES["worker"]["environment"], SERVICES["producer"]["environment"]
    assert producer == {name: worker[name] for name in producer}


def test_the_producer_image_installs_the_base_dependencies_only():
    """No extra of pyproject.toml, so no torch, numpy or zarr."""
    text = "\n".join(instructions("producer/Dockerfile"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "optional-dependencies" not in text
    assert not re.search(r"torch|numpy|zarr|\[worker\]|\[store\]", text)
    assert not any(re.match(r"torch|numpy|zarr", name) for name in project["dependencies"])


def test_the_worker_image_installs_what_its_services_need():
    """The extras of worker, dashboard and stores in a bucket; none of them names this package."""
    text = "\n".join(instructions("worker/Dockerfile"))
    asked = re.search(r"for name in \(([^)]*)\)", text).group(1)
    extras = [name.strip(" '") for name in asked.split(",")]
    assert extras == ["worker", "dashboard", "remote"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [one for name in extras for one in project["optional-dependencies"][name]]
    assert not [one for one in listed if one.startswith("halp-stream")]


@pytest.mark.parametrize("dockerfile", ["producer/Dockerfile", "worker/Dockerfile"])
def test_dockerfiles_need_no_new_builder(dockerfile):
    """Plain instructions, dependencies before sources, no cache left, not root."""
    lines = instructions(dockerfile)
    assert "--mount" not in "\n".join(lines)
    assert not (ROOT / dockerfile).read_text(encoding="utf-8").startswith("# syntax")
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--no-cache-dir" in line for line in installs)
    last = "\n".join(lines).rpartition("FROM ")[2]
    assert last.index("-r /usr/local/share") < last.index("--from=package")
    assert "USER 1000:1000" in last
    assert "COPY . " not in last


def test_the_build_context_leaves_out_what_is_not_built():
    """Everything is ignored but the sources and what the build reads."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    kept = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert rules[0] == "*"
    assert kept == {"pyproject.toml", "README.md", "LICENSE", "producer", "worker"}


def test_the_file_has_nothing_that_old_compose_refuses():
    """docker-compose 1.29.2 knows neither of these, and does not extend services that depend."""
    assert set(COMPOSE) - {"x-confined", "x-worker"} == {"services", "volumes"}
    for settings in SERVICES.values():
        assert not {"gpus", "extends", "develop", "annotations", "attach"} & set(settings)
