"""Resolve the names of an expression and check its types: syntax in, typed terms out.

What would silently be wrong in Casbin is a fault here: an attribute that does not exist, text
compared with a number, `in` on a text (a substring test), a record or a text used as a condition,
a function or pattern taken from the request.
"""

from collections.abc import Mapping
from typing import Final

from authz_server.core.attributes import SCHEMA, AttributeSpec, AttributeType
from authz_server.core.suggestion import did_you_mean
from authz_server.policy import expression as syntax
from authz_server.policy.functions import FUNCTIONS, Function
from authz_server.policy.limits import INDEX_ITEM_MAX
from authz_server.policy.model import RoleDefinition, Section
from authz_server.policy.source import FaultFound, FaultLog, Fragment
from authz_server.policy.terms import (
    Apply,
    Arithmetic,
    Between,
    Broken,
    Column,
    Constant,
    Contains,
    Either,
    Element,
    Equal,
    Every,
    HasRole,
    MapValue,
    Negation,
    OneOf,
    Order,
    RuleText,
    Slot,
    Term,
    Truth,
    Type,
    is_constant,
    type_of,
)

_ORDERS: Final = frozenset({"<", "<=", ">", ">="})
# Who one is, as opposed to what one was given: see HasRole.identity.
_IDENTITIES: Final = frozenset({("sub", "id"), ("chain", "subject"), ("chain", "leaf")})


def check_condition(
    source: Fragment,
    section: Section,
    roles: Mapping[str, RoleDefinition],
    log: FaultLog,
    *,
    rule: bool = False,
) -> Term:
    """Return the condition that `source` holds; faults go to `log` and leave `Broken` behind.

    `rule` marks the text of a rule's `eval` column, which may not use `eval` itself.
    """
    with log.collecting():
        return _Checker(source, section, roles, log, rule=rule).condition(syntax.parse(source))
    return Broken()


