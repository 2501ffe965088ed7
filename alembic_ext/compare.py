"""Comparison: what the models want, what the database has, and the operations between.

Three comparators, in the order in which Alembic calls them:

- before the tables, the bootstrap: roles, schema, function, declared tenants;
- for each table that Alembic compares, after its columns and indexes were added and
  before columns are dropped: row-level security, policies, privileges;
- after the tables, what nothing needs any more.

They act on metadata that carries a mark or a configuration, and otherwise only where
such tables have been in the database before.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alembic.operations.ops import (
    AlterColumnOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import MetaData, Table
from sqlalchemy import types as sqltypes

from sqlalchemy_tenants import catalog
from sqlalchemy_tenants.catalog import Catalog, Grant, TableState
from sqlalchemy_tenants.declare import Mark, SharedTable, TenantTable, mark_of, marks
from sqlalchemy_tenants.policies import Policy, deparsed, quote_qualified
from sqlalchemy_tenants.tenancy import Tenancy, tenant_text

from . import ops

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

_log = logging.getLogger(__name__)

_STATE_KEY = "sqlalchemy_tenants"

_SUBSELECT = re.compile(r"\bselect\b", re.IGNORECASE)


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


@dataclass
class _Run:
    """What the comparators of one autogenerate run share, for one configuration.

    :param wanted: whether the models use tenancy at all.
    :param schemas: schemas with tables of tenants or shared tables, by the models.
    :param removed: tables that cease to be ours in this run.
    :param first: operations that have to precede those on other tables.
    :param last: operations that have to follow those on other tables.
    """

    tenancy: Tenancy
    database: Catalog
    default_schema: str
    wanted: bool
    schemas: set[str]
    removed: set[tuple[str, str]] = field(default_factory=set)
    first: list[ModifyTableOps] = field(default_factory=list)
    last: list[ModifyTableOps] = field(default_factory=list)

    @property
    def grantees(self) -> tuple[str, str]:
        """The group roles that hold privileges."""
        return (self.tenancy.tenants_role, self.tenancy.admin_role)

    def is_ours(self, table: TableState) -> bool:
        """Whether a policy or privilege of a group role is on the table."""
        roles = set(self.tenancy.group_roles)
        return any(grant.role in roles for grant in table.grants) or any(
            roles & set(policy.roles or ()) for policy in table.policies.values()
        )


def compare_before_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> PriorityDispatchResult:
    """Read the catalog, and create or repair what all tables need."""
    runs = _start(autogen_context)
    autogen_context.inspector.info_cache[_STATE_KEY] = runs
    for run in runs:
        if run.wanted:
            upgrade_ops.ops.extend(_bootstrap(run))
            upgrade_ops.ops.extend(_usage(run))
            upgrade_ops.ops.extend(_tenants(run, autogen_context, create=True))
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
    runs: list[_Run] = autogen_context.inspector.info_cache.get(_STATE_KEY, [])
    for run in runs:
        if metadata_table is not None and run.wanted:
            if Tenancy.of(metadata_table.metadata) != run.tenancy:
                continue
        _TableComparison(
            run, autogen_context, modify_table_ops, schema, table_name, metadata_table
        ).compare()
    return PriorityDispatchResult.CONTINUE


def compare_after_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> PriorityDispatchResult:
    """Place what depends on several tables, and drop what nothing needs."""
    runs: list[_Run] = autogen_context.inspector.info_cache.get(_STATE_KEY, [])
    for run in runs:
        bootstrapped = next(
            (
                index
                for index, op in enumerate(upgrade_ops.ops)
                if not isinstance(op, ops.TenancyOp)
            ),
            len(upgrade_ops.ops),
        )
        upgrade_ops.ops[bootstrapped:bootstrapped] = run.first
        upgrade_ops.ops.extend(run.last)
        if run.wanted:
            upgrade_ops.ops.extend(_tenants(run, autogen_context, create=False))
        upgrade_ops.ops.extend(_unused(run))
    if autogen_context.opts.get("render_as_batch"):
        upgrade_ops.ops[:] = _outside_of_batches(upgrade_ops.ops)
    return PriorityDispatchResult.CONTINUE


def _start(autogen_context: AutogenContext) -> list[_Run]:
    connection = autogen_context.connection
    assert connection is not None
    metadata = autogen_context.metadata
    collections: Sequence[MetaData] = (
        [metadata] if isinstance(metadata, MetaData) else list(metadata or ())
    )
    default_schema = connection.dialect.default_schema_name or "public"
    wanted: dict[Tenancy, set[str]] = {}
    for each in collections:
        found = {table.schema or default_schema for table, mark in marks(each)}
        if found or Tenancy.is_bound(each):
            wanted.setdefault(Tenancy.of(each), set()).update(found)
    runs = []
    for tenancy in wanted or [Tenancy()]:
        database = catalog.read_database(connection, tenancy)
        # nothing wanted and nothing there: a project without tenants
        if wanted or database.function is not None:
            database.tables = catalog.read_tables(connection, tenancy)
            runs.append(
                _Run(
                    tenancy,
                    database,
                    default_schema,
                    tenancy in wanted,
                    wanted.get(tenancy, set()),
                )
            )
    return runs


def _bootstrap(run: _Run) -> Iterator[MigrateOperation]:
    """Yield what creates or repairs roles and function."""
    tenancy, database = run.tenancy, run.database
    if database.function is None and tenancy.schema not in database.schemas:
        _log.info("Detected missing tenancy: group roles, schema %r", tenancy.schema)
        yield ops.CreateTenancyOp(tenancy)
        return
    for role in tenancy.group_roles:
        group = tenancy.tenants_role if role == tenancy.shared_role else None
        state = database.roles.get(role)
        if state is None:
            _log.info("Detected missing group role %r", role)
            yield ops.CreateGroupRoleOp(role, member_of=group)
        elif group is not None and group not in state.member_of:
            _log.info("Detected that role %r is no member of %r", role, group)
            yield ops.GrantMembershipOp(group, role)
    definition = catalog.function_definition(tenancy)
    if database.function != definition:
        _log.info("Detected altered function %s.current_tenant()", tenancy.schema)
        yield ops.ReplaceTenantFunctionOp(
            tenancy.schema, definition, existing=database.function
        )


def _usage(run: _Run) -> Iterator[MigrateOperation]:
    """Yield grants of USAGE on schemas that hold tables, and on the function's."""
    database, tenancy = run.database, run.tenancy
    schemas = set(run.schemas)
    if tenancy.schema in database.schemas:
        schemas.add(tenancy.schema)  # otherwise it is a part of create_tenancy
    for name in sorted(schemas):
        state = database.schemas.get(name)
        grants = frozenset[Grant]() if state is None else state.grants
        missing = [role for role in run.grantees if Grant(role, "USAGE") not in grants]
        if state is not None and not state.grantable:
            # PUBLIC has it, and this role could not grant it: good enough
            if Grant("public", "USAGE") in grants:
                continue
        if missing:
            _log.info("Detected missing USAGE on schema %r for %s", name, missing)
            yield ops.GrantPrivilegesOp(name, ["USAGE"], missing, object_type="SCHEMA")
        for extra in sorted(grants):
            if extra.role in tenancy.group_roles and extra.privilege != "USAGE":
                _log.info("Detected %s on schema %r for %r", extra[1], name, extra.role)
                yield ops.RevokePrivilegesOp(
                    name, [extra.privilege], [extra.role], object_type="SCHEMA"
                )


