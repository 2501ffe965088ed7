"""The models: customers and their orders. Each row belongs to one tenant."""

from sqlalchemy import ForeignKeyConstraint, Identity, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_tenants import TenantMixin, with_rls


class Base(DeclarativeBase):
    pass


@with_rls
class Customer(TenantMixin, Base):
    __tablename__ = "customers"
    __table_args__ = (UniqueConstraint("tenant", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]


@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"
    # foreign keys carry the tenant, because PostgreSQL checks them without policies
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "customer_id"], ["customers.tenant", "customers.id"]
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    customer_id: Mapped[int]
    item: Mapped[str]
