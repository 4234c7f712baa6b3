"""Bring MLflow's database and its users' database to this version's schema, or wait until they are.

python schema.py upgrade     the migrations Job; safe to repeat
python schema.py wait        an init container of the server: ends once the Job is through

Reads MLFLOW_BACKEND_STORE_URI and, for the users, `database_uri` of the file that
MLFLOW_AUTH_CONFIG_PATH names.
"""

from __future__ import annotations

import configparser
import os
import sys
import time
from pathlib import Path

import mlflow.server.auth.db
import mlflow.store.db_migrations
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

TRACKING = (Path(mlflow.store.db_migrations.__file__).parent, "alembic_version")
USERS = (Path(mlflow.server.auth.db.__file__).parent / "migrations", "alembic_version_auth")
WAIT_S = 600


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def current(uri: str, migrations: tuple[Path, str]) -> bool:
    """Whether the database at ``uri`` is at the newest revision this MLflow knows."""
    folder, table = migrations
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": table})
            return context.get_current_heads() == tuple(ScriptDirectory(str(folder)).get_heads())
    finally:
        engine.dispose()


def wait(databases: list[tuple[str, tuple[Path, str]]]) -> int:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            if all(current(*database) for database in databases):
                return 0
        except sqlalchemy.exc.OperationalError:
            say("no database answers yet")
        time.sleep(3)
    say(f"the schema is not there after {WAIT_S} s: did the migrations Job fail?")
    return 1


def upgrade(tracking: str, users: str) -> int:
    import mlflow.server.auth.db.utils
    import mlflow.store.db.utils

    # on an empty database this makes all tables, on an older one it migrates them
    engine = sqlalchemy.create_engine(tracking)
    mlflow.store.db.utils._safe_initialize_tables(engine)
    mlflow.store.db.utils._upgrade_db(engine)
    mlflow.server.auth.db.utils.migrate_if_needed(sqlalchemy.create_engine(users), "head")
    say("both databases are at this version's schema")
    return 0


def main(verb: str) -> int:
    tracking = os.environ["MLFLOW_BACKEND_STORE_URI"]
    auth = configparser.ConfigParser()
    auth.read_string(Path(os.environ["MLFLOW_AUTH_CONFIG_PATH"]).read_text(encoding="utf-8"))
    users = auth["mlflow"]["database_uri"]
    if verb == "upgrade":
        return upgrade(tracking, users)
    return wait([(tracking, TRACKING), (users, USERS)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
