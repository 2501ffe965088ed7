"""Trial: what one tenant can do to the rows of another one, by doing it.

What a tenant reads must not depend on what another one writes: that holds for tables,
views and functions alike, whether or not their rows say whose they are. So each tenant
looks at everything before and after another one adds its rows. Then it tries to change
them, in savepoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Transaction
from sqlalchemy.exc import DBAPIError

from ..declare import Mark, TenantTable
from ..exceptions import ScopeError
from ..scope import INSUFFICIENT_PRIVILEGE, execute_text, sqlstate
from ..session import TenantSession
from ..tenancy import TenantId, tenant_text
from .catalog import _FIRST_OID
from .reached import Function, Relation, read_reached

# SQLSTATEs of constraints begin with it. That of CHECK is also what a partitioned table
# says, before it asks the policies, where it has no partition for a row.
_INTEGRITY = "23"
_CHECK_VIOLATION = "23514"
# What raises an exception of its own has refused.
_RAISED = "P0001"

_IS_EXEMPT = """
    SELECT session_user::text AS name, EXISTS (
        SELECT FROM pg_catalog.pg_roles r WHERE (r.rolsuper OR r.rolbypassrls)
        AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER')) AS is_exempt
"""

# What this transaction has done to each table. Nothing where the server counts nothing.
# TRUNCATE changes the catalog.
_CHANGES = """
    SELECT c.oid::bigint, ROW(pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid),
        pg_catalog.pg_stat_get_xact_tuples_updated(c.oid),
        pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid))::text AS state
    FROM pg_catalog.pg_class c
    WHERE c.relkind = 'r' AND pg_catalog.current_setting('track_counts')::boolean
