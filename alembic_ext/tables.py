"""Tables: row-level security, policies and privileges of one table.

The comparison of a table returns what it found; operations that have their place within
the table's other changes are added to these at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alembic.operations.ops import MigrateOperation, ModifyTableOps
from sqlalchemy import Sequence, Table
from sqlalchemy import types as sqltypes

from sqlalchemy_tenants.database.catalog import Dependency, Grant
from sqlalchemy_tenants.database.expected import (
    altered_parts,
    printed_policy,
    readers,
)
from sqlalchemy_tenants.database.same import Answer, Question
from sqlalchemy_tenants.declare import Mark, TenantTable, mark_of
from sqlalchemy_tenants.identity import tenant_collation
from sqlalchemy_tenants.policies import (
    OWN_POLICIES,
    Policy,
    quote_name,
    quote_qualified,
)
from sqlalchemy_tenants.tenancy import Tenancy

from . import ops
from .comparison import Comparison, log
from .grants import grant_ops
from .order import altered_columns, drop_key, is_among

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext

_SUBSELECT = re.compile(r"\bselect\b", re.IGNORECASE)


class FilteredPolicy(Policy):
    """A policy as ``include_object`` gets it, with type ``"policy"``: it has a
    ``table``, and ``info`` like the other objects that are filtered."""

    table: Table | None
    info: dict[Any, Any]


@dataclass
class PolicyChange:
    """A policy whose place depends on the changes of other tables."""

    table: TableComparison
    before: Policy | None
    target: Policy | None

    def place(
        self,
        touched: set[Dependency],
        first: list[MigrateOperation],
        last: list[MigrateOperation],
    ) -> None:
        """Add the operations before or after all tables."""
        table, before, target = self.table, self.before, self.target
        blocked = (
            before is not None
            and touched
            and any(is_among(each, touched) for each in table.dependencies(before))
        )
        for op in table.change(before, target, anew=bool(blocked)):
            (first if isinstance(op, ops.DropPolicyOp) else last).append(op)


@dataclass
class TableChanges:
    """What the comparison of one table leaves for the end of the run.

    :param key: schema and name.
    :param is_marked: whether the table belongs to tenants or is shared by them.
    :param is_removed: whether the table ceases to be ours.
    :param schemas: schemas of sequences that the model names.
    :param admin: the table's owner, if it needs the admin role to see all rows.
    :param later: policies that mention other tables.
    :param closing: revokes that precede all tables; while a restrictive policy is
        dropped and created again, tenants have no privileges.
    :param opening: grants that follow all tables and policies.
    :param silenced: roles that read the table today, although no row-level security
        confines it, and may see no row under ``policies``.
    :param earlier: group roles of an earlier configuration, that lose the table.
    :param refusals: what no migration of this role can repair, with the next step.
    """

    key: tuple[str, str]
    is_marked: bool
    is_removed: bool
    schemas: set[str] = field(default_factory=set)
    admin: str | None = None
    later: list[PolicyChange] = field(default_factory=list)
    closing: list[MigrateOperation] = field(default_factory=list)
    opening: list[MigrateOperation] = field(default_factory=list)
    silenced: frozenset[str] = frozenset()
    policies: tuple[Policy, ...] = ()
    earlier: frozenset[str] = frozenset()
    refusals: list[str] = field(default_factory=list)


class TableComparison:
    """The comparison of one table.

    :param schema: as Alembic compares it: ``None`` is the default one.
    """

    def __init__(
        self,
        comparison: Comparison,
        autogen_context: AutogenContext,
        modify_table_ops: ModifyTableOps,
        schema: str | None,
        table_name: str,
        conn_table: Table | None,
        metadata_table: Table | None,
    ) -> None:
        self.comparison = comparison
        self.expected = comparison.expected
        self.autogen_context = autogen_context
        self.modify = modify_table_ops
        self.filter_schema = schema
        self.schema = comparison.schema_name(schema)
        self.name = table_name
        self.key = (schema or comparison.default_schema, table_name)
        self.full_name = f"{schema}.{table_name}" if schema else table_name
        self.conn_table = conn_table
        self.table = metadata_table
        self.existing = comparison.database.tables.get(self.key)
        self.mark: Mark | None = None
        self.is_anothers = False
        self.is_closed = False
        self.force = True
        if metadata_table is not None:
            self.mark = mark_of(metadata_table)
            tenancy = Tenancy.of(metadata_table.metadata)
            self.force = tenancy.force
            if self.mark is not None and tenancy not in comparison.configured:
                # the comparison of the other configuration covers it
                self.mark, self.is_anothers = None, True
        is_used = self.existing is not None and self.expected.uses(self.existing)
        is_marked = self.mark is not None
        self.changes = TableChanges(self.key, is_marked, is_used and not is_marked)
        if self.existing is not None and isinstance(self.mark, TenantTable):
            self.changes.earlier = self.expected.earlier_roles(self.existing)

    def compare(self) -> TableChanges | None:
        """Add the operations that lead from the database to the models.

        :return: what is left for the end of the run; ``None`` where the table is not
            ours.
        """
        existing, changes = self.existing, self.changes
        if changes.is_removed:
            if not self.is_anothers:
                log.info("Detected that table %r has no mark any more", self.full_name)
        elif not changes.is_marked and not self._has_grants_of_tenants():
            return None
        # revoke before policies are dropped, and grant after they are created
        grants = self._compare_grants()
        self._add(op for op in grants if isinstance(op, ops.RevokePrivilegesOp))
        if isinstance(self.mark, TenantTable):
            self._judge_owner()
            self._refuse_folded(self.mark)
            self._compare_policies(self.mark)
        elif not self.is_anothers and (changes.is_marked or changes.is_removed):
            self._compare_no_policies()
        granted = [op for op in grants if isinstance(op, ops.GrantPrivilegesOp)]
        if any(each.target and not each.target.permissive for each in changes.later):
            changes.opening += granted
        else:
            self._add(granted)
        if grants and existing is not None and not existing.is_administered:
            table = f"table {quote_qualified(*self.key)}"
            self._refuse_grants(table, existing.owner)
        return changes

    def _has_grants_of_tenants(self) -> bool:
        return (
            self.comparison.wanted
            and self.existing is not None
            and any(self.expected.is_tenant(g.role) for g in self.existing.grants)
        )

    # --- what no migration may repair ------------------------------------------------

    def _judge_owner(self) -> None:
        """Note an owner who needs the admin role; refuse one who must not have it."""
        existing = self.existing
        if existing is None or not self.force or existing.owner_is_admin is True:
            return
        user = self.comparison.database.current_user
        if self.comparison.may_own(existing.owner):
            self.changes.admin = existing.owner
            return
        table, owner = quote_qualified(*self.key), quote_name(existing.owner)
        self.changes.refusals.append(
            f"table {table} belongs to {owner}, who is confined by its policies. Only "
            f"the role that migrates, {quote_name(user)}, or one that the models name "
            f"becomes an admin of tenants: give the table back (ALTER TABLE {table} "
            f"OWNER TO {quote_name(user)})"
            + self.comparison.advice_to_name(existing.owner)
        )

    def _refuse_folded(self, mark: TenantTable) -> None:
        """Refuse a tenant column whose collation takes texts that differ for equal.

        Policies may compare bytes, but unique and foreign keys would not.
        """
        database = self.comparison.database
        if not database.folding or mark.cast:
            return
        assert self.table is not None
        column = next(each for each in self.table.c if each.name == mark.column)
        held = database.folded.get(self.key, {}).get(mark.column)
        folding = {tenant_collation(column.type), held} & database.folding
        if folding:
            table, name = quote_qualified(*self.key), quote_name(mark.column)
            self.changes.refusals.append(
                f"column {name} of table {table} has the nondeterministic collation "
                f"{folding.pop()!r}, under which two tenants could be equal; declare "
                f"another one, and if the table has it already, write a revision by "
                f"hand that drops the table's policies and runs: ALTER TABLE {table} "
                f'ALTER COLUMN {name} TYPE text COLLATE pg_catalog."default"'
            )

    def _refuse_grants(self, what: str, owner: str) -> None:
        """Refuse grants that this role can neither give nor take.

        :param what: as in ``table orders``.
        """
        user, holder = map(quote_name, (self.comparison.database.current_user, owner))
        remedy = (
            f"Let a superuser give it back: ALTER {what} OWNER TO {user}"
            if self.expected.is_ours(owner)  # nobody is to act as it
            else f"Run the migrations as {holder}, or let a superuser run: "
            f"GRANT {holder} TO {user}"
        )
        self.changes.refusals.append(
            f"{what} belongs to {holder}, and {user}, who migrates, can neither "
            f"grant nor revoke on it: PostgreSQL would only warn. {remedy}"
        )

    # --- policies --------------------------------------------------------------------

    def dependencies(self, policy: Policy) -> frozenset[Dependency]:
        """Return what a policy of the database mentions."""
        key = (*self.key, policy.name)
        return self.comparison.dependencies.get(key, frozenset())

    def create(self, policy: Policy) -> ops.CreatePolicyOp:
        """Return the operation that creates a policy."""
        return ops.CreatePolicyOp(policy, self.name, schema=self.schema)

    def drop(self, policy: Policy) -> ops.DropPolicyOp:
        """Return the operation that drops a policy."""
        return ops.DropPolicyOp(policy, self.name, schema=self.schema)

    def change(
        self, before: Policy | None, target: Policy | None, *, anew: bool = False
    ) -> list[MigrateOperation]:
        """Return what makes a policy another one, or none.

        :param anew: drop and create it, even where it could be altered or stay.
        """
        if before is None:
            assert target is not None
            return [self.create(target)]
        if target is None:
            return [self.drop(before)]
        operations = None if anew else self._alter(before, target)
        if operations is not None:
            return operations
        self.close_without(before)
        return [self.drop(before), self.create(target)]

    def _alter(self, before: Policy, target: Policy) -> list[MigrateOperation] | None:
        """Return what alters a policy, if anything; ``None`` where it has to be dropped
        and created."""
        differs = self._differences(before, target)
        if not differs:
            return []
        log.info(
            "Detected altered policy %r on table %r: %s",
            target.name,
            self.full_name,
            ", ".join(differs),
        )
        # ALTER POLICY can neither change these nor take an expression away
        if {"command", "permissive"} & differs.keys() or any(
            None in values for values in differs.values()
        ):
            return None
        changes: dict[str, Any] = {}
        for part, (old, new) in differs.items():
            changes[part], changes[f"existing_{part}"] = new, old
        return [
            ops.AlterPolicyOp(target.name, self.name, schema=self.schema, **changes)
        ]

    def close_without(self, policy: Policy) -> None:
        """Take the tenants' privileges while a restrictive policy is not there.

        In a transaction nobody would notice. Where each statement commits on its own,
        permissive policies would open the table.
        """
        if policy.permissive or self.is_closed or self.existing is None:
            return
        self.is_closed = True
        wanted = {
            grant[:3]
            for grant in self.expected.grants(self.mark)
            if grant.role == self.comparison.tenancy.tenants_role
        }
        held = [grant for grant in self.existing.grants if grant[:3] in wanted]
        plain = [Grant(*grant[:3]) for grant in held]
        self.changes.closing += grant_ops(self.name, held, (), schema=self.schema)
        self.changes.opening += grant_ops(self.name, (), plain, schema=self.schema)

    def _add(self, operations: Iterable[MigrateOperation]) -> None:
        self.modify.ops.extend(operations)

    def _row_security(
        self, before: tuple[bool, bool], after: tuple[bool, bool]
    ) -> ops.RowSecurityOp:
        enable, force = after
        cls = ops.EnableRLSOp if enable else ops.DisableRLSOp
        return cls(self.name, schema=self.schema, force=force, existing=before)

    def _compare_row_security(
        self, before: tuple[bool, bool], after: tuple[bool, bool]
    ) -> None:
        if before != after:
            log.info(
                "Detected row-level security %s on table %r",
                "missing or not forced" if after[0] else "that nothing needs",
                self.full_name,
            )
            self._add([self._row_security(before, after)])

    @property
    def _flags(self) -> tuple[bool, bool]:
        existing = self.existing
        return (False, False) if existing is None else (existing.rls, existing.force)

    def _compare_policies(self, mark: TenantTable) -> None:
        """Compare row-level security and policies of a table of tenants."""
        altered = altered_columns(self.modify.ops)
        flags, wanted = self._flags, (True, self.force)
        if self.existing is not None and not self.existing.rls:
            self.changes.silenced = frozenset(readers(self.existing, self.expected))
            self.changes.policies = self.comparison.policies_of(mark)
        known = (mark, self.existing and self.existing.policies_text)
        if known in self.comparison.settled and not altered and self._is_alike(mark):
            self._compare_row_security(flags, wanted)
            return
        dropped: list[Policy] = []
        following: list[MigrateOperation] = []
        for before, target in self._policy_pairs(mark):
            if self._is_placed_later(before, target):
                self.changes.later.append(PolicyChange(self, before, target))
            elif before is not None and self._mentions(before, altered):
                # a column's type cannot change while a policy mentions it
                dropped.append(before)
                following += [self.create(target)] if target is not None else []
            else:
                following += self.change(before, target)
        if not (dropped or following or self.changes.later):
            self._settle(known)
        self._compare_row_security(flags, self._lead(dropped, following, flags, wanted))
        self._add(following)

    def _policy_pairs(
        self, mark: TenantTable
    ) -> Iterator[tuple[Policy | None, Policy | None]]:
        """Yield what the database and the models have of each policy, in the order of
        the migration.

        Restrictive policies are the last to go and the first to come, so that
        permissive ones open nothing meanwhile.
        """
        targets = {each.name: each for each in self.comparison.policies_of(mark)}
        found = self._policies_of_the_database()
        extra = sorted(set(found) - set(targets), key=lambda n: drop_key(found[n]))
        for name in [*extra, *sorted(targets, key=lambda n: targets[n].permissive)]:
            before, target = found.get(name), targets.get(name)
            if not self._is_included(name, before, target):
                continue
            if before is None:
                log.info("Detected missing policy %r on %r", name, self.full_name)
            elif target is None:
                log.info("Detected extra policy %r on %r", name, self.full_name)
            yield before, target

    def _lead(
        self,
        dropped: list[Policy],
        following: list[MigrateOperation],
        flags: tuple[bool, bool],
        wanted: tuple[bool, bool],
    ) -> tuple[bool, bool]:
        """Drop policies before the table's other changes.

        :return: the flags that row-level security is to have before ``following``.
        """
        dropped.sort(key=drop_key)
        leading: list[MigrateOperation] = [self.drop(policy) for policy in dropped]
        if any(
            policy.permissive and policy not in dropped
            for policy in (self.existing.policies.values() if self.existing else ())
        ):
            for policy in dropped:
                self.close_without(policy)
        if leading and flags == (True, True):
            # Under FORCE and without policies, statements between would touch no row,
            # and not fail.
            leading.insert(0, self._row_security(flags, (True, False)))
            following.append(self._row_security((True, False), wanted))
            wanted = flags
        self.modify.ops[:0] = leading
        return wanted

    def _mentions(self, policy: Policy, columns: set[str]) -> bool:
        return bool(columns) and any(
            each.column in columns for each in self.dependencies(policy)
        )

    def _settle(self, known: Any) -> None:
        opts = self.autogen_context.opts
        if not (opts.get("include_object") or opts.get("include_name")):
            self.comparison.settled.add(known)

    def _is_alike(self, mark: TenantTable) -> bool:
        """Whether conditions of the user's own are the same on this table, too."""
        questions = self.comparison.questions_of(self.key, mark)
        return all(self.comparison.answer(question).same for question in questions)

    def _compare_no_policies(self) -> None:
        """Compare a table that has no tenants, or is dropped: nothing of ours stays."""
        is_dropped = self.table is None
        altered = altered_columns(self.modify.ops)
        found = self._policies_of_the_database()
        others = len(self.existing.policies) - len(found) if self.existing else 0
        dropped: list[Policy] = []
        for name, policy in sorted(found.items(), key=lambda item: drop_key(item[1])):
            is_ours = any(map(self.expected.is_group, policy.roles or ()))
            if not (is_ours or is_dropped) or not self._is_included(name, policy, None):
                others += 1
                continue
            log.info("Detected extra policy %r on %r", name, self.full_name)
            if self._is_placed_later(policy, None):
                self.changes.later.append(PolicyChange(self, policy, None))
            else:
                dropped.append(policy)
        drops: list[MigrateOperation] = [self.drop(policy) for policy in dropped]
        wanted = self._flags
        # leave row-level security on where policies of others remain
        if is_dropped or (not others and (found or self.mark is not None)):
            wanted = (False, False)
        if any(self._mentions(policy, altered) for policy in dropped):
            # a column's type cannot change while a policy mentions it
            if wanted != self._flags:
                drops.append(self._row_security(self._flags, wanted))
            self.modify.ops[:0] = drops
            return
        self._add(drops)
        self._compare_row_security(self._flags, wanted)

    def _policies_of_the_database(self) -> dict[str, Policy]:
        if self.existing is None:
            return {}
        parents = {"table_name": self.name, "schema_name": self.filter_schema}
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
        if not self.autogen_context.opts.get("include_object"):
            return True
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
            # our own have a subselect, but it has no FROM
            and not (target is not None and self._has_own_text(before, target))
            and any(
                (each.schema, each.table) != self.key
                for each in self.dependencies(before)
            )
        )

    def _has_own_text(self, before: Policy, target: Policy) -> bool:
        return self._is_own(target) and all(
            self._has_own_spelling(getattr(before, part), getattr(target, part), target)
            for part in ("using", "with_check")
        )

    def _is_own(self, policy: Policy) -> bool:
        """Whether it is one of the three that keep tenants apart."""
        return isinstance(self.mark, TenantTable) and policy.name in OWN_POLICIES

    def _differences(
        self, before: Policy, target: Policy
    ) -> dict[str, tuple[Any, Any]]:
        """Return what differs, old and new, by the names of its parts."""
        result = altered_parts(before, target)
        reasons = {}
        for part in ("using", "with_check"):
            old, new = getattr(before, part), getattr(target, part)
            if old is None or new is None or self._is_own(target):
                answer = Answer(self._has_own_spelling(old, new, target))
            else:
                question = Question(*self.key, target.name, part, new, old)
                answer = self.comparison.answer(question)
            if not answer.same:
                result[part] = (old, new)
            if answer.reason is not None:
                reasons[part] = answer.reason
        if reasons:
            log.warning(
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

    def _has_own_spelling(
        self, before: str | None, target: str | None, policy: Policy
    ) -> bool:
        """Whether the database's expression is one of ours as the models have it."""
        if before is None or target is None or before == target:
            return before == target
        assert isinstance(self.mark, TenantTable)
        # PostgreSQL prints ours in one of a few known forms
        comparison = self.comparison
        return before in printed_policy(
            policy,
            self.mark,
            comparison.tenancy,
            comparison.database.function_visible,
        )

    # --- privileges ------------------------------------------------------------------

    def _compare_grants(self) -> list[MigrateOperation]:
        """Return revokes, then grants: on the table, and on its columns' sequences."""
        existing = self.existing
        known: Any = None
        named = list(self._named_sequences())
        if existing is not None and self.table is not None and not named:
            earlier = self.changes.earlier
            known = (self.mark, self.is_anothers, earlier, existing.owner)
            known += existing.grants_text
            if known in self.comparison.settled:
                return []
        wanted = self.expected.grants(self.mark)
        owner = None
        if existing is None:
            held = self.comparison.default_grants(self.key[0])
        else:
            held, owner = existing.grants, existing.owner
        operations = grant_ops(
            self.name,
            filter(self._is_judged, held),
            wanted,
            schema=self.schema,
            owner=owner,
        )
        usage = self.expected.sequence_grants(self.mark)
        for column, grants, needed in self._sequences(usage):
            operations += grant_ops(
                self.name,
                filter(self._is_judged, grants),
                needed,
                schema=self.schema,
                object_type="SEQUENCE",
                columns=[column],
                owner=owner,
            )
        for schema, name in named:
            operations += self._compare_sequence(schema, name, usage)
        if operations:
            log.info("Detected changed privileges on table %r", self.full_name)
        elif known is not None:
            self.comparison.settled.add(known)
        return operations

    def _named_sequences(self) -> Iterator[tuple[str, str]]:
        """Yield the sequences that the model names and the database has."""
        if self.table is None or self.mark is None:
            return
        for default in (column.default for column in self.table.columns):
            if isinstance(default, Sequence):
                key = (default.schema or self.comparison.default_schema, default.name)
                if key in self.comparison.sequences:
                    self.changes.schemas.add(key[0])
                    yield key

    def _compare_sequence(
        self, schema: str, name: str, usage: frozenset[Grant]
    ) -> list[MigrateOperation]:
        state = self.comparison.sequences[schema, name]
        operations = grant_ops(
            name,
            filter(self._is_judged, state.grants),
            usage,
            schema=self.comparison.schema_name(schema),
            object_type="SEQUENCE",
        )
        if operations and not state.is_administered:
            self._refuse_grants(
                f"sequence {quote_qualified(schema, name)}", state.owner
            )
        return operations

    def _sequences(
        self, usage: frozenset[Grant]
    ) -> Iterator[tuple[str, frozenset[Grant], frozenset[Grant]]]:
        """Yield columns with sequences, what is granted on these, and what is needed:
        nothing for identity columns."""
        existing = self.existing
        if existing is None:
            assert self.table is not None
            for column in sorted(serial_columns(self.table)):
                yield column, frozenset(), usage
            return
        for column, grants in sorted(existing.sequences.items()):
            yield column, grants, usage
        for column, grants in sorted(existing.identities.items()):
            yield column, grants, frozenset()

    def _is_judged(self, grant: Grant) -> bool:
        """Whether a privilege is ours to revoke."""
        if self.table is None:
            return True  # the table is dropped, and the downgrade restores it
        if self.expected.is_group(grant.role) or grant.role in self.changes.earlier:
            return True
        # what others hold on a table without policies is not ours to judge
        if isinstance(self.mark, TenantTable) and grant.role == "public":
            return True
        return (
            self.comparison.wanted
            and not self.is_anothers
            and self.expected.is_tenant(grant.role)
        )


def _has_subselect(policy: Policy) -> bool:
    return any(
        _SUBSELECT.search(expression or "")
        for expression in (policy.using, policy.with_check)
    )


def serial_columns(table: Table) -> set[str]:
    """Return the columns that ``CREATE TABLE`` in a migration makes SERIAL.

    Alembic renders no ``Sequence`` of a column, so that a primary key that has one in
    the models is SERIAL, too.
    """
    column = table.autoincrement_column
    if (
        column is None
        or column.identity is not None
        or column.server_default is not None
        or column.computed is not None
        or not isinstance(column.type, sqltypes.Integer)
        or not (column.default is None or isinstance(column.default, Sequence))
    ):
        return set()
    return {column.name}
