"""The models: what is ordered belongs to tenants, countries are for all of them."""

from sqlalchemy import ForeignKey, Identity
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_tenants import TenantMixin, shared_table, with_rls


class Base(DeclarativeBase):
    pass


@shared_table
class Country(Base):
    __tablename__ = "countries"
    # tenants may only read it, and pgrls wants such tables apart from the others
    __table_args__ = {"schema": "reference"}  # noqa: RUF012

    code: Mapped[str] = mapped_column(primary_key=True)


@with_rls
class Order(TenantMixin, Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    item: Mapped[str]
    country: Mapped[str] = mapped_column(ForeignKey(Country.code))
    confirmed: Mapped[bool] = mapped_column(default=False)