def _tenants(
    run: _Run, autogen_context: AutogenContext, *, create: bool
) -> Iterator[MigrateOperation]:
    """Yield the operations for tenants that are declared statically."""
    tenancy = run.tenancy
    if tenancy.tenants is None:
        return
    assert autogen_context.connection is not None
    if create:
        run.database.tenants = catalog.read_tenants(autogen_context.connection, tenancy)
    existing = run.database.tenants
    declared = {tenancy.role_for(tenant): tenant for tenant in tenancy.tenants}
    names = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
    }
    if create:
        for role in sorted(set(declared) - set(existing)):
            _log.info("Detected missing tenant %r", tenant_text(declared[role]))
            yield ops.CreateTenantRoleOp(
                declared[role], logins=tuple(tenancy.logins), **names
            )
    else:
        for role in sorted(set(existing) - set(declared)):
            _log.info("Detected removed tenant %r", tenancy.tenant_of(role))
            yield ops.DropTenantRoleOp(
                tenancy.tenant_of(role), logins=existing[role], **names
            )


def _unused(run: _Run) -> Iterator[MigrateOperation]:
    """Yield what takes back USAGE on schemas, and the bootstrap after its last table."""
    database, tenancy = run.database, run.tenancy
    if not run.removed:
        return
    remaining = {
        key
        for key, table in database.tables.items()
        if key not in run.removed and run.is_ours(table)
    }
    used = run.schemas | {schema for schema, name in remaining}
    for name in sorted({schema for schema, table in run.removed} - used):
        state = database.schemas[name]
        held = [role for role in run.grantees if Grant(role, "USAGE") in state.grants]
        if held:
            yield ops.RevokePrivilegesOp(name, ["USAGE"], held, object_type="SCHEMA")
    if not run.wanted and not remaining:
        _log.info("Detected unused tenancy: schema %r", tenancy.schema)
        yield ops.DropTenancyOp(tenancy)


