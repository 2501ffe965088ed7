"""Policies: the user's own, and the three that keep tenants apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from sqlalchemy import BindParameter, ColumnElement, TextClause
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import visitors

from .arguments import require_flag, require_name, require_names, require_text
from .tenancy import FUNCTION_NAME, Tenancy

# A condition: SQL text, or an expression of SQLAlchemy.
Condition: TypeAlias = str | ColumnElement[bool] | TextClause

Command: TypeAlias = Literal["ALL", "SELECT", "INSERT", "UPDATE", "DELETE"]

COMMANDS: tuple[Command, ...] = ("ALL", "SELECT", "INSERT", "UPDATE", "DELETE")

#: Privileges of the group roles on a table of tenants.
TENANT_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")

ISOLATION_POLICY = "tenant_isolation"
FLOOR_POLICY = "tenant_floor"
ADMIN_POLICY = "tenants_admin"

#: The policies that keep tenants apart. No policy of a user has such a name.
OWN_POLICIES = (ISOLATION_POLICY, FLOOR_POLICY, ADMIN_POLICY)

_EQUALS = "OPERATOR(pg_catalog.=)"
_DIFFERS = "OPERATOR(pg_catalog.<>)"

#: A dialect of its own to print expressions as plain SQL: "named" leaves percent
#: signs alone, whereas the drivers' own styles double them.
DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Policy:
    """A row-level security policy, as ``CREATE POLICY`` spells it.

    :param name: name of the policy, unique on its table.
    :param using: condition for rows that are read, updated or deleted, as SQL text
        or SQLAlchemy expression; ``None`` for no such condition.
    :param with_check: condition for rows that are written; ``None`` applies
        ``using``, as PostgreSQL does.
    :param command: ``"ALL"``, ``"SELECT"``, ``"INSERT"``, ``"UPDATE"`` or
        ``"DELETE"``.
    :param permissive: ``False`` for a restrictive policy, which narrows.
    :param roles: roles that the policy applies to; ``None`` is the group role of
        all tenants. ``("public",)`` is everyone.
    :raises TypeError: for a value of another type.
    :raises ValueError: for a definition that PostgreSQL would refuse.

    .. seealso:: https://www.postgresql.org/docs/current/sql-createpolicy.html
    """

    name: str
    using: str | None = None
    with_check: str | None = None
    command: Command = "ALL"
    permissive: bool = True
    roles: tuple[str, ...] | None = None

    def __init__(
        self,
        name: str,
        *,
        using: Condition | None = None,
        with_check: Condition | None = None,
        command: str = "ALL",
        permissive: bool = True,
        roles: str | Sequence[str] | None = None,
    ) -> None:
        name = require_name("policy", name)
        if not isinstance(command, str) or command.upper() not in COMMANDS:
            raise ValueError(
                f"policy {name!r}: command {command!r} is none of {', '.join(COMMANDS)}"
            )
        command = command.upper()
        if using is not None and command == "INSERT":
            raise ValueError(f"policy {name!r}: INSERT takes with_check, not using")
        if with_check is not None and command in ("SELECT", "DELETE"):
            raise ValueError(f"policy {name!r}: {command} takes using, not with_check")
        values = {
            "name": name,
            "using": expression_text(using, f"policy {name!r}: using"),
            "with_check": expression_text(with_check, f"policy {name!r}: with_check"),
            "command": command,
            "permissive": require_flag(f"policy {name!r}: permissive", permissive),
            "roles": None if roles is None else role_set(roles),
        }
        if values["roles"] == ():
            raise ValueError(f"policy {name!r}: roles is empty")
        for key, value in values.items():
            object.__setattr__(self, key, value)


def role_set(roles: str | Iterable[str]) -> tuple[str, ...]:
    """Return roles as PostgreSQL keeps them: a set, and PUBLIC instead of others."""
    given = require_names("role", roles)
    names = {"public" if role.upper() == "PUBLIC" else role for role in given}
    return ("public",) if "public" in names else tuple(sorted(names))


def expression_text(expression: Condition | None, what: str) -> str | None:
    """Return an expression as SQL text with its values inline.

    :param what: what it is, for messages.
    :raises TypeError: for something else.
    :raises ValueError: it is empty, has NUL, or a parameter without value.
    """
    if expression is None:
        return None
    if isinstance(expression, str):
        if not expression.strip():
            raise ValueError(f"{what} is empty; None is no condition")
        require_text(what, expression, "is no condition")
        return expression
    if not isinstance(expression, ColumnElement | TextClause):
        raise TypeError(
            f"{what} is SQL text or a SQLAlchemy expression, as in Order.id > 5 or "
            f"select(...).exists(), not {type(expression).__name__}: {expression!r}"
        )
    for element in visitors.iterate(expression):
        if isinstance(element, BindParameter) and element.required:
            raise ValueError(f"{what}: parameter {element.key!r} has no value")
    # "in_condition" tells context_value() that this is no default of a column
    options = {"literal_binds": True, "in_condition": True}
    return str(expression.compile(dialect=DIALECT, compile_kwargs=options))


def quote_name(name: str) -> str:
    """Return a name as PostgreSQL reads it, quoted where it must be."""
    return DIALECT.identifier_preparer.quote(name)


def quote_qualified(schema: str | None, name: str) -> str:
    """Return a name with its schema, each quoted where it must be."""
    prefix = "" if schema is None else quote_name(schema) + "."
    return prefix + quote_name(name)


def quote_grantee(role: str) -> str:
    """Return a role's name as ``GRANT`` takes it."""
    # PUBLIC is a keyword there, and no role can have that name
    return "PUBLIC" if role == "public" else quote_name(role)


