"""The attacks again, with trust that is in no file: real SPIRE, PDP and Envoy fed by its agent.

SPIRE signs with a key that the forge's authority has signed (an upstream authority), so the forge
can bend certificates and links as before, under the very bundle that the agent hands out.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.demo.processes import ProcessGroup
from authz_server.demo.spire import Entry, Spire, SpirePlan
from authz_server.demo.workload_program import PYTHON_ENVIRONMENT, envoy_for, python_for
from authz_server.envoy_config.binary import ENVIRONMENT_VARIABLE, envoy_binary
from authz_server.envoy_config.enforcement_point import SvidFromAgent
from tests.e2e import test_attacks, test_forged_delegation, test_hostile_certificates
from tests.e2e.attack_cases import Case, cases
from tests.e2e.attack_mesh import PROFILES, LiveTrust, Mesh, running_mesh
from tests.e2e.check_requests import PdpClient
from tests.e2e.forge import TRUST_DOMAIN, Forge, spiffe
from tests.e2e.forged_links import LINKS
from tests.e2e.forged_roots import ROOTS
from tests.e2e.test_hostile_certificates import Expected, Issue
from tests.e2e.workshop import Make, Workshop
from tests.spire.programs import spire_or_skip
from tests.spire.site import own_loopback

_TOOL = SpiffeId.parse(spiffe("tool/recorder"))
_PDP = SpiffeId.parse(spiffe("pdp"))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """The mesh of the attack suite; PDP and hardened Envoy take their trust from SPIRE."""
    programs = spire_or_skip()
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="spire-", ignore_cleanup_errors=True) as name,
    ):
        directory = Path(name)
        envoy = envoy_for("envoy", envoy_binary(), directory / "programs")
        python = python_for("pdp", directory / "programs")
        patch.setenv(ENVIRONMENT_VARIABLE, str(envoy))
        plan = SpirePlan(
            trust_domain=TrustDomain.parse(TRUST_DOMAIN),
            directory=directory / "spire",
            sockets=directory,
            host=own_loopback(),
            server_port=8081,
            bundle_port=8443,
            upstream=(directory / "trust.pem", directory / "upstream.key"),
        )

        def start(forge: Forge, group: ProcessGroup) -> None:
            (directory / "upstream.key").write_bytes(
                forge.authority.key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            spire = Spire(plan, programs, group)
            spire.start_server()
            tool = Entry(spiffe_id=_TOOL, program=envoy, dns_names=("tool.example",))
            spire.register([Entry(spiffe_id=_PDP, program=python), tool])
            spire.start_agent()

        live = LiveTrust(
            start=start,
            python=python,
            environment=PYTHON_ENVIRONMENT,
            svid=SvidFromAgent(agent=plan.agent_socket, spiffe_id=_TOOL),
        )
        socket = f"unix://{plan.agent_socket}"
        trust = {"trust_bundles": {"source": "workload_api", "socket": socket}}
        with running_mesh(directory, identity=trust, live=live) as running:
            yield running


@pytest.fixture(scope="module")
def pdp(mesh: Mesh) -> Iterator[PdpClient]:
    """A client that speaks to the PDP as an Envoy does."""
    client = PdpClient(str(mesh.pdp_address))
    yield client
    client.close()


@pytest.fixture(scope="module")
def workshop(mesh: Mesh) -> Workshop:
    """The tools of the forge, for this mesh."""
    return Workshop(mesh.forge, mesh.svid("narrow"), mesh.svid("other"))


def _spread(found: list[Case]) -> list[Case]:
    """Return the first case of each kind, and every seventh."""
    kinds: dict[str, Case] = {}
    for case in found:
        kinds.setdefault(case.kind, case)
    return list({case.id: case for case in (*kinds.values(), *found[::7])}.values())


def test_the_valid_chain_is_allowed(mesh: Mesh, pdp: PdpClient, workshop: Workshop) -> None:
    """What every forged one is a step away from; else all of them would be denied for nothing."""
    assert mesh.live is not None
    test_forged_delegation.test_control(pdp, workshop)


@pytest.mark.parametrize("case", _spread([*cases()]), ids=lambda case: case.id)
def test_an_attack_of_each_kind(mesh: Mesh, case: Case) -> None:
    for caller in case.callers:
        test_attacks.test_through_envoy(mesh, case, "hardened", caller)


@pytest.mark.deep
@pytest.mark.parametrize(("case", "profile", "caller"), test_attacks.TRIALS)
def test_every_attack(mesh: Mesh, case: Case, profile: str, caller: str) -> None:
    test_attacks.test_through_envoy(mesh, case, profile, caller)


@pytest.mark.parametrize(("reason", "make"), test_forged_delegation.params(ROOTS | LINKS))
def test_every_forged_chain(
    mesh: Mesh, pdp: PdpClient, workshop: Workshop, reason: str, make: Make
) -> None:
    test_forged_delegation.test_forged(mesh, pdp, workshop, reason, make)


@pytest.mark.deep
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("expected", "issue"), test_hostile_certificates.PARAMS)
def test_every_hostile_certificate(
    mesh: Mesh, expected: Expected, issue: Issue, profile: str
) -> None:
    test_hostile_certificates.test_at_the_handshake(mesh, expected, issue, profile)
