"""Comparison: what the models want, what the database has, and the operations between.

Three comparators, in the order in which Alembic calls them:

- before the tables: the catalog is read, once;
- for each table that Alembic compares, after its columns and indexes were added and
  before columns are dropped: row-level security, policies, privileges;
- after the tables: what precedes them all (roles, schema, function, declared tenants,
  USAGE on schemas, policies that stand in the way of another table's change), and what
  follows them all (policies that mention other tables, what nothing needs any more).

They act on metadata that carries a mark, and otherwise only where such tables have been
in the database before. Each reverse restores what the database had.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alembic.operations.ops import (
    AlterColumnOp,
    DropColumnOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import CommandError, DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, MetaData, Table
from sqlalchemy import types as sqltypes

from sqlalchemy_tenants import catalog
from sqlalchemy_tenants.catalog import (
    Catalog,
    Dependency,
    Grant,
    ObjectType,
    RoleState,
    TableState,
)
from sqlalchemy_tenants.declare import Mark, TenantTable, mark_of, marks
from sqlalchemy_tenants.policies import Policy, deparsed, quote_qualified
from sqlalchemy_tenants.tenancy import FUNCTION_NAME, Tenancy, tenant_text

from . import advice, ops
from .same import Answer, Question, compare_expressions, qualified_expressions

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

# A child of Alembic's logger: shown where Alembic's own lines are, and not disabled by
# the logging.config.fileConfig() of its env.py, as loggers unknown to it are.
_log = logging.getLogger("alembic.autogenerate.tenants")

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


class FilteredPolicy(Policy):
    """A policy as ``include_object`` gets it, with type ``"policy"``: it has a
    ``table``, and ``info`` like the other objects that are filtered."""

    table: Table | None
    info: dict[Any, Any]


@dataclass
class _PolicyChange:
    """A policy whose place depends on the other tables' changes."""

    table: _TableComparison
    before: Policy | None
    target: Policy | None


