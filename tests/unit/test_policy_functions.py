"""Casbin's functions: their documented examples, the edges, and what they cost at worst."""

import random
import re

import pytest

from authz_server.core.errors import InvalidValueError
from authz_server.policy.automaton import STATES_MAX, compile_pattern
from authz_server.policy.functions import FUNCTIONS, compile_constants, time_test
from authz_server.policy.glob import parse_glob
from authz_server.policy.regex import parse_regex


def call(name: str, value: str, *constants: str) -> object:
    return compile_constants(FUNCTIONS[name], constants)(value)


@pytest.mark.parametrize(
    ("name", "value", "pattern", "expected"),
    [
        ("keyMatch", "/foo/bar", "/foo/*", True),
        ("keyMatch", "/foo/", "/foo/*", True),
        ("keyMatch", "/foo", "/foo/*", False),
        ("keyMatch", "/foo", "/foo*", True),
        ("keyMatch", "/foobar", "/foo", False),
        ("keyMatch", "anything", "*", True),
        ("keyMatch2", "/foo/bar", "/foo/*", True),
        ("keyMatch2", "/foo", "/foo/*", False),
        ("keyMatch2", "/resource1", "/:resource", True),
        ("keyMatch2", "/", "/:resource", False),
        ("keyMatch2", "/a/b", "/:resource", False),
        ("keyMatch2", "/myid/using/myresid", "/:id/using/:resId", True),
        ("keyMatch2", "/alice/all", "/:id/all", True),
        ("keyMatch2", "/alice", "/:id/all", False),
        ("keyMatch2", "/proxy/a/b/c/res", "/proxy/*/res", True),
        ("keyMatch2", "/proxy/res", "/proxy/*/res", False),
        ("keyMatch2", "/v1.0/x", "/v1.0/:id", True),
        ("keyMatch2", "/v1X0/x", "/v1.0/:id", False),
        ("keyMatch2", "/user-7", "/user-:id", True),
        ("keyMatch2", "/user-", "/user-:id", False),
        ("keyMatch2", "anything/at all", "*", True),
        ("keyMatch3", "/foo/bar", "/foo/{name}", True),
        ("keyMatch3", "/foo/bar/x", "/foo/{name}", False),
        ("keyMatch3", "/foo/bar/x", "/foo/{name}/*", True),
        ("keyMatch3", "project/proj_a_admin", "project/proj_{p}_admin", True),
        ("keyMatch3", "project/proj__admin", "project/proj_{p}_admin", False),
        ("keyMatch3", "/proxy/myid", "/proxy/{id}/*", False),
        ("keyMatch4", "/parent/1/child/1", "/parent/{id}/child/{id}", True),
        ("keyMatch4", "/parent/1/child/2", "/parent/{id}/child/{id}", False),
        ("keyMatch4", "/parent/1/child/2", "/parent/{id}/child/{other}", True),
        ("keyMatch4", "/parent/1/child/p1", "/parent/{id}/child/p{id}", True),
        ("keyMatch5", "/foo/bar?status=1&type=2", "/foo/bar", True),
        ("keyMatch5", "/parent/child1?x", "/parent/*", True),
        ("keyMatch5", "/parent/child1", "/parent/{id}", True),
        ("keyMatch5", "/parent/a/b", "/parent/{id}", False),
        ("globMatch", "evil", "*b", False),
        ("globMatch", "xpdf", "*.pdf", False),
        ("globMatch", "x.pdf", "*.pdf", True),
        ("globMatch", "/foo/bar", "/foo/*", True),
        ("globMatch", "/foo/bar/x", "/foo/*", False),
        ("globMatch", "/foo", "/f?o", True),
        ("globMatch", "/foo", "/f[a-p]o", True),
        ("globMatch", "/foo", "/f[^a-p]o", False),
        ("globMatch", "/f/o", "/f[^a]o", False),
        ("globMatch", "a*c", "a\\*c", True),
        ("globMatch", "abc", "a\\*c", False),
        ("regexMatch", "GET", "(GET)|(POST)", True),
        ("regexMatch", "/topic/edit/123", "/topic/edit/[0-9]+", True),
        ("regexMatch", "/x/topic/edit/1", "/topic/edit/[0-9]+", True),
        ("regexMatch", "/topic/edit/a", "/topic/edit/[0-9]+", False),
        ("regexMatch", "/admin", "^/ad$", False),
        ("regexMatch", "/ad\n", "^/ad$", False),
        ("regexMatch", "\u0665", "^\\d$", False),
        ("ipMatch", "192.168.2.123", "192.168.2.0/24", True),
        ("ipMatch", "192.168.3.1", "192.168.2.0/24", False),
        ("ipMatch", "10.0.0.1", "10.0.0.1", True),
        ("ipMatch", "::ffff:10.0.0.1", "10.0.0.0/8", True),
        ("ipMatch", "2001:db8::1", "2001:db8::/32", True),
        ("ipMatch", "10.0.0.1", "2001:db8::/32", False),
        ("ipMatch", "010.0.0.1", "10.0.0.0/8", False),
        ("ipMatch", "10.0.0.1:443", "10.0.0.0/8", False),
        ("ipMatch", "fe80::1%eth0", "fe80::/64", True),
        ("ipMatch", "", "0.0.0.0/0", False),
        ("keyGet", "/foo/bar/x", "/foo/*", "bar/x"),
        ("keyGet", "/bar", "/foo/*", ""),
    ],
)
def test_casbins_examples_and_edges(name: str, value: str, pattern: str, expected: object) -> None:
    assert call(name, value, pattern) == expected