class _TableComparison:
    """The comparison of one table."""

    def __init__(
        self,
        run: _Run,
        autogen_context: AutogenContext,
        modify_table_ops: ModifyTableOps,
        schema: str | None,
        table_name: str,
        metadata_table: Table | None,
    ) -> None:
        self.run = run
        self.autogen_context = autogen_context
        self.modify = modify_table_ops
        self.schema = schema
        self.name = table_name
        self.key = (schema or run.default_schema, table_name)
        self.table = metadata_table
        self.existing = run.database.tables.get(self.key)
        self.mark: Mark | None = None
        if metadata_table is not None and run.wanted:
            self.mark = mark_of(metadata_table)

    def compare(self) -> None:
        """Add the operations that lead from the database to the models."""
        existing = self.existing
        if self.mark is None:
            if existing is None or not self.run.is_ours(existing):
                return
            _log.info("Detected that table %r has no tenants any more", self.name)
            self.run.removed.add(self.key)
        # privileges are taken before the policies go, and given after they have come
        grants = self._compare_grants()
        self._add(op for op in grants if isinstance(op, ops.RevokePrivilegesOp))
        if isinstance(self.mark, TenantTable):
            self._compare_row_security(True, self.run.tenancy.force)
            self._compare_policies(self.mark.policies(self.run.tenancy))
        else:
            kept = self._compare_policies(())
            if not kept:
                self._compare_row_security(False, False)
        self._add(op for op in grants if isinstance(op, ops.GrantPrivilegesOp))

    def _add(self, operations: Iterable[MigrateOperation]) -> None:
        self.modify.ops.extend(operations)

    def _compare_row_security(self, enable: bool, force: bool) -> None:
        existing = self.existing
        before = (False, False) if existing is None else (existing.rls, existing.force)
        if before == (enable, force):
            return
        _log.info(
            "Detected row-level security %s on table %r",
            "missing or not forced" if enable else "that nothing needs",
            self.name,
        )
        cls = ops.EnableRLSOp if enable else ops.DisableRLSOp
        self._add([cls(self.name, schema=self.schema, force=force, existing=before)])

    def _compare_policies(self, wanted: Collection[Policy]) -> bool:
        """Compare policies, and return whether some stay that are not ours."""
        existing = self.existing
        altered = {
            op.column_name
            for op in self.modify.ops
            if isinstance(op, AlterColumnOp) and op.modify_type is not None
        }
        found: dict[str, Policy] = {}
        in_the_way: set[str] = set()
        kept = False
        if existing is not None:
            for name, policy in existing.policies.items():
                if not self._is_compared(name, policy):
                    kept = True
                elif (
                    self.mark is None
                    and self.table is not None
                    and not (
                        set(self.run.tenancy.group_roles) & set(policy.roles or ())
                    )
                ):
                    # the mark was removed; the table's other policies stay
                    kept = True
                else:
                    found[name] = policy
                    if altered & existing.policy_columns[name]:
                        in_the_way.add(name)

        targets = {policy.name: policy for policy in wanted}
        for name in sorted(set(found) - set(targets)):
            _log.info("Detected extra policy %r on table %r", name, self.name)
            self._drop(found[name], first=name in in_the_way)
        for name, target in targets.items():
            before = found.get(name)
            if before is None:
                if self._is_wanted(target):
                    _log.info("Detected missing policy %r on %r", name, self.name)
                    self._create(target)
            elif name in in_the_way:
                self._drop(before, first=True)
                self._create(target)
            else:
                self._alter(before, target)
        return kept

    def _alter(self, before: Policy, target: Policy) -> None:
        differs = {
            part: not self._same(getattr(before, part), getattr(target, part), target)
            for part in ("using", "with_check")
        }
        roles = before.roles != target.roles
        fixed = (before.command, before.permissive) != (
            target.command,
            target.permissive,
        )
        if not (fixed or roles or any(differs.values())):
            return
        _log.info("Detected altered policy %r on table %r", target.name, self.name)
        # ALTER POLICY can neither change these nor take an expression away
        if fixed or any(
            None in (getattr(before, part), getattr(target, part))
            for part, different in differs.items()
            if different
        ):
            self._drop(before)
            self._create(target)
            return
        changes: dict[str, Any] = {}
        if roles:
            changes["roles"], changes["existing_roles"] = target.roles, before.roles
        for part, different in differs.items():
            if different:
                changes[part] = getattr(target, part)
                changes[f"existing_{part}"] = getattr(before, part)
        self._add(
            [ops.AlterPolicyOp(target.name, self.name, schema=self.schema, **changes)]
        )

    def _create(self, policy: Policy) -> None:
        op = ops.CreatePolicyOp(policy, self.name, schema=self.schema)
        if self._mentions_tables(policy):
            # tables that are created in the same revision have to come first
            self.run.last.append(self._modify([op]))
        else:
            self._add([op])

    def _drop(self, policy: Policy, *, first: bool = False) -> None:
        op = ops.DropPolicyOp(policy, self.name, schema=self.schema)
        if self._mentions_tables(policy):
            # tables that are dropped in the same revision have to come later
            self.run.first.append(self._modify([op]))
        elif first:
            # a column's type cannot change while a policy mentions it
            self.modify.ops.insert(0, op)
        else:
            self._add([op])

    def _modify(self, operations: Sequence[MigrateOperation]) -> ModifyTableOps:
        return ModifyTableOps(self.name, operations, schema=self.schema)

    def _mentions_tables(self, policy: Policy) -> bool:
        """Whether a policy has subselects other than the call of our function."""
        call = f"{quote_qualified(self.run.tenancy.schema, 'current_tenant')}()"
        for expression in (policy.using, policy.with_check):
            if expression is not None:
                own = re.compile(
                    r"\(\s*select\s+\(?" + re.escape(call) + r"[^()]*\)?[^()]*\)",
                    re.IGNORECASE,
                )
                if _SUBSELECT.search(own.sub("", expression)):
                    return True
        return False

    def _same(self, before: str | None, target: str | None, policy: Policy) -> bool:
        """Whether the database's expression is the one of the models."""
        if before is None or target is None:
            return before is target
        if before == target:
            return True
        mark = self.mark
        assert isinstance(mark, TenantTable)
        if policy in mark.policies(self.run.tenancy)[:3]:
            # our own, whose printed form is known
            if before in deparsed(target, mark.column, mark.cast):
                return True
        from .expressions import same_expression

        return same_expression(target, before, table=self.name)

    def _is_compared(self, name: str, policy: Policy) -> bool:
        """Whether the environment's filters let a policy of the database in."""
        return self.autogen_context.run_name_filters(
            name,
            "policy",  # type: ignore[arg-type]
            {"table_name": self.name, "schema_name": self.schema},
        ) and self.autogen_context.run_object_filters(
            policy,  # type: ignore[arg-type]
            name,
            "policy",  # type: ignore[arg-type]
            True,
            None,
        )

    def _is_wanted(self, policy: Policy) -> bool:
        """Whether the environment's filters let a policy of the models in."""
        return self.autogen_context.run_object_filters(
            policy,  # type: ignore[arg-type]
            policy.name,
            "policy",  # type: ignore[arg-type]
            False,
            None,
        )

    def _compare_grants(self) -> list[MigrateOperation]:
        wanted: set[Grant] = set()
        if self.mark is not None:
            wanted = {
                Grant(role, privilege)
                for role in self.run.grantees
                for privilege in self.mark.privileges
            }
        existing = self.existing
        found = frozenset[Grant]() if existing is None else existing.grants
        if self.mark is None or isinstance(self.mark, SharedTable):
            # what others hold on a table without policies is not ours to judge
            found = frozenset(
                grant for grant in found if grant.role in self.run.tenancy.group_roles
            )
        operations = _grant_ops(self.name, self.schema, found, frozenset(wanted))
        needs_sequences = self.mark is not None and "INSERT" in self.mark.privileges
        usage = (
            frozenset(Grant(role, "USAGE") for role in self.run.grantees)
            if needs_sequences
            else frozenset[Grant]()
        )
        sequences = existing.sequences if existing is not None else {}
        columns = set(sequences)
        if existing is None and self.table is not None:
            columns = _serial_columns(self.table)
        for column in sorted(columns):
            operations += _grant_ops(
                self.name,
                self.schema,
                sequences.get(column, frozenset()),
                usage,
                sequence_of=column,
            )
        if operations:
            _log.info("Detected changed privileges on table %r", self.name)
        return operations


