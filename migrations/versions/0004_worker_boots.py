"""Every boot that a worker ever had, so that one that was superseded can't come back.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE worker_boots (
            worker_id     uuid NOT NULL CONSTRAINT fk_worker_boots_worker_id_workers REFERENCES workers (id),
            boot_id       uuid NOT NULL,
            registered_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_worker_boots PRIMARY KEY (worker_id, boot_id)
        )
    """)
    op.execute("INSERT INTO worker_boots (worker_id, boot_id) SELECT id, boot_id FROM workers")


def downgrade() -> None:
    op.execute("DROP TABLE worker_boots")
