"""What an agent's own code imports: its SVID, the delegation it serves, and what a denial says.

Importing this needs `cryptography` and `PyJWT` and nothing of the server. The integrations stand in
modules of their own, each importing the one library it is for: `httpx_auth`, `httpx2_auth`,
`mcp_client`, `grpc_client`, `grpc_server`, `workload_api`. docs/agents.md has the examples.
"""

from authz_server.agent.answers import AccessRequest
from authz_server.agent.asgi import DelegationMiddleware
from authz_server.agent.delegator import Delegator
from authz_server.agent.onward import HandOff, Onward
from authz_server.agent.received import Delegation, current, serving
from authz_server.agent.refusals import Denied, Escalated, Patience, Refused, typed_refusals
from authz_server.agent.svid import PemSvid, Svid, SvidSource
from authz_server.agent.wsgi import DelegationWsgiMiddleware

__all__ = [
    "AccessRequest",
    "Delegation",
    "DelegationMiddleware",
    "DelegationWsgiMiddleware",
    "Delegator",
    "Denied",
    "Escalated",
    "HandOff",
    "Onward",
    "Patience",
    "PemSvid",
    "Refused",
    "Svid",
    "SvidSource",
    "current",
    "serving",
    "typed_refusals",
]
