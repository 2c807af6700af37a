"""Free ports of this machine, and GraphQL requests to Dagster's pages."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.create_server((host, 0)) as free:
        return free.getsockname()[1]


def ask(address: str, query: str, **variables: Any) -> dict:
    """Post a query or mutation, as Dagster's pages do."""
    request = urllib.request.Request(
        f"{address}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