def quote_literal(value: str) -> str:
    """Return a string constant, read the same way whatever
    ``standard_conforming_strings`` says."""
    text = value.replace("'", "''")
    if "\\" in text:
        return "E'" + text.replace("\\", "\\\\") + "'"
    return f"'{text}'"


def quote_dollar(text: str) -> str:
    """Return a string constant in dollar quotes, for a text that has quotes itself."""
    tag = "$tenancy$"
    while tag in text:
        tag = tag[:-1] + "_$"
    return f"{tag}{text}{tag}"


def current_tenant_sql(tenancy: Tenancy, cast: str = "") -> str:
    """Return the call that yields the tenant of the transaction.

    :param cast: ``""`` for text, otherwise as in ``"::integer"``; with parentheses, as
        PostgreSQL prints it, because that is what a column's default is compared with.
    """
    call = quote_qualified(tenancy.schema, FUNCTION_NAME) + "()"
    return f"({call}){cast}" if cast else call


def tenant_function_body(tenancy: Tenancy) -> str:
    """Return the body of the function that :func:`current_tenant_sql` calls.

    For a tenant's role the setting is never looked at. PL/pgSQL, because PostgreSQL
    would read the body of an SQL function again with each statement that it plans, to
    inline it; that took twice the time of planning a query by primary key.

    PL/pgSQL looks names up when it runs, by the search path of its caller. So each
    function, type and operator is qualified, and what has no qualified spelling
    (``IN``, ``NULLIF``, which look up ``=``) is not used.
    """
    role = "current_user::pg_catalog.text"
    prefix = quote_literal(tenancy.role_prefix)
    setting = f"pg_catalog.current_setting({quote_literal(tenancy.setting)}, true)"
    readers = " OR ".join(
        f"{role} OPERATOR(pg_catalog.=) {quote_literal(reader)}"
        for reader in (tenancy.shared_role, tenancy.admin_role)
    )
    return f"""
BEGIN
  RETURN CASE
    WHEN pg_catalog.starts_with({role}, {prefix})
    THEN CASE WHEN {role} OPERATOR(pg_catalog.<>) {prefix}
      THEN pg_catalog.substr({role}, {len(tenancy.role_prefix) + 1}) END
    WHEN {readers}
    THEN CASE WHEN {setting} OPERATOR(pg_catalog.<>) ''
      THEN {setting} END
  END;
END
"""


