"""What a request must fulfil before its body is read: whom it is meant for, how it is framed, and who asks."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddm_rt.serve.http.errors import Failure, invalid
from ddm_rt.serve.http.keys import Caller, Keys
from ddm_rt.serve.http.middleware import CLOSE, notes
from ddm_rt.serve.settings import HttpSettings

GENERATIONS = "/v1/images/generations"
# What needs no key. Names of images are secrets. A route that isn't here needs one.
OPEN = ("/healthz", "/readyz", "/images/", "/openapi.json")
_FORMS = ("/v1/images/edits", "/v1/images/variations")  # which OpenAI's clients send as forms, and get told of

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|([A-Za-z0-9._-]+))(?::[0-9]*)?")
_READS = ("GET", "HEAD", "OPTIONS")
_ANY_HOST = "*"


class Guard:
    """Refuses a request with an error in OpenAI's form. One that passes has its `Caller` in `request.state.caller`.

    HEAD is answered as GET is, without a body, and OPTIONS with the methods that there are.
    """

    def __init__(self, app: ASGIApp, http: HttpSettings, keys: Keys | None, page: Collection[str] = ()) -> None:
        """`page` are paths of the page's files, which need no key."""
        self._app, self._http, self._keys, self._page = app, http, keys, frozenset(page)
        public = None if http.public_url is None else urlsplit(http.public_url).hostname
        self._hosts = {name.lower() for name in (*http.allowed_hosts, public) if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check_host(headers)
                self._check_framing(headers)
                self._check_key(scope, headers)
                _check_type(scope, headers)
            except Failure as failure:
                await failure.response()(scope, receive, send)
                return
            if scope["method"] == "OPTIONS":
                await Response(status_code=204, headers={"Allow": "GET, HEAD, POST, OPTIONS"})(scope, receive, send)
                return
            if scope["method"] == "HEAD":
                scope["method"], send = "GET", _without_body(send)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site can have its own name point here (DNS rebinding); it can't use an address for one."""
        host = headers.get("host")
        if host is None or _ANY_HOST in self._hosts:  # browsers always send it
            return
        parts = _HOST.fullmatch(host)
        name = (parts[1] or parts[2]).removesuffix(".").lower() if parts else ""
        if not (_is_address(name) or name == "localhost" or name.endswith(".localhost") or name in self._hosts):
            said = f"this server does not answer to the host {host[:100]!r}; --allowed-host names those that it does"
            raise invalid(said, code="host_not_allowed", status=421)

    def _check_framing(self, headers: Headers) -> None:
        """RFC 9112, 6.1: with both, servers in a row may disagree on where the body ends (request smuggling)."""
        length, most = headers.get("content-length"), self._http.max_body_bytes
        if length is not None and "transfer-encoding" in headers:
            said = "Content-Length and Transfer-Encoding stand together; expected one of them"
            raise Failure(400, said, "invalid_request_error", "invalid_framing", headers=CLOSE)
        if length is not None and int(length) > most:  # h11 lets only digits through
            said = f"the body is longer than {most} bytes"
            raise Failure(413, said, "invalid_request_error", "body_too_large", headers=CLOSE)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        caller = Caller()
        path = scope["path"]
        if self._keys is not None and not (path in self._page or path.startswith(OPEN)):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            found = self._keys.find(key.strip() if scheme.lower() == "bearer" else "")
            if found is None:
                said = "no valid API key; expected Authorization: Bearer KEY"
                raise invalid(said, code="invalid_api_key", status=401)
            caller = found
            notes(scope)["key"] = caller.name
        scope.setdefault("state", {})["caller"] = caller


def _check_type(scope: Scope, headers: Headers) -> None:
    """A page of another site can send a body of few types without being asked whether it may (CSRF): JSON is none."""
    if scope["method"] in _READS or scope["path"] in _FORMS:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        said = f"the body's type is {kind[:100]!r}; expected Content-Type: application/json"
        raise invalid(said, code="unsupported_media_type", status=415)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return head
