"""The configuration as frozen types: every key of the YAML file with its default and bounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from authz_server.core import limits
from authz_server.core.spiffe import TrustDomain
from authz_server.settings.addresses import TcpAddress
from authz_server.settings.approvals import ApprovalSettings
from authz_server.settings.ledger import LedgerSettings
from authz_server.settings.revocations import RevocationSettings
from authz_server.settings.telemetry import TelemetrySettings
from authz_server.settings.values import (
    ONE_OR_MORE,
    Contradiction,
    Domain,
    FilePath,
    GrpcListen,
    HttpListen,
    HttpsUrl,
    KeySetUrl,
    Text,
    WholeNumber,
    WorkloadApiSocket,
    WorkloadId,
    WorkloadPattern,
    phrase,
    refuse_all,
)

# A root grant lives minutes (draft-ietf-oauth-transaction-tokens); an hour is the most that an
# operator may call minutes.
ROOT_LIFETIME_S_MAX: Final = 3600
CONNECTION_AGE_S_MAX: Final = 24 * 3600  # a day: beyond the life of any SVID in use
BUNDLE_AGE_S_MAX: Final = 7 * 24 * 3600  # a week without word is no longer an outage
# Two requests are a minute apart: keys must outlive one that fails.
JWKS_STALE_S_MIN: Final = 120
JWKS_STALE_S_MAX: Final = 24 * 3600  # a key that was taken back is out of service within a day

Algorithm = Literal["ES256", "ES384", "PS256", "RS256", "EdDSA"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Listen(_Section):
    """Where the server answers."""

    grpc: Annotated[tuple[GrpcListen, ...], ONE_OR_MORE, Field(min_length=1)] = Field(
        default=(TcpAddress("127.0.0.1", 9191),),
        description="addresses of the ext_authz service: `host:port`, `unix:///path`, or a list",
    )
    http: HttpListen = Field(
        default=TcpAddress("127.0.0.1", 9192),
        description="address of `/healthz`, `/readyz`, `/metrics` and `/v1/approvals`",
    )
    http_tls: bool = Field(
        default=False,
        description="whether `listen.http` is TLS with the X509-SVID of `tls.mode`; a client "
        "certificate is asked for and proves an approver",
    )


class Tls(_Section):
    """How the gRPC listener proves itself and whom it admits."""

    mode: Literal["plaintext", "files", "workload_api"] = Field(
        default="plaintext",
        description="`plaintext` (loopback, Unix sockets), or mutual TLS with an X509-SVID from "
        "`files` or from the `workload_api` at `identity.trust_bundles.socket`",
    )
    allowed_clients: tuple[WorkloadPattern, ...] = Field(
        default=(),
        description="SPIFFE IDs of the Envoys that may call, `*` within one path segment; "
        "required unless `tls.mode` is `plaintext`",
    )
    certificate: FilePath | None = Field(
        default=None,
        description="PEM file of the X509-SVID, leaf first; required for `files`, re-read",
    )
    private_key: FilePath | None = Field(
        default=None, description="PEM file of its key; required for `files`, re-read"
    )
    max_connection_age_s: Annotated[WholeNumber, Field(ge=1, le=CONNECTION_AGE_S_MAX)] = Field(
        default=600,
        description="age at which a connection is ended, its calls answered; in seconds",
    )

    @model_validator(mode="after")
    def _mutual_or_none(self) -> "Tls":
        found: list[Contradiction] = []
        if self.mode == "plaintext" and self.allowed_clients:
            found.append((("allowed_clients",), "needs `tls.mode` `files` or `workload_api`"))
        if self.mode != "plaintext" and not self.allowed_clients:
            found.append((("allowed_clients",), "must name the Envoys that may call"))
        for key, value in (("certificate", self.certificate), ("private_key", self.private_key)):
            if self.mode == "files" and value is None:
                found.append(((key,), "is required while `tls.mode` is `files`"))
            if self.mode != "files" and value is not None:
                found.append(((key,), "is for `tls.mode` `files` alone"))
        refuse_all(found)
        return self


class BundleEndpoint(_Section):
    """Where one other trust domain publishes its bundle (SPIFFE Federation §5)."""

    trust_domain: Domain = Field(description="trust domain whose bundle this is")
    url: HttpsUrl = Field(description="address of the bundle endpoint, `https://…`")
    profile: Literal["https_web", "https_spiffe"] = Field(
        description="how the endpoint proves itself: web PKI, or an X509-SVID"
    )
    endpoint_spiffe_id: WorkloadId | None = Field(
        default=None, description="its SPIFFE ID; required for `https_spiffe`"
    )
    bundle: FilePath | None = Field(
        default=None,
        description="PEM or SPIFFE bundle file of the endpoint's trust domain, to begin with; "
        "required for `https_spiffe`",
    )
    ca_file: FilePath | None = Field(
        default=None, description="PEM file of the authorities for `https_web`; default: system's"
    )

    @model_validator(mode="after")
    def _profile_is_complete(self) -> "BundleEndpoint":
        found: list[Contradiction] = []
        spiffe = self.profile == "https_spiffe"
        for key, value in (
            ("endpoint_spiffe_id", self.endpoint_spiffe_id),
            ("bundle", self.bundle),
        ):
            if spiffe and value is None:
                found.append(((key,), "is required while `profile` is `https_spiffe`"))
            if not spiffe and value is not None:
                found.append(((key,), "is for the profile `https_spiffe` alone"))
        if spiffe and self.ca_file is not None:
            found.append((("ca_file",), "is for the profile `https_web` alone"))
        refuse_all(found)
        return self


class TrustBundles(_Section):
    """Whose X509-SVIDs are believed."""

    source: Literal["files", "workload_api"] = Field(
        default="files",
        description="where the bundle of this server's own trust domain comes from; "
        "`workload_api` brings those that it federates with too",
    )
    files: Mapping[Domain, Annotated[tuple[FilePath, ...], ONE_OR_MORE, Field(min_length=1)]] = (
        Field(
            default={},
            description="PEM or SPIFFE bundle file, or a list of them, for each trust domain",
        )
    )
    socket: WorkloadApiSocket | None = Field(
        default=None, description="Unix socket of the SPIFFE Workload API, `unix:///path`"
    )
    endpoints: tuple[BundleEndpoint, ...] = Field(
        default=(), description="bundle endpoints of other trust domains"
    )
    max_age_s: Annotated[WholeNumber, Field(ge=1, le=BUNDLE_AGE_S_MAX)] = Field(
        default=3600,
        description="how long live bundles serve on when their source is silent; in seconds",
    )

    @model_validator(mode="after")
    def _one_source_for_each(self) -> "TrustBundles":
        found: list[Contradiction] = []
        if self.source == "workload_api" and self.socket is None:
            found.append((("socket",), "is required while `source` is `workload_api`"))
        seen = set(self.files)
        for index, endpoint in enumerate(self.endpoints):
            if endpoint.trust_domain in seen:
                wrong = "has a bundle from somewhere else already"
                found.append((("endpoints", index, "trust_domain"), wrong))
            seen.add(endpoint.trust_domain)
        refuse_all(found)
        return self

    def may_know(self, domain: TrustDomain) -> bool:
        """Tell whether a bundle of `domain` is configured or can come from the Workload API."""
        named = domain in self.files or any(e.trust_domain == domain for e in self.endpoints)
        return named or self.source == "workload_api"


class JwtSvidSettings(_Section):
    """Callers that prove themselves with a JWT-SVID instead of a certificate."""

    audiences: tuple[Text, ...] = Field(
        default=(),
        description="values of `aud` that mean this server: with one, a caller without a client "
        "certificate may send a JWT-SVID as `Authorization: Bearer`",
    )


class Bearer(_Section):
    """Bearer tokens of callers that cannot do mutual TLS; off by default."""

    jwt_svid: JwtSvidSettings = JwtSvidSettings()


class IdentitySettings(_Section):
    """Who is known, and on what evidence."""

    trust_bundles: TrustBundles = TrustBundles()
    inventory: FilePath | None = Field(
        default=None,
        description="inventory file; required unless `identity.unregistered` is `allow`",
    )
    unregistered: Literal["deny", "allow"] = Field(
        default="deny", description="what becomes of an identity that the inventory lacks"
    )
    trusted_proxies: tuple[WorkloadPattern, ...] = Field(
        default=(),
        description="SPIFFE IDs of the proxies whose `x-forwarded-client-cert` is believed, `*` "
        "within one path segment",
    )
    bearer: Bearer = Bearer()


class IssuerSettings(_Section):
    """One issuer that may mint root grants."""

    issuer: Annotated[Text, Field(max_length=2048)] = Field(description="exact value of `iss`")
    jwks_file: FilePath | None = Field(default=None, description="file with its public keys (JWKS)")
    jwks_url: KeySetUrl | None = Field(
        default=None,
        description="address of its public keys, instead of a file: `https://…`, or `http://` on "
        "this machine",
    )
    jwks_ca_file: FilePath | None = Field(
        default=None, description="PEM file of the authorities for `jwks_url`; default: system's"
    )
    jwks_max_stale_s: Annotated[WholeNumber, Field(ge=JWKS_STALE_S_MIN, le=JWKS_STALE_S_MAX)] = (
        Field(
            default=3600,
            description="how long keys from `jwks_url` serve on when it is silent; in seconds",
        )
    )
    algorithms: Annotated[tuple[Algorithm, ...], ONE_OR_MORE, Field(min_length=1)] = Field(
        default=("ES256",), description="signature algorithms it may use"
    )
    max_lifetime_s: Annotated[WholeNumber, Field(ge=1, le=ROOT_LIFETIME_S_MAX)] = Field(
        default=300, description="longest lifetime of a root grant, in seconds"
    )
    kind: Literal["txn_token", "access_token"] = Field(
        default="txn_token",
        description="what its root grants are: `Txn-Token`, or RFC 9068 access tokens as "
        "`Authorization: Bearer`",
    )
    audiences: Annotated[tuple[Text, ...], ONE_OR_MORE] = Field(
        default=(),
        description="values of `aud` that mean this server; default: the trust domain; required "
        "for `access_token`",
    )
    agents: Mapping[Text, WorkloadId] = Field(
        default={},
        description="SPIFFE ID of the workload that each `client_id` is; required for "
        "`access_token`",
    )
    subject_claim: Text = Field(
        default="sub", description="claim with the subject of an access token"
    )

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> "IssuerSettings":
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise phrase("must have exactly one of `jwks_file` and `jwks_url`")
        found: list[Contradiction] = []
        if self.jwks_ca_file is not None and not (self.jwks_url or "").startswith("https:"):
            found.append((("jwks_ca_file",), "is for a `jwks_url` of `https://…` alone"))
        is_access = self.kind == "access_token"
        for key, value in (("audiences", self.audiences), ("agents", self.agents)):
            if is_access and not value:
                found.append(((key,), "is required while `kind` is `access_token`"))
        if not is_access and self.agents:
            found.append((("agents",), "is for the kind `access_token` alone"))
        if not is_access and self.subject_claim != "sub":
            found.append((("subject_claim",), "is for the kind `access_token` alone"))
        refuse_all(found)
        return self


class DelegationLimits(_Section):
    """How far a chain may reach. The defaults are the highest values possible."""

    links_max: Annotated[WholeNumber, Field(ge=0, le=limits.LINKS_MAX)] = Field(
        default=limits.LINKS_MAX, description="links after the root grant"
    )
    actors_max: Annotated[WholeNumber, Field(ge=1, le=limits.ACTORS_MAX)] = Field(
        default=limits.ACTORS_MAX, description="actors in the whole chain"
    )
    total_bytes_max: Annotated[WholeNumber, Field(ge=1, le=limits.CHAIN_TOTAL_BYTES_MAX)] = Field(
        default=limits.CHAIN_TOTAL_BYTES_MAX,
        description="size of root and links together, in bytes",
    )
    skew_s: Annotated[WholeNumber, Field(ge=0, le=limits.CLOCK_SKEW_S)] = Field(
        default=limits.CLOCK_SKEW_S, description="how far clocks may differ, in seconds"
    )
    link_lifetime_s_max: Annotated[WholeNumber, Field(ge=1, le=limits.LINK_LIFETIME_S_MAX)] = Field(
        default=limits.LINK_LIFETIME_S_MAX, description="longest lifetime of a link, in seconds"
    )


class DelegationSettings(_Section):
    """Which delegation chains are admitted."""

    issuers: tuple[IssuerSettings, ...] = Field(
        default=(), description="who may mint root grants; required while `require` is true"
    )
    delegator_trust_domains: tuple[Domain, ...] | None = Field(
        default=None,
        description="trust domains whose workloads may sign links; default: `trust_domain`",
    )
    require: bool = Field(
        default=True,
        description="whether a request needs a chain; a route may be stricter, never laxer",
    )
    limits: DelegationLimits = DelegationLimits()


class Bundles(_Section):
    """Where the policy bundles are."""

    dir: FilePath = Field(
        default=Path("casbin_models"),
        validate_default=True,
        description="directory; each direct sub-directory is one policy bundle",
    )
    mode: Mapping[Text, Literal["enforce", "shadow"]] = Field(
        default={},
        description="mode of a bundle, by its name: `enforce` (the default of each), or `shadow`: "
        "what it says is recorded and not enforced",
    )


class Settings(_Section):
    """The whole configuration. `load_settings` reads it; nothing else reads the environment."""

    trust_domain: Domain = Field(description="trust domain of this server, without scheme")
    tls: Tls = Tls()
    listen: Listen = Field(default=Listen(), validate_default=True)
    identity: IdentitySettings = Field(default=IdentitySettings(), validate_default=True)
    delegation: DelegationSettings = Field(default=DelegationSettings(), validate_default=True)
    # Validated even if absent: their default paths are relative to the configuration file too.
    bundles: Bundles = Field(default_factory=dict, validate_default=True)
    ledger: LedgerSettings = Field(default_factory=dict, validate_default=True)
    revocations: RevocationSettings = RevocationSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    # INVARIANT: a check of one section against another runs once both are sound; `info.data` lacks
    # a section with faults of its own, which are reported instead.

    @field_validator("listen")
    @classmethod
    def _plaintext_stays_local(cls, listen: Listen, info: ValidationInfo) -> Listen:
        tls = info.data.get("tls")
        if isinstance(tls, Tls) and tls.mode == "plaintext":
            wrong = "must be loopback or a Unix socket while `tls.mode` is `plaintext`"
            refuse_all([(("grpc", i), wrong) for i, a in enumerate(listen.grpc) if not a.is_local])
            if listen.http_tls:
                refuse_all([(("http_tls",), "needs `tls.mode` `files` or `workload_api`")])
        return listen

    @field_validator("ledger")
    @classmethod
    def _what_passes_is_recorded(
        cls, ledger: LedgerSettings, info: ValidationInfo
    ) -> LedgerSettings:
        bundles = info.data.get("bundles")
        # SECURITY: what shadow mode lets pass is known from the ledger alone.
        if isinstance(bundles, Bundles) and "shadow" in bundles.mode.values():
            wrong = "must not be `off` while `bundles.mode` has a bundle in `shadow`"
            refuse_all([(("mode",), wrong)] if ledger.mode == "off" else [])
        return ledger

    @field_validator("approvals")
    @classmethod
    def _tokens_stay_private(
        cls, approvals: ApprovalSettings, info: ValidationInfo
    ) -> ApprovalSettings:
        listen = info.data.get("listen")
        # SECURITY: a bearer token is worth an approval to whoever reads it on the way.
        if isinstance(listen, Listen) and not (listen.http_tls or listen.http.is_local):
            wrong = "needs `listen.http_tls`, or `listen.http` on loopback"
            refuse_all([(("issuers",), wrong)] if approvals.issuers else [])
        return approvals

    @field_validator("identity")
    @classmethod
    def _someone_is_known(
        cls, identity: IdentitySettings, info: ValidationInfo
    ) -> IdentitySettings:
        found: list[Contradiction] = []
        own = info.data.get("trust_domain")
        if isinstance(own, TrustDomain) and not identity.trust_bundles.may_know(own):
            found.append((("trust_bundles", "files"), f"must name a bundle for `{own}`"))
        tls = info.data.get("tls")
        if isinstance(tls, Tls):
            found.extend(_listener_contradictions(tls, identity.trust_bundles))
        for index, pattern in enumerate(identity.trusted_proxies):
            if not identity.trust_bundles.may_know(pattern.trust_domain):
                wrong = f"is of `{pattern.trust_domain}`, which has no bundle here"
                found.append((("trusted_proxies", index), wrong))
        if identity.inventory is None and identity.unregistered == "deny":
            found.append((("inventory",), "is required while `identity.unregistered` is `deny`"))
        refuse_all(found)
        return identity

    @field_validator("delegation")
    @classmethod
    def _chains_can_be_proved(
        cls, delegation: DelegationSettings, info: ValidationInfo
    ) -> DelegationSettings:
        found: list[Contradiction] = []
        if delegation.require and not delegation.issuers:
            found.append((("issuers",), "must name an issuer while `delegation.require` is true"))
        names = [issuer.issuer for issuer in delegation.issuers]
        for index, name in enumerate(names):
            if name in names[:index]:
                found.append((("issuers", index, "issuer"), "is listed twice"))
        identity = info.data.get("identity")
        if isinstance(identity, IdentitySettings):
            for index, domain in enumerate(delegation.delegator_trust_domains or ()):
                if not identity.trust_bundles.may_know(domain):
                    wrong = "has no bundle in `identity.trust_bundles`"
                    found.append((("delegator_trust_domains", index), wrong))
        refuse_all(found)
        return delegation


def _listener_contradictions(tls: Tls, bundles: TrustBundles) -> list[Contradiction]:
    found: list[Contradiction] = []
    if tls.mode == "workload_api" and bundles.socket is None:
        wrong = "is required while `tls.mode` is `workload_api`"
        found.append((("trust_bundles", "socket"), wrong))
    for pattern in tls.allowed_clients:
        if not bundles.may_know(pattern.trust_domain):
            wrong = (
                f"must name a bundle for `{pattern.trust_domain}`, as `tls.allowed_clients` does"
            )
            found.append((("trust_bundles", "files"), wrong))
    return found
