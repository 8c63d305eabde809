"""The matcher language: what is read, what is refused, and where the caret stands."""

import pytest

from authz_server.policy.expression import Binary, Call, Literal, Logic, Not, Path, TupleOf, parse
from authz_server.policy.lexer import TokenKind, tokenize
from authz_server.policy.source import FaultFound, Fragment, SourceFile
from tests.policy_samples import attributes, condition_faults, holds


def fragment(text: str) -> Fragment:
    return Fragment(SourceFile("m", text), text, ((0, 0),))


def test_tokens_carry_value_and_place() -> None:
    tokens = tokenize(fragment("r.sub.id == 'a' && 12 >= 1.5"))
    assert [(token.text, token.at) for token in tokens] == [
        ("r", 0),
        (".", 1),
        ("sub", 2),
        (".", 5),
        ("id", 6),
        ("==", 9),
        ("a", 12),
        ("&&", 16),
        ("12", 19),
        (">=", 22),
        ("1.5", 25),
        ("", 28),
    ]
    assert tokens[6].kind is TokenKind.STRING
    assert tokens[-1].kind is TokenKind.END


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ('"a"', "a"),
        ("'a'", "a"),
        ("'\"'", '"'),
        ('"\'"', "'"),
        (r'"\\d"', r"\d"),
        (r'"\""', '"'),
        ("'r.sub && !p.x || eval(p.rule) # ü'", "r.sub && !p.x || eval(p.rule) # ü"),
    ],
)
def test_a_literal_is_what_stands_between_its_quotes(source: str, value: str) -> None:
    assert parse(fragment(source)) == Literal(value, 0)


def test_the_tree_of_a_matcher() -> None:
    assert parse(fragment("r.sub.id == p.id && !(g(r.x, 'a') or x not in (1, 2))")) == Logic(
        "and",
        (
            Binary("==", Path(("r", "sub", "id"), (0, 2, 6)), Path(("p", "id"), (12, 14)), 9),
            Not(
                Logic(
                    "or",
                    (
                        Call("g", (Path(("r", "x"), (24, 26)), Literal("a", 29)), 22),
                        Binary(
                            "not in",
                            Path(("x",), (37,)),
                            TupleOf((Literal(1, 47), Literal(2, 50)), 46),
                            39,
                        ),
                    ),
                    34,
                ),
                20,
            ),
        ),
        17,
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a || b && c", "a || (b && c)"),
        ("a && b || c", "(a && b) || c"),
        ("not a == b", "not (a == b)"),
        ("1 + 2 * 3 == 7", "(1 + (2 * 3)) == 7"),
        ("1 - 2 - 3 == 0", "((1 - 2) - 3) == 0"),
        ("-1 + 2 == 1", "(-1) + 2 == 1"),
        ("!a && b", "(!a) && b"),
        ("a and b or not c", "(a && b) || !c"),
    ],
)
def test_precedence(text: str, same: str) -> None:
    assert shape(parse(fragment(text))) == shape(parse(fragment(same)))


def shape(node: object) -> object:
    """Return a tree without its places."""
    if isinstance(node, tuple):
        return tuple(map(shape, node))
    names = getattr(node, "__slots__", None)
    if names is None:
        return node
    return (
        type(node).__name__,
        *(shape(getattr(node, name)) for name in names if name not in {"at", "places"}),
    )


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "empty"),
        ("true &&", 8, "expected a value, found the end"),
        ("true true", 6, "expected an operator or the end, found `true`"),
        ("(true", 6, "expected `)`"),
        ("true)", 5, "found `)`"),
        ("'abc", 1, "no closing quote"),
        (r"'a\d'", 3, "must be doubled"),
        ("r.sub.id = 'a'", 10, "write `==`"),
        ("true & true", 6, "write `&&`"),
        ("true | true", 6, "write `||`"),
        ("r.sub.id =~ 'a'", 10, "use regexMatch"),
        ("2 ** 3 == 8", 3, "`**` is not supported"),
        ("true ? 1 : 2", 6, "conditional"),
        ("1 < 2 < 3", 7, "do not chain"),
        ("!r.sub.id == 'a'", 1, "read in two ways"),
        ("1e5 == 1", 1, "no exponent"),
        ("007 == 1", 1, "no leading zero"),
        ("0x10 == 1", 1, "no other base"),
        ("1.2.3 == 1", 1, "no exponent"),
        ("1234567890123456 == 1", 1, "at most 15 digits"),
        ("('a', 'b') == 'a'", 5, "only to the right of `in`"),
        ("r.sub.id.upper() == 'A'", 15, "no methods"),
        ("r.sub.id[r.sub.id] == 'A'", 10, "an index is a literal"),
        ("r.obj.segments[-1] == 'a'", 16, "an index is a literal"),
        ("r. == 'a'", 4, "expected a name"),
        ("`a` == 'a'", 1, "unexpected character"),
        ("[1] == 1", 1, "expected a value"),
        ("lambda: 1", 7, "unexpected character ':'"),
        ("true # always", 0, ""),
        ("a" * 20_000, 1, "longer than 16384 characters"),
        ("(" * 65 + "true" + ")" * 65, 65, "nested deeper"),
        ("1" + "+1" * 100 + " == 1", 0, "nested deeper"),
    ],
)
def test_what_is_refused(text: str, column: int, message: str) -> None:
    if text == "true # always":  # a comment after a matcher is read as Casbin reads it
        assert condition_faults(text) == []
        return
    with pytest.raises(FaultFound) as caught:
        parse(fragment(text))
    assert message in caught.value.fault.message
    if column:
        assert (caught.value.fault.line, caught.value.fault.column) == (1, column)


def test_a_long_flat_matcher_is_no_deep_one() -> None:
    assert holds(" || ".join(["r.sub.id == 'x'"] * 300 + ["true"]))


@pytest.mark.parametrize(
    "condition",
    [
        "r.sub.kind == 'agent'",
        "r.sub.owner == nil",
        "r.sub.owner == None",
        "r.chain.present == true && r.chain.present != False",
        "r.sub.kind in ('agent', 'service')",
        "r.sub.kind in ('agent')",
        "r.sub.kind in ('agent',)",
        "r.sub.kind not in ('tool')",
        "'crm.read' in r.chain.scope",
        "'crm.read' in (r.chain.scope)",
        "'spiffe://example.org/agent/a' in r.chain.actors",
        "r.chain.actors[0] == 'spiffe://example.org/agent/a'",
        "r.obj.segments[1] == 'customers' && r.obj.segments[9] == nil",
        "r.chain.depth + 1 == 3 && r.chain.depth * 2 - 1 >= 3 && r.chain.depth / 4 == 0.5",
        "r.chain.depth % 2 == 0 && -r.chain.depth < 0 && r.chain.depth > -1",
        "'/v1' + '/customers/' + '7' == r.obj.path",
        "r.obj.labels['cost-center'] == 'x y' && r.obj.labels.stage == 'test'",
        "r.obj.args.items == 1 && r.obj.args.get == 2.5 && r.obj.args['keys'] == false",
        "r.obj.args.dry_run && !r.obj.args.absent",
        "r.sub.path >= '/agent/a' && r.sub.path < '/agent/c'",
    ],
)
def test_what_holds(condition: str) -> None:
    request = attributes(
        obj={
            "labels": {"cost-center": "x y", "stage": "test"},
            "args": {"items": 1, "get": 2.5, "keys": False, "dry_run": True},
        }
    )
    assert holds(condition, request)
