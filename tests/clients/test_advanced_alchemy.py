"""Advanced Alchemy: its configuration, its bases, its repositories, its migrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import pytest
from advanced_alchemy.alembic.commands import AlembicCommands
from advanced_alchemy.base import BigIntAuditBase, UUIDAuditBase
from advanced_alchemy.config import (
    AlembicSyncConfig,
    AsyncSessionConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
    SyncSessionConfig,
)
from advanced_alchemy.exceptions import NotFoundError, RepositoryError
from advanced_alchemy.repository import (
    SQLAlchemyAsyncRepository,
    SQLAlchemySyncRepository,
)
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Mapped

from servers import Database
from sqlalchemy_tenants import ScopeError, TenantMixin, TenantSession, with_rls
from sqlalchemy_tenants.aio import AsyncTenantSession


@with_rls
class Author(TenantMixin, BigIntAuditBase):
    """Its key comes from a sequence that the base declares."""

    __tablename__ = "authors"
    name: Mapped[str]


@with_rls
class Book(TenantMixin, UUIDAuditBase):
    __tablename__ = "books"
    name: Mapped[str]


METADATA = Author.metadata

#: The tenant of the request that is served.
tenant_of_request: ContextVar[str] = ContextVar("tenant_of_request")


@contextmanager
def request_of(tenant: str) -> Iterator[None]:
    token = tenant_of_request.set(tenant)
    try:
        yield
    finally:
        tenant_of_request.reset(token)


class RequestSession(TenantSession):
    """A session of the request's tenant: a config has no argument for it."""

    def __init__(self, bind: Engine | None = None, **kw: object) -> None:
        super().__init__(bind, tenant=tenant_of_request.get, schema="public", **kw)


class AuthorRepository(SQLAlchemySyncRepository[Author]):
    model_type = Author


class AsyncAuthorRepository(SQLAlchemyAsyncRepository[Author]):
    model_type = Author


class AsyncBookRepository(SQLAlchemyAsyncRepository[Book]):
    model_type = Book


@pytest.fixture
def commands(
    database: Database, make_engine: Callable[..., Engine], tmp_path: Path
) -> AlembicCommands:
    """The migrations, with the files that Advanced Alchemy writes."""
    migrations = tmp_path / "migrations"
    commands = AlembicCommands(
        SQLAlchemySyncConfig(
            engine_instance=make_engine(database.owner_url),
            metadata=METADATA,
            alembic_config=AlembicSyncConfig(
                script_config=str(tmp_path / "alembic.ini"),
                script_location=str(migrations),
            ),
        )
    )
    commands.init(str(migrations))
    commands.revision("isolate tenants", autogenerate=True)
    commands.upgrade("head")

    return commands


@pytest.fixture
def migrated(
    commands: AlembicCommands, database: Database, create_tenants: Callable[[], None]
) -> Database:
    create_tenants()
    return database


@pytest.fixture
def config(migrated: Database, engine: Engine) -> SQLAlchemySyncConfig:
    return SQLAlchemySyncConfig(
        engine_instance=engine, session_config=SyncSessionConfig(class_=RequestSession)
    )


@pytest.fixture
def async_config(
    migrated: Database, make_async_engine: Callable[..., AsyncEngine]
) -> SQLAlchemyAsyncConfig:
    engine = make_async_engine(migrated.url("app", "asyncpg"))
    # A session maker of one's own: what Advanced Alchemy makes by itself is given a
    # sync_session_class, which is refused below.
    return SQLAlchemyAsyncConfig(
        engine_instance=engine,
        session_maker=async_sessionmaker(
            engine,
            class_=AsyncTenantSession,
            tenant=tenant_of_request.get,
            schema="public",
        ),
    )


def test_repositories(config: SQLAlchemySyncConfig) -> None:
    keys = {}
    for tenant in ("acme", "globex"):
        with request_of(tenant), config.get_session() as session:
            author = AuthorRepository(session=session).add(
                Author(name=f"of {tenant}"), auto_commit=True
            )
            keys[tenant] = author.id
    with request_of("acme"), config.get_session() as session:
        repository = AuthorRepository(session=session)
        assert [author.name for author in repository.get_many()] == ["of acme"]
        assert repository.count() == 1
        with pytest.raises(NotFoundError):
            repository.get(keys["globex"])
        with pytest.raises(NotFoundError):
            repository.update(Author(id=keys["globex"], name="mine"))
        with pytest.raises(NotFoundError):
            repository.delete(keys["globex"])
        assert repository.delete_many([keys["globex"]]) == []
        with pytest.raises(RepositoryError) as refusal:
            repository.add(Author(tenant="globex", name="planted"))
        assert "row-level security" in str(refusal.value.__cause__)
    with request_of("globex"), config.get_session() as session:
        (author,) = AuthorRepository(session=session).get_many()
        assert (author.id, author.name) == (keys["globex"], "of globex")


async def test_async_repositories(async_config: SQLAlchemyAsyncConfig) -> None:
    keys = {}
    for tenant in ("acme", "globex"):
        with request_of(tenant):
            async with async_config.get_session() as session:
                book = await AsyncBookRepository(session=session).add(
                    Book(name=f"of {tenant}")
                )
                keys[tenant] = book.id
                await AsyncAuthorRepository(session=session).add(
                    Author(name=f"of {tenant}")
                )
                await session.commit()
    with request_of("acme"):
        async with async_config.get_session() as session:
            repository = AsyncBookRepository(session=session)
            assert [book.name for book in await repository.get_many()] == ["of acme"]
            with pytest.raises(NotFoundError):
                await repository.get(keys["globex"])
            with pytest.raises(NotFoundError):
                await repository.delete(keys["globex"])
            planted = Book(id=keys["globex"], tenant="globex", name="mine")
            with pytest.raises(RepositoryError) as refusal:
                await repository.upsert(planted)
            assert "row-level security" in str(refusal.value.__cause__)
    with request_of("globex"):
        async with async_config.get_session() as session:
            books = await AsyncBookRepository(session=session).get_many()
            assert [(book.id, book.name) for book in books] == [
                (keys["globex"], "of globex")
            ]


# Advanced Alchemy gives each session that it makes a plain Session, with listeners of
# its own, which enters no scope: with a login that may read, all tenants' rows.
@pytest.mark.parametrize("login", ["app", "owner", "superuser"])
async def test_a_plain_sync_session_is_refused(
    migrated: Database, make_async_engine: Callable[..., AsyncEngine], login: str
) -> None:
    config = SQLAlchemyAsyncConfig(
        engine_instance=make_async_engine(migrated.url(login, "asyncpg")),
        session_config=AsyncSessionConfig(class_=AsyncTenantSession),
    )
    with request_of("acme"), pytest.raises(ScopeError, match="sync_session_class"):
        async with config.get_session() as session:
            await AsyncAuthorRepository(session=session).get_many()


def test_migrations(commands: AlembicCommands, database: Database) -> None:
    commands.check()
    tables = database.rows("SELECT polrelid::regclass::text FROM pg_policy ORDER BY 1")
    assert tables == [("authors",)] * 3 + [("books",)] * 3