"""

#: Whoever reads, and what of: a relation, or a function without arguments.
Reached = Relation | Function


@dataclass(frozen=True)
class Leak:
    """What one tenant can do to another, or why a table proves nothing.

    :param object: relation or function, as the database names it.
    :param what: what was possible.
    :param rows: how many rows; 0 where that is not the point.
    """

    object: str
    what: str
    rows: int = 0

    def __str__(self) -> str:
        rows = "" if not self.rows else f" ({self.rows} row{'s'[: self.rows != 1]})"
        return f"{self.object}: {self.what}{rows}"


class _Seen(NamedTuple):
    rows: int
    digest: str
    others: int


class Trial:
    """A trial in one transaction, which is rolled back in the end.

    :param connection: where one is in a transaction, a savepoint is enough.
    :param open_session: opens a session of a tenant that joins it in a savepoint.
    :param marked: the marks of tables, by schema and name.
    """

    def __init__(
        self,
        connection: Connection,
        open_session: Callable[[TenantId], AbstractContextManager[TenantSession]],
        marked: dict[tuple[str, str], Mark],
        tenants: Sequence[TenantId],
    ) -> None:
        self.connection = connection
        self.open_session = open_session
        self._marked = marked
        self._columns = {
            m.column for m in marked.values() if isinstance(m, TenantTable)
        }
        self._tenants = tenants
        self._reached: dict[TenantId, list[Reached]] = {}
        self._seen: dict[TenantId, dict[str, _Seen]] = {}
        self._seen_by_login: dict[str, tuple[Any, ...]] = {}
        self._leaks: dict[tuple[str, str], int] = {}

    @property
    def leaks(self) -> list[Leak]:
        """What was found, each thing once."""
        return [Leak(*key, rows) for key, rows in sorted(self._leaks.items())]

    @property
    def objects(self) -> set[str]:
        """The names of what was tried."""
        return {str(each) for found in self._reached.values() for each in found}

    def begin(self) -> None:
        """Begin, and refuse a login that no policy confines: it would prove nothing.

        :raises ScopeError: it is a superuser, has ``BYPASSRLS``, or may act as such.
        """
        if self.connection.in_transaction():
            self._transaction: Transaction = self.connection.begin_nested()
        else:
            self._transaction = self.connection.begin()
            # other tests may write meanwhile
            execute_text(
                self.connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            )
        login: Any = execute_text(self.connection, _IS_EXEMPT).one()
        if login.is_exempt:
            raise ScopeError(
                f"login {login.name!r} is a superuser or has BYPASSRLS, or may act as "
                f"a role that is or has, so that nothing would be proved; give the "
                f"manager an engine of the application's own login, as in production"
            )

    def end(self) -> None:
        """Roll back."""
        self._transaction.rollback()

    def before(self, tenant: TenantId) -> None:
        """Let the others look, before a tenant adds its rows."""
        for other in self._others(tenant):
            self._seen[other] = self._look(other)
        self._seen_by_login = self._look_as_login()

    def after(self, tenant: TenantId) -> None:
        """Let the others look again."""
        for other in self._others(tenant):
            before, after = self._seen[other], self._look(other)
            for each in self._reached[other]:
                name = str(each)
                if name in after and self._is_confined(each):
                    self._compare(other, each, before.get(name), after[name])
        self._compare_by_login()

    def attack(self) -> None:
        """Let each tenant try to change the rows of the others."""
        truth = {}
        for tenant in self._tenants:
            self._seen[tenant] = self._look(tenant)
            self._judge_unmarked(tenant)
            self._judge_vacuous(tenant)
            truth[tenant] = self._rows_of(tenant)
        for tenant in self._tenants:
            for victim in self._others(tenant):
                attack = _Attack(self, tenant, victim, truth[victim])
                for each in self._reached[tenant]:
                    if self._is_confined(each):
                        attack.run(each)
        self._judge_login()

    def found(self, each: object, what: str, rows: int = 0) -> None:
        """Note a leak."""
        key = (str(each), what)
        self._leaks[key] = max(rows, self._leaks.get(key, 0))

    # --- what is what ---

    def _others(self, tenant: TenantId) -> list[TenantId]:
        return [each for each in self._tenants if each is not tenant]

    def _mark(self, each: Relation) -> Mark | None:
        marks = (self._marked.get(key) for key in each.lineage)
        return next((mark for mark in marks if mark is not None), None)

    def _is_confined(self, each: Reached) -> bool:
        """Whether it must show a tenant its own rows only."""
        if isinstance(each, Function) or each.kind == "v":
            return (each.schema, each.name) not in self._marked
        return isinstance(self._mark(each), TenantTable)

    def column(self, each: Reached) -> str | None:
        """Return the column that tells whose a row is, if it has one."""
        if isinstance(each, Function):
            return None
        mark = self._mark(each)
        if isinstance(mark, TenantTable):
            return mark.column
        columns = {*each.readable, *each.updatable, *each.insertable}
        return min(self._columns & columns, default=None)

    # --- reading ---

    @contextmanager
    def acting_as(self, tenant: TenantId) -> Iterator[None]:
        """Act as a tenant; what is written stays until the savepoint around it ends."""
        with self.open_session(tenant) as session:
            if session.connection() is not self.connection:
                raise ScopeError(
                    f"{type(session).__name__} chooses a connection of its own, so "
                    f"that nothing could be rolled back; give the manager for the "
                    f"tests another session_class",
                    tenant=tenant,
                )
            yield
            session.commit()

    def attempt(self, statement: str, *, keep: bool = False) -> _Result:
        """Execute a statement in a savepoint.

        :param keep: whether its effect stays.
        """
        savepoint = self.connection.begin_nested()
        try:
            cursor = execute_text(self.connection, statement)
            row = cursor.one() if cursor.returns_rows else (cursor.rowcount,)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            savepoint.rollback()
            return _Result((), error)
        if keep:
            savepoint.commit()
        else:
            savepoint.rollback()
        return _Result(tuple(row), None)

    def _look(self, tenant: TenantId) -> dict[str, _Seen]:
        """Return what a tenant sees of everything that it can reach."""
        with self.acting_as(tenant):
            if tenant not in self._reached:
                self._reached[tenant] = read_reached(self.connection)
            return {
                str(each): seen
                for each in self._reached[tenant]
                if (seen := self._look_at(each, tenant)) is not None
            }

    def _look_at(self, each: Reached, tenant: TenantId) -> _Seen | None:
        if not (each.readable if isinstance(each, Relation) else each.returns):
            return None
        result = self.attempt(each.look(self.column(each), tenant_text(tenant)))
        if result.error is None:
            return _Seen(*result.row)
        if result.sqlstate not in (INSUFFICIENT_PRIVILEGE, _RAISED):
            self.found(each, f"cannot be judged, it fails: {result.error.orig}")
        return None

    def _compare(
        self, tenant: TenantId, each: Reached, before: _Seen | None, after: _Seen
    ) -> None:
        if after.others:
            self.found(each, "shows rows of another tenant", after.others)
            return
        rows = after.rows - (0 if before is None else before.rows)
        if before is None or before == after:
            return
        if not rows:
            # the same again is something else: it does not depend on what was written
            with self.acting_as(tenant):
                again = self._look_at(each, tenant)
            if again != after:
                return
        self.found(each, "shows what another tenant writes", abs(rows))

    def _look_as_login(self) -> dict[str, tuple[Any, ...]]:
        """Return what the login itself, to which a tenant's SQL can go back, sees
        through views and functions that tenants cannot use."""
        known = self.objects
        return {
            str(each): self.attempt(each.look(None, "")).row
            for each in read_reached(self.connection)
            if str(each) not in known
            and (each.kind == "v" if isinstance(each, Relation) else each.returns)
        }

    def _compare_by_login(self) -> None:
        before, after = self._seen_by_login, self._look_as_login()
        if before != after:
            again = self._look_as_login()  # see _compare()
            for each, row in after.items():
                if row and row != before.get(each) and row == again[each]:
                    self.found(each, "shows the login what tenants write")

    def _rows_of(
        self, tenant: TenantId, changed: set[int] | None = None
    ) -> dict[int, tuple[int, str]]:
        """Return a digest of the tenant's rows in tables, as it sees them.

        :param changed: OIDs of the tables that matter; all of them unless given.
        """
        queries = [
            f"SELECT {number} AS number, looked.* FROM ("
            f"{each.look_at_own(column, tenant_text(tenant))})"
            f" AS looked (rows, digest, others)"
            for number, each in enumerate(self._reached[tenant])
            if isinstance(each, Relation)
            and each.kind != "v"
            and self._is_confined(each)
            and (changed is None or not changed.isdisjoint((each.oid, *each.beneath)))
            and (column := self.column(each)) in each.readable
        ]
        if not queries:
            return {}
        query = " UNION ALL ".join(queries)
        with self.acting_as(tenant):
            found = execute_text(self.connection, query).all()
        return {row.number: (row.rows, row.digest) for row in found}

    def changes(self) -> dict[int, str]:
        """Return what was done so far to each table, by its OID."""
        return {
            row.oid: row.state for row in execute_text(self.connection, _CHANGES).all()
        }

    def _changed_since(self, before: dict[int, str]) -> set[int] | None:
        """Return the OIDs of tables that a statement changed; ``None`` where that may
        be everything: rows of a foreign table are not counted, and a change of the
        catalog may be one of policies."""
        now = self.changes()
        changed = {oid for oid in now if now[oid] != before.get(oid)}
        if (
            not now
            or now.keys() != before.keys()
            or any(o < _FIRST_OID for o in changed)
        ):
            return None
        return changed

    def own_rows(self, each: Relation, tenant: TenantId) -> int:
        """Return how many rows of its own a tenant sees."""
        seen = self._seen[tenant].get(str(each))
        return 0 if seen is None else seen.rows - seen.others

    def lost(
        self,
        victim: TenantId,
        truth: dict[int, tuple[int, str]],
        before: dict[int, str] | None,
    ) -> tuple[bool, int]:
        """Return whether the victim's rows have changed, and how many in a table.

        :param before: :meth:`changes` before the statement, so that only those tables
            are read that it has changed; ``None`` to read all of them.
        """
        changed = None if before is None else self._changed_since(before)
        now = self._rows_of(victim, changed)
        rows = max((abs(truth[n][0] - now[n][0]) for n in now), default=0)
        return any(now[n] != truth[n] for n in now), rows

    def written(self, each: Relation) -> int:
        """Return how often rows were changed so far; what failed counts, too."""
        oids = ", ".join(map(str, [each.oid, *each.beneath]))
        query = f"""
            SELECT coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_updated(oid)
                + pg_catalog.pg_stat_get_xact_tuples_deleted(oid)), 0)::bigint
            FROM pg_catalog.pg_class WHERE oid IN ({oids})"""
        count: int = execute_text(self.connection, query).scalar_one()
        return count

    # --- what needs no attack ---

    def _judge_unmarked(self, tenant: TenantId) -> None:
        for each in self._reached[tenant]:
            if not isinstance(each, Relation):
                continue
            mark = self._mark(each)
            if each.is_owned:
                self.found(each, "belongs to a tenant, who can switch RLS off")
            if mark is None and each.kind != "v":
                seen = self._seen[tenant].get(str(each))
                rows = 0 if seen is None else seen.rows
                self.found(each, f"no model marks it, and tenants may {each.may}", rows)
            elif each.may_truncate:
                self.found(each, "tenants may TRUNCATE it, past all policies")

    def _judge_vacuous(self, tenant: TenantId) -> None:
        reached = {
            (each.schema, each.name): each
            for each in self._reached[tenant]
            if isinstance(each, Relation)
        }
        for key, mark in self._marked.items():
            if not isinstance(mark, TenantTable):
                continue
            each = reached.get(key)
            if each is None:
                self.found(
                    ".".join(key), "vacuous: it does not exist, or no tenant may use it"
                )
            elif not self.own_rows(each, tenant):
                self.found(each, f"vacuous: fill() left no row of tenant {tenant!r}")
        for each in reached.values():
            seen = self._seen[tenant].get(str(each))
            if each.kind == "v" and self._is_confined(each) and seen and not seen.rows:
                self.found(each, f"vacuous: the view shows tenant {tenant!r} no row")

    def _judge_login(self) -> None:
        """Look as the login itself, which a tenant's SQL can go back to."""
        for each in read_reached(self.connection):
            if isinstance(each, Function) or each.kind == "v":
                continue
            if not self._is_confined(each):
                continue
            if each.is_owned:
                self.found(each, "belongs to the login, which can switch RLS off")
            if each.readable:
                result = self.attempt(each.look(None, ""))
                if result.row and result.row[0]:
                    self.found(each, "the login itself reads it", result.row[0])


