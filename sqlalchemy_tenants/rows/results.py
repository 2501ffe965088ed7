"""Results: what an operation on rows returns, tells meanwhile, and raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

from sqlalchemy.exc import DBAPIError

from ..exceptions import TenancyError
from ..tenancy import TenantId


class RowsError(TenancyError):
    """An operation on a tenant's rows was refused, or failed; nothing was changed."""


class RowsProgress(NamedTuple):
    """How far an operation is.

    :param table: the table at work.
    :param rows: its rows that are done.
    :param total: all of its rows, ``None`` where that is not known.
    """

    table: str
    rows: int
    total: int | None


Progress: TypeAlias = Callable[[RowsProgress], object]


class RowCounts(dict[str, int]):
    """Rows by the name of their table.

    :param left_out: the tables that all tenants share, whose rows belong to none.
    """

    def __init__(self, counts: dict[str, int], left_out: Sequence[str] = ()) -> None:
        super().__init__(counts)
        #: Tables marked by ``shared_table``, which were left alone.
        self.left_out = tuple(left_out)

    @property
    def total(self) -> int:
        """The rows of all tables."""
        return sum(self.values())


@contextmanager
def explaining(what: str, tenant: TenantId) -> Iterator[None]:
    """Say of an error of the database what failed, in which table, and that nothing was
    changed."""
    try:
        yield
    except DBAPIError as error:
        table = _table(error)
        where = "" if table is None else f", table {table!r}"
        raise RowsError(
            f"{what} of tenant {tenant!r}{where}: {error.orig}; nothing was changed",
            tenant=tenant,
        ) from error


def _table(error: DBAPIError) -> str | None:
    """Return the table that an error of the server is about."""
    diagnosis = getattr(error.orig, "diag", None)  # psycopg
    cause = None if error.orig is None else error.orig.__cause__  # asyncpg
    table: str | None = getattr(diagnosis or cause, "table_name", None)
    return table
