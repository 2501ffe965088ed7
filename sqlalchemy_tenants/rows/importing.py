"""Import: the rows of a file come in as one tenant's, all of them or none.

The tenant itself writes them, so its policies refuse what is another tenant's. COPY
cannot write to a table with row-level security. So the values go as one array of texts
for each column, and the server reads them as it would read those of COPY.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, text

from ..arguments import require_flag, require_progress
from ..scope import execute_text, quote
from ..tenancy import TenantId, tenant_text
from .archive import FileTable, Reader
from .plan import (
    Column,
    ForeignKey,
    Plan,
    PlannedTable,
    acting,
    at_once,
    foreign_keys,
    in_order,
    in_text,
    make_plan,
    require_metadata,
    require_role,
)
from .results import (
    Progress,
    RowCounts,
    RowsError,
    RowsProgress,
    explaining,
)
from .sequences import advance_sequences

if TYPE_CHECKING:
    from ..managers import PostgresManager

# How COPY writes what would end a value or a row.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class _Incoming:
    """A table of the file, and the one that its rows go into."""

    number: int
    file: FileTable
    table: PlannedTable
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class _ImportPlan:
    """The tables of the file, and those that must come in together, in their order."""

    incoming: list[_Incoming]
    groups: list[list[_Incoming]]
    keys: list[ForeignKey]
    left_out: tuple[str, ...]

    def highest(self) -> dict[int, int]:
        """Return the highest keys that the file says it has, by sequence."""
        highest: dict[int, int] = {}
        for each in self.incoming:
            for column in each.columns:
                value = each.file.highest.get(column.name)
                if column.sequence is not None and value is not None:
                    known = highest.get(column.sequence, value)
                    highest[column.sequence] = max(known, value)
        return highest


def import_rows(
    manager: PostgresManager,
    tenant: TenantId,
    path: str | os.PathLike[str],
    *,
    as_tenant: TenantId | None = None,
    as_admin: bool = False,
    progress: Progress | None = None,
) -> RowCounts:
    """See :meth:`.PostgresManager.import_rows`."""
    metadata = require_metadata(manager.metadata, "import_rows")
    require_flag("as_admin", as_admin)
    require_progress(progress)
    target = tenant if as_tenant is None else as_tenant
    replaced = None if as_tenant is None else tenant_text(target)
    with Reader(Path(path)) as reader, explaining("import", target):
        _require_tenant(reader, tenant)
        with acting(manager, target, as_admin) as connection:
            plan = _plan(connection, manager, metadata, reader, target, as_admin)
        reader.verify()
        # before the rows, because a sequence goes ahead for good, whatever follows
        advance_sequences(manager, target, plan.highest(), as_admin=as_admin)
        with acting(manager, target, as_admin) as connection:
            # plan again, because the database may have changed since the first plan
            plan = _plan(connection, manager, metadata, reader, target, as_admin)
            execute_text(connection, "SET CONSTRAINTS ALL DEFERRED")
            run = _Import(connection, reader, plan.keys, target, replaced, progress)
            for group in plan.groups:
                run.insert(group)
    counts = {each.table.name: each.file.rows for each in plan.incoming}
    return RowCounts(counts, plan.left_out)


def _plan(
    connection: Connection,
    manager: PostgresManager,
    metadata: MetaData,
    reader: Reader,
    tenant: TenantId,
    as_admin: bool,
) -> _ImportPlan:
    """Compare the file with the models and the database."""
    require_role(connection, tenant, manager)
    plan = make_plan(
        connection,
        metadata,
        manager.tenancy,
        tenant,
        "INSERT",
        hidden=True,
        admin=as_admin,
    )
    incoming = _incoming(reader, plan, tenant)
    keys = foreign_keys(connection, plan)
    by_oid = {each.table.oid: each for each in incoming}
    groups = []
    for tables in in_order([each.table for each in incoming], keys):
        _require_insertable(connection, tables, keys, tenant)
        groups.append([by_oid[table.oid] for table in tables])
    return _ImportPlan(incoming, groups, keys, plan.left_out)


def _require_tenant(reader: Reader, tenant: TenantId) -> None:
    held = reader.contents.tenant
    if held != tenant_text(tenant):
        raise RowsError(
            f"the file holds rows of tenant {held!r}, not of {tenant!r}; to give them "
            f"to another tenant: import_rows({held!r}, path, as_tenant={tenant!r})",
            tenant=tenant,
        )


def _incoming(reader: Reader, plan: Plan, tenant: TenantId) -> list[_Incoming]:
    """Find the table and the columns of each table of the file."""
    path = reader.path
    tables = {table.name: table for table in plan.tables}
    result = []
    for number, file in enumerate(reader.contents.tables, 1):
        table = tables.get(file.name)
        if table is None:
            raise RowsError(
                f"{path} has rows of table {file.name!r}, which is not among the "
                f"models' tables of tenants",
                tenant=tenant,
            )
        if file.tenant_column != table.mark.column:
            raise RowsError(
                f"the tenant column of table {file.name!r} is {table.mark.column!r}, "
                f"and in {path} it is {file.tenant_column!r}",
                tenant=tenant,
            )
        columns = _columns(file, table, path, tenant)
        result.append(_Incoming(number, file, table, columns))
    return result


def _columns(
    file: FileTable, table: PlannedTable, path: object, tenant: TenantId
) -> tuple[Column, ...]:
    columns = {column.name: column for column in table.columns}
    for name, type_ in file.columns:
        column = columns.get(name)
        if column is None or column.type != type_:
            has = "it does not have" if column is None else f"is {column.type} there"
            raise RowsError(
                f"column {name!r} ({type_}) of table {file.name!r} in {path} does not "
                f"fit the database: {has}; migrate the database to the state that the "
                f"file comes from, import, and migrate it again",
                tenant=tenant,
            )
    given = {name for name, _ in file.columns}
    for column in table.columns:
        required = column.is_required or column.name == table.mark.column
        if required and column.name not in given:
            raise RowsError(
                f"column {column.name!r} of table {file.name!r} needs a value, which "
                f"{path} does not have; give the column a default for the import",
                tenant=tenant,
            )
    return tuple(columns[name] for name, _ in file.columns)


def _require_insertable(
    connection: Connection,
    group: Sequence[PlannedTable],
    keys: Sequence[ForeignKey],
    tenant: TenantId,
) -> None:
    if not _needs_staging(group, keys):
        return
    query = "SELECT has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')"
    if not execute_text(connection, query).scalar_one():
        names = ", ".join(key.name for key in _within(group, keys))
        raise RowsError(
            f"tables {', '.join(t.name for t in group)} reference themselves or each "
            f"other by {names}; to import them, make these foreign keys DEFERRABLE, or "
            f"GRANT TEMPORARY ON DATABASE to the tenants' group role",
            tenant=tenant,
        )


def _within(
    group: Sequence[PlannedTable], keys: Sequence[ForeignKey]
) -> list[ForeignKey]:
    oids = {table.oid for table in group}
    return [key for key in keys if key.table in oids and key.referenced in oids]


def _needs_staging(group: Sequence[PlannedTable], keys: Sequence[ForeignKey]) -> bool:
    """Whether rows must come in by one statement: a row may reference a later one, and
    the foreign key is not deferrable."""
    return any(not key.is_deferrable for key in _within(group, keys))


class _Import:
    """The statements of one import."""

    def __init__(
        self,
        connection: Connection,
        reader: Reader,
        keys: Sequence[ForeignKey],
        tenant: TenantId,
        replaced: str | None,
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._keys = keys
        self._tenant = tenant
        self._replaced = replaced
        self._progress = progress

    def insert(self, group: Sequence[_Incoming]) -> None:
        """Insert the rows of tables that reference each other, or of one table."""
        if _needs_staging([each.table for each in group], self._keys):
            self._insert_at_once(group)
            return
        for each in group:
            statement = f"{_insert(each, self._replaced)} FROM {_arrays(each)}"
            self._send(each, statement)

    def _insert_at_once(self, group: Sequence[_Incoming]) -> None:
        """Insert by one statement, after which foreign keys are checked: the rows wait
        in temporary tables."""
        inserts = []
        for each in group:
            stage = f'pg_temp."rows_{secrets.token_hex(8)}"'
            names = [f"c{index}" for index in range(len(each.columns))]
            columns = ", ".join(f"{name} pg_catalog.text" for name in names)
            execute_text(
                self._connection,
                f"CREATE TEMPORARY TABLE {stage} ({columns}) ON COMMIT DROP",
            )
            self._send(
                each,
                f"INSERT INTO {stage} SELECT {', '.join(names)} FROM {_arrays(each)}",
            )
            insert = _insert(each, self._replaced)
            inserts.append(f"{insert} FROM {stage} AS v RETURNING 1")
        counts = at_once(self._connection, inserts, self._parameters())
        for each, count in zip(group, counts, strict=True):
            self._require_all(each, count)

    def _send(self, each: _Incoming, statement: str) -> None:
        """Send the rows of one table."""
        prepared, sent, written = text(statement), 0, 0
        extra = self._parameters() if ":tenant" in statement else {}
        for lines in self._reader.batches(each.number):
            arrays = self._values(each, lines)
            parameters = {f"a{index}": array for index, array in enumerate(arrays)}
            result = self._connection.execute(prepared, {**parameters, **extra})
            sent += len(lines)
            written += result.rowcount
            if self._progress is not None:
                self._progress(RowsProgress(each.table.name, sent, each.file.rows))
        self._require_all(each, written)

    def _parameters(self) -> dict[str, str]:
        return {} if self._replaced is None else {"tenant": self._replaced}

    def _values(self, each: _Incoming, lines: Sequence[str]) -> Iterator[str]:
        """Return an array of the values of each column."""
        rows = [line.split("\t") for line in lines]
        if any(len(row) != len(each.columns) for row in rows):
            raise RowsError(
                f"a row of table {each.table.name!r} has not the columns that the "
                f"manifest names: the file was changed; nothing was imported",
                tenant=self._tenant,
            )
        for column, values in zip(each.columns, zip(*rows, strict=True), strict=True):
            if column.sequence is not None:
                self._require_below(each, column, values)
            yield _array(values)

    def _require_below(
        self, each: _Incoming, column: Column, values: Sequence[str]
    ) -> None:
        """Refuse a key that the sequence was not set behind."""
        highest = each.file.highest.get(column.name)
        try:
            keys = [int(value) for value in values if value != r"\N"]
        except ValueError as error:
            raise RowsError(
                f"column {column.name!r} of table {each.table.name!r} gets numbers of "
                f"a sequence, and the file has another value; nothing was imported",
                tenant=self._tenant,
            ) from error
        if keys and (highest is None or max(keys) > highest):
            raise RowsError(
                f"column {column.name!r} of table {each.table.name!r} has a higher "
                f"value than the manifest says: the file was changed; nothing was "
                f"imported",
                tenant=self._tenant,
            )

    def _require_all(self, each: _Incoming, written: int) -> None:
        if written != each.file.rows:
            raise RowsError(
                f"table {each.table.name!r} took {written} of {each.file.rows} rows: a "
                f"trigger left out the others, or the file was changed meanwhile; "
                f"nothing was imported",
                tenant=self._tenant,
            )


def _insert(each: _Incoming, replaced: str | None) -> str:
    """Return an ``INSERT`` up to its source, which is called ``v``."""
    names = ", ".join(in_text(quote(column.name)) for column in each.columns)
    values = [
        f"CAST(CAST(:tenant AS pg_catalog.text) AS {in_text(column.base)})"
        if replaced is not None and column.name == each.table.mark.column
        # into a type without a length; assigned, it is refused where it is too long
        else f"CAST(v.c{index} AS {in_text(column.base)})"
        for index, column in enumerate(each.columns)
    ]
    return (
        f"INSERT INTO {in_text(each.table.sql)} ({names}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(values)}"
    )


def _arrays(each: _Incoming) -> str:
    """Return what is a table ``v`` of the parameters."""
    indexes = range(len(each.columns))
    arrays = ", ".join(
        f"pg_catalog.unnest(CAST(CAST(:a{index} AS pg_catalog.text) "
        f"AS pg_catalog.text[]))"
        for index in indexes
    )
    names = ", ".join(f"c{index}" for index in indexes)
    return f"ROWS FROM ({arrays}) AS v({names})"


def _array(values: Sequence[str]) -> str:
    """Return values, as COPY prints them, as the text of an array."""
    joined = "\t".join(values)
    if "\\" not in joined and '"' not in joined:
        return '{"' + joined.replace("\t", '","') + '"}'
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str) -> str:
    if value == r"\N":
        return "NULL"
    if "\\" in value:
        value = _ESCAPE.sub(lambda m: _ESCAPES.get(m[1], m[1]), value)
        value = value.replace("\\", "\\\\")
    return '"' + value.replace('"', '\\"') + '"'
