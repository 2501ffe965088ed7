"""alembic_utils 0.8.8, as its documentation has it: a policy is an entity."""

from __future__ import annotations

from typing import Any

from alembic_utils.pg_policy import PGPolicy
from alembic_utils.replaceable_entity import register_entities, registry
from sqlalchemy import Connection
from tables import Base, create_models

_TENANT = "current_setting('app.tenant', true)"


def options(count: int) -> dict[str, Any]:
    entities = [
        PGPolicy(
            schema="public",
            signature="tenant",
            on_entity=f"public.{model.__tablename__}",
            definition=f"""
                AS PERMISSIVE FOR ALL TO PUBLIC
                USING (tenant = {_TENANT}) WITH CHECK (tenant = {_TENANT})
            """,
        )
        for model in create_models(count)
    ]
    register_entities(entities, entity_types=[PGPolicy])
    return {"target_metadata": Base.metadata}


def create(connection: Connection) -> None:
    # autogenerate tries each policy out among all others: minutes for 100
    for entity in registry.entities():
        connection.execute(entity.to_sql_statement_create())
