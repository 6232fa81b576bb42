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
OURS = (*WORKERS, "producer")


def instructions(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile, one a line, without comments."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_services_are_those_of_the_documentation():
    """Server, worker, its variant without a GPU, producer: no more and no fewer."""
    assert set(SERVICES) == {"server", "worker", "worker-cpu", "producer"}


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_loopback_only(service):
    """Only the server publishes a port, on 127.0.0.1, and nobody shares the host's network."""
    ports = SERVICES[service].get("ports", [])
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (service == "server")
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


def test_up_starts_the_server_and_the_worker():
    """What is only for some, or only for one command, is in a profile."""
    assert {name for name in SERVICES if "profiles" not in SERVICES[name]} == {"server", "worker"}


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
    """Judged by its own command, with time for loading a model; no port is published for it."""
    check = SERVICES[service]["healthcheck"]
    assert check["test"] == ["CMD", "halp-worker", "health"]
    assert "health" in typer.main.get_command(app).commands
    assert check["start_period"] == "600s"
    assert "ports" not in SERVICES[service]


def test_every_option_of_the_worker_can_be_set():
    """Each HALP_* variable of `halp-worker run` reaches the service; --until-empty would make it
    start again and again."""
    known = {option.envvar for option in typer.main.get_command(app).commands["run"].params}
    assert "HALP_MODEL" in known
    passed = set(SERVICES["worker"]["environment"])
    assert {name for name in passed if name.startswith("HALP_")} == known - {"HALP_UNTIL_EMPTY"}


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