class _Result(NamedTuple):
    row: tuple[Any, ...]
    error: DBAPIError | None

    @property
    def sqlstate(self) -> str:
        return "" if self.error is None else sqlstate(self.error) or ""

    def passed_policies(self, each: Reached) -> bool:
        """Whether a constraint stopped it, which is checked after the policies."""
        if self.sqlstate == _CHECK_VIOLATION:
            return isinstance(each, Function) or each.kind != "p"
        return self.sqlstate.startswith(_INTEGRITY)


@dataclass
class _Attack:
    """One tenant against the rows of another one."""

    trial: Trial
    tenant: TenantId
    victim: TenantId
    truth: dict[int, tuple[int, str]]

    def run(self, each: Reached) -> None:
        """Try everything that the tenant may do with a relation or function."""
        tenant, victim = tenant_text(self.tenant), tenant_text(self.victim)
        column = self.trial.column(each)
        if isinstance(each, Function):
            statement = each.look(None, tenant) if each.returns else each.call()
            self._try(each, statement, "changes rows of another tenant")
            return
        own = self.trial.own_rows(each, self.tenant)
        if each.may_delete:
            self._overwrite(each, each.delete(), "deletes", own)
        for statement in each.updates(column, tenant):
            if self._overwrite(each, statement, "updates", own):
                break
        if column in each.updatable:
            assert column is not None
            give = each.give(column, victim)
            self._try(each, give, "gives rows to another tenant", checked=True)
        if column in each.insertable:
            assert column is not None
            insert = each.insert(column, victim, tenant if own else None)
            self._try(each, insert, "inserts rows of another tenant", checked=True)

    def _overwrite(self, each: Relation, statement: str, verb: str, own: int) -> bool:
        """Try to change all rows; return whether that said how it is."""
        before = self.trial.written(each)
        what = f"{verb} rows of another tenant"
        result = self._try(each, statement, what, own=own)
        if result.error is None:
            return True
        # what a constraint stopped reached so many rows before
        rows = self.trial.written(each) - before - own
        if rows > 0:
            self.trial.found(each, what, rows)
        return rows > 0

    def _try(
        self,
        each: Reached,
        statement: str,
        what: str,
        *,
        own: int = 0,
        checked: bool = False,
    ) -> _Result:
        """Execute a statement, and look at the victim's rows.

        :param own: how many rows of the tenant's own it may change.
        :param checked: whether the policies must refuse the statement's rows, so that
            what only a constraint stops is a leak.
        """
        is_counted = isinstance(each, Relation) and each.kind != "f"
        savepoint = self.trial.connection.begin_nested()
        try:
            before = self.trial.changes() if is_counted else None
            with self.trial.acting_as(self.tenant):
                result = self.trial.attempt(statement, keep=True)
            if result.error is None:
                is_changed, rows = self.trial.lost(self.victim, self.truth, before)
                if is_changed:
                    self.trial.found(each, what, rows or max(result.row[0] - own, 1))
            elif checked and result.passed_policies(each):
                self.trial.found(each, f"{what}, if no constraint stops it")
            return result
        finally:
            savepoint.rollback()
