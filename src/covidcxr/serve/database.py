"""The database of a store: its tables, and how it is opened."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from covidcxr import aliases
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text, user_path

__getattr__ = partial(aliases.find, __name__)

__all__ = ["FILE", "SCHEMA_VERSION", "images", "masks", "open_store", "settings", "verdicts"]

FILE = "store.sqlite"
"""The database in the folder of a store."""

SCHEMA_VERSION = 1

metadata = MetaData()


settings = Table(
    "settings",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", String(200), nullable=False),
)


images = Table(
    "films",
    metadata,
    Column("id", String(22), primary_key=True),
    Column("name", Text, nullable=False),  # as the client called it: shown, never a path
    Column("uploaded", String(40), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),  # of its pictures
    Column("image", LargeBinary, nullable=False),
    Column("thumbnail", LargeBinary, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("identifiers", JSON, nullable=False),  # empty unless the server was told to keep them
    Column("answer", JSON, nullable=False),
    Column("prior", JSON, nullable=True),
    Index("films_by_time", "uploaded"),
)


masks = Table(
    "masks",
    metadata,
    Column("film", ForeignKey("films.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("corrected", Boolean, primary_key=True),  # else predicted by the model
    Column("image", LargeBinary, nullable=False),
    Column("saved", String(40), nullable=False),
)


verdicts = Table(
    "verdicts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("film", ForeignKey("films.id", ondelete="CASCADE"), nullable=False),
    Column("label", String(200), nullable=True),
    Column("comment", Text, nullable=False),
    Column("consent", Boolean, nullable=False),
    Column("saved", String(40), nullable=False),
    Column("classes", JSON, nullable=False),  # the choices that the reader had
    Column("model", Text, nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("answer", JSON, nullable=False),  # what the reader saw
    Index("verdicts_by_film", "film"),
)


def open_store(where: str | Path) -> Engine:
    """Open the database of a store with its tables, made if need be.

    Args:
        where: A folder, or a URL such as postgresql+psycopg://USER@HOST/NAME.

    Returns:
        The engine of SQLAlchemy.

    Raises:
        ConfigError: If the database cannot be opened, or was made by a newer covidcxr.
        OSError: If the folder cannot be made.
    """
    engine = _open_database(where)
    try:
        metadata.create_all(engine)
        with engine.begin() as connection:
            version = connection.execute(select(settings.c.value).where(settings.c.name == "schema")).scalar()
            if version is None:
                connection.execute(insert(settings), {"name": "schema", "value": str(SCHEMA_VERSION)})
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split()).rstrip(".?")
        raise ConfigError(f"The store cannot be opened: {reason}. Check its path or URL.") from error
    if version is not None and int(version) > SCHEMA_VERSION:
        raise ConfigError("The store was made by a newer covidcxr. Upgrade with: pip install --upgrade covidcxr")
    return engine


def _open_database(where: str | Path) -> Engine:
    if "://" in str(where):
        try:
            return create_engine(make_url(str(where)), pool_pre_ping=True, json_serializer=json_text)
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(f"The store is no database URL that SQLAlchemy knows: {error}.") from error
        except ModuleNotFoundError as error:
            raise ConfigError(f"The store's database needs {error.name}: pip install {error.name}") from error
    folder = user_path(where)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients are nobody else's
    engine = create_engine(f"sqlite:///{folder / FILE}", connect_args={"timeout": 30}, json_serializer=json_text)
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """What is committed is on the disk (FULL), and what is deleted is overwritten."""
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")
