"""Advice that autogenerate logs: what weakens isolation and no migration can repair.

Each kind has a logger of its own below ``alembic.autogenerate.tenants``, so that the
logging configuration of ``alembic.ini`` silences it::

    [logger_keys]
    qualname = alembic.autogenerate.tenants.key-without-tenant
    level = ERROR
    handlers =
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    DefaultClause,
    MetaData,
    Table,
    TextClause,
    UniqueConstraint,
)
from sqlalchemy.schema import ForeignKeyConstraint

from sqlalchemy_tenants.database.expected import admitted
from sqlalchemy_tenants.database.reach import read_readers
from sqlalchemy_tenants.database.same import frozen_constants
from sqlalchemy_tenants.database.views import read_views
from sqlalchemy_tenants.declare import TenantTable, leading_columns, mark_of
from sqlalchemy_tenants.policies import (
    current_tenant_sql,
    quote_name,
    quote_qualified,
)
from sqlalchemy_tenants.tenancy import Tenancy

from .comparison import Comparison
from .tables import TableChanges

_PREFIX = "alembic.autogenerate.tenants."

INDEX_MISSING = "index-missing"
TENANT_NULLABLE = "tenant-nullable"
KEY_WITHOUT_TENANT = "key-without-tenant"
FOREIGN_KEY_WITHOUT_TENANT = "foreign-key-without-tenant"
VIEW_BYPASSES_RLS = "view-bypasses-rls"
TABLE_UNMARKED = "table-unmarked"
READS_NOTHING = "reads-nothing"
NAMES_CHANGED = "names-changed"
CONSTANT_FROZEN = "constant-frozen"


def check_unmarked(collections: Iterable[MetaData]) -> None:
    """Log tables without a mark whose rows get the tenant of the session, as those of a
    class with ``TenantMixin`` that lacks ``@with_rls``."""
    for metadata in collections:
        call = current_tenant_sql(Tenancy.of(metadata))
        for table in metadata.tables.values():
            if mark_of(table) is None and any(
                call in _default_text(column) for column in table.columns
            ):
                _warn(
                    TABLE_UNMARKED,
                    "table %r has a column that defaults to the tenant of the session, "
                    "but no mark, and so neither policies nor privileges: put "
                    "@with_rls on its class",
                    table.fullname,
                )


def _default_text(column: Column[Any]) -> str:
    default = column.server_default
    text = default.arg if isinstance(default, DefaultClause) else None
    return text.text if isinstance(text, TextClause) else ""


def check_models(comparisons: Iterable[Comparison]) -> None:
    """Log what is worth a second look in the models; each kind once a table."""
    for table, mark in (pair for each in comparisons for pair in each.marked.values()):
        if isinstance(mark, TenantTable):
            _check_table(table, mark.column)
            for policy in mark.extra:
                for text in dict.fromkeys((policy.using, policy.with_check)):
                    _check_constants(
                        table.fullname, policy.name, frozen_constants(text or "")
                    )


def check_answers(comparisons: Iterable[Comparison]) -> None:
    """Log constants that the server took for a date, though no cast says so."""
    answers = (pair for each in comparisons for pair in each.answers.items())
    for question, answer in answers:
        known = frozen_constants(question.declared)
        _check_constants(
            question.table,
            question.policy,
            [each for each in answer.frozen if each not in known],
        )


def _check_constants(table: str, policy: str, constants: list[str]) -> None:
    if constants:
        _warn(
            CONSTANT_FROZEN,
            "policy %r on table %r has the constant %s: PostgreSQL keeps what it was "
            "when the policy was created, and autogenerate finds another one each "
            "time; write now() or CURRENT_DATE",
            policy,
            table,
            ", ".join(constants),
        )


def _check_table(table: Table, tenant: str) -> None:
    name = table.fullname
    if tenant not in leading_columns(table):
        _warn(
            INDEX_MISSING,
            "table %r has no index that begins with %r, so that every query reads the "
            "rows of all tenants; leave index=False out of with_rls, or add one",
            name,
            tenant,
        )
    if table.c[tenant].nullable:
        _warn(
            TENANT_NULLABLE,
            "column %r of table %r is nullable: rows without tenant are seen by admin "
            "sessions only; make it NOT NULL",
            tenant,
            name,
        )
    keys = [columns for columns in _keys(table) if tenant not in columns]
    if keys:
        _warn(
            KEY_WITHOUT_TENANT,
            "keys %s of table %r do not carry the tenant: they are checked across all "
            "tenants, so that one learns about rows of another; put %r into them%s",
            ", ".join(f"({', '.join(columns)})" for columns in keys),
            name,
            tenant,
            ", or beside a primary key add a unique constraint on both",
        )
    foreign = [_describe(key) for key in _foreign_keys(table, tenant)]
    if foreign:
        _warn(
            FOREIGN_KEY_WITHOUT_TENANT,
            "foreign keys %s of table %r do not carry the tenant: they are checked "
            "across all tenants, so that a row can refer to one of another; make them "
            "(%s, …) on both sides",
            ", ".join(sorted(foreign)),
            name,
            tenant,
        )


def _keys(table: Table) -> Iterator[list[str]]:
    """Yield unique keys; not the primary key where another has its columns and more."""
    unique = [
        [column.name for column in constraint.columns]
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    unique += [
        [getattr(column, "name", "") for column in index.expressions]
        for index in table.indexes
        if index.unique
    ]
    primary = [column.name for column in table.primary_key.columns]
    if primary and not any(set(primary) < set(columns) for columns in unique):
        yield primary
    yield from sorted(unique)


def _foreign_keys(table: Table, tenant: str) -> Iterator[ForeignKeyConstraint]:
    for constraint in table.foreign_key_constraints:
        other = constraint.referred_table
        mark = mark_of(other)
        if isinstance(mark, TenantTable) and not any(
            element.parent.name == tenant and element.column.name == mark.column
            for element in constraint.elements
        ):
            yield constraint


def _describe(constraint: ForeignKeyConstraint) -> str:
    columns = ", ".join(constraint.column_keys)
    return f"({columns}) to {constraint.referred_table.fullname}"


def check_views(comparisons: Sequence[Comparison]) -> None:
    """Log views that read tables of tenants with the rights of the view's owner."""
    comparison = comparisons[0]
    if not comparison.database.has_views:
        return
    tables = {
        key
        for each in comparisons
        for key, (_, mark) in each.marked.items()
        if isinstance(mark, TenantTable)
    }
    found: dict[tuple[str, str], list[str]] = {}
    for view in read_views(comparison.connection, comparison.tenancy):
        if view.table in tables:
            name = quote_qualified(view.schema, view.name)
            remedy = (
                f"materialized view {name}: grant it to no tenant"
                if view.materialized
                else f"ALTER VIEW {name} SET (security_invoker = true)"
            )
            found.setdefault(view.table, []).append(remedy)
    for key, remedies in sorted(found.items()):
        _warn(
            VIEW_BYPASSES_RLS,
            "views read table %s with the rights of their owner, past its policies: %s",
            quote_qualified(*key),
            "; ".join(sorted(remedies)),
        )


