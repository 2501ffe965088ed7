"""Wrong arguments: which error they get, in which words, and that nothing is done.

What a module's own tests refuse already is not repeated here.
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    CHAR,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    create_engine,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError, ResourceClosedError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

import sqlalchemy_tenants.aio.managers as aio
from alembic_ext import ops
from projects import snapshot
from servers import Database, requested_version
from sqlalchemy_tenants import (
    AdminSession,
    InvalidTenant,
    Policy,
    ScopeError,
    Tenancy,
    TenantMixin,
    TenantNotFound,
    TenantSession,
    get_process_revision_directives,
    shared_table,
    tenant_column,
    with_rls,
)
from sqlalchemy_tenants.database.expected import GROUP_ROLE_ATTRIBUTES
from sqlalchemy_tenants.declare import mark_of
from sqlalchemy_tenants.managers import PostgresManager
from sqlalchemy_tenants.scope import sqlstate
from tenancy import (  # noqa: F401
    Base,
    Note,
    World,
    driver_fixture,
    isolation_fixture,
    migrated_fixture,
    on_each_driver,
    statements,
    world_fixture,
)

# Nothing listens there: whoever connects gets an OperationalError.
NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"
ENGINE = create_engine(NOWHERE)
ASYNC_ENGINE = create_async_engine(NOWHERE.replace("psycopg", "asyncpg"))
SQLITE = create_engine("sqlite://")

#: No name of PostgreSQL, and why.
BAD_NAMES: list[tuple[Any, type[Exception], str]] = [
    (1, TypeError, "no str but int"),
    (True, TypeError, "no str but bool"),
    (b"x", TypeError, "no str but bytes"),
    ({}, TypeError, "no str but dict"),
    ("", ValueError, "is empty"),
    ("a\0b", ValueError, "NUL character"),
    ("\ud800", ValueError, "cannot be encoded as UTF-8"),
    ("x" * 64, ValueError, "more than 63 bytes"),
    ("é" * 32, ValueError, "more than 63 bytes"),
]

#: No condition of a policy, and why.
BAD_CONDITIONS: list[tuple[Any, type[Exception], str]] = [
    ("", ValueError, "is empty"),
    (" \n", ValueError, "is empty"),
    ("a\0", ValueError, "NUL character"),
    ("\ud800", ValueError, "cannot be encoded as UTF-8"),
    (True, TypeError, "SQL text or a SQLAlchemy expression.*not bool"),
    (1, TypeError, "SQL text or a SQLAlchemy expression.*not int"),
    (b"true", TypeError, "SQL text or a SQLAlchemy expression.*not bytes"),
    (select(1), TypeError, r"select\(\.\.\.\)\.exists\(\), not Select"),
    (Column("id") == bindparam("x"), ValueError, "parameter 'x' has no value"),
]


class Wrong(NamedTuple):
    """A wrong call, and the error that it gets."""

    function: Callable[..., object]
    arguments: dict[str, Any]
    error: type[Exception]
    message: str


def names(
    function: Callable[..., object],
    argument: str,
    what: str | None = None,
    *,
    several: bool = False,
    **others: Any,
) -> list[Wrong]:
    """Calls with everything that is no name.

    :param what: what messages call the argument, if not by its name.
    :param several: whether it takes a list of names.
    """
    what = re.escape(what or argument)
    wrong = [
        Wrong(
            function,
            {**others, argument: ["fine", value] if several else value},
            error,
            f"^{what} .*{message}",
        )
        for value, error, message in BAD_NAMES
    ]
    if several:
        message = f"^{what}.* 7 is neither a name nor a list of names"
        wrong.append(Wrong(function, {**others, argument: 7}, TypeError, message))
    return wrong


def conditions(function: Callable[..., object], **others: Any) -> list[Wrong]:
    """Calls with everything that is no condition, of a policy ``mine``."""
    return [
        Wrong(function, {**others, part: value}, error, f"^policy 'mine': {part}.*{m}")
        for value, error, m in BAD_CONDITIONS
        for part in ("using", "with_check")
    ]


def flags(
    function: Callable[..., object], argument: str, what: str = "", **others: Any
) -> list[Wrong]:
    """Calls with everything that is no bool."""
    message = f"{what or argument} is True or False, not "
    return [
        Wrong(function, {**others, argument: value}, TypeError, message)
        for value in [None, 1, "no", "false", ["no"]]
    ]


def values(
    function: Callable[..., object],
    argument: str,
    wrong: Iterable[Any],
    error: type[Exception],
    message: str,
    **others: Any,
) -> list[Wrong]:
    """Calls that all get the same error."""
    return [Wrong(function, {**others, argument: v}, error, message) for v in wrong]


def wrong_calls(*groups: list[Wrong]) -> pytest.MarkDecorator:
    """The parameter ``wrong`` of a test, one call after the other."""
    calls = [wrong for group in groups for wrong in group]
    ids = [f"{wrong.function.__name__}-{number}" for number, wrong in enumerate(calls)]
    return pytest.mark.parametrize("wrong", calls, ids=ids)


def refuse(wrong: Wrong) -> None:
    with pytest.raises(wrong.error, match=wrong.message) as raised:
        wrong.function(**wrong.arguments)
    # not a subclass by accident: UnicodeEncodeError is a ValueError
    assert type(raised.value) is wrong.error


# --- declarations --------------------------------------------------------------------

#: What has been handed to a decorator of tables.
tables: list[Table] = []


def table(name: str = "things") -> Table:
    columns = Column("id", Integer, primary_key=True), Column("tenant", Text)
    tables.append(Table(name, MetaData(), *columns))
    return tables[-1]


def mark_table(name: str) -> object:
    return with_rls(table(name))


def share_table(name: str) -> object:
    return shared_table(table(name))


def mark(**kw: Any) -> object:
    return with_rls(table(), **kw)


def share(**kw: Any) -> object:
    return shared_table(table(), **kw)


@wrong_calls(
    names(mark, "tenant_column"),
    values(
        mark,
        "policies",
        (1, None, "mine", ["mine"], [None], Policy("p"), {"p": Policy("p")}),
        TypeError,
        r"^policies is a list of Policy, as in \[Policy\(",
    ),
    # the decorator refuses before there is a class
    values(with_rls, "policies", (1, ["mine"]), TypeError, "^policies is a list"),
    names(with_rls, "tenant_column"),
    flags(mark, "index"),
    *(
        values(
            function, "name", ("x" * 64,), ValueError, "^table .* more than 63 bytes"
        )
        for function in (mark_table, share_table)
    ),
    values(
        share, "privileges", (1, None), TypeError, "^privileges are a list of names"
    ),
    values(shared_table, "privileges", (1, None), TypeError, "^privileges are a list"),
    values(
        share,
        "privileges",
        ([1], [None], b"SELECT", "", "ALL", "SELECT; DROP", ["SELECT", "\0"], [[]]),
        ValueError,
        "privileges of a shared table are some of SELECT, INSERT, UPDATE, DELETE, not",
    ),
    values(
        tenant_column,
        "type_",
        (1, True, "text", object, CHAR(3), Float, Uuid(native_uuid=False), Column),
        TypeError,
        "is not the type of a tenant column: it is VARCHAR or TEXT, SMALLINT",
    ),
    values(
        tenant_column, "tenancy", (1, "", "mine", Tenancy), TypeError, "^tenancy is"
    ),
    values(
        tenant_column, "server_default", ("x",), TypeError, "for another one use mapped"
    ),
    names(Policy, "name", "policy"),
    names(Policy, "roles", "role", several=True, name="mine"),
    values(
        Policy, "roles", ([], ()), ValueError, "'mine': roles is empty", name="mine"
    ),
    values(
        Policy,
        "command",
        (None, 1, "", b"ALL", [], "SELECT; DROP", "\0"),
        ValueError,
        "^policy 'mine': command .* is none of ALL, SELECT, INSERT, UPDATE, DELETE",
        name="mine",
    ),
    conditions(Policy, name="mine"),
    flags(Policy, "permissive", name="mine"),
    *(
        names(Tenancy, field)
        for field in (
            "role_prefix",
            "schema",
            "tenants_role",
            "shared_role",
            "admin_role",
        )
    ),
    names(Tenancy, "logins", "login", several=True)[:-1],
    values(Tenancy, "logins", (1,), TypeError, "^logins is a collection, not"),
    names(Tenancy, "owners", "owner", several=True)[:-1],
    values(Tenancy, "owners", (None, 1), TypeError, "^owners is a collection, not"),
    values(Tenancy, "tenants", (1, True), TypeError, "^tenants is a collection, not"),
    values(Tenancy, "tenants", (b"acme",), ValueError, "collections, not a string"),
    values(Tenancy, "tenants", ([True], [1.5], ["x" * 57]), InvalidTenant, "tenant "),
    flags(Tenancy, "force"),
    values(Tenancy, "setting", (None, 1, b"a.b", []), TypeError, "^setting is a str"),
    values(
        Tenancy,
        "setting",
        (
            "",
            "a",
            "A.b",
            "user.x",
            "a.select",
            "a." + "b" * 64,
            "a.b\0",
            "a.b\n",
            "é.b",
        ),
        ValueError,
        "^setting .* must be lower-case names joined by a dot",
    ),
    # SET ROLE "none" would be RESET ROLE, and PUBLIC is everybody
    *(
        values(
            Tenancy,
            field,
            ("none", "None", "public", "PUBLIC"),
            ValueError,
            f"^{field} .* PostgreSQL has no role of that name; choose another",
        )
        for field in ("tenants_role", "shared_role", "admin_role")
    ),
    values(
        Tenancy,
        "role_prefix",
        ("n", "no", "non", "p", "publi", "pg"),
        ValueError,
        "^role_prefix .* which PostgreSQL reserves; choose a longer prefix",
    ),
    values(
        Tenancy().bind, "metadata", (None, "x", Base), TypeError, "^metadata is a Me"
    ),
    values(
        Tenancy.of, "metadata", (None, "x", Base), TypeError, "^metadata is a MetaD"
    ),
    values(
        Tenancy.is_bound, "metadata", (None, Base), TypeError, "^metadata is a Meta"
    ),
    values(
        get_process_revision_directives,
        "metadata",
        (None, 1, "x", Base, [Base.metadata, "x"], [None]),
        TypeError,
        r"^get_process_revision_directives takes MetaData, as in Base\.metadata",
    ),
)
def test_a_declaration_is_refused(wrong: Wrong) -> None:
    refuse(wrong)
    # and no table is marked by half
    for each in tables:
        assert mark_of(each) is None
        assert not each.indexes


def test_members_of_enumerations_are_names() -> None:
    class Name(str, enum.Enum):  # noqa: UP042 - which formats as "Name.MINE"
        MINE = "mine"

    tenancy = Tenancy.named("x", schema=Name.MINE, tenants_role=Name.MINE)
    assert f"{tenancy.schema} {tenancy.tenants_role}" == "mine mine"
    logins = Tenancy(logins=[Name.MINE]).logins
    assert f"{next(iter(logins or ()))}" == "mine"
    policy = Policy(Name.MINE, roles=Name.MINE)
    assert f"{policy.name} {policy.roles}" == "mine ('mine',)"


def test_a_model_whose_mapping_is_wrong_is_marked_all_the_same() -> None:
    class Base(DeclarativeBase):
        pass

    @with_rls
    class Order(TenantMixin, Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        item = relationship("Nowhere")

    with pytest.raises(InvalidRequestError, match="failed to locate a name"):
        Base.registry.configure()
    with_rls(Order)
    assert mark_of(Base.metadata.tables["orders"]) is not None
    Base.registry.dispose()
    with pytest.raises(TypeError, match="takes a mapped class or a Table, and Order"):
        with_rls(Order)


# --- managers and sessions -----------------------------------------------------------


def manager(**kw: Any) -> PostgresManager:
    return PostgresManager.from_engine(**{"engine": ENGINE, **kw})


def async_manager(**kw: Any) -> aio.PostgresManager:
    return aio.PostgresManager.from_engine(**{"engine": ASYNC_ENGINE, **kw})


def tenant_session(**kw: Any) -> TenantSession:
    return TenantSession(**{"bind": ENGINE, "tenant": "acme", **kw})


def admin_session(**kw: Any) -> AdminSession:
    return AdminSession(**{"bind": ENGINE, **kw})


def async_session(**kw: Any) -> aio.AsyncTenantSession:
    return aio.AsyncTenantSession(**{"bind": ASYNC_ENGINE, "tenant": "acme", **kw})


NO_ENGINES = (1, "postgresql://", create_engine, Base.metadata)


@wrong_calls(
    *(
        group
        for make in (manager, async_manager)
        for group in (
            names(make, "schema"),
            values(
                make, "isolation", (None, 1, [], "ROLE"), ValueError, "^isolation is"
            ),
            values(
                make, "metadata", (1, [Base.metadata], Base), TypeError, "^metadata is"
            ),
            values(
                make, "tenancy", (1, "", Tenancy), TypeError, "^tenancy is a Tenancy"
            ),
            values(
                make,
                "session_options",
                (1, "x", ["x"]),
                TypeError,
                "^session_options are arguments of a session, as in",
            ),
            values(
                make,
                "session_options",
                ({1: 2}, {"tenant": "x"}, {"bind": ENGINE}, {"schema": "x"}),
                ValueError,
                "^session_options cannot have .*, only further arguments of",
            ),
        )
    ),
    values(
        manager,
        "engine",
        (None, *NO_ENGINES),
        TypeError,
        r"^engine .*create_engine\(\)",
    ),
    values(
        manager, "admin_engine", NO_ENGINES, TypeError, "^admin_engine is an Engine"
    ),
    *(
        values(
            manager, each, (ASYNC_ENGINE,), TypeError, "import .*tenants.aio.managers"
        )
        for each in ("engine", "admin_engine")
    ),
    values(
        async_manager,
        "engine",
        (None, *NO_ENGINES),
        TypeError,
        r"^engine .*create_async_engine\(\)",
    ),
    *(
        values(async_manager, each, (ENGINE,), TypeError, "import .*_tenants.managers")
        for each in ("engine", "admin_engine")
    ),
    *(
        group
        for make in (tenant_session, admin_session)
        for group in (
            names(make, "schema"),
            values(
                make, "tenancy", (1, "", Tenancy), TypeError, "^tenancy is a Tenancy"
            ),
            values(
                make, "bind", (1, "x", ASYNC_ENGINE), TypeError, "^bind is an Engine"
            ),
            values(make, "twophase", (True,), ScopeError, "two-phase"),
        )
    ),
    names(async_session, "schema"),
    values(tenant_session, "isolation", (None, 1, []), ValueError, "^isolation is"),
    values(
        manager().create_tenants,
        "tenant_ids",
        ("acme", b"a", None, 7),
        TypeError,
        r"^create_tenants takes several tenants.*for one use create_tenant\(\)",
    ),
    values(
        manager().create_tenants,
        "progress",
        (1, "x"),
        TypeError,
        "^progress is a function or None",
        tenant_ids=["acme"],
    ),
)
def test_a_manager_or_session_is_refused(wrong: Wrong) -> None:
    refuse(wrong)


def enter(method: Any, tenant: Any) -> object:
    with method(tenant) as opened:
        return opened


async def enter_async(method: Any, tenant: Any) -> object:
    async with method(tenant) as opened:
        return opened


def run(function: Any, *arguments: Any) -> object:
    return asyncio.run(function(*arguments))


class Word(enum.Enum):
    ACME = "acme"


TOO_LONG: list[Any] = [10**56, -(10**55), "x" * 57, "é" * 29]
BAD_TENANTS: list[Any] = [
    "", "\0", "a\0b", "\ud800", True, False, 1.0, b"acme", ["acme"], {}, object(),
    uuid.UUID, Word.ACME, 10**5000, *TOO_LONG,
]  # fmt: skip


@pytest.mark.parametrize("tenant", BAD_TENANTS, ids=range(len(BAD_TENANTS)))
def test_no_tenant_reaches_the_database(tenant: Any) -> None:
    """Who connected would get an OperationalError."""
    is_long = any(tenant is each for each in TOO_LONG)
    isolations: list[Any] = ["role"]
    if not is_long:
        isolations.append("shared")  # whose setting has no limit
    for isolation in isolations:
        sync, async_ = manager(isolation=isolation), async_manager(isolation=isolation)

        calls: list[Callable[[], object]] = [
            partial(TenantSession, tenant=tenant, isolation=isolation),
            partial(sync.create_tenants, ["fine", tenant]),
            partial(run, async_.create_tenants, ["fine", tenant]),
        ]
        for method in ("create_tenant", "delete_tenant"):
            calls.append(partial(getattr(sync, method), tenant))
            calls.append(partial(run, getattr(async_, method), tenant))
        for method in ("new_session", "new_tenant_session", "connect", "begin"):
            calls.append(partial(enter, getattr(sync, method), tenant))
            calls.append(partial(run, enter_async, getattr(async_, method), tenant))
        if not is_long:
            calls.append(partial(enter, sync.admin_session, tenant))
            calls.append(partial(AdminSession, tenant=tenant))
        for call in calls:
            with pytest.raises(InvalidTenant) as raised:
                call()
            assert raised.value.tenant is tenant
            assert len(str(raised.value)) > 20


# --- operations, before anything is sent ---------------------------------------------


def directive(name: str, **valid: Any) -> Callable[..., str]:
    """An operation with arguments that are valid unless given, as a function that
    returns what it would send."""

    def invoke(**arguments: Any) -> str:
        script = StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql",
            opts={"as_sql": True, "output_buffer": script},
        )
        try:
            getattr(Operations(context), name)(**{**valid, **arguments})
        except Exception:
            assert script.getvalue() == ""
            raise
        return script.getvalue()

    invoke.__name__ = name
    return invoke


T: dict[str, Any] = {"table_name": "t"}
P: dict[str, Any] = {"policy_name": "mine", **T}
G: dict[str, Any] = {**T, "privileges": ["SELECT"], "roles": ["app"]}

OP = {
    each.__name__: each
    for each in (
        directive("create_tenancy"),
        directive("drop_tenancy"),
        directive("create_group_role", role="x"),
        directive("drop_group_role", role="x"),
        directive("alter_group_role", role="x", login=False),
        directive("grant_membership", group="x", member="y"),
        directive("revoke_membership", group="x", member="y"),
        directive("replace_tenant_function", schema="x", definition=None),
        directive("create_tenant_role", tenant="acme"),
        directive("drop_tenant_role", tenant="acme"),
        directive("grant_tenant_role", tenant="acme", logins=["app"]),
        directive("revoke_tenant_role", tenant="acme", logins=["app"]),
        directive("alter_table_owner", **T, owner="x"),
        directive("enable_rls", **T),
        directive("disable_rls", **T),
        directive("create_policy", **P),
        directive("alter_policy", **P, using="true"),
        directive("drop_policy", **P),
        directive("grant_privileges", **G),
        directive("revoke_privileges", **G),
    )
}

# its arguments that are names, and those that are lists of names, of what
NAMES = {
    "create_tenancy": "role_prefix tenants_role shared_role admin_role schema",
    "drop_tenancy": "role_prefix tenants_role shared_role admin_role schema",
    "create_group_role": "role member_of",
    "drop_group_role": "role member_of",
    "alter_group_role": "role",
    "grant_membership": "group member granted_by",
    "revoke_membership": "group member granted_by",
    "replace_tenant_function": "schema owner",
    "create_tenant_role": "logins:login role_prefix tenants_role",
    "drop_tenant_role": "role_prefix tenants_role",
    "grant_tenant_role": "logins:login role_prefix tenants_role",
    "revoke_tenant_role": "logins:login role_prefix tenants_role",
    "alter_table_owner": "table_name owner schema existing_owner",
    "enable_rls": "table_name schema",
    "disable_rls": "table_name schema",
    "create_policy": "policy_name=policy table_name schema roles:role",
    "alter_policy": "policy_name=policy table_name schema roles:role",
    "drop_policy": "policy_name=policy table_name schema",
    "grant_privileges": "table_name=table schema roles:role columns:column granted_by",
    "revoke_privileges": "table_name=table schema roles:role columns:column granted_by",
}

FLAGS = {
    "alter_group_role": "undo",
    "grant_membership": "inherit_option",
    "revoke_membership": "undo",
    "grant_tenant_role": "undo",
    "revoke_tenant_role": "undo",
    "drop_tenant_role": "undo",
    "create_group_role": "admin",
    "drop_group_role": "admin",
    "enable_rls": "force",
    "disable_rls": "force",
    "create_policy": "permissive",
    "grant_privileges": "with_grant_option",
    "revoke_privileges": "grant_option_for",
}


def wrong_names() -> Iterable[list[Wrong]]:
    for name, arguments in NAMES.items():
        for argument in arguments.split():
            argument, _, element = argument.partition(":")
            argument, _, what = argument.partition("=")
            yield names(OP[name], argument, element or what, several=bool(element))


PRIVILEGES = (OP["grant_privileges"], OP["revoke_privileges"])


@wrong_calls(
    *wrong_names(),
    *(
        flags(OP[name], flag, "grant option" if "grant_option" in flag else flag)
        for name, flag in FLAGS.items()
    ),
    *(
        values(OP["alter_group_role"], flag, (1, "no"), TypeError, f"{flag} is True or")
        for flag in GROUP_ROLE_ATTRIBUTES
    ),
    values(
        OP["alter_group_role"], "login", (None,), ValueError, "'x': name what to alt"
    ),
    values(
        OP["alter_policy"], "using", (None,), ValueError, "'mine': name what to alter"
    ),
    values(OP["alter_policy"], "roles", ([], ()), ValueError, "'mine': roles is empty"),
    values(
        OP["create_policy"], "roles", ([], ()), ValueError, "'mine': roles is empty"
    ),
    values(
        OP["create_policy"], "command", (None, "ALTER"), ValueError, "is none of ALL"
    ),
    conditions(OP["create_policy"]),
    conditions(OP["alter_policy"]),
    *(
        values(OP[name], "tenant", BAD_TENANTS, InvalidTenant, "tenant")
        for name in OP
        if "tenant_role" in name
    ),
    values(
        OP["replace_tenant_function"], "definition", (1, b"x"), TypeError, "^defini"
    ),
    *(
        group
        for grant in PRIVILEGES
        for group in (
            values(
                grant, "privileges", (None, 1), TypeError, "^privilege: .* is neither"
            ),
            values(
                grant, "privileges", ([], ()), ValueError, "^'t': name privileges and"
            ),
            values(
                grant, "privileges", (["SELECT", None],), TypeError, "^privilege None"
            ),
            values(
                grant,
                "privileges",
                ("SELECT, INSERT",),
                ValueError,
                "is not one of SEL",
            ),
            values(
                grant, "roles", ([], ()), ValueError, "^'t': name privileges and role"
            ),
            values(
                grant,
                "object_type",
                (None, [], "table"),
                ValueError,
                "is not one of TA",
            ),
            values(grant, "table_name", (None,), ValueError, "^name the TABLE"),
        )
    ),
)
def test_an_operation_is_refused(wrong: Wrong) -> None:
    refuse(wrong)


def test_every_operation_was_tried() -> None:
    found = {
        cls.directive for cls in subclasses(ops.TenancyOp) if hasattr(cls, "directive")
    }
    assert found == set(OP) == set(NAMES)
    for invoke in OP.values():
        assert invoke()


def subclasses(cls: type[Any]) -> set[type[Any]]:
    direct = set(cls.__subclasses__())
    return direct.union(*map(subclasses, direct))


@pytest.mark.parametrize(
    ("name", "arguments", "sent"),
    [
        ("alter_policy", {"roles": "tenants"}, " TO tenants "),
        ("grant_privileges", {"columns": "id"}, "GRANT SELECT (id) ON"),
        (
            "grant_privileges",
            {"privileges": "select", "roles": "x"},
            "SELECT ON TABLE t TO x",
        ),
        ("create_tenant_role", {"logins": "app"}, "TO app"),
        ("create_policy", {"roles": "tenants"}, " TO tenants"),
    ],
)
def test_one_name_is_a_list_of_one(name: str, arguments: Any, sent: str) -> None:
    """And not a list of its letters."""
    assert sent in OP[name](**arguments)


# --- operations, refused by the database ---------------------------------------------

#: As the owner, in a database with the tables of ``tenancy``: the call, its SQLSTATE,
#: and the message.
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("drop_tenancy", {}, "2BP01", "policy tenant_floor on table"),
    ("create_group_role", {"role": "x", "member_of": "no"}, "42704", 'role "no"'),
    ("alter_group_role", {"role": "no", "login": True}, "42704", 'role "no" does not'),
    ("grant_membership", {"group": "no", "member": "app"}, "42704", 'role "no" does'),
    ("grant_membership", {"group": "app", "member": "no"}, "42704", 'role "no" does'),
    ("revoke_membership", {"group": "no", "member": "app"}, "42704", 'role "no" does'),
    ("replace_tenant_function", {"schema": "no"}, "3F000", 'schema "no" does not'),
    (
        "create_tenant_role",
        {"tenants_role": "no"},
        "42704",
        'role "no" does not exist',
    ),
    ("create_tenant_role", {"logins": ["app", "no"]}, "42704", 'role "no" does not'),
    ("enable_rls", {"table_name": "no"}, "42P01", 'relation "no" does not exist'),
    ("enable_rls", {"schema": "no"}, "3F000", 'schema "no" does not exist'),
    ("enable_rls", {"table_name": "tenant_view"}, "42809", "not supported for views"),
    (
        "disable_rls",
        {"table_name": 'notes; DROP TABLE "notes'},
        "42P01",
        'relation "notes; DROP TABLE "notes" does not exist',
    ),
    ("create_policy", {"table_name": "no"}, "42P01", 'relation "no" does not exist'),
    ("create_policy", {"policy_name": "tenant_floor"}, "42710", '"tenant_floor" for'),
    ("create_policy", {"using": "no = 1"}, "42703", 'column "no" does not exist'),
    ("create_policy", {"using": "(true"}, "42601", "syntax error at end of input"),
    ("create_policy", {"using": "true)) --"}, "42601", 'syntax error at or near ")"'),
    ("create_policy", {"using": "1"}, "42804", "must be type boolean, not type int"),
    ("create_policy", {"roles": ["tenants", "no"]}, "42704", 'role "no" does not ex'),
    ("create_policy", {"roles": ["none"]}, "42939", 'role name "none" is reserved'),
    ("alter_policy", {"policy_name": "no"}, "42704", 'policy "no" for table "notes"'),
    ("alter_policy", {"using": "no = 1"}, "42703", 'column "no" does not exist'),
    ("drop_policy", {"policy_name": "no"}, "42704", 'policy "no" for table "notes"'),
    ("grant_privileges", {"table_name": "no"}, "42P01", 'relation "no" does not ex'),
    ("grant_privileges", {"roles": ["app", "no"]}, "42704", 'role "no" does not exi'),
    (
        "grant_privileges",
        {"columns": ["no"]},
        "42703",
        'column "no" of relation "notes"',
    ),
    ("grant_privileges", {"privileges": "EXECUTE"}, "0LP01", "EXECUTE for relation"),
    ("grant_privileges", {"granted_by": "no"}, "22023", 'role "no" does not exist'),
    (
        "grant_privileges",
        {"table_name": "no", "object_type": "SCHEMA", "privileges": "USAGE"},
        "3F000",
        'schema "no" does not exist',
    ),
    (
        "grant_privileges",
        {"object_type": "SEQUENCE", "privileges": "USAGE", "columns": ["no"]},
        "42703",
        'column "no" of relation "notes" does not exist',
    ),
    ("revoke_privileges", {"roles": ["no"]}, "42704", 'role "no" does not exist'),
]

#: As a login that may nothing.
DENIED = {
    "create_tenancy": "permission denied for",
    "create_tenant_role": "permission denied",
    "enable_rls": "must be owner of table notes",
    "create_policy": "must be owner of table notes",
    "alter_policy": "must be owner of table notes",
    "grant_privileges": "permission denied for table notes",
}

VALID: dict[str, dict[str, Any]] = {
    "replace_tenant_function": {"definition": None},
    "create_tenant_role": {"tenant": "acme"},
    "enable_rls": {"table_name": "notes"},
    "create_policy": {"policy_name": "p", "table_name": "notes", "using": "true"},
    "alter_policy": {
        "policy_name": "tenant_floor",
        "table_name": "notes",
        "using": "true",
    },
    "drop_policy": {"table_name": "notes"},
    "grant_privileges": {
        "table_name": "notes",
        "privileges": ["SELECT"],
        "roles": ["app"],
    },
    "revoke_privileges": {"table_name": "notes", "privileges": ["SELECT"]},
}


def test_an_operation_that_the_database_refuses_leaves_nothing(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    """In a transaction, as migrations are: here, in one for each."""
    migrated.execute("CREATE VIEW tenant_view AS TABLE notes", login="owner")
    before = snapshot(migrated)
    calls: list[tuple[str, str, dict[str, Any], str, str]] = [
        *(("app", name, {}, "42501", message) for name, message in DENIED.items()),
        *(("owner", *refused) for refused in REFUSED),
    ]
    engines = {login: make_engine(migrated.url(login)) for login in ("app", "owner")}
    for login, name, arguments, state, message in calls:
        with engines[login].connect() as connection:
            op = Operations(MigrationContext.configure(connection))
            with pytest.raises(DBAPIError, match=re.escape(message)) as raised:
                getattr(op, name)(**{**VALID.get(name, {}), **arguments})
            assert sqlstate(raised.value) == state, (name, arguments)
            connection.rollback()
    assert snapshot(migrated) == before


# --- managers and sessions, refused by the database ----------------------------------


def test_a_manager_that_the_database_refuses_leaves_nothing(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    app, admin = make_engine(migrated.app_url), make_engine(migrated.admin_url)
    full = PostgresManager.from_engine(app, "public", admin_engine=admin)
    full.create_tenant("acme")
    alone = PostgresManager.from_engine(app, "public")
    before = snapshot(migrated)

    with pytest.raises(ScopeError, match="may not drop role 'tenant_acme'") as raised:
        alone.delete_tenant("acme")
    assert raised.value.tenant == "acme"
    for create in (alone.create_tenant, partial(enter, alone.new_session)):
        with pytest.raises(ScopeError, match="pass admin_engine=") as raised:
            create("globex")
        assert raised.value.tenant == "globex"
    if requested_version() < 16:
        migrated.execute("ALTER ROLE app INHERIT")
        with pytest.raises(DBAPIError, match="login app inherits the privileges"):
            full.create_tenant("globex")
        migrated.execute("ALTER ROLE app NOINHERIT")
    assert snapshot(migrated) == before


def test_engines_and_connections_that_are_closed(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(migrated.superuser_url)
    opened = PostgresManager.from_engine(engine, "public")
    opened.create_tenant("acme")
    engine.dispose()
    with opened.new_session("acme") as session:
        assert session.scalars(select(Note)).all() == []
    with engine.connect() as connection:
        pass
    for closed in (
        TenantSession(connection, tenant="acme"),
        AdminSession(connection),
    ):
        with pytest.raises(ResourceClosedError, match="Connection is closed"):
            closed.connection()
    with AdminSession(SQLITE) as other, pytest.raises(ScopeError, match="'sqlite'"):
        other.connection()


def test_a_schema_that_does_not_exist(
    migrated: Database, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(migrated.superuser_url)
    for schema in ("nowhere", 'public", "tenancy', "public, tenancy", "PUBLIC"):
        opened = PostgresManager.from_engine(engine, schema)
        with opened.new_session("acme") as session:
            with pytest.raises(DBAPIError, match='"notes" does not exist') as raised:
                session.scalars(select(Note)).all()
            assert sqlstate(raised.value) == "42P01"


# --- identifiers of tenants ----------------------------------------------------------

fuzzed = settings(
    max_examples=int(os.environ.get("TENANTS_EXAMPLES", "10")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PIECES = [
    *("'", '"', "\\", "%", "%s", "%(x)s", ":x", "{}", "\n", "\r", "\t", ".", " ", ";"),
    *(
        "--",
        "/*",
        "$$",
        "$tenancy$",
        "pg_",
        "tenant_",
        "none",
        "public",
        "NULL",
        "\x7f",
    ),
    *("0", "1", "A", "a", "ß", "SS", "İ", "i", "é", "e\u0301", "\u200b", "\ufeff"),
    *("\x01", "\x85", "\u2028", "\U0001f600", "\U0010ffff"),
]

texts = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join),
    st.text(min_size=1, max_size=20),
    # about as long as there may be
    st.integers(min_value=54, max_value=58).map(lambda size: "x" * size),
    st.integers(min_value=13, max_value=15).map(lambda size: "\U0001f600" * size),
)
identifiers = st.one_of(
    texts,
    texts.map(lambda value: unicodedata.normalize("NFD", value)),
    st.integers(),
    st.sampled_from([0, -1, 2**63, -(2**63) - 1, 10**55, 10**56, -(10**55)]),
    st.uuids(),
    st.sampled_from(["", "\0", "a\0", "\ud800", "a\udfff", True, 1.0, None, b"a"]),
)


def is_identifier(value: object, isolation: str) -> bool:
    """What the documentation says."""
    if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
        return False
    name = str(value)
    if not name or "\0" in name or any("\ud800" <= each <= "\udfff" for each in name):
        return False
    return isolation == "shared" or len(name.encode()) <= 56


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@on_each_driver
def test_identifiers_come_back_as_they_were(world: World) -> None:
    """Whatever is accepted is a tenant of its own; whatever is refused is refused
    before anything is sent."""
    engine = world.engine()
    admin = world.engine("manager")
    opened = world.manager(engine, admin_engine=admin)
    sent = statements(engine), statements(admin)
    made: set[str] = set()

    @fuzzed
    @given(st.lists(identifiers, min_size=2, max_size=4, unique_by=repr))
    @example(["é", "e\u0301", "E\u0301"])
    @example([7, "7", "07", -7])
    @example(["a", "A", "a ", "tenant_a", "pg_a"])
    def round_trip(values: list[Any]) -> None:
        good: dict[str, Any] = {}
        for value in values:
            if is_identifier(value, world.isolation):
                good.setdefault(str(value), value)
                continue
            for each in sent:
                each.clear()
            enters = partial(enter, opened.new_session)
            for call in (opened.create_tenant, opened.delete_tenant, enters):
                with pytest.raises(InvalidTenant):
                    call(value)
            assert sent == ([], [])
        for name, value in good.items():
            if world.isolation == "role":
                opened.create_tenant(value)
            with opened.new_session(value, create_if_missing=False) as session:
                session.add(Note(body=name))
                session.commit()
        if world.isolation == "role":
            assert sorted(opened.list_tenants()) == sorted(good)
        for name, value in good.items():
            with opened.new_session(value, create_if_missing=False) as session:
                rows = session.execute(select(Note.tenant, Note.body)).all()
                assert rows == [(name, name)]
                assert session.scalar(text("SELECT tenancy.current_tenant()")) == name
                session.execute(text("DELETE FROM notes"))
                session.commit()
            opened.delete_tenant(value)
        made.update(good)
        if world.isolation == "role":
            assert opened.list_tenants() == []
            for value in good.values():
                with pytest.raises(TenantNotFound):
                    opened.delete_tenant(value)
        with opened.admin_session() as session:
            assert session.scalars(select(Note)).all() == []

    round_trip()
    assert len(made) > 5
