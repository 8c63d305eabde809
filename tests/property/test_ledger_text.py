"""Whatever a request spells, its record can be written, read back exactly, and shown safely."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from authz_server.core.decision import Decision
from authz_server.core.record import decision_json
from authz_server.ledger.printable import printable
from authz_server.ledger.record import canonical_document
from authz_server.ledger.store import Ledger
from tests.ledger_samples import TTL_S, allow, chain, escalation, record

# Lone surrogates, NUL and other control characters are rare among all characters: ask for them.
any_text = st.text(st.characters() | st.characters(categories=["Cs", "Cc", "Cf"]), max_size=40)
encodable = st.text(st.characters(codec="utf-8"), max_size=40)


def spelled(decision: Decision, texts: list[str]) -> Decision:
    """Put `texts` wherever a request or an issuer chooses the words, and where it may yet."""
    subject, purpose, path, tool, node, rule = texts
    assert decision.resource is not None
    assert decision.environment is not None
    return replace(
        decision,
        chain=replace(chain(subject=subject), purpose=purpose),
        resource=replace(decision.resource, path=path, tool=tool, resource=node, uri=path),
        environment=replace(decision.environment, node=node, sni=subject),
        rules=(rule, rule),
        bundle=tool,
        owner=subject,
        detail=path,
    )


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    path: Path = tmp_path_factory.mktemp("ledger") / "authz.db"
    ledger = Ledger.open(f"sqlite:///{path}", approval_ttl_s=TTL_S)
    yield ledger
    ledger.close()


@given(texts=st.lists(any_text, min_size=6, max_size=6), fingerprint=st.uuids())
def test_no_spelling_makes_a_record_unwritable(
    ledger: Ledger, texts: list[str], fingerprint: object
) -> None:
    batch = [
        record(spelled(allow(), texts)),
        record(spelled(escalation(str(fingerprint)), texts)),
        record(allow()),
    ]
    final = ledger.commit(batch)
    for one, decision in zip(batch, final, strict=True):
        stored = ledger.get(one.decision_id)
        assert stored is not None
        assert stored.document == decision_json(
            decision, decision_id=one.decision_id, duration_us=one.duration_us
        )


@given(texts=st.lists(encodable, min_size=6, max_size=6))
def test_the_stored_text_is_the_canonical_form(texts: list[str]) -> None:
    """RFC 8785, as the independent implementation has it."""
    decision = spelled(allow(), texts)
    text = canonical_document(decision, decision_id="d", duration_us=5)
    assert json.loads(text) == decision_json(decision, decision_id="d", duration_us=5)
    assert text.encode() == rfc8785.dumps(json.loads(text))


@given(text=any_text)
def test_printable_text_is_printable_and_says_the_same(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@given(first=any_text, second=any_text)
def test_printable_keeps_different_texts_apart(first: str, second: str) -> None:
    assert (printable(first) == printable(second)) == (first == second)
