"""The approvals API answers approvers who prove themselves, and nobody else; over real sockets."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.signing import sign
from authz_server.core.callers import CallerPolicy
from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.identities import Inventory
from authz_server.core.jose import ALGORITHMS
from authz_server.core.request import Headers
from authz_server.core.snapshot import Revocations, Snapshot
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern, TrustDomain
from authz_server.core.trust import TrustMaterial
from authz_server.demo.authority import TrustDomainAuthority
from authz_server.identity.own_svid import OwnSvid
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.store import Ledger
from authz_server.servers.admin_http import AdminServer, ApiRequest
from authz_server.servers.admin_tls import AdminTls
from authz_server.servers.approvals_http import OPERATIONS, ApprovalsApi
from authz_server.servers.approvals_openapi import openapi_document
from authz_server.servers.approver import ApproverProof, IssuerFile, NotProvedError
from tests.ledger_samples import ALICE, BOB, RESEARCHER, TTL_S, chain, escalation, record

DOMAIN = TrustDomain.parse("prod.example.org")
PERSON = "spiffe://prod.example.org/person/bob"
PROXY = "spiffe://prod.example.org/proxy/edge"
ISSUER = "https://login.example.org"
CLIENT = "authz-approvals"
CAROL = "carol@example.org"
_END = "-----END CERTIFICATE-----\n"
PAGE = Path(__file__).parents[2] / "docs" / "openapi" / "approvals.yaml"


@dataclass
class Desk:
    """A running API over a real ledger, and the keys to prove anybody to it."""

    port: int
    ledger_url: str
    key: ec.EllipticCurvePrivateKey
    ids: Mapping[str, str]
    jwks: Path
    revoked: Callable[[Revocations], None]
    client_tls: ssl.SSLContext | None = None

    def token(self, *, header: Mapping[str, object] | None = None, **claims: object) -> str:
        now = int(time.time())
        payload: dict[str, object] = {
            "iss": ISSUER,
            "aud": CLIENT,
            "sub": "u-1",
            "email": BOB,
            "email_verified": True,
            "iat": now,
            "exp": now + 300,
        } | claims
        present = {name: value for name, value in payload.items() if value is not None}
        return sign({"alg": "ES256", "kid": "k1"} | dict(header or {}), present, self.key)

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        sent = {"content-type": "application/json"} if method == "POST" else {}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        connection: http.client.HTTPConnection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            if self.client_tls is None
            else http.client.HTTPSConnection(
                "localhost", self.port, timeout=10, context=self.client_tls
            )
        )
        try:
            connection.request(method, path, body=data, headers=sent | dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.headers)
        finally:
            connection.close()

    def post(self, name: str, verb: str, *, token: str | None = None, body: object = None) -> Any:
        return self.ask("POST", f"/v1/approvals/{self.ids[name]}/{verb}", token=token, body=body)


class _Snapshots:
    def __init__(self, authority: TrustDomainAuthority) -> None:
        trust = TrustMaterial(
            revision="t", bundles=MappingProxyType({DOMAIN: authority.bundle}),
            issuers=MappingProxyType({}),
        )  # fmt: skip
        self.current: Snapshot | None = Snapshot(
            revision="r",
            trust_domain=DOMAIN,
            trust=trust,
            delegation=DelegationPolicy(require=False, delegator_trust_domains=frozenset({DOMAIN})),
            inventory=Inventory.of([]),
            policies=MappingProxyType({}),
            chains=ChainCache(),
            callers=CallerPolicy(trusted_proxies=(SpiffeIdPattern.parse(PROXY),)),
        )

    def revoke(self, revocations: Revocations) -> None:
        from dataclasses import replace

        assert self.current is not None
        self.current = replace(self.current, revocations=revocations)


GROUPS = {
    "finance-oncall": (BOB, CAROL, ALICE, PERSON),
    "pairs": (BOB, CAROL, BOB.upper()),
    "others": (CAROL,),
}


@pytest.fixture(scope="module")
def authority() -> TrustDomainAuthority:
    return TrustDomainAuthority.create(DOMAIN)


@pytest.fixture
def make(tmp_path: Path, authority: TrustDomainAuthority) -> Iterator[Callable[..., Desk]]:
    servers: list[AdminServer] = []

    def start(*, tls: bool = False, issuers: bool = True) -> Desk:
        url = f"sqlite:///{tmp_path}/authz.db"
        ledger = Ledger.open(url, approval_ttl_s=TTL_S)
        now = datetime.now(UTC)
        asked = {
            "finance": escalation("a" * 64, time=now),
            "pair": escalation("b" * 64, time=now, obligation="pairs"),
            "bobs": escalation("c" * 64, time=now, chain=chain(subject=BOB)),
            "others": escalation("d" * 64, time=now, obligation="others"),
            "old": escalation("e" * 64, time=datetime(2020, 1, 1, tzinfo=UTC)),
        }
        settled = ledger.commit([record(decision) for decision in asked.values()])
        ledger.close()
        ids = {}
        for name, decision in zip(asked, settled, strict=True):
            assert decision.ticket is not None
            ids[name] = decision.ticket.id
        key = ec.generate_private_key(ec.SECP256R1())
        jwks = tmp_path / "login.jwks.json"
        jwk = dict(ALGORITHMS["ES256"].to_jwk(key.public_key(), as_dict=True))
        jwk.pop("key_ops", None)
        jwks.write_text(json.dumps({"keys": [jwk | {"kid": "k1", "use": "sig", "alg": "ES256"}]}))
        file = IssuerFile(
            issuer=ISSUER, jwks_file=jwks, audiences=frozenset({CLIENT}), algorithms=("ES256",),
            name_claim="email", max_lifetime_s=3600,
        )  # fmt: skip
        snapshots = _Snapshots(authority)
        api = ApprovalsApi(
            Approvals.at(url, groups=GROUPS, two_persons=("pairs",)),
            proof=ApproverProof([file] if issuers else [], snapshots),
            clock=lambda: datetime.now(UTC),
            document=openapi_document(),
        )
        source = None
        if tls:
            own = authority.issue_svid(SpiffeId.parse("spiffe://prod.example.org/authz"))

            class _Own:
                svid = OwnSvid.from_pem(own.cert_chain_pem, own.key_pem)

            source = AdminTls(_Own(), snapshots, DOMAIN).context
        server = AdminServer("127.0.0.1", 0, {}, api=api, tls=source)
        server.start()
        servers.append(server)
        return Desk(
            port=server.port, ledger_url=url, key=key, ids=ids, jwks=jwks, revoked=snapshots.revoke
        )

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def desk(make: Callable[..., Desk]) -> Desk:
    return make()


def test_lists_the_requests_of_the_approvers_groups_alone(desk: Desk) -> None:
    status, document, _ = desk.ask("GET", "/v1/approvals?status=pending", token=desk.token())
    assert status == 200
    assert {one["id"] for one in document["approvals"]} == {
        desk.ids[name] for name in ("finance", "pair", "bobs")
    }
    nobody = desk.token(email="mallory@example.org")
    assert desk.ask("GET", "/v1/approvals", token=nobody)[1] == {"approvals": []}


def test_shows_one_and_hides_those_of_other_groups(desk: Desk) -> None:
    status, document, _ = desk.ask(
        "GET", f"/v1/approvals/{desk.ids['finance']}", token=desk.token()
    )
    assert (status, document["subject"], document["status"]) == (200, ALICE, "pending")
    hidden = desk.ask("GET", f"/v1/approvals/{desk.ids['others']}", token=desk.token())
    absent = desk.ask("GET", f"/v1/approvals/{'0' * 16}", token=desk.token())
    assert hidden[:2] == absent[:2], "whether it exists must not be seen"
    assert hidden[0] == 404
    assert desk.post("others", "approve", token=desk.token())[0] == 404


def test_approves_once(desk: Desk) -> None:
    status, document, _ = desk.post("finance", "approve", token=desk.token())
    assert (status, document["status"], document["approver"]) == (200, "approved", BOB)
    status, problem, headers = desk.post("finance", "approve", token=desk.token())
    assert (status, headers["Content-Type"]) == (409, "application/problem+json")
    assert problem["type"].endswith(":not-pending")
    assert problem.keys() == {"type", "title", "status", "detail"}  # RFC 9457 §3.1


def test_rejects_with_a_reason(desk: Desk) -> None:
    status, document, _ = desk.post(
        "finance", "reject", token=desk.token(), body={"reason": "no need"}
    )
    assert (status, document["status"], document["reject_reason"]) == (200, "rejected", "no need")


@pytest.mark.parametrize(
    "body", [None, {}, {"reason": ""}, {"reason": " "}, {"reason": 1}, {"reason": "x" * 501},
             {"reason": "x", "as": "carol@example.org"}, []],
)  # fmt: skip
def test_a_rejection_without_a_sound_reason_changes_nothing(desk: Desk, body: object) -> None:
    assert desk.post("finance", "reject", token=desk.token(), body=body)[0] == 400
    assert desk.ask("GET", f"/v1/approvals/{desk.ids['finance']}/status")[1]["status"] == "pending"


def test_nobody_approves_their_own_request(desk: Desk) -> None:
    """Case approval: the subject is a member of the group, and still may not."""
    for token, name in ((desk.token(email=ALICE), "finance"), (desk.token(), "bobs")):
        status, problem, _ = desk.post(name, "approve", token=token)
        assert (status, problem["type"].rpartition(":")[2]) == (403, "party-to-request")


def test_a_passed_deadline_is_a_conflict(desk: Desk) -> None:
    status, problem, _ = desk.post("old", "approve", token=desk.token())
    assert (status, problem["type"].rpartition(":")[2]) == (409, "expired")


def test_two_persons(desk: Desk) -> None:
    status, document, _ = desk.post("pair", "approve", token=desk.token())
    assert (status, document["status"], document["approver"]) == (200, "pending", BOB)
    assert desk.post("pair", "approve", token=desk.token())[0] == 409
    spelled = desk.token(email=BOB.upper())
    assert desk.post("pair", "approve", token=spelled)[1]["type"].endswith(":same-person")
    status, document, _ = desk.post("pair", "approve", token=desk.token(email=CAROL))
    assert (status, document["status"]) == (200, "approved")
    assert document["approver"] == f"{BOB}, {CAROL}"


def test_the_first_of_two_persons_can_be_overruled_by_a_rejection(desk: Desk) -> None:
    desk.post("pair", "approve", token=desk.token())
    body = {"reason": "no"}
    status, document, _ = desk.post("pair", "reject", token=desk.token(email=CAROL), body=body)
    assert (status, document["status"], document["approver"]) == (200, "rejected", CAROL)


FORGED: dict[str, Callable[[Desk], str]] = {
    "expired": lambda d: d.token(iat=int(time.time()) - 900, exp=int(time.time()) - 600),
    "from the future": lambda d: d.token(iat=int(time.time()) + 600, exp=int(time.time()) + 900),
    "without exp": lambda d: d.token(exp=None),
    "too long": lambda d: d.token(exp=int(time.time()) + 90_000),
    "other issuer": lambda d: d.token(iss="https://evil.example"),
    "without issuer": lambda d: d.token(iss=None),
    "other audience": lambda d: d.token(aud="somebody-else"),
    "without audience": lambda d: d.token(aud=None),
    "unverified address": lambda d: d.token(email_verified=False),
    "verification as text": lambda d: d.token(email_verified="true"),
    "no address": lambda d: d.token(email=None),
    "used by an actor": lambda d: d.token(act={"sub": RESEARCHER}),
    "bound to a key": lambda d: d.token(cnf={"jkt": "x"}),
    "a root grant": lambda d: d.token(header={"typ": "txntoken+jwt"}),
    "a link": lambda d: d.token(header={"typ": "delegation-link+jwt"}),
    "unknown key": lambda d: d.token(header={"kid": "k2"}),
    "key in the header": lambda d: d.token(header={"jwk": {"kty": "EC"}}),
    "critical header": lambda d: d.token(header={"crit": ["b64"]}),
    "cut": lambda d: d.token()[:-4],
    "of another key": lambda d: sign(
        {"alg": "ES256", "kid": "k1"},
        {"iss": ISSUER, "aud": CLIENT, "email": BOB, "email_verified": True,
         "iat": int(time.time()), "exp": int(time.time()) + 60},
        ec.generate_private_key(ec.SECP256R1()),
    ),
    "unsigned": lambda _: "eyJhbGciOiJub25lIn0.e30.",
    "nothing": lambda _: "",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_proves_nobody_is_refused_and_changes_nothing(desk: Desk, name: str) -> None:
    token = FORGED[name](desk)
    status, problem, headers = desk.post("finance", "approve", token=token)
    assert status == 401, problem
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert token not in json.dumps(problem) or not token
    assert desk.ask("GET", f"/v1/approvals/{desk.ids['finance']}/status")[1]["status"] == "pending"
    assert desk.post("finance", "approve", token=desk.token())[0] == 200, "its neighbour passes"


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.name != "status"])
def test_without_proof_every_operation_is_refused(
    make: Callable[..., Desk], operation: Any
) -> None:
    for desk in (make(), make(issuers=False)):
        path = operation.path.replace("{id}", desk.ids["finance"])
        assert desk.ask(operation.method, path)[0] == 401
    forwarded = {"x-forwarded-client-cert": f"By={PROXY};URI={PERSON}"}
    assert desk.ask(operation.method, path, headers=forwarded)[0] == 401
    assert desk.ask(operation.method, path, token=desk.token())[0] == 401, "no issuer is configured"


def test_a_revoked_person_key_or_token_approves_nothing(desk: Desk) -> None:
    for revocations in (
        Revocations(subject=frozenset({BOB})),
        Revocations(kid=frozenset({"k1"})),
        Revocations(jti=frozenset({"j1"})),
    ):
        desk.revoked(revocations)
        assert desk.post("finance", "approve", token=desk.token(jti="j1"))[0] == 401
    desk.revoked(Revocations())
    assert desk.post("finance", "approve", token=desk.token(jti="j1"))[0] == 200


def test_a_key_taken_out_of_the_file_is_out_at_once(desk: Desk) -> None:
    desk.jwks.write_text('{"keys": []}')
    assert desk.post("finance", "approve", token=desk.token())[0] == 401
    desk.jwks.write_text("{")
    assert desk.post("finance", "approve", token=desk.token())[0] == 503


def test_the_agent_polls_its_ticket_without_proof_and_learns_only_its_state(desk: Desk) -> None:
    path = f"/v1/approvals/{desk.ids['finance']}/status"
    status, document, _ = desk.ask("GET", path)
    assert status == 200
    assert document.keys() == {"id", "status", "expires_at"}
    desk.post("finance", "approve", token=desk.token())
    assert desk.ask("GET", path)[1]["status"] == "approved"
    assert desk.ask("GET", f"/v1/approvals/{desk.ids['finance'][:8]}/status")[0] == 404
    assert desk.ask("GET", "/v1/approvals/%2e%2e/status")[0] == 404


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_a_browser_cannot_answer(desk: Desk, content_type: str) -> None:
    path = f"/v1/approvals/{desk.ids['finance']}/approve"
    status, _, _ = desk.ask(
        "POST", path, token=desk.token(), headers={"content-type": content_type}
    )
    assert status == 415


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("DELETE", "/v1/approvals", 405),
        ("GET", "/v1/approvals/0123456789abcdef/approve", 405),
        ("GET", "/v1/other", 404),
        ("GET", "/v1/approvals/", 404),
        ("GET", "/v1/approvals?limit=0", 400),
        ("GET", "/v1/approvals?limit=201", 400),
        ("GET", "/v1/approvals?status=open", 400),
        ("GET", "/v1/approvals?status=pending&status=expired", 400),
        ("GET", "/v1/approvals?group=x", 400),
    ],
)
def test_what_is_malformed_is_a_problem(desk: Desk, method: str, path: str, expected: int) -> None:
    status, problem, headers = desk.ask(method, path, token=desk.token())
    assert status == expected
    assert problem["status"] == expected
    assert headers["Content-Type"] == "application/problem+json"
    assert (expected == HTTPStatus.METHOD_NOT_ALLOWED) == ("Allow" in headers)


def test_a_body_that_is_too_large_or_of_unknown_length_is_not_read(desk: Desk) -> None:
    path = f"/v1/approvals/{desk.ids['finance']}/reject"
    assert desk.ask("POST", path, token=desk.token(), raw=b" " * 5000)[0] == 413
    chunked = {"transfer-encoding": "chunked"}
    assert desk.ask("POST", path, token=desk.token(), headers=chunked, raw=b"0\r\n\r\n")[0] == 413


def test_the_description_is_served_committed_and_complete(desk: Desk) -> None:
    status, served, _ = desk.ask("GET", "/v1/openapi.json")
    assert status == 200
    assert served == yaml.safe_load(PAGE.read_text())
    described = {
        (method.upper(), path) for path, methods in served["paths"].items() for method in methods
    }
    assert described == {(one.method, one.path) for one in OPERATIONS}
    for path, methods in served["paths"].items():
        for method, operation in methods.items():
            asked = path.replace("{id}", desk.ids["finance"])
            assert str(desk.ask(method.upper(), asked)[0]) in operation["responses"]


def _client(
    authority: TrustDomainAuthority, tmp_path: Path, name: str | None, *, other: bool = False
) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.bundle_pem.decode())
    context.check_hostname = False  # an SVID has no DNS name
    if name is not None:
        signer = TrustDomainAuthority.create(DOMAIN) if other else authority
        svid = signer.issue_svid(SpiffeId.parse(name))
        file = tmp_path / "client.pem"
        file.write_bytes(svid.cert_chain_pem + svid.key_pem)
        context.load_cert_chain(file)
    return context


def test_a_client_certificate_proves_an_approver(
    make: Callable[..., Desk], authority: TrustDomainAuthority, tmp_path: Path
) -> None:
    desk = make(tls=True, issuers=False)
    desk.client_tls = _client(authority, tmp_path, None)
    assert desk.post("finance", "approve")[0] == 401, "TLS alone proves nobody"
    desk.client_tls = _client(authority, tmp_path, RESEARCHER)
    assert desk.post("finance", "approve")[0] == 404, "an agent is in no approver group"
    desk.client_tls = _client(authority, tmp_path, PERSON)
    desk.revoked(Revocations(spiffe_id=frozenset({PERSON})))
    assert desk.post("finance", "approve")[0] == 401
    desk.revoked(Revocations())
    status, document, _ = desk.post("finance", "approve")
    assert (status, document["approver"]) == (200, PERSON)


def test_an_expired_certificate_proves_nobody_on_an_old_connection(
    authority: TrustDomainAuthority,
) -> None:
    svid = authority.issue_svid(SpiffeId.parse(PERSON))
    der = ssl.PEM_cert_to_DER_cert(svid.cert_chain_pem.decode().partition("-----END")[0] + _END)
    request = ApiRequest(
        method="GET", target="/v1/approvals", headers=Headers(fields={}), body=b"",
        client_certificate=der,
    )  # fmt: skip
    proof, now = ApproverProof([], _Snapshots(authority)), datetime.now(UTC)
    assert proof.prove(request, now) == PERSON
    with pytest.raises(NotProvedError, match="expired"):
        proof.prove(request, now + timedelta(hours=2))


def test_a_trusted_proxy_vouches_and_no_one_else(
    make: Callable[..., Desk], authority: TrustDomainAuthority, tmp_path: Path
) -> None:
    desk = make(tls=True, issuers=False)
    path = f"/v1/approvals/{desk.ids['finance']}/approve"
    forwarded = {"x-forwarded-client-cert": f"By={PROXY};URI={PERSON}"}
    desk.client_tls = _client(authority, tmp_path, RESEARCHER)
    assert desk.ask("POST", path, headers=forwarded)[0] == 404
    desk.client_tls = _client(authority, tmp_path, PROXY)
    assert desk.ask("POST", path)[0] == 404, "the proxy itself is in no group"
    assert desk.ask("POST", path, headers=forwarded)[1]["approver"] == PERSON


def test_a_certificate_of_another_authority_ends_the_handshake(
    make: Callable[..., Desk], authority: TrustDomainAuthority, tmp_path: Path
) -> None:
    desk = make(tls=True, issuers=False)
    desk.client_tls = _client(authority, tmp_path, PERSON, other=True)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        desk.post("finance", "approve")
    desk.client_tls = _client(authority, tmp_path, None)
    path = f"/v1/approvals/{desk.ids['finance']}/status"
    assert desk.ask("GET", path)[1]["status"] == "pending"
