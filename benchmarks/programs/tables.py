"""Any number of tables, as an application without tenants maps them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Identity, UniqueConstraint, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Columns:
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    amount: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(server_default=func.now())


def create_models(
    count: int, mark: Callable[[Any], Any] = lambda model: model, **attributes: Any
) -> list[Any]:
    """Map so many tables.

    :param mark: decorates each class when it is made, as in an application. Done to
        all of them afterwards, it leaves the objects in another order in memory, which
        Python's garbage collector can take a quarter longer for.
    :param attributes: of each class.
    """
    return [
        mark(
            type(
                f"Model{number}",
                (Columns, Base),
                {
                    "__tablename__": f"table_{number}",
                    "__table_args__": (UniqueConstraint("tenant", "id"),),
                    **attributes,
                },
            )
        )
        for number in range(count)
    ]
