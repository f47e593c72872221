"""Requests to a ddm-rt server, with nothing but Python's own library."""

import http.client
import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request

DEFAULT_SERVER = "http://127.0.0.1:8000"
SERVER_VARIABLE = "DDM_RT_SERVER"  # the server that nodes ask by default, and the only one that gets the key
KEY_VARIABLE = "DDM_RT_API_KEY"
_TIMEOUT_S = 600.0

_log = logging.getLogger(__name__)


class ServerError(Exception):
    """What ComfyUI shows of a request that failed."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *_):
        return None


def own_server() -> str:
    """The server that the environment names."""
    return os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER


def ask(server: str, path: str, body: dict | None = None) -> dict:
    """The answer to `GET path`, or to `POST path` with a body. Raises ServerError, which says what was wrong."""
    base = _base(server)
    request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    key = os.environ.get(KEY_VARIABLE)
    # A workflow of somebody else may name any server: it doesn't get the key.
    if key and base == _base(own_server()):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_TIMEOUT_S) as response:
            if warning := response.headers.get("x-ddm-warning"):
                _log.warning("%s: %s", base, warning)
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise ServerError(f"{base} answers {error.code}: {_said(error)}{_hint(error.code, base, key)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"no server answers at {base} ({reason}); start one with: ddm-rt serve BUNDLE") from None
    except ValueError:
        raise ServerError(f"{base} answers something else than JSON; expected a ddm-rt server") from None
    if not isinstance(answer, dict) or "data" not in answer:
        raise ServerError(f"{base} answers without data; expected a ddm-rt server")
    return answer


def _base(server: str) -> str:
    """The address without `/v1`, which `ddm-rt serve` prints for other clients."""
    base = server.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urllib.parse.urlsplit(base)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServerError(f"server is {server!r}; expected an address as {DEFAULT_SERVER}")
    return base


def _said(error: urllib.error.HTTPError) -> str:
    """The message of an error in OpenAI's form, or the status in words."""
    try:
        return str(json.load(error)["error"]["message"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return error.reason


def _hint(status: int, base: str, key: str | None) -> str:
    if status != 401:
        return ""
    if not key:
        return f" ({KEY_VARIABLE} isn't set)"
    return "" if base == _base(own_server()) else f" (the key goes to {own_server()} alone: {SERVER_VARIABLE} names it)"
