"""The backup of MLflow: its script against a real PostgreSQL, and its manifest. Five seconds.

The script runs here as in its pod, as a user whom the system does not know by name, with Debian's PostgreSQL (15) in
place of the image's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.manifests import KUBERNETES, REPOSITORY, pod_specs
from tests.deploy.test_manifests import OVERLAYS, SITE, only
from tests.tracking.postgres import Postgres, postgres_server

SCRIPT = KUBERNETES / "platform" / "back_up.sh"
# A user and a group that no passwd file has, as 1000 in PostgreSQL's image.
NOBODY_KNOWS = 54321


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server("mlflow") as running:
        yield running


def variables(server: Postgres) -> dict[str, str]:
    parts = urlsplit(server.uris[0])
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": "mlflow",
        "PGDATABASE": "mlflow",
    }


def call(environment: Mapping[str, str], *words: str | Path) -> str:
    done = subprocess.run(
        list(map(str, words)), env=dict(environment), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sql(environment: Mapping[str, str], text: str, database: str = "mlflow") -> str:
    return call(
        environment, "psql", f"--dbname={database}", "--no-align", "--tuples-only", "--command", text
    ).strip()


def back_up(environment: Mapping[str, str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as the pod does."""
    known = {**environment, "BACKUPS": str(folder / "backups" / "mlflow"), "KEEP": "2", **more}
    user = NOBODY_KNOWS if os.geteuid() == 0 else None
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)
    return subprocess.run(
        ["bash", "-c", SCRIPT.read_text()],
        env=known, cwd="/", capture_output=True, text=True, check=False,
        user=user, group=user, extra_groups=None if user is None else [],
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    path = Path(call(os.environ, "mktemp", "--directory").strip())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "backups" / "mlflow").iterdir())


def test_what_was_saved_is_restored_by_the_commands_of_the_documentation(
    server: Postgres, folder: Path
) -> None:
    environment = variables(server)
    sql(environment, "CREATE TABLE runs AS SELECT number FROM generate_series(1, 1000) number")
    artifacts = folder / "artifacts"
    (artifacts / "1" / "models").mkdir(parents=True)
    (artifacts / "1" / "models" / "weights").write_bytes(os.urandom(1000))
    done = back_up(environment, folder, ARTIFACTS=str(artifacts))
    assert done.returncode == 0, done.stderr
    archive, dump = names(folder)
    assert archive == "artifacts.tar"
    assert re.fullmatch(r"mlflow-\d{4}-\d\d-\d\dT\d{6}Z\.dump", dump)
    saved = folder / "backups" / "mlflow"
    assert not any(path.stat().st_mode & 0o007 for path in (saved, *saved.iterdir()))

    sql(environment, "DELETE FROM runs WHERE number > 10")
    pipes = in_the_guide()
    for command in pipes["database"]:
        source = (saved / dump).open("rb") if "pg_restore" in command else None
        subprocess.run(command, env=environment, stdin=source, check=True, stdout=subprocess.DEVNULL)
    assert sql(environment, "SELECT count(*), sum(number) FROM runs") == "1000|500500"
    assert sql(environment, "SELECT count(*) FROM runs", "mlflow_before") == "10"

    before = (artifacts / "1" / "models" / "weights").read_bytes()
    shutil.rmtree(artifacts / "1")
    [tar] = pipes["artifacts"]
    with (saved / archive).open("rb") as stream:
        subprocess.run(
            [str(artifacts) if word == "/artifacts" else word for word in tar], stdin=stream, check=True
        )
    assert (artifacts / "1" / "models" / "weights").read_bytes() == before


def in_the_guide() -> dict[str, list[list[str]]]:
    """What the documentation has run in the pods of PostgreSQL and MLflow to restore them."""
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    text = re.sub(r"\\\n\s*", "", page.partition("### Restoring")[2].partition("\n## ")[0])
    found: dict[str, list[list[str]]] = {"database": [], "artifacts": []}
    for where, command in re.findall(r"exec (?:-i )?(postgres-0|deployment/mlflow) -- (.+)", text):
        found["database" if where == "postgres-0" else "artifacts"].append(shlex.split(command))
    assert [words[0] for words in found["database"]] == ["psql", "createdb", "pg_restore"]
    return found


