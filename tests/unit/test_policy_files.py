"""What a bundle's files may look like: model, rows, manifest, directory; every fault at once."""

from pathlib import Path

import pytest

from authz_server.core.errors import ConfigurationError
from authz_server.policy.bundle import load_bundle, load_bundle_files, load_bundles
from tests.policy_samples import (
    ALLOW_OVERRIDE,
    MANIFEST,
    PRIORITY,
    attributes,
    bundle,
    faults,
    model,
    texts,
)

MODEL = model("eval(p.rule)")
ROW = "p, r1, true, allow,\n"


# --- model.conf ---------------------------------------------------------------------------------


def test_comments_continuations_and_windows_line_ends_are_read() -> None:
    conf = (
        "# a model\r\n; in Casbin's dialect\r\n[request_definition]\r\nr = sub,act\r\n\r\n"
        "[policy_definition]\r\np = kind , eft\r\n[policy_effect]\r\n"
        "e = some(where (p_eft == allow))&&!some(where (p.eft==deny)) # as usual\r\n"
        "[matchers]\r\n m = r.sub.kind \\\r\n   == p.kind && '#' != \\\r\n 'x' # and a comment\r\n"
    )
    loaded = bundle(conf, "p, agent, allow\r\n")
    assert loaded.evaluate(attributes()).rules == ("policy.csv:1",)


@pytest.mark.parametrize(
    ("conf", "place", "message"),
    [
        (MODEL.replace("[matchers]", "[matcher]"), "8:1", "did you mean `matchers`?"),
        (MODEL + "[matchers]\nm = true\n", "10:1", "given twice"),
        (MODEL + "m = true\n", "10:1", "`m` is given twice"),
        (MODEL + "r.sub.id == 'a'\n", "10:1", "stray line"),
        (MODEL + "|| true\n", "10:1", "stray line"),
        (MODEL + "allow_all = true\n", "10:1", "stray line"),
        (MODEL + "m2 = true\n", "10:1", "`m2` needs `p2`"),
        (MODEL + "m1 = true\n", "10:1", "sections are numbered from 2"),
        ("m = true\n" + MODEL, "1:1", "must stand in a section"),
        (MODEL.replace("p = id", "p2 = id"), "1:1", "`p = …` in `[policy_definition]` is missing"),
        (MODEL.replace("p = id", "p2 = id\np = id"), "4:1", "`p2` needs `m2`"),
        (MODEL.replace("m = eval(p.rule)\n", "m = eval(p.rule) && \\"), "9:20", "is missing"),
        (MODEL.replace("m = eval(p.rule)", "m = true && \\\n\n false"), "10:1", "continues here"),
        (
            MODEL.replace("m = eval(p.rule)", "m = true && \\\n# no\n false"),
            "10:1",
            "continues here",
        ),
        (
            MODEL.replace("m = eval(p.rule)", "m = true && # x \\\n false"),
            "9:12",
            "a comment inside",
        ),
        (MODEL.replace("m = eval(p.rule)", "m ="), "9:1", "`m` has no value"),
        (MODEL.replace("r = sub", "r = user"), "2:5", "unknown request token `user`"),
        (MODEL.replace("r = sub", "r = sub, sub"), "2:10", "given twice"),
        (MODEL.replace("p = id", "p = id, id"), "4:9", "given twice"),
        (MODEL.replace("p = id", "p = i d"), "4:5", "is not a column name"),
        (MODEL.replace("eft,", "EFT,"), "4:15", "in lower case"),
        (
            MODEL.replace("some(where (p.eft == allow)) && ", ""),
            "6:5",
            "allows whatever no rule denies",
        ),
        (model("true", effect="subjectPriority(p.eft) || deny"), "9:5", "a column `sub` and rows"),
        (model("true", effect="some(where (p.eft == deny))"), "6:5", "unknown policy effect"),
        (model("true", roles="g = _, _, (_)"), "6:5", "write `_, _`"),
        (model("true", roles="role = _, _"), "6:1", "stray line"),
        (MODEL.replace("[matchers]\nm = eval(p.rule)", ""), "1:1", "`m = …` in `[matchers]`"),
    ],
)
def test_a_model_that_is_refused(conf: str, place: str, message: str) -> None:
    found = faults(texts(conf, ROW))
    assert found
    assert found[0].startswith(f"model.conf:{place}: "), found
    assert message in found[0]


