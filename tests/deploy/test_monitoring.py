"""Grafana's board and Prometheus' alerts: each names what is exported, and is found where it is applied. 2 s.

Neither Grafana nor an operator is run here: the board is held to the rules that Grafana has for its files.
test_job_submission.py asks Prometheus for everything that a panel shows.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from nfnet_ray.study.live.gauges import GAUGES, STATES
from tests.deploy import prometheus
from tests.deploy.manifests import JOBS, MONITORING, OVERLAYS, REPOSITORY, pod_specs, rendered
from tests.deploy.prometheus import BOARDS, alerts
from tests.deploy.test_manifests import SITE

each_board = pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
needs_prometheus = pytest.mark.skipif(not prometheus.is_installed(), reason=prometheus.WHAT_IS_MISSING)

# What Ray adds to the gauges of a process, as far as it is of use here.
OF_RAY = {"SessionName"}
# Ray's own metrics are named in no public list that can be imported; its own boards ask for these.
RAYS_PANELS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"


def board(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every panel, variable and alert."""
    for file in BOARDS:
        for panel in prometheus.panels(board(file)):
            yield from ((panel["title"], target["expr"]) for target in panel["targets"])
        for variable in board(file)["templating"]["list"]:
            if variable["type"] == "query":
                yield variable["name"], variable["query"]["query"]
    yield from ((rule["alert"], rule["expr"]) for rule in alerts())


def metrics_of(expression: str) -> dict[str, set[str]]:
    """{metric: labels that it is chosen by}"""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(ray_\w+)(?:{([^}]*)})?", expression):
        found.setdefault(name, set()).update(re.findall(r'(\w+)=~?"', selector))
    return found


def grouped_by(expression: str) -> set[str]:
    lists = re.findall(r"\bby \(([^)]*)\)", expression)
    return {label.strip() for labels in lists for label in labels.split(",")}


def test_every_metric_that_is_asked_for_is_exported_by_a_study_or_by_ray_itself() -> None:
    ours, rays = {}, set()
    for where, expression in expressions():
        assert metrics_of(expression), where
        for metric, labels in metrics_of(expression).items():
            gauge = GAUGES.get(metric.removeprefix("ray_"))
            if gauge is None:
                rays.add(metric)
                continue
            asked = labels | grouped_by(expression)
            assert asked <= {*gauge.labels, *OF_RAY}, (where, metric)
            ours[metric.removeprefix("ray_")] = where
    assert set(ours) == set(GAUGES)  # and what is exported is shown
    documented = "".join(file.read_text() for file in RAYS_PANELS.glob("*_panels.py"))
    assert [metric for metric in rays if not re.search(rf"\b{metric}\b", documented)] == []
    assert not [metric for metric in rays if "nfnet" in metric]


def test_states_are_those_of_a_trial() -> None:
    """A color or an alert for a state that no longer exists would never show."""
    text = "".join(expression for _, expression in expressions())
    assert set(re.findall(r'\bstate=~?"([^"]*)"', text)) <= set(STATES)
    for file in BOARDS:
        for panel in prometheus.panels(board(file)):
            if any(target["legendFormat"] == "{{state}}" for target in panel["targets"]):
                named = {entry["matcher"]["options"] for entry in panel["fieldConfig"]["overrides"]}
                assert named - {"places"} == set(STATES)


@each_board
def test_a_board_is_one_that_grafana_takes_and_that_reads_well(file: Path) -> None:
    found = board(file)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", found["uid"])
    assert "id" not in found  # Grafana gives one; another board may have it
    # Grafana 11 wrote 39; later ones read it and write it anew.
    assert found["schemaVersion"] == 39
    variables = [variable["name"] for variable in found["templating"]["list"]]
    assert variables[0] == "datasource"
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    assert all(v["datasource"] == datasource for v in found["templating"]["list"] if v["type"] == "query")
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {row for _, row in taken} == set(range(max(row for _, row in taken) + 1))
    for panel in prometheus.panels(found):
        title = panel["title"]
        assert panel["type"] in ("timeseries", "stat"), title
        assert panel["description"].endswith("."), title
        assert panel["datasource"] == datasource, title
        assert panel["fieldConfig"]["defaults"]["unit"] in (
            "short", "none", "s", "percent", "percentunit", "bytes"), title  # fmt: skip
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), title
        for target in panel["targets"]:
            assert target["datasource"] == datasource
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= set(variables), title
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped_by(target["expr"]), title


