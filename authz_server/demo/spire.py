"""A real SPIRE on this machine: a server, its agent, and the workloads they know.

Workloads are told apart by the path of their program, the one selector that separates processes of
one account; `spire_programs` and `workload_program` say where each comes from.
"""

import itertools
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.processes import ChildProcess, ProcessFailedError, ProcessGroup
from authz_server.demo.spire_programs import SpirePrograms

_COMMAND_TIMEOUT_S: Final = 30.0
_AGENT_PATH: Final = "/node/demo"  # below `/spire` is reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long what the server signs is valid, in seconds; the defaults are those of SPIRE."""

    authority_s: int = 24 * 3600
    svid_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Another SPIRE whose bundle this one takes (profile `https_spiffe`)."""

    trust_domain: TrustDomain
    url: str
    endpoint_spiffe_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A registration: the process whose program is `program` is `spiffe_id`."""

    spiffe_id: SpiffeId
    program: Path
    svid_s: int = 0  # 0: as the server has it
    federates_with: tuple[TrustDomain, ...] = ()
    dns_names: tuple[str, ...] = ()

    def to_json(self, parent: str) -> dict[str, object]:
        """Return the entry as `entry create -data` takes it."""
        return {
            "spiffe_id": str(self.spiffe_id),
            "parent_id": parent,
            "selectors": [{"type": "unix", "value": f"path:{self.program}"}],
            "x509_svid_ttl": self.svid_s,
            "federates_with": [domain.uri for domain in self.federates_with],
            "dns_names": list(self.dns_names),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SpirePlan:
    """Where one SPIRE keeps its files and listens. `sockets` has short paths (107 bytes)."""

    trust_domain: TrustDomain
    directory: Path
    sockets: Path
    host: str  # a loopback address
    server_port: int
    bundle_port: int
    lifetimes: Lifetimes = Lifetimes()
    upstream: tuple[Path, Path] | None = None  # certificate and key that sign the authority
    federation: tuple[Federation, ...] = field(default=())

    @property
    def admin_socket(self) -> Path:
        """The server's own API, for its operator."""
        return self.sockets / f"{self.trust_domain}.server.sock"

    @property
    def agent_socket(self) -> Path:
        """The Workload API and SDS."""
        return self.sockets / f"{self.trust_domain}.agent.sock"

    @property
    def as_federation(self) -> Federation:
        """How another SPIRE federates with this one."""
        return Federation(
            trust_domain=self.trust_domain,
            url=f"https://{self.host}:{self.bundle_port}",
            endpoint_spiffe_id=f"{self.trust_domain.uri}/spire/server",
        )


class Spire:
    """A running SPIRE. Its processes belong to the group that it was started in."""

    def __init__(self, plan: SpirePlan, programs: SpirePrograms, processes: ProcessGroup) -> None:
        self.plan = plan
        self._programs = programs
        self._processes = processes
        self._server: ChildProcess | None = None
        self._agent: ChildProcess | None = None

    def start_server(self) -> None:
        """Start the server and wait until it answers. Raises `ProcessFailedError`."""
        plan = self.plan
        (plan.directory / "server").mkdir(parents=True, exist_ok=True)
        (plan.directory / "agent").mkdir(exist_ok=True)
        (plan.directory / "server.conf").write_text(_server_configuration(plan))
        (plan.directory / "agent.conf").write_text(_agent_configuration(plan))
        argv: list[str | Path] = [self._programs.server, "run"]
        argv += ["-config", plan.directory / "server.conf"]
        self._server = self._processes.start(f"spire-server-{plan.trust_domain}", argv)
        self._server.wait_until(lambda: self._answers("healthcheck"), what="health")

    def kill_server(self) -> None:
        """End the server at once."""
        assert self._server is not None, "start_server comes first"
        self._server.kill()

    def start_agent(self) -> None:
        """Join the agent to the server and wait until it serves workloads."""
        plan = self.plan
        (plan.directory / "bootstrap.pem").write_text(self.command("bundle", "show"))
        answer = self.command("token", "generate", "-spiffeID", self._parent, "-output", "json")
        self._run_agent("-joinToken", json.loads(answer)["value"])

    def restart_agent(self) -> None:
        """Kill the agent and start it again; it joined already and keeps its place."""
        self.kill_agent()
        self._run_agent()

    def kill_agent(self) -> None:
        """End the agent at once."""
        assert self._agent is not None, "start_agent comes first"
        self._agent.kill()

    @property
    def agent(self) -> ChildProcess:
        """The agent's process."""
        assert self._agent is not None, "start_agent comes first"
        return self._agent

    def register(self, entries: Sequence[Entry]) -> tuple[str, ...]:
        """Register workloads; return the ids of the entries. Agents learn of it within seconds."""
        data = {"entries": [entry.to_json(self._parent) for entry in entries]}
        path = self.plan.directory / "entries.json"
        path.write_text(json.dumps(data))
        answer = json.loads(self.command("entry", "create", "-data", path, "-output", "json"))
        return tuple(result["entry"]["id"] for result in answer["results"])

    def unregister(self, entry_id: str) -> None:
        """Delete a registration."""
        self.command("entry", "delete", "-entryID", entry_id)

    def command(self, *words: str | Path) -> str:
        """Run a command of `spire-server` and return what it prints.

        Raises `ProcessFailedError` when it fails.
        """
        # The words of the command come before its options: `entry create -socketPath …`.
        name = list(itertools.takewhile(lambda word: not str(word).startswith("-"), words))
        options = words[len(name) :]
        argv = [self._programs.server, *name, "-socketPath", self.plan.admin_socket, *options]
        done = subprocess.run(
            [str(word) for word in argv],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ProcessFailedError(f"spire-server {name}: {done.stderr or done.stdout}")
        return done.stdout

    @property
    def _parent(self) -> str:
        return f"{self.plan.trust_domain.uri}{_AGENT_PATH}"

    def _run_agent(self, *options: str) -> None:
        argv: list[str | Path] = [self._programs.agent, "run"]
        argv += ["-config", self.plan.directory / "agent.conf", *options]
        self._agent = self._processes.start(f"spire-agent-{self.plan.trust_domain}", argv)
        self._agent.wait_until(self._agent_answers, what="health")

    def _answers(self, *words: str | Path) -> bool:
        try:
            self.command(*words)
        except ProcessFailedError:
            return False
        return True

    def _agent_answers(self) -> bool:
        argv = [self._programs.agent, "healthcheck", "-socketPath", self.plan.agent_socket]
        done = subprocess.run(
            [str(word) for word in argv],
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        return done.returncode == 0


def _server_configuration(plan: SpirePlan) -> str:
    data = plan.directory / "server"
    federated = "".join(_federates_with(federation) for federation in plan.federation)
    return f"""\
server {{
  trust_domain = "{plan.trust_domain}"
  bind_address = "{plan.host}"
  bind_port = "{plan.server_port}"
  socket_path = "{plan.admin_socket}"
  data_dir = "{data}"
  log_level = "INFO"
  ca_key_type = "ec-p256"
  ca_ttl = "{plan.lifetimes.authority_s}s"
  default_x509_svid_ttl = "{plan.lifetimes.svid_s}s"
  default_jwt_svid_ttl = "300s"
  agent_ttl = "3600s"
  experimental {{ cache_reload_interval = "1s" }}
  federation {{
    bundle_endpoint {{
      address = "{plan.host}"
      port = {plan.bundle_port}
      refresh_hint = "1s"
      profile "https_spiffe" {{}}
    }}
{federated}  }}
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{data / "datastore.sqlite3"}"
    }}
  }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
{_upstream_authority(plan)}}}
"""


def _upstream_authority(plan: SpirePlan) -> str:
    if plan.upstream is None:
        return ""
    certificate, key = plan.upstream
    return f"""\
  UpstreamAuthority "disk" {{
    plugin_data {{
      cert_file_path = "{certificate}"
      key_file_path = "{key}"
    }}
  }}
"""


def _federates_with(federation: Federation) -> str:
    return f"""\
    federates_with "{federation.trust_domain}" {{
      bundle_endpoint_url = "{federation.url}"
      bundle_endpoint_profile "https_spiffe" {{
        endpoint_spiffe_id = "{federation.endpoint_spiffe_id}"
      }}
    }}
"""


def _agent_configuration(plan: SpirePlan) -> str:
    data = plan.directory / "agent"
    return f"""\
agent {{
  trust_domain = "{plan.trust_domain}"
  server_address = "{plan.host}"
  server_port = "{plan.server_port}"
  socket_path = "{plan.agent_socket}"
  trust_bundle_path = "{plan.directory / "bootstrap.pem"}"
  data_dir = "{data}"
  log_level = "INFO"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{data}" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"""