# --- policy.csv ---------------------------------------------------------------------------------


def test_rows_are_read_as_rfc_4180_with_casbins_comments() -> None:
    policy = (
        "# a comment\n\n"
        'p, r1 ,  "r.sub.id in (""a"", \'b\')", allow ,\r\n'
        'p,"r2","r.sub.kind\n == ""agent""","allow",""\n'
    )
    loaded = bundle(MODEL, policy)
    assert [(rule.id, rule.line) for rule in loaded.rules] == [("r1", 3), ("r2", 4)]
    assert loaded.evaluate(attributes()).rules == ("r2",)


@pytest.mark.parametrize(
    ("policy", "place", "message"),
    [
        ("", "1:1", "the file holds no rule"),
        ("# nothing\n\n", "1:1", "the file holds no rule"),
        ("\ufeffp, r1, true, allow,", "1:0", "byte order mark"),
        ("p, r1, true, Deny,", "1:14", "unknown effect `Deny`; write allow, deny or escalate"),
        ("p, r1, true, den", "1:1", "3 fields after `p`, the model says 4"),
        ("p, r1, true, den,", "1:14", "did you mean `deny`?"),
        ("p, r1, true, deny # no,", "1:14", "unknown effect `deny # no`"),
        ("p, r1, true, ,", "1:14", "unknown effect ``"),
        ("p, r1, true, allow, , x", "1:1", "5 fields"),
        ("p2, r1, true, allow,", "1:1", "unknown row type `p2`"),
        ("P, r1, true, allow,", "1:1", "unknown row type `P`, expected `p`"),
        ("g, alice, admin", "1:1", "the model defines no roles"),
        ("p, , true, allow,", "1:4", "the rule has no id"),
        ("p, a b, true, allow,", "1:4", "printable ASCII"),
        ("p, r1, true, allow,\np, r1, true, deny,", "2:4", "given twice, first at policy.csv:1"),
        ("p, r1, data(1, allow,", "1:12", "unbalanced bracket"),
        ("p, r1, data)1, allow,", "1:12", "unbalanced bracket"),
        ("p, r1, keyMatch(r.obj.path, '/a'), allow,", "1:16", "must be quoted"),
        ('p, r1, r.sub.id == "a", allow,', "1:20", "a quote inside an unquoted field"),
        ('p, r1, "true" x, allow,', "1:15", "text after a closing quote"),
        ('p, r1, "true, allow,', "1:8", "no closing quote"),
        ("p, r1, true, allow,\x00", "1:20", "control character"),
        ("p, r1, true, escalate,", "1:23", "the approver group"),
    ],
)
def test_a_row_that_is_refused(policy: str, place: str, message: str) -> None:
    found = faults(texts(MODEL, policy))
    assert found
    assert found[0].startswith(f"policy.csv:{place}: "), found
    assert message in found[0]


def test_every_damaged_row_is_named() -> None:
    policy = "p, r1, true, Allow,\np, r2\np, r3, r.sub.x == 1 && r.sub.y == 2, den, me\nq\n"
    assert [fault.split(": ")[0] for fault in faults(texts(MODEL, policy))] == [
        "policy.csv:1:14",
        "policy.csv:2:1",
        "policy.csv:3:14",
        "policy.csv:3:30",
        "policy.csv:3:38",
        "policy.csv:4:1",
    ]


def test_a_fault_shows_its_line_with_a_caret() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_bundle_files(texts(MODEL, "p, r1, r.sub.knd == 'a', allow,"))
    assert str(caught.value) == (
        "policy.csv:1:14: error: r.sub has no attribute `knd`; did you mean `kind`?\n"
        "    p, r1, r.sub.knd == 'a', allow,\n"
        "                 ^"
    )


