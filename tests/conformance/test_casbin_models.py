"""The models of Casbin's documentation, on our request attributes, against both engines.

Each is written anew: a model, rows, and a table of requests with the documented answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from authz_server.core.attributes import Attributes
from tests.conformance.casbin_oracle import Policy, allows, pycasbin_allows, rows
from tests.policy_samples import ALLOW_AND_DENY, ALLOW_OVERRIDE, PRIORITY, attributes

SUBJECT_PRIORITY = "subjectPriority(p.eft) || deny"
OWN = "r.sub.id == p.sub"
ROLE = "g(r.sub.id, p.sub)"
OBJ = "r.obj.resource == p.obj"
ACT = "r.act.name == p.act"


@dataclass(frozen=True)
class Documented:
    """One model. Requests are `subject object action` and `+` or `-`, one a line."""

    name: str
    matcher: str
    policy: str
    requests: str
    columns: str = "sub, obj, act"
    effect: str = ALLOW_OVERRIDE
    roles: str = ""
    members: Mapping[str, str] = field(default_factory=dict)
    domains: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> Policy:
        definition = f"[role_definition]\n{self.roles}\n" if self.roles else ""
        conf = (
            "[request_definition]\nr = sub, obj, act, env\n"
            f"[policy_definition]\np = {self.columns}\n{definition}"
            f"[policy_effect]\ne = {self.effect}\n[matchers]\nm = {self.matcher}\n"
        )
        return Policy(conf, rows(self.policy), self.members, self.domains)


def request(subject: str, resource: str, action: str) -> Attributes:
    """Return a request; `alice/18` is alice at 18, `data1@d1` data1 in domain d1, `/x` a path."""
    name, _, age = subject.partition("/")
    labels = {"age": int(age)} if age else {}
    thing, _, domain = resource.partition("@")
    path = thing if thing.startswith("/") else None
    return attributes(
        sub={"id": name, "labels": labels},
        obj={
            "resource": thing,
            "path": path,
            "host": domain or None,
            "labels": {"owner": "alice" if thing == "data1" else "bob"},
        },
        act={"name": action},
    )


MODELS = (
    Documented(
        "ACL",
        f"{OWN} && {OBJ} && {ACT}",
        "p, alice, data1, read\np, bob, data2, write",
        """
        alice data1 read +
        alice data1 write -
        alice data2 read -
        bob data2 write +
        bob data1 read -
        """,
    ),
    Documented(
        "ACL with superuser",
        f'{OWN} && {OBJ} && {ACT} || r.sub.id == "root"',
        "p, alice, data1, read",
        """
        alice data1 read +
        bob data1 read -
        root data1 write +
        root anything anything +
        """,
    ),
    Documented(
        "ACL without users",
        f"{OBJ} && {ACT}",
        "p, data1, read\np, data2, write",
        """
        anyone data1 read +
        anyone data1 write -
        anyone data2 write +
        """,
        columns="obj, act",
    ),
    Documented(
        "ACL without resources",
        f"{OWN} && {ACT}",
        "p, alice, read\np, bob, write",
        """
        alice data1 read +
        alice data2 read +
        alice data1 write -
        bob data2 write +
        """,
        columns="sub, act",
    ),
    Documented(
        "RBAC",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, alice, data1, read
        p, bob, data2, write
        p, data2_admin, data2, read
        p, data2_admin, data2, write
        g, alice, data2_admin
        """,
        """
        alice data1 read +
        alice data1 write -
        alice data2 read +
        alice data2 write +
        bob data2 read -
        bob data2 write +
        """,
        roles="g = _, _",
    ),
    Documented(
        "RBAC with resource roles",
        f"{ROLE} && g2(r.obj.resource, p.obj) && {ACT}",
        """
        p, alice, data1, read
        p, bob, data2, write
        p, data_group_admin, data_group, write
        g, alice, data_group_admin
        g2, data1, data_group
        g2, data2, data_group
        """,
        """
        alice data1 read +
        alice data1 write +
        alice data2 read -
        alice data2 write +
        bob data1 write -
        bob data2 write +
        """,
        roles="g = _, _\ng2 = _, _",
    ),
    Documented(
        "RBAC with domains",
        f"g(r.sub.id, p.sub, r.obj.host) && r.obj.host == p.dom && {OBJ} && {ACT}",
        """
        p, admin, domain1, data1, read
        p, admin, domain1, data1, write
        p, admin, domain2, data2, read
        p, admin, domain2, data2, write
        g, alice, admin, domain1
        g, bob, admin, domain2
        """,
        """
        alice data1@domain1 read +
        alice data1@domain2 read -
        alice data2@domain1 read -
        bob data2@domain2 write +
        bob data1@domain1 write -
        """,
        columns="sub, dom, obj, act",
        roles="g = _, _, _",
    ),
    Documented(
        "RBAC with all patterns of domains",
        f"g(r.sub.id, p.sub, r.obj.host) && keyMatch(r.obj.host, p.dom) && {OBJ} && {ACT}",
        """
        p, admin, *, data1, read
        g, alice, admin, *
        g, bob, admin, domain2
        """,
        """
        alice data1@domain1 read +
        alice data1@domain2 read +
        bob data1@domain1 read -
        bob data1@domain2 read +
        """,
        columns="sub, dom, obj, act",
        roles="g = _, _, _",
        domains={"g": "keyMatch"},
    ),
    Documented(
        "RBAC with pattern",
        f"{ROLE} && g2(r.obj.path, p.obj) && regexMatch(r.act.name, p.act)",
        """
        p, alice, /pen/1, ^GET$
        p, book_admin, book_group, ^GET$
        p, pen_admin, pen_group, ^GET$
        g, alice, book_admin
        g, bob, pen_admin
        g2, /book/:id, book_group
        g2, /pen/:id, pen_group
        """,
        """
        alice /book/1 GET +
        alice /book/2 GET +
        alice /pen/1 GET +
        alice /pen/2 GET -
        bob /book/1 GET -
        bob /pen/1 GET +
        bob /pen/2 GET +
        bob /pen/2 PUT -
        """,
        roles="g = _, _\ng2 = _, _",
        members={"g2": "keyMatch2"},
    ),
    Documented(
        "temporal roles",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, data2_admin, data2, write
        p, data3_admin, data3, write
        p, data4_admin, data4, write
        p, data5_admin, data5, write
        p, data6_admin, data6, write
        g, alice, data2_admin, 0001-01-01 00:00:00, 0001-01-02 00:00:00
        g, alice, data3_admin, 0001-01-01 00:00:00, 9999-12-30 00:00:00
        g, alice, data4_admin, _, _
        g, alice, data5_admin, _, 9999-12-30 00:00:00
        g, alice, data6_admin, _, 0001-01-02 00:00:00
        """,
        """
        alice data2 write -
        alice data3 write +
        alice data4 write +
        alice data5 write +
        alice data6 write -
        bob data4 write -
        """,
        roles="g = _, _, (_, _)",
    ),
    Documented(
        "temporal roles with domains",
        f"g(r.sub.id, p.sub, r.obj.host) && r.obj.host == p.dom && {OBJ} && {ACT}",
        """
        p, admin, domain2, data2, write
        p, admin, domain3, data3, write
        g, alice, admin, domain2, 0001-01-01 00:00:00, 0001-01-02 00:00:00
        g, alice, admin, domain3, 0001-01-01 00:00:00, 9999-12-30 00:00:00
        """,
        """
        alice data2@domain2 write -
        alice data3@domain3 write +
        alice data3@domain2 write -
        """,
        columns="sub, dom, obj, act",
        roles="g = _, _, _, (_, _)",
    ),
    Documented(
        "ABAC",
        "r.sub.id == r.obj.labels.owner && p.any != ''",
        "p, any",
        """
        alice data1 read +
        alice data2 read -
        bob data2 write +
        """,
        columns="any",
    ),
    Documented(
        "ABAC with rules in the policy",
        f"eval(p.sub_rule) && {OBJ} && {ACT}",
        """
        p, r.sub.labels.age > 18, data1, read
        p, r.sub.labels.age < 60, data2, write
        """,
        """
        alice/16 data1 read -
        alice/16 data2 write +
        alice/20 data1 read +
        alice/20 data1 write -
        alice/65 data2 write -
        """,
        columns="sub_rule, obj, act",
    ),
    Documented(
        "RESTful",
        f"{OWN} && keyMatch(r.obj.path, p.obj) && regexMatch(r.act.name, p.act)",
        """
        p, alice, /alice_data/*, ^GET$
        p, alice, /alice_data/resource1, ^POST$
        p, bob, /alice_data/resource2, ^GET$
        p, bob, /bob_data/*, ^POST$
        p, cathy, /cathy_data, ^((GET)|(POST))$
        """,
        """
        alice /alice_data/resource1 GET +
        alice /alice_data/resource1 POST +
        alice /alice_data/resource2 POST -
        bob /alice_data/resource1 GET -
        bob /alice_data/resource2 GET +
        bob /bob_data/resource1 POST +
        cathy /cathy_data GET +
        cathy /cathy_data POST +
        cathy /cathy_data DELETE -
        """,
    ),
    Documented(
        "keyMatch2",
        f"{OWN} && keyMatch2(r.obj.path, p.obj) && regexMatch(r.act.name, p.act)",
        """
        p, alice, /alice_data/:resource, ^GET$
        p, alice, /alice_data2/:id/using/:resId, ^GET$
        """,
        """
        alice /alice_data GET -
        alice /alice_data/resource1 GET +
        alice /alice_data2/myid GET -
        alice /alice_data2/myid/using/res_id GET +
        """,
    ),
    Documented(
        "allow and deny",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, alice, data1, read, allow
        p, bob, data2, write, allow
        p, data2_admin, data2, read, allow
        p, data2_admin, data2, write, allow
        p, alice, data2, write, deny
        g, alice, data2_admin
        """,
        """
        alice data1 read +
        alice data2 read +
        alice data2 write -
        bob data2 write +
        carol data1 read -
        """,
        columns="sub, obj, act, eft",
        effect=ALLOW_AND_DENY,
        roles="g = _, _",
    ),
    Documented(
        "priority",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, alice, data1, read, allow
        p, data1_deny_group, data1, read, deny
        p, data1_deny_group, data1, write, deny
        p, alice, data1, write, allow
        g, alice, data1_deny_group
        p, data2_allow_group, data2, read, allow
        p, bob, data2, read, deny
        p, bob, data2, write, deny
        g, bob, data2_allow_group
        """,
        """
        alice data1 read +
        alice data1 write -
        bob data2 read +
        bob data2 write -
        """,
        columns="sub, obj, act, eft",
        effect=PRIORITY,
        roles="g = _, _",
    ),
    Documented(
        "explicit priority",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, 10, data1_deny_group, data1, read, deny
        p, 10, data1_deny_group, data1, write, deny
        p, 10, data2_allow_group, data2, read, allow
        p, 10, data2_allow_group, data2, write, allow
        p, 1, alice, data1, write, allow
        p, 1, alice, data1, read, allow
        p, 1, bob, data2, read, deny
        g, bob, data2_allow_group
        g, alice, data1_deny_group
        """,
        """
        alice data1 write +
        alice data1 read +
        bob data2 read -
        bob data2 write +
        """,
        columns="priority, sub, obj, act, eft",
        effect=PRIORITY,
        roles="g = _, _",
    ),
    Documented(
        "subject priority",
        f"{ROLE} && {OBJ} && {ACT}",
        """
        p, root, data1, read, deny
        p, admin, data1, read, deny
        p, editor, data1, read, deny
        p, subscriber, data1, read, deny
        p, jane, data1, read, allow
        p, alice, data1, read, allow
        g, admin, root
        g, editor, admin
        g, subscriber, admin
        g, jane, editor
        g, alice, subscriber
        g, tom, subscriber
        """,
        """
        jane data1 read +
        alice data1 read +
        tom data1 read -
        """,
        columns="sub, obj, act, eft",
        effect=SUBJECT_PRIORITY,
        roles="g = _, _",
    ),
    Documented(
        "IP match",
        f"ipMatch(r.env.source_ip, p.network) && {ACT}",
        "p, 10.1.0.0/16, read\np, 192.0.2.7, write",
        """
        alice data1 read +
        alice data1 write -
        """,
        columns="network, act",
    ),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_both_engines_answer_as_documented(model: Documented) -> None:
    ours, oracle = model.source.compiled(), model.source.pycasbin()
    for line in model.requests.strip().splitlines():
        subject, resource, action, expected = line.split()
        asked = request(subject, resource, action)
        tokens = ("sub", "obj", "act", "env")
        assert allows(ours, asked) == (expected == "+"), line
        assert pycasbin_allows(oracle, asked, tokens=tokens) == (expected == "+"), line
