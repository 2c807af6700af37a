"""Post JSON to a webhook, over connections to permitted addresses only."""

from __future__ import annotations

import ipaddress
import json
import urllib.request
from collections.abc import Collection
from typing import Any

from gradcamo_assets.errors import GradcamoError

TIMEOUT_SECONDS = 10


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Reject redirects: they could lead to any scheme and host, and would lose the posted data."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _PermittedAddresses(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Checks the address of each connection before anything is sent, since a name can resolve to any address."""

    def __init__(self, networks: Collection[str]):
        urllib.request.HTTPSHandler.__init__(self)
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]

    def do_open(self, http_class: Any, req: urllib.request.Request, **connection_arguments: Any) -> Any:
        check = self._check

        class CheckedConnection(http_class):
            def connect(self) -> None:
                super().connect()
                try:
                    check(self.sock.getpeername()[0])
                except GradcamoError:
                    self.close()
                    raise

        return super().do_open(CheckedConnection, req, **connection_arguments)

    def _check(self, peer: str) -> None:
        address = ipaddress.ip_address(peer)
        # An IPv6 socket may show an IPv4 address as ::ffff:10.0.0.1.
        address = getattr(address, "ipv4_mapped", None) or address
        is_public = address.is_global and not address.is_multicast
        if not is_public and not any(address in network for network in self._networks):
            raise GradcamoError(
                f"the webhook, or the proxy to it, has the address {address}, which is not public",
                'If this is intended, name its network: [alerts] webhook_networks = ["..."].',
            )


def post(address: str, content: dict[str, Any], networks: Collection[str] = ()) -> None:
    """Post JSON.

    Args:
        networks: networks that are not public in which the webhook may be, such as ``10.1.0.0/16``.

    Raises:
        GradcamoError: if the webhook has any other private, loopback or link-local address.
        OSError: if there is no response within 10 seconds, or the response is not a success.
    """
    body = json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(_NoRedirects, _PermittedAddresses(networks))
    with opener.open(request, timeout=TIMEOUT_SECONDS):
        pass