def test_faults_are_shown_up_to_a_number() -> None:
    found = faults(texts(MODEL, "p, x\n" * 2000))
    assert len(found) == 501
    assert found[-1].endswith("1500 more faults are not shown")


def test_reserved_columns_may_be_absent() -> None:
    loaded = bundle(model("r.sub.kind == p.kind", columns="kind"), "\np, agent\np, agent")
    assert loaded.evaluate(attributes()).rules == ("policy.csv:2", "policy.csv:3")


def test_deny_rows_that_the_effect_ignores_are_refused() -> None:
    found = faults(texts(model("eval(p.rule)", effect=ALLOW_OVERRIDE), "p, r1, true, deny,"))
    assert found == [
        "policy.csv:1:14: the model's effect ignores deny rules: this one does nothing"
    ]


def test_escalate_needs_a_column_for_the_group() -> None:
    conf = model("eval(p.rule)", columns="id, rule, eft")
    assert "needs an `obligation` column" in faults(texts(conf, "p, r1, true, escalate"))[0]


def test_a_priority_must_be_a_number() -> None:
    conf = model("true", columns="id, priority, eft", effect=PRIORITY)
    assert faults(texts(conf, "p, r1, high, allow")) == [
        "policy.csv:1:8: priority `high` is not a whole number"
    ]


def test_policy_parts_are_read_in_order_and_none_may_be_empty() -> None:
    parts = {"policy-b.csv": b"p, b, true, allow,", "policy-a.csv": b"p, a, true, allow,"}
    files = texts(MODEL, ROW) | parts
    assert [rule.id for rule in load_bundle_files(files).rules] == ["r1", "a", "b"]
    del files["policy.csv"]
    assert [rule.id for rule in load_bundle_files(files).rules] == ["a", "b"]
    files["policy-c.csv"] = b"# once held the deny rules\n"
    assert faults(files) == ["policy-c.csv:1:1: the file holds no rule; remove it if that is meant"]


def test_roles_csv_holds_roles_only() -> None:
    conf = model("g(r.sub.id, p.role)", columns="role, eft", roles="g = _, _")
    rows = "p, admin, allow"
    assert bundle(conf, rows, roles_csv="g, spiffe://example.org/agent/b, admin").evaluate(
        attributes()
    ).rules == ("policy.csv:1",)
    assert "unknown row type `p`" in faults(texts(conf, rows, roles_csv="p, admin, allow"))[-1]
    assert "an empty name" in faults(texts(conf, rows, roles_csv="g, a, "))[-1]
    assert "3 fields after `g`" in faults(texts(conf, rows, roles_csv="g, a, b, c"))[-1]


def test_a_role_test_without_role_rows_is_refused() -> None:
    conf = model("!g(r.sub.id, 'banned')", columns="id, eft", roles="g = _, _")
    assert faults(texts(conf, "p, r1, allow")) == [
        "model.conf:6:5: a rule uses `g`, but there is no `g` row"
    ]
    conf = model("eval(p.rule)", columns="rule, eft", roles="g = _, _")
    assert faults(texts(conf, "p, \"!g(r.sub.id, 'banned')\", allow")) == [
        "model.conf:6:5: a rule uses `g`, but there is no `g` row"
    ]


def test_an_obligation_without_meaning_is_a_warning() -> None:
    (warning,) = bundle(MODEL, "p, r1, true, allow, someone").warnings
    assert str(warning).startswith("policy.csv:1:21: warning: an obligation means nothing")


