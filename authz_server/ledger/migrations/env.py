"""What alembic runs: the steps of `versions`, on the connection that `ledger.migrate` gives it."""

from alembic import context

from authz_server.ledger.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