def context_function_body(tenancy: Tenancy) -> str:
    """Return the body of the function that answers with a value of the context, NULL
    where none was given; see :func:`tenant_function_body`."""
    prefix = quote_literal(tenancy.setting.rpartition(".")[0] + ".")
    name = f"{prefix} OPERATOR(pg_catalog.||) $1"
    return f"""
DECLARE
  value pg_catalog.text := pg_catalog.current_setting({name}, true);
BEGIN
  RETURN CASE WHEN value OPERATOR(pg_catalog.<>) '' THEN value END;
END
"""


def tenant_policies(
    column: str, cast: str, tenancy: Tenancy, *, bytewise: bool = False
) -> tuple[Policy, Policy, Policy]:
    """Return the policies that confine a table's rows to their tenant.

    The function is called in a subselect, so that PostgreSQL evaluates it once for
    a query and not once for each row.

    With a cast, ``'1'``, ``'01'`` and ``' 1'`` are one value, but the roles of three
    tenants. So the policies ask, too, whether the tenant's text is the one that
    PostgreSQL prints for the value; another text sees nothing and writes nothing.

    Operators and types are qualified, because the migration's search path may lead to
    others of the same name: an operator for VARCHAR and TEXT, or for a domain, would
    come before the system's, which has none for exactly these types.

    :param column: name of the tenant column.
    :param cast: see :func:`current_tenant_sql`.
    :param bytewise: compare the bytes, too, because the column has a collation, under
        which texts that differ could be equal.
    """
    name, call = quote_name(column), current_tenant_sql(tenancy)
    typed = call + cast.replace("::uuid", "::pg_catalog.uuid")
    tenant = f"(SELECT {typed})"
    own = f"{name} {_EQUALS} {tenant}"
    # "<> 0", because of such a condition the planner expects that nearly each row meets
    # it; of a boolean it would expect that of half of the rows
    if cast:
        same = f"{typed}::pg_catalog.text {_EQUALS} {call}"
        own += f" AND (SELECT ({same})::integer) {_DIFFERS} 0"
    if bytewise:
        same = f'{name} COLLATE pg_catalog."C" {_EQUALS} {tenant}'
        own += f" AND ({same})::integer {_DIFFERS} 0"
    # the same call twice: PostgreSQL evaluates it once, and provers recognise it
    every = f"{tenant} IS NULL OR {own}"
    return (
        Policy(ISOLATION_POLICY, using=own, with_check=own, roles=tenancy.tenants_role),
        # restrictive: no permissive policy that is added later opens the table
        Policy(
            FLOOR_POLICY,
            using=own,
            with_check=own,
            permissive=False,
            roles=tenancy.tenants_role,
        ),
        Policy(ADMIN_POLICY, using=every, with_check=every, roles=tenancy.admin_role),
    )


# Asked for each policy of each table, and most tables are alike.
@lru_cache(maxsize=256)
def printed(
    policy: str,
    column: str,
    cast: str,
    tenancy: Tenancy,
    *,
    bytewise: bool = False,
    visible: bool = False,
) -> frozenset[str]:
    """Return how PostgreSQL prints the expression of one of :func:`tenant_policies`.

    The same on 15 to 18. There are two spellings, because a VARCHAR column is compared
    as text, and a column of a domain as its base type.

    :param policy: name of the policy; the others are those of :func:`tenant_policies`.
    :param visible: whether the search path leads to the function, which is then
        printed without its schema.
    """
    call = f"{FUNCTION_NAME}()" if visible else current_tenant_sql(tenancy)
    typed = f"({call}){cast}" if cast else call
    tenant = f"( SELECT {typed} AS {FUNCTION_NAME})"
    result = []
    for left in (quote_name(column), f"({quote_name(column)}){cast or '::text'}"):
        own = f"({left} = {tenant})"
        if cast:
            same = f"(({typed})::text = {call})"
            own += f" AND (( SELECT ({same})::integer AS int4) <> 0)"
        if bytewise:
            same = f'(({left} COLLATE "C") = {tenant})'
            own += f" AND (({same})::integer <> 0)"
        if cast or bytewise:
            own = f"({own})"
        if policy == ADMIN_POLICY:
            own = f"(({tenant} IS NULL) OR {own})"
        result.append(own)
    return frozenset(result)
