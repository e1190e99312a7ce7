"""Names that can be called as `model`: tuned models, their checkpoints, and bases that were given a name."""

from __future__ import annotations

import re

from luthier.jobs.core import Core, as_record, owned, storable
from luthier.jobs.errors import Conflict
from luthier.jobs.records import ALL_OWNERS, JobRecord, ModelRecord

__all__ = ["ModelStore", "checkpoint_name", "tuned_name"]

_OWN = "(owner = :owner OR owner = '*' OR :owner = '*')"


class ModelStore(Core):
    """Put, look up, list, delete."""

    def put_model(self, record: ModelRecord) -> ModelRecord:
        """Keep a model; the same name of the same owner is replaced. Owner `*`: everyone sees it.

        Raises:
            Conflict: J122 the name is another owner's.
        """
        with self.database.writing() as connection:
            row = connection.execute("SELECT owner FROM models WHERE name = ?", (record.name,)).fetchone()
            if row is not None and row["owner"] != record.owner:
                raise Conflict(code="J122", message=f"there is a model `{record.name}` of another owner")
            connection.execute(
                "INSERT INTO models (name, owner, created, kind, base, path, job_id, parent)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET created = excluded.created,"
                " kind = excluded.kind, base = excluded.base, path = excluded.path, job_id = excluded.job_id,"
                " parent = excluded.parent, deleted_at = NULL",
                (
                    record.name, record.owner, record.created, record.kind, record.base, record.path, record.job_id,
                    record.parent,
                ),
            )  # fmt: skip
        return record

    def model(self, name: str, owner: str = ALL_OWNERS) -> ModelRecord:
        """One model.

        Raises:
            NotFound: J102.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                f"SELECT * FROM models WHERE name = :name AND deleted_at IS NULL AND {_OWN}",
                {"name": storable(name), "owner": owner},
            ).fetchone()
            return as_record(ModelRecord, owned(row, ALL_OWNERS, "model", name, param="model"))

    def models(self, owner: str) -> list[ModelRecord]:
        """All an owner may call, oldest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM models WHERE deleted_at IS NULL AND {_OWN} ORDER BY seq", {"owner": owner}
            ).fetchall()
        return [as_record(ModelRecord, row) for row in rows]

    def delete_model(self, name: str, owner: str) -> ModelRecord:
        """Forget a model, with its checkpoints' names; the run folder stays.

        Raises:
            NotFound: J102, also for a model that everyone sees, unless the asker is `*`.
            Conflict: J123 a job that has not ended starts from it.
        """
        with self.database.writing() as connection:
            row = connection.execute(
                "SELECT * FROM models WHERE name = ? AND deleted_at IS NULL", (storable(name),)
            ).fetchone()
            row = owned(row, owner, "model", name, param="model")
            job = connection.execute(
                "SELECT id, status FROM jobs WHERE model = ? AND finished_at IS NULL LIMIT 1", (name,)
            ).fetchone()
            if job is not None:
                message = f"job {job['id']}, which is {job['status']}, starts from model `{name}`"
                raise Conflict(code="J123", message=message, hint="cancel the job, or wait for its end")
            connection.execute(
                "UPDATE models SET deleted_at = :now WHERE deleted_at IS NULL"
                " AND (name = :name OR (kind = 'checkpoint' AND parent = :name))",
                {"now": self.now(), "name": name},
            )
            return as_record(ModelRecord, row)


def tuned_name(job: JobRecord, organization: str = "luthier") -> str:
    """`ft:BASE:ORG:SUFFIX:ID`, as the hosted service calls its models. ID is the last 8 digits of the job's id."""
    base = job.model.split(":")[1] if job.model.startswith("ft:") else job.model
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", base.rstrip("/").rpartition("/")[2]).strip("-") or "model"
    return f"ft:{base}:{organization}:{job.suffix or ''}:{job.id[-8:]}"


def checkpoint_name(model: str, step: int) -> str:
    """`MODEL:ckpt-step-N`."""
    return f"{model}:ckpt-step-{step}"
