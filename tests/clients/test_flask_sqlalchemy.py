"""Flask-SQLAlchemy: ``db.session``, whose tenant is that of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
from flask import Flask, g, request
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import delete, select, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servers import Database
from sqlalchemy_tenants import ScopeError, TenantMixin, TenantSession, with_rls


class TenantFirst(TenantSession, FlaskSession):
    """A session of the request's tenant."""


class FlaskFirst(FlaskSession, TenantSession):
    """The same in the other order: Flask-SQLAlchemy's ``get_bind()`` comes first."""


class Shop:
    """An application: ``/notes`` lists and adds notes of the tenant of the request.

    :param meet: called by a request between its two transactions' statements.
    """

    def __init__(
        self, database: Database, session_class: type[Any], meet: Callable[[], object]
    ) -> None:
        class Base(DeclarativeBase):
            pass

        self.app = app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = database.app_url
        # another engine, for the models that name it
        app.config["SQLALCHEMY_BINDS"] = {"audit": database.app_url}
        self.db = db = SQLAlchemy(
            app,
            model_class=Base,
            session_options={
                "class_": session_class,
                "tenant": lambda: g.tenant,
                "schema": "public",
            },
        )

        @with_rls
        class Note(TenantMixin, db.Model):  # type: ignore[name-defined]
            __tablename__ = "notes"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        @with_rls
        class Entry(TenantMixin, db.Model):  # type: ignore[name-defined]
            __tablename__ = "entries"
            __bind_key__ = "audit"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        self.Note, self.Entry = Note, Entry

        @app.before_request
        def set_tenant() -> None:
            g.tenant = request.headers["X-Tenant"]

        @app.get("/notes")
        def list_notes() -> list[str]:
            names = list(db.session.scalars(select(Note.name).order_by(Note.id)))
            meet()  # here the other tenant's request is in its transaction
            db.session.add(Note(name=f"read {len(names)}"))
            db.session.add(Entry(name=f"read {len(names)}"))
            db.session.commit()
            meet()
            names += db.session.scalars(select(Note.tenant))
            return [*names, *db.session.scalars(select(Entry.tenant))]

    @contextmanager
    def acting_as(self, tenant: str) -> Iterator[Any]:
        """The session of a tenant, as a command or a worker would use it."""
        with self.app.app_context():
            g.tenant = tenant
            yield self.db.session

    def get(self, tenant: str) -> list[str]:
        response = self.app.test_client().get("/notes", headers={"X-Tenant": tenant})
        assert response.status_code == 200
        names: list[str] = response.json
        return names

    def close(self) -> None:
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


@pytest.fixture(params=[TenantFirst, FlaskFirst])
def make_shop(
    request: pytest.FixtureRequest, database: Database, prepare: Callable[..., None]
) -> Iterator[Callable[..., Shop]]:
    shops = []

    def make(meet: Callable[[], object] = lambda: None) -> Shop:
        shop = Shop(database, request.param, meet)
        shops.append(shop)
        prepare(*shop.db.metadatas.values())
        return shop

    yield make
    for shop in shops:
        shop.close()


def test_interleaved_requests(make_shop: Callable[..., Shop]) -> None:
    barrier = Barrier(4, timeout=30)
    shop = make_shop(barrier.wait)
    tenants = ["acme", "globex"] * 2
    with ThreadPoolExecutor(len(tenants)) as pool:
        for rounds in range(1, 4):
            for tenant, names in zip(tenants, pool.map(shop.get, tenants), strict=True):
                # two requests of each tenant have added a note each
                before = 2 * (rounds - 1)
                assert len(names) == before + 2 * (before + 2)
                assert set(names[before:]) == {tenant}


def test_writes_of_another_tenant_are_refused(
    make_shop: Callable[..., Shop], fill: Callable[[str], None]
) -> None:
    shop = make_shop()
    for model in (shop.Note, shop.Entry):
        fill(model.__tablename__)
        with shop.acting_as("acme") as session:
            others = model.tenant == "globex"
            assert session.execute(delete(model).where(others)).rowcount == 0
            changed = update(model).where(others).values(name="mine")
            assert session.execute(changed).rowcount == 0
            session.commit()
            session.add(model(tenant="globex", name="planted"))
            with pytest.raises(ProgrammingError, match="row-level security"):
                session.commit()
        with shop.acting_as("globex") as session:
            assert session.scalars(select(model.name)).all() == ["of globex"]


def test_the_tenant_changes_between_transactions_only(
    make_shop: Callable[..., Shop], fill: Callable[[str], None]
) -> None:
    shop = make_shop()
    fill("notes")
    with shop.acting_as("acme") as session:
        assert session.scalars(select(shop.Note.name)).all() == ["of acme"]
        g.tenant = "globex"
        with pytest.raises(ScopeError):
            session.scalars(select(shop.Note.name)).all()
        session.rollback()
        assert session.scalars(select(shop.Note.name)).all() == ["of globex"]


def test_a_context_without_a_tenant_reads_nothing(
    make_shop: Callable[..., Shop],
) -> None:
    shop = make_shop()
    with shop.app.app_context(), pytest.raises(AttributeError, match="tenant"):
        shop.db.session.scalars(select(shop.Note.name)).all()