def check_readers(comparison: Comparison, changes: Iterable[TableChanges]) -> None:
    """Log roles that read a table today, and will see no row once row-level security is
    on: no policy names them."""
    changes = [each for each in changes if each.silenced]
    if not changes:
        return
    policies = {
        role for each in changes for role in admitted(each.policies) if role != "public"
    }
    readers = {role for each in changes for role in each.silenced}
    known = read_readers(comparison.connection, readers, policies)
    for each in changes:
        names = admitted(each.policies)
        silenced = sorted(
            quote_name(role)
            for role in each.silenced
            if "public" not in names
            and known.get(role) is not None
            and not names & (known[role] or frozenset())
        )
        if silenced:
            _warn(
                READS_NOTHING,
                "no policy of table %s names %s, who can read it today and will see no "
                "row, without an error, once row-level security is on: give them a "
                "Policy(..., command='SELECT', roles=[...]), BYPASSRLS, or membership "
                "in %r",
                quote_qualified(*each.key),
                ", ".join(silenced),
                comparison.tenancy.admin_role,
            )


def check_earlier(comparison: Comparison, changes: Iterable[TableChanges]) -> None:
    """Log group roles of an earlier configuration, which other tables or databases may
    still need."""
    earlier = sorted({role for each in changes for role in each.earlier})
    if earlier:
        _warn(
            NAMES_CHANGED,
            "roles %s of an earlier Tenancy lose these tables and stay, as do the "
            "schema and the function of that Tenancy, and its tenants: create the "
            "tenants again under %r, and drop the rest in a later revision by "
            "op.drop_tenancy(...) with the earlier names",
            ", ".join(map(quote_name, earlier)),
            comparison.tenancy.role_prefix,
        )


def _warn(kind: str, message: str, *values: object) -> None:
    logging.getLogger(_PREFIX + kind).warning(message, *values)
