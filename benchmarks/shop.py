"""A million orders of a thousand tenants, in a database for each way to isolate them.

All databases are copies of one, files and statistics alike, on one server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from database import create_roles, tenant_name
from measure import say
from peers import OURS, Program, prepare

from servers import CREATE_LOGINS, Database, Server
from sqlalchemy_tenants import Tenancy
from sqlalchemy_tenants.scope import tenant_scope

TENANTS = 1_000
ORDERS = 1_000_000
CUSTOMERS = ORDERS // 10

#: The tenants that are measured, by their rank: sizes follow Zipf's law, so that these
#: have about 134,000, 4,500 and 130 orders.
SIZES = {"large": 1, "middle": 30, "small": 1_000}

#: Names of its own, because roles belong to the server, and sqlalchemy-tenants 0.2.0
#: calls its own "tenant_...".
TENANCY = Tenancy.named("shop")

SETTINGS = {"autovacuum": "off", "shared_buffers": "1GB"}

# A tenant's orders lie all over the table, as they do where all write at the same time,
# and so do its customers.
FILL = f"""
SELECT setseed(0.5);
CREATE TEMPORARY TABLE shares AS
SELECT *, sum(customers) OVER (ORDER BY tenant) - customers + 1 AS first_customer
FROM (
  SELECT tenant,
    ceil({CUSTOMERS} / tenant / sum(1.0 / tenant) OVER ())::integer AS customers,
    (sum(1.0 / tenant) OVER (ORDER BY tenant) / sum(1.0 / tenant) OVER ())::float8
      AS share
  FROM generate_series(1, {TENANTS}::numeric) tenant
) AS tenants;
ANALYZE shares;
INSERT INTO customers (id, tenant, region) OVERRIDING SYSTEM VALUE
SELECT first_customer + n, 't' || tenant, n % 20
FROM shares, generate_series(0, customers - 1) n ORDER BY random();
WITH
  limits AS MATERIALIZED (
    SELECT array_agg(share ORDER BY tenant) AS shares FROM shares
  ),
  numbers AS MATERIALIZED (
    SELECT n, width_bucket(random(), limits.shares) + 1 AS tenant
    FROM limits, generate_series(1, {ORDERS}) n
  )
INSERT INTO orders (tenant, customer, placed, amount, body)
SELECT 't' || tenant, first_customer + floor(random() * customers), n,
  floor(random() * 1000000), repeat('x', 20 + floor(random() * 40)::integer)
FROM numbers JOIN shares USING (tenant) ORDER BY n;
SELECT setval(pg_get_serial_sequence('orders', 'id'), {ORDERS});
"""


@dataclass(frozen=True)
class Way:
    """How the orders of a tenant are selected.

    :param login: what it connects as.
    :param scope: the statements that confine a transaction to a tenant.
    :param database: whose copy it queries.
    :param condition: whether queries have a ``WHERE tenant = ...`` of their own.
    """

    login: str
    scope: Callable[[str], Sequence[str]]
    database: str
    condition: bool = False


def _role(tenant: str) -> Sequence[str]:
    return tenant_scope(tenant, "role", TENANCY, "public").statements()


def _shared(tenant: str) -> Sequence[str]:
    return tenant_scope(tenant, "shared", TENANCY, "public").statements()


def _earlier(tenant: str) -> Sequence[str]:
    return [f"SET SESSION ROLE tenant_{tenant}"]


def _rls(tenant: str) -> Sequence[str]:
    return [
        "SELECT set_config('rls.bypass_rls', 'false', false),"
        f" set_config('rls.tenant', '{tenant}', false)"
    ]


#: The baseline, and ours with the condition of sessions with ``tenant_criteria``.
PLAIN, CONDITION = "WHERE by hand", "shared and a condition"

#: By the name that the tables have.
WAYS = {
    PLAIN: Way("owner", lambda tenant: [], "plain", condition=True),
    "role": Way("app", _role, "ours"),
    "shared": Way("app_shared", _shared, "ours"),
    "sqlalchemy-tenants 0.2.0": Way("owner", _earlier, "earlier"),
    "rls 0.3.2": Way("app", _rls, "rls"),
}

#: The second is the policy that was not chosen: it calls the function for each row, and
#: keeps the plan of the first tenant.
FORMS = {
    CONDITION: Way("app_shared", _shared, "ours", condition=True),
    "bare function": Way("app_shared", _shared, "bare"),
}

# Instead of a subselect, which is evaluated once, before the rest.
BARE = f"""
DO $$
DECLARE
  policy record;
  condition text;
BEGIN
  FOR policy IN
    SELECT * FROM pg_policies WHERE roles = '{{{TENANCY.tenants_role}}}'
  LOOP
    condition := replace(policy.qual,
      '( SELECT {TENANCY.schema}.current_tenant() AS current_tenant)',
      '{TENANCY.schema}.current_tenant()');
    ASSERT condition <> policy.qual, policy.qual;
    EXECUTE format('ALTER POLICY %I ON %I USING (%s) WITH CHECK (%s)',
      policy.policyname, policy.tablename, condition, condition);
  END LOOP;
END $$
"""


@contextmanager
def shop(version: int) -> Iterator[Mapping[str, Database]]:
    """A server with the databases of ``WAYS`` and ``FORMS``, by their names."""
    prepare("earlier", "rls")
    with Server(version, SETTINGS) as server:
        with server.connect() as connection:
            connection.execute(CREATE_LOGINS)
            connection.execute("CREATE DATABASE plain OWNER owner")
        plain = Database("plain", server)
        with Program(OURS, "isolate.py", "ours") as program:
            program.call("create", url=plain.owner_url)
        plain.execute(FILL)
        plain.execute("VACUUM (FREEZE, ANALYZE)")
        say(f"PostgreSQL {version}, {ORDERS:,} orders")
        found = {"plain": plain}
        for name in ("ours", "earlier", "rls"):
            found[name] = _copy(plain, name)
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(
                _isolate, found["earlier"], "earlier"
            )  # takes longest
            _isolate(found["ours"], "ours")
            create_roles(found["ours"], 1, TENANTS, TENANCY)
            _isolate(found["rls"], "rls")
            waiting.result()
        found["ours"].execute(f"GRANT {TENANCY.shared_role} TO app_shared")
        found["rls"].execute("GRANT ALL ON orders, customers TO app")
        found["bare"] = _copy(found["ours"], "bare")
        found["bare"].execute(BARE)
        yield found


def _copy(database: Database, name: str) -> Database:
    with database.server.connect() as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {database.name} OWNER owner"
            " STRATEGY FILE_COPY"
        )
    return Database(name, database.server)


def _isolate(database: Database, peer: str) -> None:
    with Program(peer, "isolate.py", peer) as program:
        program.call(
            "isolate",
            url=database.owner_url,
            tenants=[tenant_name(number) for number in range(1, TENANTS + 1)],
        )
    say(f"row-level security: {peer}")
