"""Runs the migrations on the connection that `open_store` hands over. Knows no addresses and no configuration."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=None, transactional_ddl=False)
context.run_migrations()
