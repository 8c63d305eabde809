"""An approval request as JSON: what commands print, the HTTP API answers and webhooks carry."""

import dataclasses
from datetime import datetime
from enum import StrEnum

from authz_server.core.record import format_time
from authz_server.ledger.approvals import ApprovalRequest

Document = dict[str, object]


def approval_json(request: ApprovalRequest) -> Document:
    """Return every member of `request`, in its order, as JSON has it.

    SECURITY: it holds the digest of the arguments and no argument, as the ledger does.
    """
    return {
        field.name: _json(getattr(request, field.name)) for field in dataclasses.fields(request)
    }


def _json(value: object) -> object:
    match value:
        case datetime():
            return format_time(value)
        case tuple():
            return list(value)
        case StrEnum():
            return value.value
        case _:
            return value
