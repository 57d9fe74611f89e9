"""Debian's Prometheus, which asks a Ray head for its metrics as one beside a cluster would, and is asked for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deadlines import HANG_SECONDS, wait_until
from tests.deploy.manifests import REPOSITORY
from tests.ports import unused_port

BOARDS = sorted((REPOSITORY / "dashboards" / "grafana").glob("*.json"))
RULES = REPOSITORY / "deploy" / "kubernetes" / "monitoring" / "prometheus-rule.yaml"
WHAT_IS_MISSING = "no prometheus: apt-get install prometheus"
# Ray's agent keeps a number for 20 s.
SECONDS_BETWEEN_SCRAPES = 2

Series = dict[str, Any]
"""``metric``, its labels, and ``value``, [time, text], or ``values`` of a range."""


def is_installed() -> bool:
    """Whether Prometheus and promtool, which come together, are on this machine."""
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


def alerts() -> list[dict[str, Any]]:
    """The alerts as the manifest has them."""
    return [rule for group in yaml.safe_load(RULES.read_text())["spec"]["groups"] for rule in group["rules"]]


def write_rules(folder: Path) -> Path:
    """The alerts as a rule file of a Prometheus without the operator."""
    file = folder / "alerts.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    return file


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a board that show something: all but the titles of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


class Prometheus:
    """One process. ``targets`` is the list of nodes that a head of Ray keeps in a file, which may come later."""

    def __init__(self, folder: Path, targets: Path) -> None:
        folder.mkdir()
        config = {
            "global": {
                "scrape_interval": f"{SECONDS_BETWEEN_SCRAPES}s",
                "scrape_timeout": f"{SECONDS_BETWEEN_SCRAPES}s",
                "evaluation_interval": f"{SECONDS_BETWEEN_SCRAPES}s",
            },
            "rule_files": [str(write_rules(folder))],
            "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log, self._url = folder / "log", f"http://127.0.0.1:{unused_port()}"
        command = [str(shutil.which("prometheus")), f"--config.file={folder / 'prometheus.yml'}"]
        command += [
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self._url[len('http://') :]}",
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
            )
        wait_until(self._is_ready, "Prometheus")

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=HANG_SECONDS):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, what: str, **parameters: str | float) -> Any:
        """The data of an answer of its HTTP API; fails with its words if it refuses."""
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=HANG_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """What an expression gives now, or at a time in Unix seconds."""
        moment = {} if at is None else {"time": at}
        found: list[Series] = self.get("query", query=expression, **moment)["result"]
        return found

    def close(self) -> None:
        """Ends it; what it has seen stays in its folder."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(HANG_SECONDS)
