"""Serves a report on this machine while its study runs on any machine that shares the storage.

Nothing is written, because the user may lack the permission. The report is rebuilt when it is requested and a journal
has grown since; the page of a running study reloads itself (``templates/report.js``).
"""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.tracking.journal import JOURNAL_FILE

HOST = "127.0.0.1"
"""The address of the server, which other machines cannot reach; over SSH: ``ssh -L 5050:localhost:5050 HEAD``."""
FIRST_PORT, PORTS_TO_TRY = 5050, 20
_HOSTS = ("localhost", HOST)
# The largest share of a core that builds reports, as for those of a running study (live_report.py).
_LARGEST_SHARE = 0.1


def _print(line: str) -> None:
    print(line, flush=True)


class WatchedPage:
    """The latest page of some studies, rebuilt if a journal has grown.

    Args:
        make: builds the page.
        directories: the directories of the studies.
        say: called with a line when a journal can no longer be read, and when it can be read again.
    """

    def __init__(
        self, make: Callable[[], str], directories: Sequence[Path], say: Callable[[str], None] = _print
    ) -> None:
        self._make, self._journals = make, [directory / JOURNAL_FILE for directory in directories]
        self._say = say
        self._lock = threading.Lock()
        self._page, self._seen = b"", [-1]
        self._not_before = 0.0
        self._is_stale = False

    def latest(self) -> bytes:
        """Returns the page in UTF-8; the previous one if a journal cannot be read, e.g. while a shared storage is away.

        Raises OSError or UserError if a journal cannot be read and there is no earlier page.
        """
        with self._lock:
            if self._page and time.monotonic() < self._not_before:
                return self._page
            began = time.monotonic()
            try:
                seen = [journal.stat().st_size for journal in self._journals]
                if seen != self._seen:
                    self._page, self._seen = self._make().encode(), seen
                if self._is_stale:
                    self._say("the study can be read again, and the page follows it")
                self._is_stale = False
            except (OSError, UserError) as error:
                if not self._page:
                    raise
                if not self._is_stale:
                    why = in_words(error) if isinstance(error, OSError) else error
                    self._say(f"the study cannot be read ({why}); the page stays as it is until it can")
                self._is_stale = True
            self._not_before = time.monotonic() + (time.monotonic() - began) / _LARGEST_SHARE
            return self._page


def page_server(page: WatchedPage, first_port: int = FIRST_PORT) -> http.server.ThreadingHTTPServer:
    """Returns a server of the page under ``/`` on the first free port, which is its ``server_port``.

    Raises UserError if no port is free.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers only requests for the names of this machine. Otherwise a page from elsewhere could use a host name of
        its own to lead a browser here and read the answer."""

        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in _HOSTS:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self._send(page.latest())

        def _send(self, content: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing, so that the terminal stays clean."""

    for port in range(first_port, min(first_port + PORTS_TO_TRY, 65536)):
        try:
            return http.server.ThreadingHTTPServer((HOST, port), Handler)
        except OSError:
            continue
    last_port = min(first_port + PORTS_TO_TRY - 1, 65535)
    raise UserError(f"ports {first_port} to {last_port} cannot be used; name another with --port")


def watch(page: WatchedPage, first_port: int) -> None:
    """Serves the page until Ctrl-C. Raises UserError if there is no page to serve, or no free port."""
    page.latest()
    with page_server(page, first_port) as server:
        _print(f"http://{_HOSTS[0]}:{server.server_port}/ shows the report, and renews it; Ctrl-C ends this")
        server.serve_forever()
