"""The Alembic plugin of sqlalchemy-tenants; Alembic finds it by its entry point."""

# Alembic loads .plugin halfway through its own import. Whoever imports a module of
# this package first has to start there, or would find that module half loaded.
import alembic as alembic
