"""The OpenAPI 3.1 description of the approvals API, made from its operations.

It is served, and `make docs` writes it to `docs/openapi/approvals.yaml`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from authz_server import __version__
from authz_server.ledger.approvals import ApprovalRequest, ApprovalStatus
from authz_server.servers.approvals_http import (
    APPROVAL_ID,
    LIST_DEFAULT,
    LIST_MAX,
    OPERATIONS,
    REASON_CHARS_MAX,
    Operation,
)

Document = dict[str, object]

_PROBLEM: Final = "#/components/schemas/Problem"
_APPROVAL: Final = "#/components/schemas/Approval"
_TIMES: Final = frozenset({"requested_at", "expires_at", "decided_at"})
_REQUIRED: Final = ("id", "status", "approver_group", "actors", "action", "resource", "rules")
_FAULTS: Final = {
    "400": "The request is malformed.",
    "401": "Nobody was proved.",
    "403": "Not by you: a party to the request may not answer it.",
    "404": "There is no such request for you.",
    "409": "It is answered already, expired, or waits for a second person.",
    "413": "The body is too large, or of unknown size.",
    "415": "The body is not `application/json`.",
    "503": "The ledger or the keys cannot be read now.",
}
_FAULTS_OF: Final = {
    "list": ("400", "401", "503"),
    "show": ("401", "404", "503"),
    "approve": ("400", "401", "403", "404", "409", "413", "415", "503"),
    "reject": ("400", "401", "403", "404", "409", "413", "415", "503"),
    "status": ("404", "503"),
}


def openapi_document() -> Document:
    """Return the description."""
    paths: dict[str, Document] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "authz-server approvals",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": _security_schemes()},
    }


def _operation(operation: Operation) -> Document:
    document: Document = {"operationId": operation.name, "summary": operation.summary}
    parameters = _parameters(operation)
    if parameters:
        document["parameters"] = parameters
    if operation.method == "POST":
        document["requestBody"] = _body(operation)
    document["responses"] = {
        "200": {"description": "Done.", "content": {"application/json": {"schema": _ok(operation)}}}
    } | {
        code: {
            "description": _FAULTS[code],
            "content": {"application/problem+json": {"schema": {"$ref": _PROBLEM}}},
        }
        for code in _FAULTS_OF[operation.name]
    }
    is_open = operation.name == "status"
    document["security"] = [] if is_open else [{"bearer": []}, {"mutualTLS": []}]
    return document


def _parameters(operation: Operation) -> list[Document]:
    if operation.name == "list":
        statuses = [status.value for status in ApprovalStatus]
        limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
        return [
            {"name": "status", "in": "query", "schema": {"type": "string", "enum": statuses}},
            {"name": "limit", "in": "query", "schema": limit},
        ]
    pattern = {"type": "string", "pattern": f"^{APPROVAL_ID}$"}
    return [{"name": "id", "in": "path", "required": True, "schema": pattern}]


def _body(operation: Operation) -> Document:
    schema: Document = {"type": "object", "additionalProperties": False}
    if operation.name == "reject":
        reason = {"type": "string", "minLength": 1, "maxLength": REASON_CHARS_MAX}
        schema |= {"properties": {"reason": reason}, "required": ["reason"]}
    return {
        "required": operation.name == "reject",
        "content": {"application/json": {"schema": schema}},
    }


def _ok(operation: Operation) -> Document:
    match operation.name:
        case "list":
            items: Document = {"type": "array", "items": {"$ref": _APPROVAL}}
            return {"type": "object", "properties": {"approvals": items}, "required": ["approvals"]}
        case "status":
            return {"$ref": "#/components/schemas/Status"}
        case _:
            return {"$ref": _APPROVAL}


def _schemas() -> Document:
    status = {"type": "string", "enum": [status.value for status in ApprovalStatus]}
    time: Document = {"type": "string", "format": "date-time"}
    text: Document = {"type": "string"}
    return {
        "Approval": {
            "type": "object",
            "properties": {
                field.name: _property(field.name, status) for field in fields(ApprovalRequest)
            },
            "required": list(_REQUIRED),
        },
        "Status": {
            "type": "object",
            "properties": {"id": text, "status": status, "expires_at": time},
            "required": ["id", "status", "expires_at"],
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457",
            "properties": {
                "type": {"type": "string", "format": "uri"},
                "title": text,
                "status": {"type": "integer"},
                "detail": text,
            },
            "required": ["type", "title", "status", "detail"],
        },
    }


def _property(name: str, status: Mapping[str, object]) -> Document:
    if name == "status":
        return dict(status)
    if name == "actors":
        return {"type": "array", "items": {"type": "string"}}
    kind = "string" if name in _REQUIRED else ["string", "null"]
    return {"type": kind, "format": "date-time"} if name in _TIMES else {"type": kind}


def _security_schemes() -> Document:
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An OIDC ID token or RFC 9068 access token of `approvals.issuers`.",
        },
        "mutualTLS": {
            "type": "mutualTLS",
            "description": "An X509-SVID of this server's trust domain, with `listen.http_tls`.",
        },
    }
