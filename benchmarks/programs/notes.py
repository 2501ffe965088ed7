"""The table that the programs query, as an application without tenants maps it."""

from __future__ import annotations

from sqlalchemy import Identity
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Columns:
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    amount: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(default="")


class Note(Columns, Base):
    __tablename__ = "notes"