@pytest.mark.parametrize(
    ("name", "path", "pattern", "variable", "expected"),
    [
        ("keyGet2", "/resource1", "/:resource", "resource", "resource1"),
        ("keyGet2", "/a/using/b", "/:id/using/:res", "res", "b"),
        ("keyGet2", "/a/b/c", "/:id", "id", ""),
        ("keyGet2", "/7/x/y", "/:id/*", "id", "7"),
        ("keyGet3", "project/proj_p1_admin/", "project/proj_{project}_admin/", "project", "p1"),
    ],
)
def test_what_a_variable_stands_for(
    name: str, path: str, pattern: str, variable: str, expected: str
) -> None:
    assert call(name, path, pattern, variable) == expected


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("keyMatch", ("/a/*/b",)),
        ("keyMatch", ("/a/**",)),
        ("keyGet", ("/a",)),
        ("keyMatch2", ("*/a",)),
        ("keyMatch2", ("/a*",)),
        ("keyMatch2", ("/a:",)),
        ("keyMatch2", ("/a+b",)),
        ("keyMatch2", ("/:a:b",)),
        ("keyMatch3", ("*",)),
        ("keyMatch3", ("/{a b}",)),
        ("keyMatch3", ("/{a",)),
        ("keyMatch4", ("/{a}/*/{a}",)),
        ("keyGet2", ("/:a", "b")),
        ("keyGet2", ("/:a/*/x", "a")),
        ("globMatch", ("[!a]",)),
        ("globMatch", ("[a",)),
        ("globMatch", ("[b-a]",)),
        ("globMatch", ("a\\",)),
        ("globMatch", ("**",)),
        ("ipMatch", ("10.0.0.0/33",)),
        ("ipMatch", ("::ffff:10.0.0.0/104",)),
        ("ipMatch", ("localhost",)),
        ("regexMatch", ("a{2000}",)),
        ("regexMatch", ("a{3,2}",)),
        ("regexMatch", ("(a{500}){500}",)),
        ("regexMatch", ("a.{15}b",)),
        ("regexMatch", ("(" * 60 + "a" + ")" * 60,)),
        ("regexMatch", ("x" * 2001,)),
    ],
)
def test_a_constant_that_is_refused(name: str, constants: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValueError):
        compile_constants(FUNCTIONS[name], constants)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?i)a", r"a\b", "(?=a)", "(?!a)", "(?<=a)b", "(?P<n>a)", "a**", "a*+", r"(a)\1", "^*"),
        *("[[:alpha:]]", "a{", "(a", "a)", "[a", "\\", "[b-a]", "*a", r"\pL", r"\Q", "[]", "x{"),
    ],
)
def test_what_other_regex_engines_read_and_this_one_refuses(pattern: str) -> None:
    with pytest.raises(InvalidValueError, match=r"at character \d+ of the pattern"):
        parse_regex(pattern)


