"""Reading members of a decision document, for the commands; see `ledger.document`."""

from authz_server.ledger.document import (
    Document,
    action_name,
    flattened,
    number,
    resource_name,
    section,
    sections,
    text,
    texts,
)

__all__ = [
    "Document",
    "action_name",
    "flattened",
    "number",
    "resource_name",
    "section",
    "sections",
    "text",
    "texts",
]
