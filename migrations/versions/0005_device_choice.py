"""Which devices a run wants: by UUID, or of a kind.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE runs ADD COLUMN device_uuids text[], ADD COLUMN device_like text")


def downgrade() -> None:
    op.execute("ALTER TABLE runs DROP COLUMN device_uuids, DROP COLUMN device_like")
