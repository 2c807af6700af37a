"""Pictures of asset metadata are files in the home, and the web server of ``gradcamo ui`` shows them."""

import re
from pathlib import Path

import dagster as dg
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gradcamo_assets.defs.partitions import PLATE_SITES, PLATES, SITES, plate_site_key
from gradcamo_assets.defs.pictures import pictures_route, show_picture
from gradcamo_assets.home import Home
from gradcamo_assets.report.style import new_figure
from gradcamo_assets_tests.buckets import memory_bucket
from gradcamo_assets_tests.defs.conftest import ONE_PIXEL

ALT = "a](http://x) [b\n\n<i>"


@pytest.fixture(params=["folder", "bucket"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(tmp_path) if request.param == "folder" else Home(memory_bucket())


def materialise(
    home: Home, partition: str | None = None, gif: bytes | None = None, by: dg.PartitionsDefinition | None = None
) -> str:
    """Run an asset with a picture. Returns the address in its metadata."""

    @dg.asset(partitions_def=by)
    def drawing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=show_picture(context, home, "map", gif or new_figure(1, 1), ALT))

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(PLATES.name), ["P.1", "P2"])
        instance.add_dynamic_partitions(str(SITES.name), ["1", "10"])
        result = dg.materialize([drawing], partition_key=partition, instance=instance)
        (event,) = result.get_asset_materialization_events()
    text = str(event.materialization.metadata["map"].value)
    alt, _, address = text.rpartition("](")
    assert "\n" not in text and "](http" not in alt.replace("\\]", "")
    return address.removesuffix(")")


def test_each_partition_keeps_its_latest_picture_and_serves_it(home: Home) -> None:
    client = TestClient(Starlette(routes=[pictures_route(home)]))
    sites = [plate_site_key("P.1", 1), plate_site_key("P.1", 10), plate_site_key("P2", 1)]
    first = [materialise(home, site, by=PLATE_SITES) for site in sites]
    first += [materialise(home, "P2", by=PLATES), materialise(home)]
    assert len(set(first)) == len(first)
    for address in first:
        page = client.get(address)
        assert (page.status_code, page.headers["content-type"], page.content) == (200, "image/png", ONE_PIXEL)
    second = materialise(home, sites[0], gif=b"GIF89a", by=PLATE_SITES)
    assert client.get(second).headers["content-type"] == "image/gif"
    assert client.get(second).content == b"GIF89a"
    assert [client.get(address).status_code for address in first] == [404, 200, 200, 200, 200]


def test_the_server_sends_nothing_but_pictures(tmp_path: Path) -> None:
    home = Home(tmp_path)
    address = materialise(home)
    client = TestClient(Starlette(routes=[pictures_route(home)]))
    assert client.get(address).status_code == 200
    (home.root / "gradcamo.toml").write_text("secret")
    name = re.sub(r"^/pictures/", "", address)
    (home.pictures / "screen" / "drawing" / "notes.txt").write_text("secret")
    for path in (
        "", "screen", "..%2Fgradcamo.toml", "%2e%2e/gradcamo.toml", "screen/drawing/notes.txt", f"plates/%2e%2e/{name}",
        f"plates/..%2f{name.replace('screen/', '')}", f"%2F{home.pictures / name}", name.replace(".png", ".gif"),
    ):  # fmt: skip
        assert client.get(f"/pictures/{path}").status_code == 404, path
    assert client.post(address).status_code == 405