def _grant_ops(
    name: str,
    schema: str | None,
    found: frozenset[Grant],
    wanted: frozenset[Grant],
    *,
    sequence_of: str | None = None,
) -> list[MigrateOperation]:
    """Return revokes of what is found and not wanted, then grants of the opposite."""
    operations: list[MigrateOperation] = []
    order = {privilege: index for index, privilege in enumerate(ops.PRIVILEGES)}
    for cls, grants in (
        # columns first: revoking from the table would revoke from its columns, too
        (ops.RevokePrivilegesOp, [g for g in found - wanted if g.column is not None]),
        (ops.RevokePrivilegesOp, [g for g in found - wanted if g.column is None]),
        (ops.GrantPrivilegesOp, list(wanted - found)),
    ):
        held: dict[tuple[str, str | None], list[str]] = {}
        for grant in sorted(grants, key=lambda g: (order.get(g.privilege, 99), g.role)):
            held.setdefault((grant.role, grant.column), []).append(grant.privilege)
        by_privileges: dict[tuple[tuple[str, ...], str | None], list[str]] = {}
        for (role, column), privileges in held.items():
            by_privileges.setdefault((tuple(privileges), column), []).append(role)
        for (privileges_, column), roles in by_privileges.items():
            if sequence_of is not None:
                operations.append(
                    cls(
                        name,
                        privileges_,
                        roles,
                        schema=schema,
                        object_type="SEQUENCE",
                        columns=[sequence_of],
                    )
                )
            else:
                columns = [] if column is None else [column]
                operations.append(
                    cls(name, privileges_, roles, schema=schema, columns=columns)
                )
    return operations


def _serial_columns(table: Table) -> set[str]:
    """Return the columns that ``CREATE TABLE`` makes SERIAL."""
    column = table.autoincrement_column
    if (
        column is None
        or column.identity is not None
        or column.server_default is not None
        or column.computed is not None
        or not isinstance(column.type, sqltypes.Integer)
        or not (column.default is None or getattr(column.default, "optional", False))
    ):
        return set()
    return {column.name}


def _outside_of_batches(
    operations: Iterable[MigrateOperation],
) -> Iterator[MigrateOperation]:
    """Split ``ModifyTableOps``, so that ours stand outside of ``batch_alter_table``.

    A batch executes its own operations when it ends, and would execute ours at once.
    """
    for op in operations:
        if not isinstance(op, ModifyTableOps):
            yield op
            continue
        segment: list[MigrateOperation] = []
        for inner in op.ops:
            if isinstance(inner, ops.TenancyOp):
                if segment:
                    yield ModifyTableOps(op.table_name, segment, schema=op.schema)
                    segment = []
                yield inner
            else:
                segment.append(inner)
        if segment:
            yield ModifyTableOps(op.table_name, segment, schema=op.schema)
