"""The tables of the queries, as an application without tenants maps them."""

from __future__ import annotations

from sqlalchemy import Identity, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    region: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    # the second one does not know tenants, as many an index that was there before them
    __table_args__ = (Index(None, "tenant", "placed"), Index(None, "amount"))

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str]
    customer: Mapped[int]
    placed: Mapped[int]
    amount: Mapped[int]
    body: Mapped[str]
