"""Replacing a note of a study only if it is what it was thought to be: of several that try at once, one succeeds."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy.promptune.storage.backend import relational

__all__ = ["swap"]

_alone = threading.Lock()


def swap(
    storage: Any, study_id: int, name: str, *, allowed: Callable[[Any], bool], note: Any, file: Path | None = None
) -> bool:
    """Write a system attribute of a study if the one that is there is ``allowed`` to be replaced, in one step.

    Args:
        storage: Any Optuna storage.
        study_id: Of the study.
        name: Of the attribute.
        allowed: Asked with the attribute as it is, ``None`` if there is none.
        note: What is written.
        file: The storage's file, if it is a journal.

    Returns:
        Whether it was written.
    """
    rdb = relational(storage)
    if rdb is not None:
        return _swap_row(rdb, study_id, name, allowed, note)
    from dspy.promptune.storage.journal import file_lock

    with _alone, contextlib.nullcontext() if file is None else file_lock(file):
        if not allowed(storage.get_study_system_attrs(study_id).get(name)):
            return False
        storage.set_study_system_attr(study_id, name, note)
        return True


def _swap_row(rdb: Any, study_id: int, name: str, allowed: Callable[[Any], bool], note: Any) -> bool:
    """The same in one transaction, which begins by locking the study's row (of SQLite, the file)."""
    import sqlalchemy
    from optuna.storages._rdb.models import StudyModel, StudySystemAttributeModel

    table: Any = StudySystemAttributeModel.__table__
    here = (table.c.study_id == study_id) & (table.c.key == name)
    with rdb.engine.connect() as connection:
        if rdb.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            locked = sqlalchemy.select(StudyModel.study_id).where(StudyModel.study_id == study_id).with_for_update()
            connection.execute(locked)
        found = connection.execute(sqlalchemy.select(table.c.value_json).where(here)).scalar()
        if not allowed(None if found is None else json.loads(found)):
            connection.rollback()
            return False
        row = {"study_id": study_id, "key": name, "value_json": json.dumps(note)}
        write = sqlalchemy.insert(table) if found is None else sqlalchemy.update(table).where(here)
        connection.execute(write.values(**row))
        connection.commit()
        return True