def test_only_the_newest_dumps_are_kept_and_only_after_a_success(server: Postgres, folder: Path) -> None:
    environment = variables(server)
    saved = folder / "backups" / "mlflow"
    saved.mkdir(parents=True)
    old = [f"mlflow-2026-0{month}-01T031700Z.dump" for month in (1, 2, 3)]
    for name in (*old, "mlflow-2026-04-01T031700Z.dump.part", "mlflow-mine.dump"):
        (saved / name).touch()
    failed = back_up({**environment, "PGDATABASE": "no such one"}, folder)
    assert failed.returncode != 0
    assert set(old) <= set(names(folder))
    done = back_up(environment, folder)
    assert done.returncode == 0, done.stderr
    first, second, mine = names(folder)  # no artifacts.tar, as no ARTIFACTS are named
    assert (first, mine) == (old[-1], "mlflow-mine.dump")
    assert second > first


@pytest.mark.parametrize("damage", ["cut off", "empty"])
def test_a_dump_that_cannot_be_restored_replaces_none(server: Postgres, folder: Path, damage: str) -> None:
    environment = variables(server)
    programs = folder / "bin"
    programs.mkdir()
    fake = programs / "pg_dump"
    real = shutil.which("pg_dump", path=environment["PATH"])
    size = {"cut off": "-100", "empty": "0"}[damage]
    fake.write_text(f'#!/bin/bash\n{real} "$@" && truncate --size={size} "${{2#--file=}}"\n')
    fake.chmod(0o755)
    done = back_up({**environment, "PATH": f"{programs}:{environment['PATH']}"}, folder)
    assert done.returncode != 0
    assert [name for name in names(folder) if not name.endswith(".part")] == []


@pytest.mark.parametrize("keep", ["0", "", "-1", "all"])
def test_none_is_kept_by_mistake(folder: Path, keep: str) -> None:
    done = back_up({"PATH": os.environ["PATH"]}, folder, KEEP=keep)
    assert done.returncode != 0
    assert "KEEP" in done.stderr
    assert not (folder / "backups").exists()


def test_the_job_is_where_the_volumes_are_and_has_the_servers_programs() -> None:
    job = only("CronJob", OVERLAYS[0])
    [(_, pod)] = pod_specs(job)
    [container] = pod["containers"]
    [server] = only("StatefulSet", OVERLAYS[0], "postgres")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == server["image"]
    [term] = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    mlflow = only("Deployment", OVERLAYS[0])["spec"]["template"]
    assert term["labelSelector"]["matchLabels"] == mlflow["metadata"]["labels"]
    assert pod["securityContext"]["runAsUser"] == mlflow["spec"]["securityContext"]["runAsUser"]
    environment: dict[str, Any] = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment.keys() >= {"PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "BACKUPS", "KEEP"}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[environment["ARTIFACTS"]]["readOnly"]
    assert environment["BACKUPS"].startswith("/shared/")
    assert environment["BACKUPS"] in (REPOSITORY / "docs" / "kubernetes.md").read_text()
    assert only("ConfigMap", OVERLAYS[0], "mlflow-backup")["data"] == {SCRIPT.name: SCRIPT.read_text()}
    assert container["command"] == ["bash", f"/scripts/{SCRIPT.name}"]


def test_backups_are_made_unless_the_site_says_otherwise() -> None:
    spec = only("CronJob", OVERLAYS[0])["spec"]
    assert spec["suspend"] is SITE["backup"]["suspend"] is False
    assert spec["schedule"] == SITE["backup"]["schedule"]
    assert spec["concurrencyPolicy"] == "Forbid"
