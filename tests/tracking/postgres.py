"""A PostgreSQL of a test's own, from Debian's package, which runs nothing as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deadlines import HANG_SECONDS
from tests.ports import unused_port

# Where Debian puts the programs of a server, which are on nobody's path.
_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
# The user that the package makes.
_USER = "postgres"


@dataclass(frozen=True)
class Postgres:
    """A server that runs: the URIs of its databases, and ``restart``, which ends it as a crash does and starts it."""

    uris: list[str]
    restart: Callable[[], None]


@contextmanager
def postgres_server(*databases: str) -> Generator[Postgres]:
    """Runs a server with some databases. Skips the test where the package is missing."""
    found = shutil.which("postgres") or (str(_PROGRAMS[-1]) if _PROGRAMS else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    programs, port = Path(found).resolve().parent, unused_port()
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="nfnet_ray-postgres-") as name:
        user = None
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(name, user.pw_uid, user.pw_gid)

        def run(program: str, *words: str) -> None:
            subprocess.run(
                [programs / program, *words],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=name,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=user and [],
                timeout=HANG_SECONDS,
            )

        data, server = f"{name}/data", f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {name}"
        run(
            "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"
        )

        def start() -> None:
            run("pg_ctl", "-D", data, "-w", "-o", server, "-l", f"{name}/log", "start")

        def stop() -> None:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")

        def restart() -> None:
            stop()
            start()

        start()
        try:
            for database in databases:
                run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", database)
            uris = [f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/{database}" for database in databases]
            yield Postgres(uris, restart)
        finally:
            stop()
