"""Every client-to-server message of MCP, the revisions that have it, and what it is applied to.

A method that is not here is denied, and so is one that the revision of the request does not have.
The official SDK's tables say the same of all but tasks (a test compares them): those are of
revision 2025-11-25, and in 2026-07-28 of the extension `io.modelcontextprotocol/tasks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Dates, so that revisions compare as text.
FIRST: Final = "2024-11-05"
TASKS: Final = "2025-11-25"
STATELESS: Final = "2026-07-28"  # no sessions, no server requests; headers repeat the body
REVISIONS: Final = frozenset({FIRST, "2025-03-26", "2025-06-18", TASKS, STATELESS})

RESPONSE: Final = "response"  # action name of a client's answer to a server-initiated request


@dataclass(frozen=True, slots=True)
class Method:
    """One method: the object type, the member of `params` that names the object, its revisions.

    `arguments` is the member of `params` that holds what it is called with. `named`: revision
    2026-07-28 requires the name in `Mcp-Name`.
    """

    kind: str
    member: str | None = None
    arguments: str = "arguments"
    read_only: bool = True
    named: bool = False
    since: str = FIRST
    until: str = STATELESS

    def exists_in(self, revision: str | None) -> bool:
        """Tell whether `revision` has the method; None: any revision with sessions."""
        if revision is None:
            return self.since < STATELESS
        return self.since <= revision <= self.until


_SESSION: Final = "mcp_session"
_TOOL: Final = "mcp_tool"
_RESOURCE: Final = "mcp_resource"
_PROMPT: Final = "mcp_prompt"

METHODS: Final[Mapping[str, Method]] = {
    "initialize": Method(_SESSION, until=TASKS),
    "ping": Method(_SESSION, until=TASKS),
    "server/discover": Method(_SESSION, since=STATELESS),
    "subscriptions/listen": Method(_SESSION, arguments="notifications", since=STATELESS),
    "logging/setLevel": Method(_SESSION, read_only=False, until=TASKS),
    "completion/complete": Method(_SESSION),
    "notifications/initialized": Method(_SESSION, until=TASKS),
    "notifications/cancelled": Method(_SESSION, read_only=False),
    "notifications/progress": Method(_SESSION, until=TASKS),
    "notifications/roots/list_changed": Method(_SESSION, until=TASKS),
    "notifications/tasks/status": Method(_SESSION, since=TASKS, until=TASKS),
    "tools/list": Method(_TOOL),
    "tools/call": Method(_TOOL, "name", read_only=False, named=True),
    "resources/list": Method(_RESOURCE),
    "resources/templates/list": Method(_RESOURCE),
    "resources/read": Method(_RESOURCE, "uri", named=True),
    "resources/subscribe": Method(_RESOURCE, "uri", until=TASKS),
    "resources/unsubscribe": Method(_RESOURCE, "uri", until=TASKS),
    "prompts/list": Method(_PROMPT),
    "prompts/get": Method(_PROMPT, "name", named=True),
    "tasks/list": Method(_SESSION, since=TASKS, until=TASKS),
    "tasks/get": Method(_SESSION, "taskId", since=TASKS),
    "tasks/result": Method(_SESSION, "taskId", since=TASKS, until=TASKS),
    "tasks/update": Method(_SESSION, "taskId", read_only=False, since=STATELESS),
    "tasks/cancel": Method(_SESSION, "taskId", read_only=False, since=TASKS),
}
RESPONSE_METHOD: Final = Method(_SESSION, until=TASKS)
