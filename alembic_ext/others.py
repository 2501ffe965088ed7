"""Other tools: what they put into a migration against our policies.

Two tools that each own the same objects undo each other. Whatever another tool does to
policies, row-level security, privileges, roles or the function is refused, with the
option of that tool that leaves ours alone. Tools are recognised by the SQL that their
operations would send, so that it does not matter which tool it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from alembic.operations.ops import ExecuteSQLOp, MigrationScript
from alembic.util import CommandError

from sqlalchemy_tenants.tenancy import FUNCTIONS

from .comparison import Comparison
from .ops import TenancyOp, taken_directives
from .order import flat

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext

# What prevents it, by the first part of the name of the tool's module.
_REMEDIES = {
    "alembic": "leave it out of process_revision_directives in env.py",
    "alembic_utils": "pass entity_types=[...] without PGPolicy and PGGrantTable to "
    "register_entities(), and declare policies in with_rls(policies=[Policy(...)]); "
    "exclude the function by include_object, if PGFunction is among them",
    "sqlalchemy_declarative_extensions": "pass ignore_unspecified=True to Roles, "
    "Grants, Functions and Schemas",
}
_REMEDIES["alembic_utils_extended"] = _REMEDIES["alembic_utils"]
_ANY_REMEDY = "use the option of it that leaves these objects alone, or include_object"

# Its renderer writes files, and its statements are the user's own scripts.
_NOT_ASKED = frozenset(("alembic_dddl",))

_STRING = (
    r"(?P<tag>\$\w*\$).*?(?P=tag)"
    r"|\be'(?:[^'\\]|\\.|'')*'"
    r"|'(?:[^']|'')*'"
)
# Functions before ours in a list, with their arguments.
_BESIDE = r"(?:if exists )?(?:[^ (]+ ?(?:\([^)]*\))?, ?)*"

_DEFAULT = re.compile(r"alter default privileges .*?((?:grant|revoke) .*)")
_GRANT = re.compile(
    r"(?P<verb>grant|revoke) (?:.* option for )?(?P<what>.*?)"
    r"(?: on (?P<object>.*?))? (?:to|from) (?P<grantees>.*)"
)


def refuse_taken_names() -> None:
    """Refuse to write a migration whose directives would call another tool.

    :raises CommandError: another package registered an operation under one of our
        names, and ``op.enable_rls(...)`` would be that package's.
    """
    taken = sorted(taken_directives())
    if taken:
        raise CommandError(
            f"another package has registered operations of the names "
            f"{', '.join(f'op.{name}' for name in taken)}, and migrations would call "
            f"these instead of sqlalchemy-tenants'; do not import that package in "
            f"env.py"
        )


def install(autogen_context: AutogenContext, comparisons: Iterable[Comparison]) -> None:
    """Look at the migration once more after the last hook of ``env.py``."""
    context = autogen_context.migration_context
    assert context is not None
    given: Callable[..., Any] | None = context.opts.get("process_revision_directives")
    comparisons = list(comparisons)

    def process_revision_directives(
        context: MigrationContext, revision: Any, directives: list[MigrationScript]
    ) -> None:
        if given is not None:
            given(context, revision, directives)
        for directive in directives:
            for upgrade_ops in directive.upgrade_ops_list:
                refuse(upgrade_ops.ops, autogen_context, comparisons)

    context.opts["process_revision_directives"] = process_revision_directives


def refuse(
    operations: Iterable[Any],
    autogen_context: AutogenContext,
    comparisons: Iterable[Comparison],
) -> None:
    """Refuse operations of other tools that touch what is ours.

    :raises CommandError: names the statements, the tools and what prevents them.
    """
    ours = [_Ours(comparison) for comparison in comparisons if comparison.wanted]
    found: dict[str, list[str]] = {}
    for op in filter(_is_another_tools, flat(operations)):
        tool = type(op).__module__.partition(".")[0]
        if tool in _NOT_ASKED or not ours:
            continue
        for statement in _statements(_sql(op, autogen_context)):
            if any(each.is_touched_by(statement) for each in ours):
                found.setdefault(tool, []).append(statement)
    if found:
        raise CommandError(
            "\n".join(
                f"{'a hook' if tool == 'alembic' else tool} changes what keeps tenants "
                f"apart; {_REMEDIES.get(tool, _ANY_REMEDY)}:\n  "
                + "\n  ".join(dict.fromkeys(statements))
                for tool, statements in found.items()
            )
        )


def _is_another_tools(op: Any) -> bool:
    """Whether an operation is neither ours nor Alembic's own, or plain SQL."""
    return isinstance(op, ExecuteSQLOp) or not (
        isinstance(op, TenancyOp)
        or type(op).__module__.startswith("alembic.operations.")
    )