@dataclass
class _Run:
    """What the comparators of one autogenerate run share, for one set of names.

    :param tenancy: the names; what else is configured is each metadata's own.
    :param wanted: whether a model is marked or a tenant declared.
    :param configured: the configurations with those names.
    :param declared: those that declare tenants.
    :param schemas: schemas of the tables of tenants and shared tables that Alembic
        compares.
    :param owners: owners of tables of tenants who are subject to the policies.
    :param removed: tables that cease to be ours in this run.
    :param changes: policies that mention other tables.
    :param settled: what was compared and found equal; of 1,000 tables most are alike.
    :param policies: the policies of each mark.
    :param answers: which conditions of the users' own policies are the same.
    :param closing: revokes that precede all tables; while a restrictive policy is
        dropped and created again, tenants have no privileges.
    :param opening: grants that follow all tables and policies.
    """

    tenancy: Tenancy
    database: Catalog
    connection: Connection
    default_schema: str
    wanted: bool = False
    declared: list[Tenancy] = field(default_factory=list)
    compared: int = 0
    schemas: set[str] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)
    removed: set[tuple[str, str]] = field(default_factory=set)
    changes: list[_PolicyChange] = field(default_factory=list)
    settled: set[Any] = field(default_factory=set)
    policies: dict[TenantTable, tuple[Policy, ...]] = field(default_factory=dict)
    configured: set[Tenancy] = field(default_factory=set)
    answers: dict[Question, Answer] = field(default_factory=dict)
    closing: list[MigrateOperation] = field(default_factory=list)
    opening: list[MigrateOperation] = field(default_factory=list)

    @property
    def grantees(self) -> tuple[str, str]:
        """The group roles that hold privileges."""
        return (self.tenancy.tenants_role, self.tenancy.admin_role)

    @cached_property
    def dependencies(self) -> dict[tuple[str, str, str], frozenset[Dependency]]:
        """What each policy mentions, read when first asked for."""
        return catalog.read_dependencies(self.connection)

    def answer(self, question: Question) -> Answer:
        """Tell whether a condition of the models is the one of the database."""
        if question not in self.answers:
            self.answers.update(compare_expressions(self.connection, [question]))
        return self.answers[question]

    def policies_of(self, mark: TenantTable) -> tuple[Policy, ...]:
        """Return the policies of a table with that mark."""
        if mark not in self.policies:
            self.policies[mark] = mark.policies(self.tenancy)
        return self.policies[mark]

    def is_group(self, role: str) -> bool:
        """Whether a role is one of the group roles."""
        return role in self.tenancy.group_roles

    def is_tenant(self, role: str) -> bool:
        """Whether a role is a tenant's by its name."""
        return role.startswith(self.tenancy.role_prefix)

    def is_ours(self, table: TableState) -> bool:
        """Whether a policy or privilege of a group role is on the table."""
        roles = set(self.tenancy.group_roles)
        return any(grant.role in roles for grant in table.grants) or any(
            roles & set(policy.roles or ()) for policy in table.policies.values()
        )

    def default_grants(self, schema: str) -> frozenset[Grant]:
        """Return what PUBLIC gets by default on a table that is created."""
        found = set(self.database.table_defaults.get(self.database.current_user, ()))
        state = self.database.schemas.get(schema)
        if state is not None:
            found |= state.table_defaults.get(self.database.current_user, frozenset())
        return frozenset(
            grant._replace(grantor=None) for grant in found if grant.role == "public"
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
    runs: list[_Run] = autogen_context.inspector.info_cache.get(_STATE_KEY, [])
    for run in runs:
        _TableComparison(
            run,
            autogen_context,
            modify_table_ops,
            schema,
            table_name,
            conn_table,
            metadata_table,
        ).compare()
    return PriorityDispatchResult.CONTINUE


def compare_after_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> PriorityDispatchResult:
    """Place what precedes or follows all tables."""
    runs: list[_Run] = autogen_context.inspector.info_cache.pop(_STATE_KEY, [])
    first: list[MigrateOperation] = []
    last: list[MigrateOperation] = []
    touched = _touched(upgrade_ops, runs)
    for run in runs:
        if run.wanted and (run.compared or run.declared):
            first += _bootstrap(run)
            first += _usage(run)
            first += _default_privileges(run)
            first += _tenants(run, autogen_context, create=True)
        drops: list[MigrateOperation] = []
        _place(run.changes, touched, drops, last)
        first += [*run.closing, *drops]
        last += run.opening
        if run.wanted:
            last += _tenants(run, autogen_context, create=False)
        last += _unused(run, touched)
    upgrade_ops.ops[:] = [*first, *upgrade_ops.ops, *last]
    if runs:
        _qualify(runs[0], upgrade_ops.ops)
    if runs and autogen_context.opts.get("render_as_batch"):
        upgrade_ops.ops[:] = _outside_of_batches(upgrade_ops.ops)
    return PriorityDispatchResult.CONTINUE


def _start(autogen_context: AutogenContext) -> list[_Run]:
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
    runs = []
    for names, found in (configured or {Tenancy(): []}).items():
        declared = [tenancy for tenancy, marked in found if tenancy.tenants is not None]
        wanted = bool(declared) or any(marked for tenancy, marked in found)
        database = catalog.read_database(connection, names)
        # nothing wanted and nothing there: a project without tenants
        if wanted or database.function is not None:
            database.tables = catalog.read_tables(connection, names, columns=False)
            if declared:
                database.tenants = catalog.read_tenants(connection, names)
            default_schema = connection.dialect.default_schema_name or "public"
            run = _Run(names, database, connection, default_schema, wanted, declared)
            run.configured = {tenancy for tenancy, marked in found}
            run.answers = compare_expressions(connection, _questions(run, collections))
            runs.append(run)
    if any(run.wanted for run in runs):
        advice.check_models(collections)
        advice.check_answers(each for run in runs for each in run.answers.items())
        if runs[0].database.has_views:
            advice.check_views(connection, collections, runs[0].default_schema)
    return runs


def _questions(run: _Run, collections: Iterable[MetaData]) -> Iterator[Question]:
    """Yield the conditions of the users' own policies that the database has, too."""
    for metadata in collections:
        if Tenancy.of(metadata) not in run.configured:
            continue
        for table, mark in marks(metadata):
            key = (table.schema or run.default_schema, table.name)
            existing = run.database.tables.get(key)
            if existing is None or not isinstance(mark, TenantTable):
                continue
            for target in run.policies_of(mark)[3:]:
                before = existing.policies.get(target.name)
                for part in ("using", "with_check"):
                    old, new = getattr(before, part, None), getattr(target, part)
                    if old is not None and new is not None:
                        yield Question(*key, target.name, part, new, old)


def _qualify(run: _Run, operations: Iterable[MigrateOperation]) -> None:
    """Give the conditions that a downgrade restores their names in full."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for op in operations:
        for each in op.ops if isinstance(op, ModifyTableOps) else [op]:
            if isinstance(each, ops.DropPolicyOp):
                name = each.policy.name
            elif isinstance(each, ops.AlterPolicyOp):
                name = each.policy_name
            else:
                continue
            schema = each.schema or run.default_schema
            found.setdefault((schema, each.table_name, name), []).append(each)
    texts = qualified_expressions(run.connection, found)
    for key, (using, with_check) in texts.items():
        for each in found[key]:
            if isinstance(each, ops.DropPolicyOp):
                each.policy = dataclasses.replace(
                    each.policy, using=using, with_check=with_check
                )
            else:
                each.existing_using = each.existing_using and using
                each.existing_with_check = each.existing_with_check and with_check


def _names(tenancy: Tenancy) -> Tenancy:
    """Return a configuration reduced to names, which is what a database has once."""
    return dataclasses.replace(tenancy, force=True, tenants=None, logins=())


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


def _bootstrap(run: _Run) -> Iterator[MigrateOperation]:
    """Yield what creates or repairs roles and function."""
    tenancy, database = run.tenancy, run.database
    create = tenancy.schema not in database.schemas or (
        database.function is None
        and not any(map(run.is_ours, database.tables.values()))
    )
    if create:
        _log.info("Detected missing tenancy: group roles, schema %r", tenancy.schema)
        yield ops.CreateTenancyOp(tenancy)
    for role in tenancy.group_roles:
        group = tenancy.tenants_role if role == tenancy.shared_role else None
        state = database.roles.get(role)
        if state is not None:
            yield from _group_role(state, group if not create else None)
        elif not create:
            _log.info("Detected missing group role %r", role)
            yield ops.CreateGroupRoleOp(
                role, member_of=group, admin=role == tenancy.admin_role
            )
    for owner in sorted(run.owners):
        if create and owner == database.current_user:
            continue  # a part of create_tenancy
        if not create and tenancy.admin_role not in database.roles:
            continue  # a part of create_group_role
        _log.info("Detected that %r, who owns tables, is no %s", owner, run.grantees[1])
        yield ops.GrantMembershipOp(tenancy.admin_role, owner)
    if not create:
        yield from _function(run)


def _group_role(state: RoleState, group: str | None) -> Iterator[MigrateOperation]:
    wrong = {
        name: value
        for name, value in ops.GROUP_ROLE_ATTRIBUTES.items()
        if getattr(state, name) is not value
    }
    if wrong:
        _log.info("Detected altered group role %r: %s", state.name, ", ".join(wrong))
        yield ops.AlterGroupRoleOp(state.name, **wrong)
    if group is not None and group not in state.member_of:
        _log.info("Detected that role %r is no member of %r", state.name, group)
        yield ops.GrantMembershipOp(group, state.name)


def _function(run: _Run) -> Iterator[MigrateOperation]:
    tenancy, database = run.tenancy, run.database
    definition = catalog.function_definition(tenancy)
    owner = existing_owner = None
    if database.function_owner is not None and (
        run.is_group(database.function_owner) or run.is_tenant(database.function_owner)
    ):
        # who may act as it could replace the function
        owner, existing_owner = database.current_user, database.function_owner
    if database.function != definition or owner is not None:
        _log.info("Detected altered function %s.%s()", tenancy.schema, FUNCTION_NAME)
        yield ops.ReplaceTenantFunctionOp(
            tenancy.schema,
            definition,
            owner=owner,
            existing=database.function,
            existing_owner=existing_owner,
        )
    if database.function is None:
        return
    # PUBLIC may execute a function unless that was revoked
    found = {
        grant
        for grant in database.function_grants
        if run.is_group(grant.role) or run.is_tenant(grant.role)
    }
    everyone = Grant("public", "EXECUTE") in database.function_grants
    wanted = {
        Grant(role, "EXECUTE")
        for role in run.grantees
        if not everyone or Grant(role, "EXECUTE") in found
    }
    changes = _grant_ops(
        FUNCTION_NAME, found, wanted, schema=tenancy.schema, object_type="FUNCTION"
    )
    if changes:
        _log.info("Detected changed privileges on the function of %r", tenancy.schema)
    yield from changes


def _usage(run: _Run) -> Iterator[MigrateOperation]:
    """Yield grants of USAGE on schemas that hold tables, and on the function's."""
    database, tenancy = run.database, run.tenancy
    schemas = set(run.schemas)
    if tenancy.schema in database.schemas:
        schemas.add(tenancy.schema)  # otherwise it is a part of create_tenancy
    for name in sorted(schemas):
        state = database.schemas.get(name)
        grants = frozenset[Grant]() if state is None else state.grants
        found = {g for g in grants if run.is_group(g.role) or run.is_tenant(g.role)}
        wanted = {Grant(role, "USAGE") for role in run.grantees}
        by_public = Grant("public", "USAGE") in grants
        if state is not None and not state.grantable and by_public:
            # this role could not grant it, and everyone has it: good enough
            wanted &= found
        changes = _grant_ops(name, found, wanted, object_type="SCHEMA")
        if changes:
            _log.info("Detected changed privileges on schema %r", name)
        yield from changes


def _default_privileges(run: _Run) -> Iterator[MigrateOperation]:
    """Yield what revokes privileges that roles of ours get on any table."""
    defaults: list[tuple[str | None, dict[str, frozenset[Grant]]]] = [
        (None, run.database.table_defaults)
    ]
    for name in sorted(run.schemas & set(run.database.schemas)):
        defaults.append((name, run.database.schemas[name].table_defaults))
    for schema, by_role in defaults:
        for creator, grants in sorted(by_role.items()):
            found = {
                grant._replace(grantor=creator)
                for grant in grants
                if run.is_group(grant.role) or run.is_tenant(grant.role)
            }
            if found:
                _log.info("Detected default privileges of %r in %r", creator, schema)
            yield from _grant_ops(schema, found, (), object_type="DEFAULT TABLES")


def _tenants(
    run: _Run, autogen_context: AutogenContext, *, create: bool
) -> Iterator[MigrateOperation]:
    """Yield the operations for tenants that are declared statically."""
    if not run.declared:
        return
    tenancy, existing = run.tenancy, run.database.tenants
    declared = {
        tenancy.role_for(tenant): (tenant, each.logins)
        for each in run.declared
        for tenant in each.tenants or ()
    }
    names = {
        "role_prefix": tenancy.role_prefix,
        "tenants_role": tenancy.tenants_role,
    }
    if create:
        for role in sorted(set(declared) - set(existing)):
            tenant, logins = declared[role]
            _log.info("Detected missing tenant %r", tenant_text(tenant))
            yield ops.CreateTenantRoleOp(tenant, logins=tuple(logins), **names)
    else:
        for role in sorted(set(existing) - set(declared)):
            _log.info("Detected removed tenant %r", tenancy.tenant_of(role))
            yield ops.DropTenantRoleOp(
                tenancy.tenant_of(role), logins=existing[role], **names
            )


def _unused(run: _Run, touched: set[Dependency]) -> Iterator[MigrateOperation]:
    """Yield what takes back USAGE on schemas, and after the last table all the rest.

    :param touched: what :func:`_touched` returns.
    """
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
        found = {grant for grant in state.grants if run.is_group(grant.role)}
        yield from _grant_ops(name, found, (), object_type="SCHEMA")
    if run.wanted or remaining or database.function is None:
        return
    defaults_left = [
        each
        for each in catalog.read_defaults(run.connection, tenancy)
        if not _is_touched(each, touched)
    ]
    if defaults_left:
        _log.warning(
            "no table has tenants any more, but schema %r stays: its function is the "
            "default of %s",
            tenancy.schema,
            ", ".join(sorted(".".join(filter(None, each)) for each in defaults_left)),
        )
        return
    _log.info("Detected unused tenancy: schema %r", tenancy.schema)
    yield ops.DropTenancyOp(tenancy)


def _touched(upgrade_ops: UpgradeOps, runs: Iterable[_Run]) -> set[Dependency]:
    """Return tables that are dropped, and columns that are dropped or get another type:
    no policy may mention them meanwhile."""
    touched = set()
    default_schema = next((run.default_schema for run in runs), "public")
    for op in upgrade_ops.ops:
        if isinstance(op, DropTableOp):
            schema = op.schema or default_schema
            touched.add(Dependency(schema, op.table_name, None))
        elif isinstance(op, ModifyTableOps):
            schema = op.schema or default_schema
            for inner in op.ops:
                if isinstance(inner, DropColumnOp) or _alters_type(inner):
                    assert isinstance(inner, DropColumnOp | AlterColumnOp)
                    touched.add(Dependency(schema, op.table_name, inner.column_name))
    return touched


def _is_touched(each: Dependency, touched: set[Dependency]) -> bool:
    return each in touched or each._replace(column=None) in touched


def _alters_type(op: MigrateOperation) -> bool:
    return isinstance(op, AlterColumnOp) and op.modify_type is not None


def _place(
    changes: Iterable[_PolicyChange],
    touched: set[Dependency],
    first: list[MigrateOperation],
    last: list[MigrateOperation],
) -> None:
    """Place policies that mention other tables before or after all tables."""
    for change in changes:
        table, before, target = change.table, change.before, change.target
        blocked = (
            before is not None
            and touched
            and any(_is_touched(each, touched) for each in table.dependencies(before))
        )
        if before is not None and (target is None or blocked):
            first.append(table.drop(before))
            if target is not None:
                table.close_without(before)
                last.append(table.create(target))
        elif before is None:
            assert target is not None
            last.append(table.create(target))
        else:
            assert target is not None
            operations = table.alter(before, target)
            if len(operations) == 1:
                last += operations
            elif operations:
                table.close_without(before)
                first.append(operations[0])
                last.append(operations[1])


class _TableComparison:
    """The comparison of one table."""

    def __init__(
        self,
        run: _Run,
        autogen_context: AutogenContext,
        modify_table_ops: ModifyTableOps,
        schema: str | None,
        table_name: str,
        conn_table: Table | None,
        metadata_table: Table | None,
    ) -> None:
        self.run = run
        self.autogen_context = autogen_context
        self.modify = modify_table_ops
        self.schema = schema
        self.name = table_name
        self.key = (schema or run.default_schema, table_name)
        self.full_name = f"{schema}.{table_name}" if schema else table_name
        self.conn_table = conn_table
        self.table = metadata_table
        self.existing = run.database.tables.get(self.key)
        self.mark: Mark | None = None
        self.is_another_runs = False
        self.is_closed = False
        self.force = True
        if metadata_table is not None:
            self.mark = mark_of(metadata_table)
            tenancy = Tenancy.of(metadata_table.metadata)
            self.force = tenancy.force
            if self.mark is not None and tenancy not in run.configured:
                self.mark, self.is_another_runs = None, True

    def compare(self) -> None:
        """Add the operations that lead from the database to the models."""
        existing = self.existing
        if self.mark is not None:
            self.run.compared += 1
            self.run.schemas.add(self.key[0])
        elif existing is None:
            return
        elif self.run.is_ours(existing):
            if not self.is_another_runs:
                _log.info("Detected that table %r is no tenants' table", self.full_name)
            self.run.removed.add(self.key)
        elif not (
            self.run.wanted and any(self.run.is_tenant(g.role) for g in existing.grants)
        ):
            return
        # privileges are taken before the policies go, and given after they have come
        grants = self._compare_grants()
        changes = len(self.run.changes)
        self._add(op for op in grants if isinstance(op, ops.RevokePrivilegesOp))
        if isinstance(self.mark, TenantTable):
            if existing is not None and existing.owner_is_admin is not True:
                self.run.owners.add(existing.owner)
            self._compare_policies(self.mark)
        elif not self.is_another_runs and (
            self.mark is not None or self.key in self.run.removed
        ):
            self._compare_no_policies()
        granted = [op for op in grants if isinstance(op, ops.GrantPrivilegesOp)]
        if any(
            change.target is not None and not change.target.permissive
            for change in self.run.changes[changes:]
        ):
            self.run.opening += granted
        else:
            self._add(granted)

    def dependencies(self, policy: Policy) -> frozenset[Dependency]:
        """Return what a policy of the database mentions."""
        key = (*self.key, policy.name)
        return self.run.dependencies.get(key, frozenset())

    def create(self, policy: Policy) -> ops.CreatePolicyOp:
        """Return the operation that creates a policy."""
        return ops.CreatePolicyOp(policy, self.name, schema=self.schema)

    def drop(self, policy: Policy) -> ops.DropPolicyOp:
        """Return the operation that drops a policy."""
        return ops.DropPolicyOp(policy, self.name, schema=self.schema)

    def alter(self, before: Policy, target: Policy) -> list[MigrateOperation]:
        """Return what makes a policy another one: nothing, one alteration, or a drop
        and a creation."""
        differs = self._differences(before, target)
        if not differs:
            return []
        _log.info(
            "Detected altered policy %r on table %r: %s",
            target.name,
            self.full_name,
            ", ".join(differs),
        )
        # ALTER POLICY can neither change these nor take an expression away
        if {"command", "permissive"} & differs.keys() or any(
            None in values for values in differs.values()
        ):
            return [self.drop(before), self.create(target)]
        changes: dict[str, Any] = {}
        for part, (old, new) in differs.items():
            changes[part], changes[f"existing_{part}"] = new, old
        return [
            ops.AlterPolicyOp(target.name, self.name, schema=self.schema, **changes)
        ]

    def _add(self, operations: Iterable[MigrateOperation]) -> None:
        self.modify.ops.extend(operations)

    def close_without(self, policy: Policy) -> None:
        """Take the tenants' privileges while a restrictive policy is not there.

        In a transaction nobody would notice. Where each statement commits on its own,
        permissive policies would open the table.
        """
        if policy.permissive or self.is_closed or self.existing is None:
            return
        self.is_closed = True
        assert self.mark is not None
        wanted = {
            Grant(self.run.tenancy.tenants_role, privilege)[:3]
            for privilege in self.mark.privileges
        }
        held = [grant for grant in self.existing.grants if grant[:3] in wanted]
        plain = [Grant(*grant[:3]) for grant in held]
        self.run.closing += _grant_ops(self.name, held, (), schema=self.schema)
        self.run.opening += _grant_ops(self.name, (), plain, schema=self.schema)

    def _enable(
        self, enable: bool, force: bool, before: tuple[bool, bool]
    ) -> ops.RowSecurityOp:
        cls = ops.EnableRLSOp if enable else ops.DisableRLSOp
        return cls(self.name, schema=self.schema, force=force, existing=before)

    def _compare_row_security(
        self, before: tuple[bool, bool], after: tuple[bool, bool]
    ) -> None:
        if before != after:
            _log.info(
                "Detected row-level security %s on table %r",
                "missing or not forced" if after[0] else "that nothing needs",
                self.full_name,
            )
            self._add([self._enable(*after, before)])

    @property
    def _flags(self) -> tuple[bool, bool]:
        existing = self.existing
        return (False, False) if existing is None else (existing.rls, existing.force)

    def _compare_policies(self, mark: TenantTable) -> None:
        """Compare row-level security and policies of a table of tenants."""
        altered = {
            op.column_name
            for op in self.modify.ops
            if isinstance(op, AlterColumnOp) and op.modify_type is not None
        }
        flags, wanted = self._flags, (True, self.force)
        # the same policies as on a table that was compared before: nothing to do
        known = (mark, self.existing and id(self.existing.policies))
        if known in self.run.settled and not altered:
            self._compare_row_security(flags, wanted)
            return
        targets = {policy.name: policy for policy in self.run.policies_of(mark)}
        found = self._policies_of_the_database()
        changes = len(self.run.changes)
        dropped: list[Policy] = []
        following: list[MigrateOperation] = []
        # restrictive policies are the last to go and the first to come, so that
        # permissive ones open nothing meanwhile
        extra = sorted(set(found) - set(targets), key=lambda name: _drops(found[name]))
        names = [*extra, *sorted(targets, key=lambda name: targets[name].permissive)]
        for name in names:
            before, target = found.get(name), targets.get(name)
            if not self._is_included(name, before, target):
                continue
            if before is None:
                _log.info("Detected missing policy %r on %r", name, self.full_name)
            elif target is None:
                _log.info("Detected extra policy %r on %r", name, self.full_name)
            if self._is_placed_later(before, target):
                self.run.changes.append(_PolicyChange(self, before, target))
                continue
            # a column's type cannot change while a policy mentions it
            if (
                altered
                and before is not None
                and any(each.column in altered for each in self.dependencies(before))
            ):
                dropped.append(before)
                if target is not None:
                    following.append(self.create(target))
            elif before is None:
                assert target is not None
                following.append(self.create(target))
            elif target is None:
                following.append(self.drop(before))
            else:
                operations = self.alter(before, target)
                if len(operations) > 1:
                    self.close_without(before)
                following += operations
        dropped.sort(key=_drops)
        leading: list[MigrateOperation] = [self.drop(policy) for policy in dropped]
        if any(
            policy.permissive and policy not in dropped
            for policy in (self.existing.policies.values() if self.existing else ())
        ):
            for policy in dropped:
                self.close_without(policy)
        if not (
            mark.extra
            or leading
            or following
            or len(self.run.changes) > changes
            or self.autogen_context.opts.get("include_object")
            or self.autogen_context.opts.get("include_name")
        ):
            self.run.settled.add(known)
        if leading and flags == (True, True):
            # without policies, statements between would touch no row, and not fail
            leading.insert(0, self._enable(True, False, flags))
            following.append(self._enable(*wanted, (True, False)))
            flags = wanted
        self._compare_row_security(flags, wanted)
        self.modify.ops[:0] = leading
        self._add(following)

    def _compare_no_policies(self) -> None:
        """Compare a table that has no tenants, or is dropped: nothing of ours stays."""
        is_dropped = self.table is None
        found = self._policies_of_the_database()
        others = len(self.existing.policies) - len(found) if self.existing else 0
        dropped = False
        for name, policy in sorted(found.items(), key=lambda item: _drops(item[1])):
            is_ours = any(map(self.run.is_group, policy.roles or ()))
            if not (is_ours or is_dropped) or not self._is_included(name, policy, None):
                others += 1
                continue
            dropped = True
            _log.info("Detected extra policy %r on %r", name, self.full_name)
            if self._is_placed_later(policy, None):
                self.run.changes.append(_PolicyChange(self, policy, None))
            else:
                self._add([self.drop(policy)])
        # what nobody of us enabled is not ours to disable
        if is_dropped or (not others and (dropped or self.mark is not None)):
            self._compare_row_security(self._flags, (False, False))

    def _policies_of_the_database(self) -> dict[str, Policy]:
        if self.existing is None:
            return {}
        parents = {"table_name": self.name, "schema_name": self.schema}
        return {
            name: policy
            for name, policy in self.existing.policies.items()
            if self.autogen_context.run_name_filters(
                name,
                "policy",  # type: ignore[arg-type]
                dict(parents),  # type: ignore[arg-type]
            )
        }

    def _is_included(
        self, name: str, before: Policy | None, target: Policy | None
    ) -> bool:
        """Whether the environment's filters let a policy in."""
        in_database = () if self.existing is None else self.existing.policies
        if before is None and name in in_database:
            return False  # left out by its name
        subject = before if target is None else target
        assert subject is not None
        return self.autogen_context.run_object_filters(
            self._filtered(subject),
            name,
            "policy",  # type: ignore[arg-type]
            target is None,
            None if before is None or target is None else self._filtered(before),
        )

    def _filtered(self, policy: Policy) -> Any:
        result = object.__new__(FilteredPolicy)
        table = self.conn_table if self.table is None else self.table
        result.__dict__.update(vars(policy), table=table, info={})
        return result

    def _is_placed_later(self, before: Policy | None, target: Policy | None) -> bool:
        """Whether a policy mentions another table, which may be created or dropped, or
        whose columns may be."""
        if target is not None and not self._is_own(target) and _has_subselect(target):
            return True
        return (
            before is not None
            and _has_subselect(before)
            # ours have one, without FROM
            and not (target is not None and self._has_own_text(before, target))
            and any(
                (each.schema, each.table) != self.key
                for each in self.dependencies(before)
            )
        )

    def _has_own_text(self, before: Policy, target: Policy) -> bool:
        return self._is_own(target) and all(
            self._has_own_spelling(getattr(before, part), getattr(target, part))
            for part in ("using", "with_check")
        )

    def _is_own(self, policy: Policy) -> bool:
        """Whether it is one of the three that keep tenants apart."""
        mark = self.mark
        return (
            isinstance(mark, TenantTable) and policy in self.run.policies_of(mark)[:3]
        )

    def _differences(
        self, before: Policy, target: Policy
    ) -> dict[str, tuple[Any, Any]]:
        """Return what differs, old and new, by the names of its parts."""
        result = {
            part: (getattr(before, part), getattr(target, part))
            for part in ("command", "permissive", "roles")
        }
        if "public" in (target.roles or ()) and before.roles == ("public",):
            del result["roles"]  # the server ignores other roles beside PUBLIC
        result = {part: pair for part, pair in result.items() if pair[0] != pair[1]}
        reasons = {}
        for part in ("using", "with_check"):
            old, new = getattr(before, part), getattr(target, part)
            if old is None or new is None or self._is_own(target):
                answer = Answer(self._has_own_spelling(old, new))
            else:
                question = Question(*self.key, target.name, part, new, old)
                answer = self.run.answer(question)
            if not answer.same:
                result[part] = (old, new)
            if answer.reason is not None:
                reasons[part] = answer.reason
        if reasons:
            _log.warning(
                "cannot tell whether policy %r on table %r is the same in database "
                "and models, and take it for altered: %s",
                target.name,
                self.full_name,
                "; ".join(
                    f"{part} is {result[part][0]} in the database and "
                    f"{result[part][1]} in the models ({reason})"
                    for part, reason in reasons.items()
                ),
            )
        return result

    def _has_own_spelling(self, before: str | None, target: str | None) -> bool:
        """Whether the database's expression is one of ours as the models have it."""
        if before is None or target is None or before == target:
            return before == target
        assert isinstance(self.mark, TenantTable)
        # its printed form is known
        column, cast = self.mark.column, self.mark.cast
        if before in deparsed(target, column, cast):
            return True
        if not self.run.database.function_visible:
            return False
        call = f"{quote_qualified(self.run.tenancy.schema, FUNCTION_NAME)}()"
        unqualified = target.replace(call, f"{FUNCTION_NAME}()")
        return before in deparsed(unqualified, column, cast)

    def _compare_grants(self) -> list[MigrateOperation]:
        run, mark, existing = self.run, self.mark, self.existing
        # the same as on a table that was compared before: nothing to do
        known: tuple[Any, ...] | None = None
        if existing is not None and self.table is not None:
            objects = (existing.grants, existing.sequences, existing.identities)
            known = (mark, self.is_another_runs, *map(id, objects))
            if known in run.settled:
                return []
        wanted: set[Grant] = set()
        if mark is not None:
            wanted = {
                Grant(role, privilege)
                for role in run.grantees
                for privilege in mark.privileges
            }
        if existing is None:
            tables = run.default_grants(self.key[0])
        else:
            tables = existing.grants
        operations = _grant_ops(
            self.name, filter(self._is_judged, tables), wanted, schema=self.schema
        )
        usage: set[Grant] = set()
        if mark is not None and "INSERT" in mark.privileges:
            usage = {Grant(role, "USAGE") for role in run.grantees}
        if existing is not None:
            sequences, identities = existing.sequences, existing.identities
        else:
            assert self.table is not None
            sequences, identities = dict.fromkeys(_serials(self.table), frozenset()), {}
        for each, needed in ((sequences, usage), (identities, set[Grant]())):
            for column, grants in sorted(each.items()):
                operations += _grant_ops(
                    self.name,
                    filter(self._is_judged, grants),
                    needed,
                    schema=self.schema,
                    object_type="SEQUENCE",
                    columns=[column],
                )
        if operations:
            _log.info("Detected changed privileges on table %r", self.full_name)
        else:
            run.settled.add(known)
        return operations

    def _is_judged(self, grant: Grant) -> bool:
        """Whether a privilege is ours to revoke."""
        if self.table is None:
            return True  # the table is dropped, and the downgrade restores it
        if self.run.is_group(grant.role):
            return True
        # what others hold on a table without policies is not ours to judge
        if isinstance(self.mark, TenantTable) and grant.role == "public":
            return True
        return (
            self.run.wanted
            and not self.is_another_runs
            and self.run.is_tenant(grant.role)
        )


def _drops(policy: Policy) -> tuple[bool, str]:
    """Return the key that sorts policies in the order in which they are dropped."""
    return (not policy.permissive, policy.name)


def _has_subselect(policy: Policy) -> bool:
    return any(
        _SUBSELECT.search(expression or "")
        for expression in (policy.using, policy.with_check)
    )


def _grant_ops(
    name: str | None,
    found: Iterable[Grant],
    wanted: Iterable[Grant],
    *,
    schema: str | None = None,
    object_type: ObjectType = "TABLE",
    columns: Sequence[str] = (),
) -> list[MigrateOperation]:
    """Return revokes of what is found and not wanted, then grants of the opposite."""
    found = list(found)
    wants = {grant[:3] for grant in wanted}
    changes: dict[tuple[Any, ...], dict[str, list[str]]] = {}

    def add(
        cls: type[Any], role: str, privilege: str, column: str | None, *how: Any
    ) -> None:
        # columns first: revoking from the table would revoke from its columns, too
        key = (cls is ops.GrantPrivilegesOp, column is None, column or "", cls, *how)
        changes.setdefault(key, {}).setdefault(role, []).append(privilege)

    for grant in found:
        if grant[:3] not in wants:
            add(
                ops.RevokePrivilegesOp,
                *grant[:3],
                False,
                grant.grantable,
                grant.grantor,
            )
        elif grant.grantable:
            add(ops.RevokePrivilegesOp, *grant[:3], True, True, grant.grantor)
    for key in wants - {grant[:3] for grant in found}:
        add(ops.GrantPrivilegesOp, *key, False, False, None)

    operations: list[MigrateOperation] = []
    order = {privilege: index for index, privilege in enumerate(ops.PRIVILEGES)}
    for change in sorted(changes, key=lambda key: (*key[:3], *map(str, key[4:]))):
        _, _, column, cls, option, before, grantor = change
        roles: dict[tuple[str, ...], list[str]] = {}
        for role, privileges in sorted(changes[change].items()):
            held = tuple(sorted(privileges, key=lambda each: order.get(each, 99)))
            roles.setdefault(held, []).append(role)
        for privileges_, grantees in roles.items():
            operations.append(
                cls(
                    name,
                    privileges_,
                    grantees,
                    schema=schema,
                    object_type=object_type,
                    columns=columns or ([column] if column else []),
                    grant_option=option,
                    granted_by=grantor,
                    before=before,
                )
            )
    return operations


def _serials(table: Table) -> set[str]:
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
