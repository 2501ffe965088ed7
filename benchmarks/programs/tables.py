"""Any number of tables, as an application without tenants maps them."""

from __future__ import annotations

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


def create_models(count: int, **attributes: Any) -> list[Any]:
    """Map so many tables.

    :param attributes: of each class.
    """
    return [
        type(
            f"Model{number}",
            (Columns, Base),
            {
                "__tablename__": f"table_{number}",
                "__table_args__": (UniqueConstraint("tenant", "id"),),
                **attributes,
            },
        )
        for number in range(count)
    ]
