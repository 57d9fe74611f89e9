"""Checks whether studies can be recorded on an MLflow server, with MLflow's own client and all its settings.

The check therefore uses the same basic authentication, tokens, certificates, proxies and plugins as the recording.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.tracking.destination.database import deleted_experiment
from nfnet_ray.tracking.destination.experiment import experiment_name
from nfnet_ray.tracking.destination.uri import URI_VARIABLE, named, without_password

CHECK_SECONDS = 10.0
"""The longest time for which starting a study waits for a server that does not answer."""

# The telemetry thread changes os.environ while requests iterates over it, which fails at random.
MLFLOW_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}


def check_server(uri: str, experiment: str | None = None) -> None:
    """Checks that an MLflow server accepts our requests, in :data:`CHECK_SECONDS` once mlflow is imported.

    The check asks for ``experiment``, by default the environment's or ``nfnet_ray``.

    Raises:
        UserError: the server does not answer, is not MLflow or refuses us, or the experiment has been deleted there.
    """
    asked = experiment or experiment_name()
    os.environ.update(MLFLOW_ENVIRONMENT)
    go_past_proxies_to_this_machine(uri)
    import mlflow.utils.rest_utils  # noqa: F401  here, so that the time it takes is not the server's

    # A thread limits the time, because looking up a name has no timeout when the name server does not answer.
    answer: list[dict[str, Any] | str] = []
    asking = threading.Thread(target=lambda: answer.append(_ask(uri, asked)), daemon=True)
    asking.start()
    asking.join(CHECK_SECONDS)
    found = answer[0] if answer else _silent(uri)
    if isinstance(found, str):
        source = f" (from {URI_VARIABLE})" if os.environ.get(URI_VARIABLE) == uri else ""
        raise UserError(f"MLflow server {uri}{source} {found}")
    if found.get("lifecycle_stage") == "deleted":
        raise deleted_experiment(uri, asked, str(found["experiment_id"]))


def cannot_carry_out(uri: str, error: Exception) -> UserError:
    """Returns the error for a failed request to MLflow, or to a proxy before it; a UserError is returned unchanged."""
    if isinstance(error, UserError):
        return error
    first_line = without_password(printable(str(error).strip().partition("\n")[0])) or type(error).__name__
    return UserError(f"{named(uri)} cannot carry this out ({first_line[:160]}); try again later")


def is_this_machine(uri: str) -> bool:
    """Whether an address is one of the loopback interface."""
    host = urlsplit(uri).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def go_past_proxies_to_this_machine(uri: str) -> None:
    """Makes this process bypass proxies for its own machine's address, which for a proxy means the proxy itself."""
    if not is_this_machine(uri):
        return
    host = urlsplit(uri).hostname or ""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if exempt.strip() != "*" and host not in exempt.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{exempt},{host}" if exempt else host


def _ask(uri: str, experiment: str) -> dict[str, Any] | str:
    """Returns the experiment as MLflow describes it (empty if it does not exist), or the problem with the server."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response: Any = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/get-by-name",
            "GET",
            params={"experiment_name": experiment},
            timeout=CHECK_SECONDS,
            max_retries=0,
            raise_on_status=False,
        )
    except Exception as error:  # plugins and certificates may raise anything
        cause = error.__cause__ or error.__context__ if isinstance(error, MlflowException) else error
        return _why_unreachable(uri, cause or error)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if response.status_code == 200 and isinstance(answer.get("experiment"), dict):
        return dict(answer["experiment"])
    if response.status_code == 404 and answer.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return {}
    text = str(answer.get("message") or response.text)
    return _why_refused(uri, experiment, response.status_code, text, bool(answer), response.url)


def _why_refused(uri: str, experiment: str, status: int, text: str, is_json: bool, url: str) -> str:
    if status == 401:
        return "refuses us (HTTP 401); check MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status == 403 and "Host" in text:
        return "refuses this host name; start it with --allowed-hosts, or use its IP address"
    if status == 403 and (is_json or not _proxy_to(uri)):
        return f"does not permit it (HTTP 403); ask for permission on the experiment {experiment!r}"
    if not is_json and (proxy := _proxy_to(uri)):
        return (
            f"is not what answers (HTTP {status}) but perhaps the proxy {proxy}, which the environment names; "
            f"NO_PROXY={urlsplit(uri).hostname} goes past it"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "takes no more requests for now (HTTP 429); try again later"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"has trouble of its own (HTTP {status}); look at its log, or try again later"
    if urlsplit(url).hostname != urlsplit(uri).hostname:
        return f"sends us on to {urlsplit(url).hostname}, as for a login; set MLFLOW_TRACKING_TOKEN"
    if status == 404:
        return "answers HTTP 404; is that the address of an MLflow server?"
    return f"is a web server but not MLflow's (HTTP {status}); check the address and the port"


def _why_unreachable(uri: str, error: BaseException) -> str:
    from requests import exceptions

    proxy = _proxy_to(uri)
    if isinstance(error, exceptions.ProxyError):
        return (
            f"cannot be reached through the proxy {proxy}, which the environment names; "
            f"NO_PROXY={urlsplit(uri).hostname} goes past it"
        )
    if isinstance(error, exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in str(error) or "record layer" in str(error):
            return "does not speak TLS; write http:// for https://"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                "has a certificate that is not trusted here; set MLFLOW_TRACKING_SERVER_CERT_PATH to that of its "
                f"authority, or MLFLOW_TRACKING_INSECURE_TLS=true ({_innermost(error)})"
            )
        return (
            f"and this machine do not agree on TLS ({_innermost(error)}); "
            "is MLFLOW_TRACKING_CLIENT_CERT_PATH needed?"
        )
    # While the answer is read, a time-out is raised as another error that contains the socket's.
    if isinstance(error, exceptions.Timeout) or _innermost(error) == "timed out":
        return _silent(uri)
    return f"cannot be reached ({_innermost(error)}); is it running, and the address right?"


def _silent(uri: str) -> str:
    proxy = _proxy_to(uri)
    return f"did not answer within {CHECK_SECONDS:g} s{f' through the proxy {proxy}' if proxy else ''}; is it running?"


def _proxy_to(uri: str) -> str | None:
    """Returns the proxy that the environment defines for an address."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(uri, get_environ_proxies(uri))
    return without_password(proxy) if proxy else None


def _innermost(error: BaseException) -> str:
    """Returns the original message of the operating system, or of the TLS library."""
    seen: set[int] = set()
    cause: BaseException = error
    while id(cause) not in seen:
        seen.add(id(cause))
        reason = getattr(cause, "reason", None)
        inner = (
            cause.__cause__ or cause.__context__ or (reason if isinstance(reason, BaseException) else None)
        )
        arguments = [argument for argument in cause.args if isinstance(argument, BaseException)]
        inner = inner or (arguments[0] if arguments else None)
        if inner is None or isinstance(inner, AttributeError | KeyError | StopIteration):
            break
        cause = inner
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
    return without_password(text.partition("\n")[0])
