"""The files of docs/monitoring: they ask for numbers that workers have, and get them."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from halp_worker.fates import Reason
from halp_worker.metrics import FATES, STAGES, Metrics

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "docs" / "monitoring"
BOARD = json.loads((MONITORING / "grafana/dashboards/fleet.json").read_text(encoding="utf-8"))
PANELS = BOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]

PROMETHEUS_OWN = {"up", "ALERTS"}
"""Series that Prometheus makes itself."""

CORE_PANELS = {"stat", "timeseries"}
"""Kinds of panel that every Grafana has without a plugin."""


def loaded(name):
    return yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))


def rules():
    return [rule for group in loaded("alerts.yml")["groups"] for rule in group["rules"]]


def names_in(expression):
    """The series that an expression asks for: its words that are no function, label or keyword."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"\b[A-Za-z_:]\w*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "bool", "offset"}


def lively(worker="w1"):
    """Metrics of a worker at work, and what to call for it to work on."""
    metrics = Metrics()
    metrics.describe(worker=worker, run="default", model="m", device="cpu")

    def work():
        for fate in FATES:
            metrics.count(fate, 2)
        for stage in STAGES:
            with metrics.stage(stage):
                pass
        metrics.failed(Reason.IMAGE_MISSING)
        metrics.batch(8)
        metrics.tokens(100, 10)
        metrics.lease_lost()
        metrics.out_of_memory()
        metrics.backlog(5)
        metrics.in_hand(3)
        metrics.memory(10**9)
        metrics.polled()

    work()
    return metrics, work


def samples(metrics):
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


@pytest.mark.parametrize(
    ("where", "expression"),
    [*QUERIES, *((rule["alert"], rule["expr"]) for rule in rules())],
)
def test_what_is_asked_for_is_what_workers_tell(where, expression):
    """Each series of the board and of the alerts is one of a worker's, by its exact name."""
    metrics, _ = lively()
    assert names_in(expression)
    assert names_in(expression) <= samples(metrics) | PROMETHEUS_OWN, where


@pytest.mark.parametrize(("label", "words"), [("fate", FATES), ("stage", STAGES)])
def test_the_words_in_selectors_are_those_of_the_worker(label, words):
    """`fate` and `stage` are compared with words that exist."""
    expressions = [expression for _, expression in QUERIES] + [rule["expr"] for rule in rules()]
    asked = re.findall(rf'{label}!?=~?"([^"]*)"', " ".join(expressions))
    assert asked
    assert set("|".join(asked).split("|")) <= set(words)


def test_every_worker_of_the_project_is_asked():
    """By the names of both services, on the port that the compose file gives them."""
    [job] = loaded("prometheus.yml")["scrape_configs"]
    [found] = job["dns_sd_configs"]
    assert found["names"] == ["worker", "worker-cpu"]
    assert set(found["names"]) <= set(SERVICES)
    for name in found["names"]:
        told = SERVICES[name]["environment"]
        assert told["HALP_METRICS_PORT"] == f"${{HALP_METRICS_PORT:-{found['port']}}}"
        assert told["HALP_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 - within its container


def test_the_board_is_where_grafana_looks():
    """The data source has the uid that the board names, and both are below what is mounted."""
    [source] = loaded("grafana/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    named = {part["datasource"]["uid"] for panel in PANELS for part in (panel, *panel["targets"])}
    assert named == {source["uid"]}
    [provider] = loaded("grafana/dashboards/boards.yml")["providers"]
    grafana = SERVICES["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == provider["options"]["path"] + "/fleet.json"
    assert grafana["volumes"] == ["./docs/monitoring/grafana:/etc/grafana/provisioning:ro"]


def test_rates_cover_four_scrapes():
    """Grafana's shortest rate follows from the interval, which is the same in both files."""
    [source] = loaded("grafana/datasources/prometheus.yml")["datasources"]
    assert (
        source["jsonData"]["timeInterval"] == loaded("prometheus.yml")["global"]["scrape_interval"]
    )


def test_the_panels_stand_side_by_side():
    """Ids are unique, nothing overlaps or sticks out, each panel says what it shows."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] in CORE_PANELS
        assert panel["description"].endswith(".")
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_every_panel_and_alert_is_explained():
    """docs/monitoring.md has each by its name."""
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert not [panel["title"] for panel in PANELS if f"**{panel['title']}**" not in page]
    assert not [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in page]


def test_every_number_is_listed():
    """docs/monitoring.md has each series of a worker by its name."""
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(halp_\w+)", page))
    metrics, _ = lively()
    of_histograms = ("_bucket", "_sum", "_count")
    told = {
        name.removesuffix(part)
        for name in samples(metrics)
        if not name.endswith("_created")
        for part in (*of_histograms, "")
        if name.endswith(part) and not (part == "" and name.endswith(of_histograms))
    }
    assert listed == told


def tool(name):
    """A program of Debian's package `prometheus`."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on PATH (Debian: apt-get install prometheus)")
    return path


def test_prometheus_takes_its_configuration():
    """promtool finds no fault in prometheus.yml, nor in the rules it names."""
    command = [tool("promtool"), "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should():
    """alerts_test.yml lets minutes pass: who hangs or is gone is told of, who finished is not."""
    command = [tool("promtool"), "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path):
    """Starts Prometheus with our configuration on workers' ports; gives its host and port."""
    started = []

    def start(*worker_ports):
        config = loaded("prometheus.yml")
        config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        [job] = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{one}" for one in worker_ports]}]
        path = tmp_path / "prometheus.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            tool("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        started.append(subprocess.Popen(command))
        return address

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=20)


def ask(address, expression):
    """What Prometheus answers to a query: its rows, empty while it is starting."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(
            f"http://{address}/api/v1/query?{query}", timeout=10
        ) as response:
            return json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code == 503:  # not ready
            return []
        pytest.fail(f"{expression}: {error.read().decode()}")
    except OSError:
        return []


@pytest.mark.slow
def test_every_panel_shows_something_of_every_worker(prometheus, wait_until):
    """A real Prometheus asks two workers' real endpoints: no panel of the board stays empty, and
    one that tells workers apart shows both, by their names."""
    (first, first_works), (second, second_works) = lively("w1"), lively("w2")
    with first.serve("127.0.0.1", 0) as port, second.serve("127.0.0.1", 0) as other_port:
        address = prometheus(port, other_port)
        for title, expression in QUERIES:
            # What Grafana fills in.
            filled = expression.replace("$__rate_interval", "5s").replace("$__range", "1m")
            assert "$" not in filled, title
            by_worker = "group_left (worker)" in filled

            def shows(filled=filled, by_worker=by_worker):
                first_works()
                second_works()
                rows = ask(address, filled)
                if any(row["value"][1] == "NaN" for row in rows):
                    return False
                return (
                    {row["metric"]["worker"] for row in rows} == {"w1", "w2"} if by_worker else rows
                )

            wait_until(shows)
