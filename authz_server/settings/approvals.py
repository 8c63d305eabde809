"""The `approvals` section: how people answer escalations, and how they are told and known."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from authz_server.settings.values import (
    ONE_OR_MORE,
    Contradiction,
    FilePath,
    Text,
    WebhookUrl,
    WholeNumber,
    refuse_all,
)

APPROVAL_TTL_S_MAX: Final = 7 * 24 * 3600  # beyond a week nobody remembers what was approved
TOKEN_LIFETIME_S_MAX: Final = 24 * 3600  # a person signs in once a day

_Algorithm = Literal["ES256", "ES384", "PS256", "RS256", "EdDSA"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ApproverIssuerSettings(_Section):
    """One OpenID provider whose tokens prove who an approver is."""

    issuer: Annotated[Text, Field(max_length=2048)] = Field(description="exact value of `iss`")
    jwks_file: FilePath = Field(description="file with its public keys (JWKS), re-read")
    audiences: Annotated[tuple[Text, ...], ONE_OR_MORE, Field(min_length=1)] = Field(
        description="values of `aud` that mean this server, or a list"
    )
    algorithms: Annotated[tuple[_Algorithm, ...], ONE_OR_MORE, Field(min_length=1)] = Field(
        default=("RS256", "ES256"), description="signature algorithms it may use"
    )
    name_claim: Literal["email", "sub", "preferred_username"] = Field(
        default="email",
        description="claim with the name that groups use; `email` counts when it is verified",
    )
    max_lifetime_s: Annotated[WholeNumber, Field(ge=1, le=TOKEN_LIFETIME_S_MAX)] = Field(
        default=3600, description="longest lifetime of a token, in seconds"
    )


class WebhookSettings(_Section):
    """Where the news of a pending approval goes."""

    url: WebhookUrl = Field(description="address, `https://…`, or `http://` on loopback")
    secret_file: FilePath = Field(
        description="file with the key of its signature, 24 bytes or more, re-read"
    )


class ApprovalSettings(_Section):
    """How people answer escalations."""

    ttl_s: Annotated[WholeNumber, Field(ge=1, le=APPROVAL_TTL_S_MAX)] = Field(
        default=900, description="how long an access request, with its approval, stands; in seconds"
    )
    single_use: bool = Field(default=True, description="whether an approval serves one request")
    bind_txn: bool = Field(
        default=False, description="whether an approval holds for one transaction only"
    )
    groups: Mapping[Text, tuple[Text, ...]] = Field(
        default={}, description="approver groups and their members"
    )
    two_persons: tuple[Text, ...] = Field(
        default=(), description="approver groups of which two members must approve"
    )
    issuers: tuple[ApproverIssuerSettings, ...] = Field(
        default=(), description="OpenID providers whose tokens prove approvers to the HTTP API"
    )
    webhooks: tuple[WebhookSettings, ...] = Field(
        default=(), description="addresses that are told of each pending approval"
    )

    @model_validator(mode="after")
    def _groups_can_answer(self) -> "ApprovalSettings":
        found: list[Contradiction] = []
        for index, group in enumerate(self.two_persons):
            if len(set(self.groups.get(group, ()))) < 2:
                found.append((("two_persons", index), "must be a group of two members or more"))
        names = [issuer.issuer for issuer in self.issuers]
        for index, name in enumerate(names):
            if name in names[:index]:
                found.append((("issuers", index, "issuer"), "is listed twice"))
        urls = [webhook.url for webhook in self.webhooks]
        for index, url in enumerate(urls):
            if url in urls[:index]:
                found.append((("webhooks", index, "url"), "is listed twice"))
        refuse_all(found)
        return self
