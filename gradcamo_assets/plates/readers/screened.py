"""XML from outside. Entities are declared in a DTD, so a document with one is refused before anything is parsed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from gradcamo_assets.common.errors import PlateError

_DAMAGED = "Copy it again from the microscope."


def screen(source: Path | str) -> None:
    """Check an XML file, or a text in memory.

    A DTD can stand before the root element only: where the root is reached without one, there is none.

    Raises:
        PlateError: a DTD, or no XML.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    path = source if isinstance(source, Path) else None
    try:
        with path.open("rb") if path else io.BytesIO(str(source).encode()) as file:
            next(iterparse(file, ("start",), forbid_dtd=True))
    except DefusedXmlException as error:
        remedy = "Remove them: no microscope writes any."
        raise PlateError("its XML declares a DTD or entities", remedy, path=path) from error
    except (ElementTree.ParseError, StopIteration, OSError, ValueError, LookupError) as error:
        raise PlateError(f"it is no XML: {error}", _DAMAGED, path=path) from error


def elements(path: Path, *tags: str) -> Iterator[tuple[str, ElementTree.Element]]:
    """The elements of an XML file with one of the tags (less namespaces), whole, one after the other.

    Each is forgotten when the next one is asked for, with all that came before it in the same parent.

    Raises:
        PlateError: a link, a DTD, or damaged XML.
    """
    if path.is_symlink():
        raise PlateError("it is a link", "Copy the file that it points to.", path=path)
    screen(path)
    parents: list[ElementTree.Element] = []
    try:
        # The parser in C, ten times as fast as defusedxml's; no DTD can come any more.
        for event, element in ElementTree.iterparse(path, ("start", "end")):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if (tag := element.tag.rpartition("}")[2]) in tags:
                yield tag, element
                if parents:
                    parents[-1].clear()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise PlateError(f"its XML is damaged: {error}", _DAMAGED, path=path) from error
