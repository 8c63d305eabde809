"""TARGETS.yaml: where the live Envoy of each policy bundle is, and who may act as whom.

SECURITY: it names the key of a development issuer and the SVIDs of agents. Whoever can read those
files can act for everybody, so such a file is for a mesh made for tests.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.agent.svid import Svid
from authz_server.core.attributes import Protocol
from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.yaml_document import YamlDocument
from authz_server.settings.environment import Overrides
from authz_server.settings.faults import faults_of
from authz_server.settings.values import (
    BASE_DIRECTORY,
    Domain,
    FilePath,
    GrpcListen,
    Text,
    WorkloadId,
    phrase,
    refuse_all,
)

TARGETS_BYTES_MAX: Final = 1024 * 1024


def _bytes_of_hex(value: object) -> bytes:
    try:
        return bytes.fromhex(value if isinstance(value, str) else "-")
    except ValueError as error:
        raise phrase("must be bytes in hex, quoted") from error


Bytes = Annotated[bytes, PlainValidator(_bytes_of_hex)]
_FROZEN: Final = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class IssuerSettings(BaseModel):
    """The development issuer that mints the root grants."""

    model_config = _FROZEN

    issuer: Text
    key_file: FilePath
    kid: Text = "dev-1"


class Target(BaseModel):
    """One way to reach what a policy bundle protects.

    `peer` is the SPIFFE ID that must be proved at `address`; without it `address` is a sidecar on
    this machine, spoken to in the clear, and `caller` the only agent it can be asked as. `host` is
    the name the request is for: the HTTP `Host`, or the TLS server name of a connection. `audience`
    is what a delegation link must name, and `workload_id` whom a task is handed to; `peer` unless
    given. `resource` and `labels` are what the route says, for scenarios that count on it.
    `descriptors` is a `FileDescriptorSet` (`protoc --descriptor_set_out`) for gRPC messages, `path`
    where MCP and A2A answer. A TCP target may be reached by CONNECT to `tunnel` (`host:port`);
    `first_bytes`, in hex, are what its workload answers to.
    """

    model_config = _FROZEN

    name: Text
    bundle: Text
    protocol: Protocol
    address: GrpcListen
    host: Text
    peer: WorkloadId | None = None
    caller: Text | None = None
    workload_id: WorkloadId | None = None
    audience: Text | None = None
    resource: Text | None = None
    labels: dict[Text, Text] = Field(default_factory=dict)
    path: Text = "/"
    tunnel: Text | None = None
    first_bytes: Bytes | None = None
    descriptors: FilePath | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.peer is None and not self.address.is_local:
            # SECURITY: delegation headers would cross a network in the clear.
            refuse_all([(("address",), "must be on this machine where no `peer` is named")])
        if (self.peer is None) != (self.caller is not None):
            refuse_all([((), "needs either a `peer` or the `caller` whose sidecar it is")])
        return self


class Targets(BaseModel):
    """A whole file. `agents` maps the SPIFFE IDs of scenarios to directories with an SVID.

    Such a directory holds `svid.pem`, `svid.key.pem` and `bundle.pem`. The SVID may be of another
    name than the scenario's: `spiffe://example.org/agent/x` there can be acted out by a workload of
    this mesh.
    """

    model_config = _FROZEN

    trust_domain: Domain
    issuer: IssuerSettings
    agents: dict[Text, FilePath]
    targets: tuple[Target, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.targets:
            refuse_all([(("targets",), "must not be empty")])
        names = [target.name for target in self.targets]
        doubled = (index for index, name in enumerate(names) if name in names[:index])
        refuse_all([(("targets", index, "name"), "is given twice") for index in doubled])
        return self

    @cached_property
    def root_issuer(self) -> DevelopmentIssuer:
        """The issuer, its key read from the file. Raises `ConfigurationError`."""
        path = self.issuer.key_file
        return DevelopmentIssuer.parse(
            _bytes(path),
            issuer=self.issuer.issuer,
            trust_domain=self.trust_domain,
            kid=self.issuer.kid,
        )

    def ways(self, bundle: str, protocol: str, caller: str) -> tuple[Target, ...]:
        """Return every way of `caller` to what `bundle` protects in `protocol`, as in the file."""
        return tuple(
            target
            for target in self.targets
            if (target.bundle, target.protocol) == (bundle, protocol)
            and target.caller in {None, caller}
        )

    def identity(self, agent: str) -> "Identity":
        """Return what acts as `agent`. Raises `ConfigurationError` and `InvalidValueError`."""
        directory = self.agents.get(agent)
        if directory is None:
            raise InvalidValueError(f"`agents` has no SVID for `{agent}`")
        return Identity(directory)


class Identity:
    """An X509-SVID in a directory."""

    def __init__(self, directory: Path) -> None:
        self.certificate = directory / "svid.pem"
        self.private_key = directory / "svid.key.pem"
        self.trust_bundle = directory / "bundle.pem"

    @property
    def svid(self) -> Svid:
        """The SVID as it is now. Raises `ConfigurationError` and `InvalidValueError`."""
        return Svid.parse(_bytes(self.certificate), _bytes(self.private_key))

    @property
    def spiffe_id(self) -> SpiffeId:
        """Who this is. Raises as `svid` does."""
        return self.svid.spiffe_id


def load_targets(path: Path) -> Targets:
    """Return the targets in the YAML file `path`; relative paths start from its directory.

    Raises `ConfigurationError` with every fault at its line and column.
    """
    document = YamlDocument.parse(_bytes(path), file=str(path))
    context = {BASE_DIRECTORY: path.absolute().parent}
    try:
        return Targets.model_validate(document.value, context=context)
    except ValidationError as error:
        no_overrides = Overrides(values={})
        raise ConfigurationError(list(faults_of(error, Targets, document, no_overrides))) from error


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(TARGETS_BYTES_MAX + 1)
    except OSError as error:
        fault = Fault(file=str(path), message=f"cannot be read: {error.strerror}")
        raise ConfigurationError([fault]) from error
    if len(data) > TARGETS_BYTES_MAX:
        fault = Fault(file=str(path), message=f"is larger than {TARGETS_BYTES_MAX} bytes")
        raise ConfigurationError([fault])
    return data
