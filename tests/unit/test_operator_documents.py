"""Threat model, runbook and alerts name tests, metrics, reasons and sections that exist."""

import ast
import functools
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from authz_server.cli import main
from authz_server.core.errors import Reason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TESTS = {path.name for path in (ROOT / "tests").glob("*/test_*.py")}
RULES = ROOT / "k8s/components/monitoring/prometheusrule.yaml"


def alerts() -> list[dict[str, str]]:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [
        {"alert": rule["alert"], "expr": rule["expr"], "runbook": rule["annotations"]["runbook"]}
        for group in groups
        for rule in group["rules"]
    ]


@functools.cache
def metrics() -> frozenset[str]:
    """Return the name of every series that the code can make."""
    found: set[str] = set()
    for file in (ROOT / "authz_server").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and str(name.value).startswith("authz_"):
                    found |= _series(str(name.value), ast.unparse(node.func))
    return frozenset(found)


def _series(name: str, maker: str) -> set[str]:
    kind = maker.rpartition(".")[2].lstrip("_").lower()
    if kind in {"counter", "count", "readcounter"}:
        return {f"{name}_total"}
    if kind == "histogram":
        return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return {name}


def sections(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as its readers link to them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", sorted((ROOT / "k8s").rglob("README.md")), ids=lambda page: page.parent.name
)
def test_relative_links_of_the_manifests_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (DOCS / "threat-model.md").read_text()))
    assert len(named) > 60
    assert named - TESTS == set()


@pytest.mark.parametrize("page", ["threat-model.md", "runbook.md", "kubernetes.md"])
def test_reasons_metrics_and_sections_exist(page: str) -> None:
    text = (DOCS / page).read_text()
    words = set(re.findall(r"`([A-Z]{3,}(?:_[A-Z]+)+)`", text))
    assert {word for word in words if not word.startswith("AUTHZ_")} - set(Reason) == set()
    named = set(re.findall(r"\b(authz_(?!server)[a-z_]+)\b", text))
    bases = metrics() | {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics()}
    assert named - bases == set()
    for target, anchor in re.findall(r"\]\(([\w/.-]*)#([\w-]+)\)", text):
        linked = DOCS / (target or page)
        assert anchor in sections(linked), f"{target}#{anchor}"


def commands() -> list[str]:
    """Return every command of ours that the pages print, from the sub-command on."""
    found = set()
    for page in ("runbook.md", "kubernetes.md"):
        for block in re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            for line in (line.partition(" #")[0] for line in lines):
                for match in re.finditer(r"(?:\bauthz-server|^authz) ([a-z][^|&;>']*)", line):
                    found.add(match[1].strip())
    return sorted(found)


def test_there_are_commands_to_hold() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize("line", commands())
def test_a_printed_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)
    command: click.Command = main.group
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        inner = command.get_command(context, words.pop(0))
        assert inner is not None, line
        command, context = inner, click.Context(inner, parent=context)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} - known == set()


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_watches_what_is_there_and_leads_to_its_section(alert: dict[str, str]) -> None:
    names = set(re.findall(r"\bauthz_\w+", alert["expr"]))
    assert names
    assert names - metrics() == set()
    for reasons in re.findall(r'reason=~?"([^"]+)"', alert["expr"]):
        assert set(reasons.split("|")) - set(Reason) == set()
    page, _, anchor = alert["runbook"].partition("#")
    assert anchor in sections(ROOT / page)
    assert alert["alert"] in (ROOT / page).read_text(), "the section does not name the alert"


def test_the_outbox_alert_is_at_half_of_what_the_configuration_admits() -> None:
    configuration = yaml.safe_load((ROOT / "k8s/base/config/authz.yaml").read_text())
    (rule,) = [alert for alert in alerts() if "authz_outbox_records" in alert["expr"]]
    at = int(rule["expr"].rpartition(" ")[2])
    assert at * 2 == configuration["ledger"]["outbox_records_max"]
