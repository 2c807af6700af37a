"""Pictures of asset metadata, as files in the home that ``gradcamo ui`` serves.

Dagster stores the metadata of a materialisation two or three times and never deletes it, so that a picture in it would
fill the event log.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg

from gradcamo_assets.home import Home
from gradcamo_assets.report import png
from gradcamo_assets.storage import list_visible, read_bytes, remove, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from starlette.routing import Route

_ADDRESS = "/pictures/"
_FILE = re.compile(r"(screen|plates/[A-Za-z0-9][A-Za-z0-9._-]*)/[a-z_]+/[a-z0-9_]+-[0-9a-f]{16}\.(png|gif)")


def show_picture(
    context: dg.AssetExecutionContext, home: Home, name: str, picture: Figure | bytes, alt: str
) -> dict[str, dg.MetadataValue]:
    """Store a picture of an asset, or of one of its partitions, and delete the earlier one.

    Args:
        name: key of the metadata; lower case.
        picture: a figure, or the content of a GIF file.
        alt: the picture described in words.

    Returns:
        The metadata: markdown that shows the picture and links to it in the web server of ``gradcamo ui``.
    """
    plate = site = None
    if context.has_partition_key:
        key = context.partition_key
        dimensions = key.keys_by_dimension if isinstance(key, dg.MultiPartitionKey) else {"plate": key}
        plate, site = dimensions["plate"], dimensions.get("site")
    folder = home.pictures / "plates" / plate if plate else home.pictures / "screen"
    folder /= context.op_execution_context.op_def.name
    prefix = f"{name}_s{site}-" if site else f"{name}-"
    content, ending = (picture, "gif") if isinstance(picture, bytes) else (png.to_png(picture), "png")
    file = folder / f"{prefix}{hashlib.sha256(content).hexdigest()[:16]}.{ending}"
    write_bytes(file, content)
    remove(*(path for path in list_visible(folder, f"{prefix}*") if path != file))
    escaped_alt = re.sub(r"([\\\[\]()<>`*_!])", r"\\\1", " ".join(alt.split()))
    address = f"{_ADDRESS}{quote(file.relative_to(home.pictures).as_posix())}"
    return {name: dg.MetadataValue.md(f"[![{escaped_alt}]({address})]({address})")}


def pictures_route(home: Home) -> Route:
    """Return the route that serves the pictures of a home."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        content = await run_in_threadpool(read_bytes, home.pictures / name) if _FILE.fullmatch(name) else None
        if content is None:
            return PlainTextResponse("There is no such picture; a later run has replaced it.", 404)
        # The name contains a digest of the content.
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)

    return Route(f"{_ADDRESS}{{name:path}}", answer)