class _Checker:
    """Checks one expression."""

    def __init__(
        self,
        source: Fragment,
        section: Section,
        roles: Mapping[str, RoleDefinition],
        log: FaultLog,
        *,
        rule: bool,
    ) -> None:
        self._source = source
        self._section = section
        self._roles = roles
        self._log = log
        self._rule = rule

    def _fault(self, at: int, message: str) -> FaultFound:
        return FaultFound(self._source.fault(at, message))

    def condition(self, node: syntax.Expression) -> Term:
        """Return `node` as a condition."""
        term = self.value(node)
        kind = type_of(term)
        if kind in {Type.BOOL, Type.BROKEN}:
            return term
        if kind is Type.ANY:
            return Truth(term)
        with self._log.collecting():
            hint = "; evaluate a column with `eval(…)`" if isinstance(term, Column) else ""
            raise self._fault(node.at, f"expected a condition, found {kind.value}{hint}")
        return Broken()

    def value(self, node: syntax.Expression) -> Term:
        """Return `node` as a term of any type."""
        with self._log.collecting():
            return self._value(node)
        return Broken()

    def _value(self, node: syntax.Expression) -> Term:
        match node:
            case syntax.Literal(value=value, at=at):
                return Constant(value, at)
            case syntax.Path():
                return self._path(node)
            case syntax.Logic(operator=operator, items=items):
                # Constant parts first: binding a rule decides them and may leave the rest out.
                conditions = tuple(sorted(map(self.condition, items), key=_reads_request))
                return Every(conditions) if operator == "and" else Either(conditions)
            case syntax.Not(operand=operand):
                return Negation(self.condition(operand))
            case syntax.Negative():
                return self._negative(node)
            case syntax.Binary():
                return self._binary(node)
            case syntax.Call():
                return self._call(node)
            case syntax.TupleOf(at=at):
                raise self._fault(at, "a tuple stands only to the right of `in`")

    # --- names ----------------------------------------------------------------------------------

    def _path(self, path: syntax.Path) -> Term:
        root = path.parts[0]
        section = self._section
        if root == section.request_root:
            return self._attribute(path)
        if root == section.policy_root:
            return self._column(path)
        hint = did_you_mean(str(root), FUNCTIONS) or "; quote it to make it text"
        expected = f"`{section.request_root}.` or `{section.policy_root}.`"
        raise self._fault(path.at, f"unknown name `{root}`: expected {expected}{hint}")

    def _column(self, path: syntax.Path) -> Column:
        columns, root = self._section.columns, path.parts[0]
        if len(path.parts) != 2:
            raise self._fault(path.at, f"expected `{root}.` and one column name")
        name = str(path.parts[1])
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise self._fault(path.places[1], f"`{root}` has no column `{name}`{hint}")
        return Column(columns[name], name, path.at)

    def _attribute(self, path: syntax.Path) -> Term:
        if len(path.parts) < 2:
            raise self._fault(path.at, f"expected `{path.parts[0]}.` and a request token")
        token = str(path.parts[1])
        if token not in self._section.request:
            declared = did_you_mean(token, self._section.request) or (
                "; add it to `[request_definition]`" if token in SCHEMA else ""
            )
            raise self._fault(path.places[1], f"the request has no token `{token}`{declared}")
        schema = SCHEMA[token]
        if len(path.parts) < 3:
            known = ", ".join(f"r.{token}.{name}" for name in list(schema)[:3])
            raise self._fault(path.at, f"`{path}` is a record; name one attribute: {known}, …")
        slot = Slot(token, str(path.parts[2]), self._spec(path, schema))
        return self._part(slot, path)

    def _spec(self, path: syntax.Path, schema: Mapping[str, AttributeSpec]) -> AttributeSpec:
        name = str(path.parts[2])
        if name not in schema:
            hint = did_you_mean(name, schema)
            raise self._fault(path.places[2], f"r.{path.parts[1]} has no attribute `{name}`{hint}")
        return schema[name]

    def _part(self, slot: Slot, path: syntax.Path) -> Term:
        """Return the slot itself, or the one value of a map or list that the path names."""
        deeper = path.parts[3:]
        if slot.spec.type is AttributeType.MAP:
            if len(deeper) != 1 or not isinstance(deeper[0], str):
                raise self._fault(path.at, f"`{slot}` is a map; name one value: `{slot}.name`")
            return MapValue(slot, deeper[0])
        if not deeper:
            return slot
        if slot.spec.type is not AttributeType.LIST:
            raise self._fault(path.places[3], f"`{slot}` is {slot.spec.type.value}, without parts")
        index = deeper[0]
        if len(deeper) != 1 or not isinstance(index, int) or index > INDEX_ITEM_MAX:
            message = f"an element of `{slot}` is `[0]` to `[{INDEX_ITEM_MAX}]`"
            raise self._fault(path.places[3], message)
        return Element(slot, index)

    # --- operators ------------------------------------------------------------------------------

    def _negative(self, node: syntax.Negative) -> Term:
        operand = self.value(node.operand)
        if isinstance(operand, Constant) and type_of(operand) is Type.NUMBER:
            assert isinstance(operand.value, int | float)
            return Constant(-operand.value, node.at)
        if type_of(operand) not in {Type.NUMBER, Type.ANY, Type.BROKEN}:
            raise self._fault(node.at, f"`-` needs a number, found {type_of(operand).value}")
        return Arithmetic("-", Constant(0, node.at), operand, Type.NUMBER, node.at)

    def _binary(self, node: syntax.Binary) -> Term:
        match node.operator:
            case "==":
                return self._equal(node)
            case "!=":
                return Negation(self._equal(node))
            case "in":
                return self._membership(node)
            case "not in":
                return Negation(self._membership(node))
            case operator if operator in _ORDERS:
                return self._order(node)
            case _:
                return self._arithmetic(node)

    def _equal(self, node: syntax.Binary) -> Term:
        left, right = self.value(node.left), self.value(node.right)
        self._check_comparable(type_of(left), type_of(right), node.at)
        return Equal(left, right)

    def _check_comparable(self, left: Type, right: Type, at: int) -> None:
        if Type.TEXTS in {left, right}:
            raise self._fault(at, "a collection is not compared; write `x in collection`")
        free = {Type.ANY, Type.NIL, Type.BROKEN}
        if left is not right and not free & {left, right}:
            message = f"can never match: {left.value} compared with {right.value}"
            hint = "; a column is text" if Type.TEXT in {left, right} else ""
            raise self._fault(at, message + hint)

    def _order(self, node: syntax.Binary) -> Term:
        left, right = self.value(node.left), self.value(node.right)
        kinds = {type_of(left), type_of(right)}
        if kinds & {Type.BOOL, Type.TEXTS, Type.NIL}:
            raise self._fault(node.at, f"`{node.operator}` orders numbers or text")
        if {Type.TEXT, Type.NUMBER} <= kinds:
            message = "can never match: text ordered against a number"
            hint = "; a column is text: put the comparison into an `eval` column"
            columns = isinstance(left, Column) or isinstance(right, Column)
            raise self._fault(node.at, message + (hint if columns else ""))
        return Order(node.operator, left, right)

    def _membership(self, node: syntax.Binary) -> Term:
        item = self.value(node.left)
        options = node.right
        if isinstance(options, syntax.TupleOf):
            found = tuple(map(self.value, options.items))
            if len(found) == 1 and type_of(found[0]) in {Type.TEXTS, Type.ANY}:
                return self._contains(item, found[0], node.at)
            if not found:
                raise self._fault(options.at, "can never match: the tuple is empty")
            for term, option in zip(found, options.items, strict=True):
                self._check_comparable(type_of(item), type_of(term), option.at)
            return OneOf(item, found)
        return self._contains(item, self.value(options), node.at)

    def _contains(self, item: Term, collection: Term, at: int) -> Term:
        kind = type_of(collection)
        if kind not in {Type.TEXTS, Type.ANY, Type.BROKEN}:
            message = f"the right side of `in` is {kind.value}, not a collection"
            hint = '; a substring is no membership: write `("a", "b")`' if kind is Type.TEXT else ""
            raise self._fault(at, message + hint)
        if kind is Type.TEXTS and type_of(item) not in {Type.TEXT, Type.ANY, Type.BROKEN}:
            raise self._fault(at, f"the collection holds text, not {type_of(item).value}")
        return Contains(item, collection)

    def _arithmetic(self, node: syntax.Binary) -> Term:
        left, right = self.value(node.left), self.value(node.right)
        kinds = {type_of(left), type_of(right)} - {Type.BROKEN, Type.ANY}
        if kinds <= {Type.NUMBER} and (kinds or node.operator != "+"):
            return Arithmetic(node.operator, left, right, Type.NUMBER, node.at)
        if node.operator == "+" and kinds <= {Type.TEXT}:
            return Arithmetic("+", left, right, Type.TEXT if kinds else Type.ANY, node.at)
        found = " and ".join(sorted(kind.value for kind in kinds))
        raise self._fault(node.at, f"`{node.operator}` cannot be applied to {found}")

    # --- functions ------------------------------------------------------------------------------

    def _call(self, node: syntax.Call) -> Term:
        if node.name == "eval":
            return self._eval(node)
        if node.name == "timeMatch":
            self._check_count(node, 2, "timeMatch(start, end)")
            return Between(tuple(self._constant(part, node) for part in node.arguments), node.at)
        if node.name in self._roles:
            return self._role(node)
        function = FUNCTIONS.get(node.name)
        if function is None:
            known = [*FUNCTIONS, "eval", "timeMatch", *self._roles]
            hint = did_you_mean(node.name, known)
            raise self._fault(node.at, f"unknown function `{node.name}`{hint}")
        return self._apply(node, function)

    def _check_count(self, node: syntax.Call, count: int, usage: str) -> None:
        if len(node.arguments) != count:
            message = f"{len(node.arguments)} arguments, expected {count}: `{usage}`"
            raise self._fault(node.at, message)

    def _apply(self, node: syntax.Call, function: Function) -> Term:
        self._check_count(node, function.constants + 1, function.usage)
        value = self._text(node.arguments[0])
        constants = tuple(self._constant(part, node) for part in node.arguments[1:])
        return Apply(function, value, constants, node.at)

    def _text(self, node: syntax.Expression) -> Term:
        term = self.value(node)
        if type_of(term) not in {Type.TEXT, Type.ANY, Type.BROKEN}:
            raise self._fault(node.at, f"expected text, found {type_of(term).value}")
        return term

    def _constant(self, node: syntax.Expression, call: syntax.Call) -> Term:
        term = self._text(node)
        if not isinstance(term, Constant | Column | Broken):
            message = f"this argument of {call.name} is a literal or a column, never the request's"
            raise self._fault(node.at, message)
        return term

    def _role(self, node: syntax.Call) -> Term:
        arity = self._roles[node.name].arity
        usage = ", ".join(("member", "role", "domain")[:arity])
        self._check_count(node, arity, f"{node.name}({usage})")
        arguments = tuple(map(self._text, node.arguments))
        return HasRole(node.name, arguments, _is_identity(arguments[0]))

    def _eval(self, node: syntax.Call) -> Term:
        if self._rule:
            raise self._fault(node.at, "`eval` cannot be used inside an evaluated rule")
        self._check_count(node, 1, "eval(p.rule)")
        argument = node.arguments[0]
        term = self.value(argument)
        if isinstance(term, Broken):
            return term
        if not isinstance(term, Column):
            raise self._fault(argument.at, "`eval` takes a column: `eval(p.rule)`")
        return RuleText(term)


def _reads_request(term: Term) -> bool:
    return not is_constant(term)


def _is_identity(term: Term) -> bool:
    slot = term.slot if isinstance(term, Element) else term
    if not isinstance(slot, Slot):
        return False
    where = (slot.record, slot.field)
    return where in _IDENTITIES or where == ("chain", "actors")
