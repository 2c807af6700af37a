"""Pages of other sites cannot use the Dagster UI through the browser of a user."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocket, WebSocketDisconnect

from gradcamo_assets.defs.web_guard import guard, public_origin

HERE = "http://127.0.0.1:3000"
PUBLIC = "https://gradcamo.example.org"
MUTATION = "mutation{launchRun}"


@pytest.fixture
def client() -> Callable[[str], TestClient]:
    """A client of an application with Dagster's routes, at an address."""

    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("done")

    routes = [
        Route("/graphql", answer, methods=["GET", "POST"]),
        Route("/report_asset_materialization/{key:path}", answer, methods=["POST"]),
        WebSocketRoute("/graphql", talk),
        Route("/{path:path}", answer),
    ]
    app = guard(Starlette(routes=routes), ["gradcamo.example.org"], [public_origin(f"{PUBLIC}/dagster/")])
    return lambda address: TestClient(app, base_url=address)


def connect(client: TestClient, headers: dict[str, str]) -> WebSocketTestSession:
    """A web socket at the address of the client, which takes another one for a path without host."""
    address = str(client.base_url).replace("http", "ws", 1).rstrip("/")
    return client.websocket_connect(f"{address}/graphql", headers=headers)


@pytest.mark.parametrize("address", [HERE, "http://localhost:3000", "http://[::1]:3000", PUBLIC])
def test_its_own_pages_and_programs_are_answered(client: Callable[[str], TestClient], address: str) -> None:
    here = client(address)
    for path in ("/", "/server_info", "/graphql", "/runs?query=x", "/logs/stdout"):
        assert here.get(path).text == "done", path
    for headers in ({"Origin": address}, {}, {"Origin": PUBLIC}):
        assert here.post("/graphql", json={"query": MUTATION}, headers=headers).text == "done"
        with connect(here, headers) as websocket:
            assert websocket.receive_text() == "done"


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1:8000",
        "http://localhost:3000",
        "https://127.0.0.1:3000.evil.example",
    ],
)
def test_pages_of_other_sites_are_refused(client: Callable[[str], TestClient], origin: str) -> None:
    headers = {"Origin": origin}
    forms = {"json": {"query": MUTATION}}, {"content": MUTATION, "headers": {"Content-Type": "text/plain"}}
    for form in forms:
        request = form | {"headers": {**form.get("headers", {}), **headers}}
        assert client(HERE).post("/graphql", **request).status_code == 403
    assert client(HERE).post("/report_asset_materialization/scores", headers=headers).status_code == 403
    assert client(HERE).put("/", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), connect(client(HERE), headers):
        pass


@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "/prefix/graphql"])
@pytest.mark.parametrize("query", [f"query={MUTATION}", "query", "a=1&query=%7Bversion%7D", "%71uery=x"])
def test_graphql_is_not_answered_by_get(client: Callable[[str], TestClient], path: str, query: str) -> None:
    """An image tag sends no ``Origin``."""
    for headers in ({}, {"Origin": HERE}, {"Accept": "text/html"}):
        assert client(HERE).get(f"{path}?{query}", headers=headers).status_code == 405
        assert client(HERE).head(f"{path}?{query}", headers=headers).status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "gradcamo.example.org.evil.example", ""])
def test_other_host_names_are_refused(client: Callable[[str], TestClient], host: str) -> None:
    """A name that its owner lets point to 127.0.0.1 (DNS rebinding) has one origin with the page that asks."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client(HERE).get("/", headers=headers).status_code == 400
    assert client(HERE).post("/graphql", json={"query": MUTATION}, headers=headers).status_code == 400
    with pytest.raises(WebSocketDisconnect), connect(client(HERE), headers):
        pass
