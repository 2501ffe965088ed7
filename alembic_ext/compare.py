"""Comparison: what the models want, what the database has, and the operations between.

Three comparators, in the order in which Alembic calls them:

- before the tables: the catalog is read, once;
- for each table that Alembic compares, after its columns and indexes were added and
  before columns are dropped: :mod:`.tables`;
- after the tables: what precedes them all (roles, schema, function, declared tenants,
  USAGE on schemas, policies that stand in the way of another table's change), and what
  follows them all (policies that mention other tables, what nothing needs any more).

They act on metadata that carries a mark, and otherwise only where such tables have been
in the database before. Each reverse restores what the database had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from alembic.operations.ops import MigrateOperation, ModifyTableOps, UpgradeOps
from alembic.util import CommandError, DispatchPriority, PriorityDispatchResult
from sqlalchemy import MetaData, Table

from sqlalchemy_tenants.database import catalog
from sqlalchemy_tenants.database.expected import Expected
from sqlalchemy_tenants.declare import casts_of, marks
from sqlalchemy_tenants.identity import require_canonical
from sqlalchemy_tenants.tenancy import FUNCTION_NAME, Tenancy

from . import advice, others
from .comparison import Comparison
from .database import (
    bootstrap,
    default_privileges,
    removed_tenants,
    tenants,
    unused,
    usage,
)
from .order import altered, dropped, outside_of_batches
from .originals import keep_originals
from .tables import TableChanges, TableComparison

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

_STATE_KEY = "sqlalchemy_tenants"


# One run of autogenerate: a comparison for each set of names, with what its tables have
# left for the end of the run.
_Run: TypeAlias = list[tuple[Comparison, list[TableChanges]]]


def setup(plugin: Plugin) -> None:
    """Register the comparators."""
    for function, target, priority in (
        (compare_before_tables, "schema", DispatchPriority.FIRST),
        (compare_table, "table", DispatchPriority.LAST),
        (compare_after_tables, "schema", DispatchPriority.LAST),
    ):
        plugin.add_autogenerate_comparator(
            function,
            target,
            "tenancy",
            qualifier="postgresql",
            priority=priority,
        )
    # after every comparator of schemas, whichever tool's
    plugin.add_autogenerate_comparator(
        compare_with_others, "autogenerate", "tenancy", priority=DispatchPriority.LAST
    )


def compare_before_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> PriorityDispatchResult:
    """Read the catalog."""
    autogen_context.inspector.info_cache[_STATE_KEY] = _start(autogen_context)
    return PriorityDispatchResult.CONTINUE


def compare_table(
    autogen_context: AutogenContext,
    modify_table_ops: ModifyTableOps,
    schema: str | None,
    table_name: str,
    conn_table: Table | None,
    metadata_table: Table | None,
) -> PriorityDispatchResult:
    """Compare row-level security, policies and privileges of one table."""
    run: _Run = autogen_context.inspector.info_cache.get(_STATE_KEY, [])
    for comparison, found in run:
        changes = TableComparison(
            comparison,
            autogen_context,
            modify_table_ops,
            schema,
            table_name,
            conn_table,
            metadata_table,
        ).compare()
        if changes is not None:
            found.append(changes)
    return PriorityDispatchResult.CONTINUE


def compare_after_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> PriorityDispatchResult:
    """Place what precedes or follows all tables."""
    run: _Run = autogen_context.inspector.info_cache.get(_STATE_KEY, [])
    if not run:
        return PriorityDispatchResult.CONTINUE
    default_schema = run[0][0].default_schema
    gone = dropped(upgrade_ops.ops, default_schema)
    touched = gone | altered(upgrade_ops.ops, default_schema)
    first: list[MigrateOperation] = []
    last: list[MigrateOperation] = []
    refusals: list[str] = []
    for comparison, changes in run:
        schemas_used = {each.key[0] for each in changes if each.is_marked}
        schemas_used.update(*(each.schemas for each in changes))
        if comparison.wanted and (schemas_used or comparison.declared):
            admins = {each.admin for each in changes if each.admin is not None}
            first += bootstrap(comparison, admins, refusals)
            earlier = {role for each in changes for role in each.earlier}
            first += usage(comparison, schemas_used, earlier, refusals)
            first += default_privileges(comparison, schemas_used)
            first += tenants(comparison)
        drops: list[MigrateOperation] = []
        for each in changes:
            for later in each.later:
                later.place(touched, drops, last)
        # placing a policy may close its table
        for each in changes:
            first += each.closing
            last += each.opening
            refusals += each.refusals
        first += drops
        if comparison.wanted:
            last += removed_tenants(comparison)
        last += unused(comparison, changes, gone)
        advice.check_readers(comparison, changes)
        advice.check_earlier(comparison, changes)
    if refusals:
        raise CommandError("\n".join(refusals))
    upgrade_ops.ops[:] = [*first, *upgrade_ops.ops, *last]
    keep_originals(run[0][0], upgrade_ops.ops)
    if autogen_context.opts.get("render_as_batch"):
        upgrade_ops.ops[:] = outside_of_batches(upgrade_ops.ops)
    return PriorityDispatchResult.CONTINUE


def compare_with_others(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps
) -> PriorityDispatchResult:
    """Look at what other tools have put into the migration, now and at its end."""
    if autogen_context.dialect is None or autogen_context.dialect.name != "postgresql":
        return PriorityDispatchResult.CONTINUE
    run: _Run = autogen_context.inspector.info_cache.pop(_STATE_KEY, [])
    comparisons = [comparison for comparison, _ in run if comparison.wanted]
    if comparisons:
        others.refuse(upgrade_ops.ops, autogen_context, comparisons)
        others.install(autogen_context, comparisons)
    return PriorityDispatchResult.CONTINUE


def _start(autogen_context: AutogenContext) -> _Run:
    connection = autogen_context.connection
    assert connection is not None
    metadata = autogen_context.metadata
    collections: Sequence[MetaData] = (
        [metadata] if isinstance(metadata, MetaData) else list(metadata or ())
    )
    configured: dict[Tenancy, list[tuple[Tenancy, bool]]] = {}
    for each in collections:
        marked = any(True for _ in marks(each))
        if marked or Tenancy.is_bound(each):
            tenancy = Tenancy.of(each)
            configured.setdefault(_names(tenancy), []).append((tenancy, marked))
    _refuse_collisions(configured)
    _refuse_tenants(collections)
    default_schema = connection.dialect.default_schema_name or "public"
    comparisons = []
    for names, found in (configured or {Tenancy(): []}).items():
        declared = any(tenancy.tenants is not None for tenancy, marked in found)
        wanted = declared or any(marked for tenancy, marked in found)
        database = catalog.read_database(connection, names)
        # nothing wanted and nothing there: a project without tenants
        if wanted or FUNCTION_NAME in database.functions:
            database.tables = catalog.read_tables(connection, names, columns=False)
            if declared:
                database.tenants = catalog.read_tenants(connection, names)
            comparison = Comparison(
                Expected(names),
                database,
                connection,
                default_schema,
                wanted,
                tuple(tenancy for tenancy, marked in found),
                _marked(collections, names, default_schema),
            )
            comparison.ask(collections)
            comparisons.append(comparison)
    advice.check_unmarked(collections)
    if any(comparison.wanted for comparison in comparisons):
        others.refuse_taken_names()
        advice.check_models(collections)
        advice.check_answers(comparisons)
        advice.check_views(comparisons[0], collections)
    return [(comparison, []) for comparison in comparisons]


def _refuse_tenants(collections: Collection[MetaData]) -> None:
    """Refuse a declared tenant that is none in a table of the same configuration.

    :raises InvalidTenant: see :func:`.require_canonical`.
    """
    for each in collections:
        tenancy = Tenancy.of(each)
        casts = [
            casts_of(other)
            for other in collections
            if _names(Tenancy.of(other)) == _names(tenancy)
        ]
        for tenant in tenancy.tenants or ():
            require_canonical(tenant, frozenset().union(*casts))


def _marked(
    collections: Sequence[MetaData], names: Tenancy, default_schema: str
) -> frozenset[tuple[str, str]]:
    return frozenset(
        (table.schema or default_schema, table.name)
        for metadata in collections
        if _names(Tenancy.of(metadata)) == names
        for table, _ in marks(metadata)
    )


def _names(tenancy: Tenancy) -> Tenancy:
    """Return a configuration reduced to names, which is what a database has once."""
    return dataclasses.replace(
        tenancy, force=True, tenants=None, logins=None, owners=()
    )


def _refuse_collisions(configured: Collection[Tenancy]) -> None:
    owners: dict[tuple[str, str], Tenancy] = {}
    for names in configured:
        taken = [("role", role) for role in names.group_roles]
        for kind, name in [*taken, ("schema", names.schema)]:
            if owners.setdefault((kind, name), names) is not names:
                raise CommandError(
                    f"two configurations (Tenancy) in target_metadata use {kind} "
                    f"{name!r}, and differ otherwise: give each names of its own, or "
                    f"use the same configuration"
                )
