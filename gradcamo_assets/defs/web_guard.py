"""Protect Dagster's web application, which asks for no password, from the pages of other sites.

By itself it answers any Host, takes mutations from any origin, and takes them by GET: an image on any page that a
browser shows could start runs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gradcamo_assets.errors import GradcamoError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def check_address(host: str, behind_proxy: bool) -> None:
    """Allow other addresses than loopback only behind a proxy.

    Raises:
        GradcamoError: for another address without a proxy.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # A host name.
        is_loopback = False
    if not is_loopback and not behind_proxy:
        raise GradcamoError(
            f"--host {host} opens Dagster and MLflow to other machines, and neither asks for a password: whoever "
            "reaches the ports can start runs and delete data",
            "Put a proxy with a login in front of both ports and add --behind-proxy, or use 127.0.0.1 and an SSH "
            "tunnel.",
        )


def public_origin(address: str) -> str:
    """Scheme, host and port of a web address, as browsers send them in ``Origin``."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def guard(app: ASGIApp, hosts: Iterable[str], origins: Iterable[str]) -> ASGIApp:
    """Wrap a web application so that it answers only its own pages and programs that are no browser.

    Args:
        hosts: accepted host names besides loopback, without port.
        origins: accepted origins besides that of the application: where a proxy publishes it.
    """
    return TrustedHostMiddleware(_SameOrigin(app, origins), [*LOOPBACK_HOSTS, *hosts], www_redirect=False)


class _SameOrigin:
    """Refuses what another site can make a browser send: writes, web sockets, and GraphQL queries by GET."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]):
        self.app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refusal := self._refusal(scope):
            await PlainTextResponse(*refusal)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[str, int] | None:
        """Text and status of the refusal, if there is a reason for one."""
        if scope["type"] not in ("http", "websocket"):
            return None
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            asks = scope["path"].rstrip("/").endswith("/graphql") and "query" in parse_qs(
                scope["query_string"].decode("latin-1"), keep_blank_values=True
            )
            return ("Send GraphQL queries by POST.", 405) if asks else None
        headers = Headers(scope=scope)
        # Browsers always send it here; other programs, such as Dagster's GraphQL client, do not.
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers["host"]:
            return None
        return f"Refused: the request comes from a page of {origin}.", 403
