"""Serves a report on this machine while its study runs, on any machine that writes into the same storage.

Nothing is written: whoever watches may have no right to. The report is made when somebody asks for it and a journal has
grown since; the page of a running study asks again by itself (``templates/report.js``).
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
"""Other machines do not reach it; over SSH: ``ssh -L 5050:localhost:5050 HEAD``."""
FIRST_PORT, PORTS_TO_TRY = 5050, 20
_HOSTS = ("localhost", HOST)
# At most a tenth of a core makes reports, as with those of a running study (live_report.py).
_LARGEST_SHARE = 0.1


def _print(line: str) -> None:
    print(line, flush=True)


class WatchedPage:
    """The latest page of some studies, made anew if a journal has grown.

    Args:
        make: makes the page.
        directories: of the studies.
        say: is given a line when a journal can no longer be read, and one when it can again.
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
        """The page in UTF-8; the one before if a journal cannot be read, as when a shared storage is away for a moment.

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
    """A server of the page under ``/`` on the first free port; its ``server_port`` says which.

    Raises UserError if no port is free.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers only under the names of this machine: a page from elsewhere may lead a browser here by a name of its
        own, and would read the answer."""

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
            """Keeps the terminal as it is."""

    for port in range(first_port, min(first_port + PORTS_TO_TRY, 65536)):
        try:
            return http.server.ThreadingHTTPServer((HOST, port), Handler)
        except OSError:
            continue
    last_port = min(first_port + PORTS_TO_TRY - 1, 65535)
    raise UserError(f"ports {first_port} to {last_port} cannot be used; name another with --port")


def watch(page: WatchedPage, first_port: int) -> None:
    """Serves the page until Ctrl-C. Raises UserError if there is no page to serve, or no port."""
    page.latest()
    with page_server(page, first_port) as server:
        _print(f"http://{_HOSTS[0]}:{server.server_port}/ shows the report, and renews it; Ctrl-C ends this")
        server.serve_forever()