def test_the_board_and_the_alerts_are_where_operator_and_grafana_look_for_them() -> None:
    found = {document["kind"]: document for document in rendered(MONITORING)}
    assert set(found) == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert found["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert found["ConfigMap"]["data"] == {file.name: file.read_text() for file in BOARDS}
    for kind in ("PodMonitor", "PrometheusRule"):
        assert found[kind]["metadata"]["labels"] == {"release": SITE["monitoring"]["release"]}
    [endpoint] = found["PodMonitor"]["spec"]["podMetricsEndpoints"]
    # Ray's agent keeps a number for two export intervals of 10 s.
    assert int(endpoint["interval"].removesuffix("s")) < 20
    for folder in (*OVERLAYS, *JOBS):
        for document in rendered(folder):
            if document["kind"] in ("RayCluster", "RayJob"):
                for name, pod in pod_specs(document):
                    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
                    # Where Ray serves its metrics in KubeRay's pods, unless rayStartParams say otherwise.
                    assert ports[endpoint["port"]] == 8080, (folder.name, name)


def test_the_documentation_names_every_alert_and_every_metric() -> None:
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    assert [rule["alert"] for rule in alerts() if f"`{rule['alert']}`" not in page] == []
    assert [name for name in GAUGES if f"`ray_{name}`" not in page] == []
    for file in BOARDS:
        titles = {panel["title"] for panel in prometheus.panels(board(file))}
        assert [title for title in titles if f"| {title} |" not in page] == []


# --- with promtool ----------------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_prometheus
def test_the_rules_are_valid(tmp_path: Path) -> None:
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", prometheus.write_rules(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr


HEARTBEAT = "ray_nfnet_driver_heartbeat_timestamp_seconds"

# {alert: ([(series, values a minute apart)], minutes until it is raised, its labels, its value in words)}. Among the
# series of each are some that raise nothing.
CASES: dict[str, tuple[list[tuple[str, str]], int, dict[str, str], str]] = {
    "NfnetTrialWaitsForData": (
        [
            ('ray_nfnet_trial_data_wait_share{study="s", trial="slow", WorkerId="1"}', "0.31x60"),
            ('ray_nfnet_trial_data_wait_share{study="s", trial="fast", WorkerId="1"}', "0.29x60"),
        ],
        15,
        {"study": "s", "trial": "slow"},
        "31%",
    ),
    "NfnetAcceleratorsIdle": (
        [
            ('ray_nfnet_idle_accelerator_seconds{study="s", waiting_for="start"}', "0+300x60"),
            ('ray_nfnet_idle_accelerator_seconds{study="s", waiting_for="nothing"}', "0x60"),
            ('ray_nfnet_available_accelerator_seconds{study="s"}', "0+480x60"),
            ('ray_nfnet_idle_accelerator_seconds{study="last trial", waiting_for="start"}', "0x60"),
            ('ray_nfnet_idle_accelerator_seconds{study="last trial", waiting_for="nothing"}', "0+420x60"),
            ('ray_nfnet_available_accelerator_seconds{study="last trial"}', "0+480x60"),
        ],
        31,
        {"study": "s"},
        "62.5%",
    ),
    "NfnetTrialFailed": (
        [
            ('ray_nfnet_trials{study="s", state="failed"}', "0x9 2x50"),
            ('ray_nfnet_trials{study="t", state="stopped"}', "0x9 2x50"),
        ],
        10,
        {"study": "s"},
        "2",
    ),
    "NfnetDriverIsGone": (
        [
            # The time of each minute, until it is killed in the tenth.
            (f'{HEARTBEAT}{{study="s", status="running", WorkerId="1"}}', "0+60x10 _x50"),
            (f'{HEARTBEAT}{{study="ended", status="running", WorkerId="1"}}', "0+60x10 _x50"),
            (f'{HEARTBEAT}{{study="ended", status="ended", WorkerId="1"}}', "_x10 610 _x50"),
            (f'{HEARTBEAT}{{study="killed and resumed", status="running", WorkerId="1"}}', "0+60x5 _x55"),
            (f'{HEARTBEAT}{{study="killed and resumed", status="running", WorkerId="2"}}', "_x14 840+60x50"),
            (f'{HEARTBEAT}{{study="ended and resumed", status="ended", WorkerId="1"}}', "60 _x60"),
            (f'{HEARTBEAT}{{study="ended and resumed", status="running", WorkerId="2"}}', "_x5 300+60x50"),
        ],
        21,
        {"study": "s"},
        "11m 0s",
    ),
    "NfnetMLflowIsBehind": (
        [
            ('ray_nfnet_mlflow_backlog_events{study="s"}', "1+1x60"),
            ('ray_nfnet_mlflow_backlog_events{study="t"}', " ".join(["9 9 9 0"] * 10)),
        ],
        30,
        {"study": "s"},
        "26",
    ),
}  # fmt: skip


@needs_prometheus
def test_each_alert_is_raised_when_it_should_be_and_not_before(tmp_path: Path) -> None:
    assert set(CASES) == {rule["alert"] for rule in alerts()}
    by_name = {rule["alert"]: rule for rule in alerts()}
    tests = []
    for alert, (series, minutes, labels, value) in CASES.items():
        rule = by_name[alert]
        words = {name: _filled(text, labels, value) for name, text in rule["annotations"].items()}
        raised = [{"exp_labels": labels | rule["labels"], "exp_annotations": words}]
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": _values(values)} for name, values in series],
                "alert_rule_test": [
                    {"eval_time": f"{minutes - 1}m", "alertname": alert, "exp_alerts": []},
                    {"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": raised},
                ],
            }
        )
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(prometheus.write_rules(tmp_path))], "tests": tests}))
    result = promtool("test", "rules", file)
    assert result.returncode == 0, result.stdout + result.stderr


def _values(text: str) -> str:
    """``0.31x60`` as promtool writes it: ``0.31+0x60``."""
    return re.sub(r"(?<![+\d.])(\d[\d.]*)x", r"\1+0x", text)


def _filled(text: str, labels: dict[str, str], value: str) -> str:
    """An annotation with its labels and its value."""
    for name, label in labels.items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", label)
    return re.sub(r"{{ \$value[^}]*}}", value, text)