ATOMS: tuple[str, ...] = (*"abc/.", "[ab]", "[^a]", r"\d", r"\w", r"\S", r"\.", "[a-c/]")
REPEATS: tuple[str, ...] = ("*", "+", "?", "{2}", "{1,3}", "{0,2}", "{1,}", "*?")


def random_pattern(source: random.Random, depth: int = 0) -> str:
    kind = source.random()
    if depth > 3 or kind < 0.4:
        return ATOMS[source.randrange(len(ATOMS))]
    inner = random_pattern(source, depth + 1)
    if kind < 0.6:
        return inner + random_pattern(source, depth + 1)
    if kind < 0.7:
        return f"({inner}|{random_pattern(source, depth + 1)})"
    if kind < 0.85:
        return f"(?:{inner})" + REPEATS[source.randrange(len(REPEATS))]
    return (f"^{inner}", f"{inner}$", f"{inner}|a")[source.randrange(3)]


def test_automata_agree_with_pythons_re() -> None:
    source = random.Random(7)
    compared = refused = 0
    while compared < 10_000:
        pattern = random_pattern(source)
        try:
            automaton = compile_pattern(parse_regex(pattern))
        except InvalidValueError:
            refused += 1  # a repetition of nothing but a repetition
            continue
        # Go's `$` is the very end of the text, as Python's `\Z`.
        oracle = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
        for _ in range(10):
            text = "".join(source.choice("abc/.1_\nü") for _ in range(source.randint(0, 7)))
            assert automaton.matches(text) == bool(oracle.search(text)), (pattern, text)
            compared += 1
    assert refused < compared / 100


def test_gaps_agree_with_the_regex_that_casbin_makes_of_them() -> None:
    source = random.Random(7)
    for _ in range(3_000):
        pattern = "/" + "/".join(source.choice(["*", ":v", "a", "b"]) for _ in range(5))
        oracle = re.compile(pattern.replace("/*", "/.*").replace(":v", "[^/]+"))
        path = "/" + "/".join(
            source.choice(["a", "b", "", "ab"]) for _ in range(source.randint(1, 8))
        )
        assert call("keyMatch2", path, pattern) == bool(oracle.fullmatch(path)), (pattern, path)


def test_the_largest_automaton_is_bounded() -> None:
    automaton = compile_pattern(parse_regex("^(a|b)*a(a|b){8}$"))
    assert 500 < len(automaton.table) <= STATES_MAX
    assert automaton.matches("ab" * 5 + "a" * 9)
    assert compile_pattern(parse_glob("*" + "a*" * 3)).matches("xaxaxa")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("keyMatch2", "/*/*/*/*/x"),
        ("keyMatch2", "/:a/*/b/*/:c/x"),
        ("keyMatch5", "/{a}/*/*/*/x"),
        ("regexMatch", "^([a-z/]+a)*x$"),
        ("regexMatch", "(/a|/a/a|a/)*x"),
        ("globMatch", "/*/*/*a*a*a*a*b"),
    ],
)
def test_a_hostile_text_ends(name: str, pattern: str) -> None:
    """800 segments took pycasbin 147 s; a return to backtracking runs into the suite's timeout."""
    test = compile_constants(FUNCTIONS[name], (pattern,))
    assert test("/a" * 800) is False
    assert test("/a" * 2000) is False


def test_times_lie_strictly_between() -> None:
    test = time_test(("2026-01-01 00:00:00", "2026-01-01 00:00:10"))
    start = 1_767_225_600
    assert [test(start + second) for second in (-1, 0, 1, 9, 10)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert time_test(("_", "2026-01-01 00:00:00"))(start - 1)
    assert time_test(("2026-01-01 00:00:00", "_"))(start + 1)
    assert time_test(("_", "_"))(0)
    for constants in (
        ("2026-01-01", "_"),
        ("2026-13-01 00:00:00", "_"),
        ("2026-01-01 00:00:00",) * 2,
    ):
        with pytest.raises(InvalidValueError):
            time_test(constants)