def _sql(op: Any, autogen_context: AutogenContext) -> str:
    """Return what an operation would send, or the strings of its source where it has
    only that."""
    from alembic.autogenerate import render_op_text

    output = StringIO()
    offline = type(autogen_context.migration_context).configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output}
    )
    try:
        Operations(offline).invoke(op)
        return output.getvalue()
    except Exception:  # whatever a tool's implementation needs and does not find
        source = render_op_text(autogen_context, op)
        return ";\n".join(
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )


def _statements(sql: str) -> Iterator[str]:
    """Yield statements in lower case, without quotes and comments, on one line.

    Of a ``DO`` block, each part that begins with the first word of a statement. Other
    strings say nothing, as the body of a function, which runs another time.
    """
    blank = r"--[^\n]*|/\*.*?\*/"
    is_executed = re.search(
        r"(?:^|;)\s*do\b", re.sub(blank, " ", sql, flags=re.DOTALL), re.IGNORECASE
    )
    if not is_executed:
        blank += "|" + _STRING
    # names in quotes come first, because they may hold an apostrophe
    sql = re.sub(
        r'(?P<name>"(?:[^"]|"")*")|' + blank,
        lambda token: token["name"] or " ",
        sql,
        flags=re.DOTALL | re.IGNORECASE,
    )
    sql = " ".join(sql.replace('"', "").split()).lower()
    sql = re.sub(r" ?\. ?", ".", sql)
    separator = r";"
    if re.search(r"(?:^|; ?)do\b", sql):
        separator = r"[;']|\b(?=(?:create|alter|drop|grant|revoke|reassign) )"
    yield from filter(None, map(str.strip, re.split(separator, sql)))


class _Ours:
    """The names of one configuration, and of its tables."""

    def __init__(self, comparison: Comparison) -> None:
        tenancy = comparison.tenancy
        self.schema = tenancy.schema.lower()
        self.prefix = tenancy.role_prefix.lower()
        self.groups = {role.lower() for role in tenancy.group_roles}
        function = rf"{re.escape(self.schema)}\.(?:{'|'.join(FUNCTIONS)})"
        schemas = {self.schema} | {schema for schema, _ in comparison.marked}
        in_schemas = "|".join(re.escape(each.lower()) for each in sorted(schemas))
        tables = "|".join(self._tables(comparison)) or "(?!)"
        self._is_touched = re.compile(
            rf"(?:create|alter|drop) policy .* on (?:only )?(?:{tables})(?: |$)"
            rf"|alter table (?:if exists )?(?:only )?(?:{tables})(?: ?\*)? .*"
            r"(?:row level security|owner to)"
            r"|(?:create|create or replace|alter|drop) (?:function|routine) "
            rf"{_BESIDE}{function}\b"
            rf"|alter schema (?:{in_schemas}) (?:owner|rename) to"
            r"|alter database .* owner to"
            r"|drop schema (?:if exists )?(?:.*, )?"
            rf"{re.escape(self.schema)}\b"
            r"|(?:drop|reassign) owned by"
        )
        self._on_table = re.compile(
            rf"(?:table )?(?:.*, )?(?:{tables})(?:,|$)"
            rf"|all tables in schema (?:.*, )?(?:{in_schemas})\b"
        )
        self._on_schema = re.compile(rf"schema (?:.*, )?(?:{in_schemas})\b")

    def _tables(self, comparison: Comparison) -> Iterator[str]:
        keys = set(comparison.marked)
        keys |= {
            key
            for key, table in comparison.database.tables.items()
            if comparison.expected.uses(table)
        }
        for schema, name in sorted(keys):
            yield re.escape(f"{schema}.{name}".lower())
            if schema == comparison.default_schema:
                yield re.escape(name.lower())

    def is_touched_by(self, statement: str) -> bool:
        """Whether a statement changes what is ours."""
        if self._is_touched.match(statement):
            return True
        role = re.match(r"(?:create|alter|drop) (?:role|user|group) (.*)", statement)
        if role is not None:
            return any(map(self._is_role, _names(role[1])))
        default = _DEFAULT.match(statement)
        grant = _GRANT.match(default[1] if default else statement)
        if grant is None:
            return False
        grantees = _names(grant["grantees"])
        if any(map(self._is_role, grantees)):
            return True
        if grant["object"] is None:
            return any(map(self._is_role, _names(grant["what"])))
        if "public" not in grantees or grant["verb"] == "revoke":
            return False
        if self._on_schema.match(grant["object"]):
            return bool({"create", "all"} & set(_names(grant["what"])))
        return default is not None or self._on_table.match(grant["object"]) is not None

    def _is_role(self, name: str) -> bool:
        return name in self.groups or name.startswith(self.prefix)


def _names(text: str) -> list[str]:
    """Return the words of a list of names."""
    return [word for word in re.split(r"[\s,]+", text) if word]
