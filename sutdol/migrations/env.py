"""Alembic's entry: runs inside the connection that `Database.migrate` hands over, in one transaction."""

from alembic import context
from sqlmodel import SQLModel

from sutdol import tables  # noqa: F401  (fills the metadata)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