# --- bundle.yaml and the directory --------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "place", "message"),
    [
        ("", "1:1", "expected a mapping"),
        ("name: a\n", "1:1", "`domain` is one of"),
        ("name: a\ndomain: dta\n", "2:9", "did you mean `data`?"),
        ("name: A b\ndomain: data\n", "1:7", "a bundle name is"),
        ("name: a\ndomain: data\npolicy: x\n", "3:1", "unknown key `policy`"),
        ("name: a\ndomain: data\nowner: [x]\n", "3:1", "`owner` must be text"),
        ("name: a\ndomain: data\nparties: caller\n", "3:10", "`parties` is a list"),
        ("name: a\ndomain: data\nparties: [actors]\n", "3:1", "the caller is always judged"),
        ("name: a\ndomain: data\nparties: [caller, agent]\n", "3:19", "a party is one of"),
        ("name: a\ndomain: data\nparties: [caller, caller]\n", "3:19", "a party is one of"),
        ("name: a\nname: b\ndomain: data\n", "2:1", "stands twice"),
        ("name: a\ndomain: data\narguments: [to]\n", "3:1", "`arguments` maps names"),
        ("name: a\ndomain: data\narguments: {to: message}\n", "3:17", "begins with `/`"),
        ("name: a\ndomain: data\narguments: {to: 5}\n", "3:17", "a JSON pointer is text"),
        ("name: a\ndomain: data\narguments: {to: /a~2}\n", "3:17", "`~` is written"),
        ("name: a\ndomain: data\narguments: {'a b': /a}\n", "3:13", "an argument's name is"),
        (
            "name: a\ndomain: data\narguments:\n"
            + "".join(f"  a{number}: /a\n" for number in range(65)),
            "3:1",
            "more than 64 arguments",
        ),
        ("name: [\n", "2:1", "not YAML"),
    ],
)
def test_a_manifest_that_is_refused(manifest: str, place: str, message: str) -> None:
    found = faults(texts(MODEL, ROW) | {"bundle.yaml": manifest.encode()})
    assert found
    assert found[0].startswith(f"bundle.yaml:{place}: "), found
    assert message in found[0]


def test_arguments_are_declared_by_pointer() -> None:
    manifest = "name: a\ndomain: data\narguments: {to: /message/to, whole: ''}\n"
    loaded = bundle(MODEL, ROW, bundle_yaml=manifest)
    assert {name: str(pointer) for name, pointer in loaded.arguments.items()} == {
        "to": "/message/to",
        "whole": "",
    }
    assert bundle(MODEL, ROW).arguments == {}


def test_the_faults_of_all_files_come_together() -> None:
    files = {
        "model.conf": MODEL.replace("sub,", "subject,").encode(),
        "policy.csv": b"\xff",
        "bundle.yaml": b"domain: x\nname: a\n",
        "polcy-2.csv": b"",
    }
    assert {fault.split(":")[0] for fault in faults(files)} == set(files)
    assert [fault.split(":")[0] for fault in faults({})] == [
        "bundle.yaml",
        "model.conf",
        "policy.csv",
    ]


def test_a_misspelt_file_is_not_passed_over() -> None:
    found = faults(texts(MODEL, ROW) | {"polcy.csv": b"p, r2, true, deny,"})
    assert found == ["polcy.csv:0:0: no part of a bundle has this name; did you mean `policy.csv`?"]
    assert (
        faults(texts(MODEL, ROW) | {"README.md": b"", ".policy.csv.swp": b"", "x.bak": b""}) == []
    )


def test_the_revision_names_the_content() -> None:
    first = load_bundle_files(texts(MODEL, ROW)).revision
    assert load_bundle_files(texts(MODEL, ROW)).revision == first
    assert load_bundle_files(texts(MODEL, ROW) | {"README.md": b"x"}).revision == first
    others = [
        texts(MODEL, ROW + "\n"),
        texts(MODEL + "\n", ROW),
        texts(MODEL, ROW) | {"bundle.yaml": (MANIFEST + "owner: x\n").encode()},
        texts(MODEL, ROW) | {"cases.yaml": b"[]\n"},
        {**texts(MODEL, ROW), "policy-1.csv": b"p, r2, true, allow,"},
        {**texts(MODEL, ROW), "policy-2.csv": b"p, r2, true, allow,"},
    ]
    revisions = {load_bundle_files(files).revision for files in others}
    assert len(revisions | {first}) == len(others) + 1


def write(directory: Path, policy: str = ROW, name: str | None = None) -> Path:
    directory.mkdir(parents=True)
    for file, data in texts(MODEL, policy).items():
        (directory / file).write_bytes(data)
    (directory / "bundle.yaml").write_text("domain: data\n" + (f"name: {name}\n" if name else ""))
    return directory


