"""Reading members of a decision document without trusting its shape.

A document comes back from a database. A member that is missing, or not of the expected type, reads
as absent, so that one odd record never stops a listing.
"""

from collections.abc import Iterator, Mapping

Document = Mapping[str, object]


def section(document: Document, name: str) -> Document:
    """Return the object under `name`; empty if there is none."""
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}


def sections(document: Document, name: str) -> tuple[Document, ...]:
    """Return the objects in the array under `name`."""
    value = document.get(name)
    if not isinstance(value, list):
        return ()
    return tuple(item for item in value if isinstance(item, Mapping))


def text(document: Document, name: str) -> str | None:
    """Return the non-empty string under `name`, or None."""
    value = document.get(name)
    return value if isinstance(value, str) and value else None


def number(document: Document, name: str) -> int | None:
    """Return the integer under `name`, or None."""
    value = document.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def texts(document: Document, name: str) -> tuple[str, ...]:
    """Return the strings in the array under `name`."""
    value = document.get(name)
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def resource_name(document: Document) -> str:
    """Return the resource of a decision in one line, as the ledger indexes it."""
    resource = section(document, "resource")
    name = text(resource, "resource") or text(resource, "host") or text(resource, "type")
    part = text(resource, "tool") or text(resource, "uri") or text(resource, "path")
    return " ".join(filter(None, (name, part)))


def action_name(document: Document) -> str:
    """Return the action of a decision in one line, as the ledger indexes it."""
    action = section(document, "action")
    return " ".join(filter(None, (text(action, "protocol"), text(action, "name"))))


def flattened(document: Document, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every member that holds something as dotted name and text, nested objects inline."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from flattened(item, f"{prefix}{name}[{index}].")
        elif isinstance(value, list):
            if value:
                yield prefix + name, ", ".join(map(str, value))
        elif value is not None:
            yield prefix + name, str(value)
