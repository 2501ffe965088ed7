"""The database: what is there, what must be there, and what is wrong with it.

Only ``check()`` and Alembic load this package.
"""
