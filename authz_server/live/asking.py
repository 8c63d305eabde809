"""Make a request of a scenario a real one: who asks, with which delegation, in which protocol."""

from collections.abc import Mapping

from authz_server.agent.delegator import Delegator
from authz_server.core.attributes import Attributes, Protocol
from authz_server.core.delegation import CHAIN_HEADER, ROOT_HEADER
from authz_server.core.errors import AuthzError, InvalidValueError
from authz_server.live.a2a_call import ask_a2a
from authz_server.live.grpc_call import ask_grpc
from authz_server.live.http_call import ask_http
from authz_server.live.mcp_call import ask_mcp
from authz_server.live.observed import LiveCallError, Observed
from authz_server.live.targets import Target, Targets
from authz_server.live.tcp_call import ask_tcp


class LiveAsker:
    """Asks the Envoys of one TARGETS.yaml."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    def ask(self, target: Target, attributes: Attributes) -> Observed:
        """Send what `attributes` describe to `target`, as the caller they name.

        Taken from them are caller, chain (subject, actors, scope, purpose, mode), action and
        object; everything else is what the Envoy sees. Raises `LiveCallError`.
        """
        try:
            identity = self._targets.identity(attributes.caller.id)
            delegation = self._delegation(target, attributes)
            if target.protocol is Protocol.TCP:
                return ask_tcp(target, identity, delegation)
            asking = {
                Protocol.HTTP: ask_http,
                Protocol.GRPC: ask_grpc,
                Protocol.MCP: ask_mcp,
                Protocol.A2A: ask_a2a,
            }[target.protocol]
            return asking(target, identity, delegation, attributes.act, attributes.obj)
        except LiveCallError:
            raise
        except AuthzError as error:
            raise LiveCallError(f"{target.name}: {error}") from error

    def _delegation(self, target: Target, attributes: Attributes) -> Mapping[str, str]:
        """Return the headers that present the chain; handed off, it ends at the target."""
        chain = attributes.chain
        if not chain.present:
            return {}
        actors = [
            self._targets.identity(actor) for actor in chain.actors or (attributes.caller.id,)
        ]
        delegates = [actor.spiffe_id for actor in actors[1:]]
        if chain.mode == "handoff":
            receiver = target.workload_id or target.peer
            if receiver is None:
                raise InvalidValueError("a task is handed to a `workload_id`, and it has none")
            delegates.append(receiver)
        root = self._targets.root_issuer.issue_root(
            subject=chain.subject or "",
            actor=actors[0].spiffe_id,
            scope=chain.scope,
            purpose=chain.purpose,
            hops=len(delegates),
        )
        links: list[str] = []
        for position, (delegator, to) in enumerate(zip(actors, delegates, strict=False)):
            link = Delegator(delegator.svid).link(
                root,
                links,
                to=to,
                audience=(target.audience or f"https://{target.host}",),
                scope=chain.scope,
                hops=len(delegates) - position - 1,
            )
            links.append(link)
        return {ROOT_HEADER: root} | ({CHAIN_HEADER: ", ".join(links)} if links else {})