def test_a_directory_is_a_bundle_named_after_it(tmp_path: Path) -> None:
    loaded = load_bundle(write(tmp_path / "tools"))
    assert (loaded.name, loaded.domain) == ("tools", "data")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_bundle(tmp_path / "absent")


def test_a_mounted_config_map_is_read_from_one_generation(tmp_path: Path) -> None:
    mount = tmp_path / "tools"
    write(mount / "..2026_01", ROW)
    for file in ("model.conf", "policy.csv", "bundle.yaml"):
        (mount / file).symlink_to(Path("..data") / file)
    (mount / "..data").symlink_to("..2026_01")
    first = load_bundle(mount)
    assert [(rule.id, rule.file) for rule in first.rules] == [("r1", str(mount / "policy.csv"))]
    write(mount / "..2026_02", "p, new, true, deny,\n")
    (mount / "..data_tmp").symlink_to("..2026_02")
    (mount / "..data_tmp").replace(mount / "..data")
    assert [rule.id for rule in load_bundle(mount).rules] == ["new"]


def test_every_sub_directory_is_a_bundle_or_none_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", name="bee")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("not a bundle")
    assert sorted(load_bundles(tmp_path)) == ["a", "bee"]
    write(tmp_path / "c", policy="", name="a")
    write(tmp_path / "d", name="a")
    (tmp_path / "e").mkdir()
    with pytest.raises(ConfigurationError) as caught:
        load_bundles(tmp_path)
    files = [Path(fault.file).relative_to(tmp_path) for fault in caught.value.faults]
    assert [str(file) for file in files] == [
        "c/policy.csv",
        "d/bundle.yaml",
        "e/bundle.yaml",
        "e/model.conf",
        "e/policy.csv",
    ]


def test_a_directory_without_bundles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no policy bundle in it"):
        load_bundles(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_bundles(tmp_path / "absent")


# --- cases.yaml ---------------------------------------------------------------------------------

CASE = """
- name: a
  request: {sub: {id: "spiffe://example.org/agent/b", kind: agent}}
  expect: {verdict: allow, reason: OK, rules: [r1]}
"""


def test_cases_pass_or_show_the_difference() -> None:
    loaded = bundle(
        MODEL, "p, r1, r.sub.path == '/agent/b', allow,\np, r2, true, deny,", cases_yaml=CASE
    )
    (failure,) = loaded.failed_cases()
    assert str(failure) == (
        "case `a` (line 2)\n"
        "  - verdict: allow\n  + verdict: deny\n"
        "  - reason: OK\n  + reason: DENIED_BY_RULE\n"
        "  - rules: r1\n  + rules: r2"
    )
    assert bundle(MODEL, ROW, cases_yaml=CASE).failed_cases() == ()
    assert loaded.untested_rules() == ("r1",)


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        (("kind: agent", "knd: agent"), "3:55", "did you mean `kind`?"),
        (("kind: agent", "kind: [agent]"), "3:55", "expected string"),
        (("kind: agent", "kind: agnet"), "3:61", "did you mean `agent`?"),
        (("kind: agent", "id: 7"), "3:55", "stands twice"),
        (("verdict: allow", "verdict: yes"), "4:21", "is one of allow, escalate, deny"),
        (("reason: OK", "reason: FINE"), "4:36", "unknown reason code"),
        (("rules: [r1]", "rules: r1"), "4:47", "expected a list of texts"),
        (("name: a", "nam: a"), "2:3", "unknown key `nam`"),
        (
            ("request: {sub: {", "request: {obj: {labels: {a: [1]}}, sub: {"),
            "3:19",
            "single values",
        ),
    ],
)
def test_a_case_that_is_refused(change: tuple[str, str], place: str, message: str) -> None:
    found = faults(texts(MODEL, ROW, cases_yaml=CASE.replace(*change)))
    assert found
    assert found[0].startswith(f"cases.yaml:{place}: "), found
    assert message in found[0]
