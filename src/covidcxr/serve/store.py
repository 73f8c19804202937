"""Images and what readers said of them, in one database: a picture and its row come and go together."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    delete,
    event,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.sql.elements import ColumnElement

from covidcxr import aliases
from covidcxr.errors import ConfigError, RequestError
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import json_text, user_path

if TYPE_CHECKING:
    from covidcxr.serve.engine import DecodedImage

__getattr__ = partial(aliases.find, __name__)

__all__ = ["FILE", "SCHEMA_VERSION", "images", "masks", "settings", "verdicts", "Row", "Store"]

FILE = "store.sqlite"
"""The database in the folder of a store."""

SCHEMA_VERSION = 1

metadata = MetaData()


settings = Table(
    "settings", metadata, Column("name", String(40), primary_key=True), Column("value", String(200), nullable=False)
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


def _open_store(where: str | Path) -> Engine:
    """Open the database of a store with its tables, made if need be."""
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


_REMEMBERED = 1000
"""Changes that `Store.changes` can tell apart."""

Row = dict[str, Any]

_SHOWN = [column for column in images.c if column.name not in ("image", "thumbnail")]

_PICTURES = {"image": images.c.image, "thumbnail": images.c.thumbnail}


class Store:
    """Keeps images, masks and verdicts. Whatever returns has been written to the disk.

    Args:
        where: Folder of an embedded SQLite database, or a database's URL.
        most_images: Images kept; the oldest without a verdict or a corrected mask goes first.
        most_bytes: Size of their pictures together.

    Raises:
        ConfigError: If the database cannot be opened, or was made by a newer covidcxr.
        OSError: If the folder cannot be made.

    Example:
        ```python
        from covidcxr.serve import Store

        store = Store("store")
        assert store.rows() == []
        store.close()
        ```
    """

    @old_arguments(most_films="most_images")
    def __init__(self, where: str | Path, *, most_images: int = 2000, most_bytes: int = 4_000_000_000) -> None:
        self._most_images, self._most_bytes = most_images, most_bytes
        self.engine = _open_store(where)
        self._started = secrets.token_hex(4)
        self._revision = 0
        self._changed: deque[str] = deque(maxlen=_REMEMBERED)  # ids of images, the latest change last
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the database go."""
        self.engine.dispose()

    @contextmanager
    def _write(self, image_id: str) -> Iterator[Connection]:
        """Open a transaction that changes an image; `changes` tells of it when it is on the disk."""
        with self.engine.begin() as connection:
            yield connection
        self._note(image_id)

    def _note(self, image_id: str) -> None:
        with self._lock:
            self._revision += 1
            self._changed.append(image_id)

    def changes(self, since: str | None) -> tuple[str, set[str] | None]:
        """Return which images changed, came or went since an earlier call, by this store's own writing.

        Args:
            since: The revision that the earlier call returned; None = never.

        Returns:
            The revision of now, and the ids of the images; None in their place = any image may have changed.
        """
        with self._lock:
            now = f"{self._started}.{self._revision}"
            started, _, number = (since or "").partition(".")
            if started != self._started or not number.isdecimal():
                return now, None
            count = self._revision - int(number)
            known = 0 <= count <= len(self._changed)
            return now, set(list(self._changed)[len(self._changed) - count :]) if known else None

    def add(self, name: str, image: DecodedImage, answer: Row, predicted: Mapping[str, bytes]) -> Row:
        """Keep an image; makes room first.

        Args:
            name: As the client called it.
            image: The image.
            answer: What the model says of it, as `to_answer` returns it.
            predicted: Masks that the model predicted, as PNG, by mask class.

        Returns:
            Its row.

        Raises:
            RequestError: If the store is full of images with feedback.
        """
        size = len(image.png) + len(image.thumbnail) + sum(map(len, predicted.values()))
        row = {
            "id": secrets.token_urlsafe(16),
            "name": name,
            "uploaded": _now(),
            "sha256": image.sha256,
            "height": image.pixels.shape[0],
            "width": image.pixels.shape[1],
            "bytes": size,
            "image": image.png,
            "thumbnail": image.thumbnail,
            "notes": list(image.notes),
            "identifiers": image.identifiers,
            "answer": answer,
        }
        with self._write(row["id"]) as connection:
            removed = self._make_room(connection, size)
            connection.execute(insert(images), row)
            _insert_masks(connection, row["id"], predicted, corrected=False)
            added = _read(connection, row["id"])
        for image_id in removed:
            self._note(image_id)
        return added

    def row(self, image_id: str) -> Row:
        """Return what is kept of an image, but for its pictures.

        Args:
            image_id: The image.

        Returns:
            Its row, with its latest verdict and the names of its corrected masks.

        Raises:
            RequestError: If there is no such image.
        """
        with self.engine.connect() as connection:
            return _read(connection, image_id)

    def rows(self) -> list[Row]:
        """Return the rows of all images, newest first."""
        with self.engine.connect() as connection:
            rows = [
                dict(row) for row in connection.execute(select(*_SHOWN).order_by(images.c.uploaded.desc())).mappings()
            ]
            corrected: dict[str, list[str]] = {}
            for image_id, name in connection.execute(select(masks.c.film, masks.c.name).where(masks.c.corrected)):
                corrected.setdefault(image_id, []).append(name)
            latest = {row["film"]: dict(row) for row in connection.execute(_latest()).mappings()}
        return [row | {"corrected": corrected.get(row["id"], []), "verdict": latest.get(row["id"])} for row in rows]

    film, films = row, rows  # their names in 0.1.0

    def count(self) -> int:
        """Return the number of images."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(images)).scalar_one()

    def picture(self, image_id: str, name: str) -> bytes:
        """Return a picture of an image.

        Args:
            image_id: The image.
            name: "image", or "thumbnail".

        Returns:
            A PNG.

        Raises:
            RequestError: If there is no such image.
        """
        return self._bytes(select(_PICTURES[name]).where(images.c.id == image_id), "There is no such image.")

    def mask(self, image_id: str, name: str) -> bytes:
        """Return a mask: the corrected one, else the predicted one.

        Args:
            image_id: The image.
            name: The mask class.

        Returns:
            A PNG of 0 and 255.

        Raises:
            RequestError: If there is no such mask.
        """
        query = select(masks.c.image).where(masks.c.film == image_id, masks.c.name == name)
        return self._bytes(query.order_by(masks.c.corrected.desc()), "This image has no such mask.")

    def corrected(self, image_id: str) -> dict[str, bytes]:
        """Return the corrected masks of an image.

        Args:
            image_id: The image.

        Returns:
            PNGs of 0 and 255 by mask class.
        """
        query = select(masks.c.name, masks.c.image).where(masks.c.film == image_id, masks.c.corrected)
        with self.engine.connect() as connection:
            return {row.name: bytes(row.image) for row in connection.execute(query)}

    def revise(
        self, image_id: str, answer: Row, predicted: Mapping[str, bytes], corrected: Mapping[str, bytes] | None = None
    ) -> Row:
        """Keep another answer of an image.

        Args:
            image_id: The image.
            answer: What the model says of it now.
            predicted: Masks that the model predicted, as PNG, by mask class.
            corrected: All masks that a reader corrected, likewise; None leaves them as they are.

        Returns:
            Its row.

        Raises:
            RequestError: If there is no such image.
        """
        with self._write(image_id) as connection:
            self._change(connection, image_id, answer=answer)
            connection.execute(delete(masks).where(masks.c.film == image_id, masks.c.corrected.is_(False)))
            _insert_masks(connection, image_id, predicted, corrected=False)
            if corrected is not None:
                connection.execute(delete(masks).where(masks.c.film == image_id, masks.c.corrected))
                _insert_masks(connection, image_id, corrected, corrected=True)
            return _read(connection, image_id)

    def state_prior(self, image_id: str, prior: Mapping[str, float] | None) -> Row:
        """Keep the pre-test probabilities of an image.

        Args:
            image_id: The image.
            prior: By class, in [0, 1], sum 1; None = none.

        Returns:
            Its row.

        Raises:
            RequestError: If there is no such image.
        """
        with self._write(image_id) as connection:
            self._change(connection, image_id, prior=None if prior is None else dict(prior))
            return _read(connection, image_id)

    def judge(self, image_id: str, *, label: str | None, comment: str, consent: bool) -> Row:
        """Keep a verdict with the answer that the reader saw; earlier ones stay.

        Args:
            image_id: The image.
            label: A class, "cannot say", or None for no verdict.
            comment: The reader's words.
            consent: Whether the image may train models.

        Returns:
            The image's row.

        Raises:
            RequestError: If there is no such image.
        """
        with self._write(image_id) as connection:
            answer = _read(connection, image_id)["answer"]
            row = {"film": image_id, "label": label, "comment": comment, "consent": consent, "saved": _now()}
            row |= {"classes": answer["classes"], "model": answer["model"], "model_sha256": answer["model_sha256"]}
            connection.execute(insert(verdicts), row | {"answer": answer})
            return _read(connection, image_id)

    def remove(self, image_id: str) -> None:
        """Delete an image with its masks and verdicts.

        Args:
            image_id: The image.

        Raises:
            RequestError: If there is no such image.
        """
        with self._write(image_id) as connection:
            if not connection.execute(delete(images).where(images.c.id == image_id)).rowcount:
                raise RequestError(404, "There is no such image.")

    def _bytes(self, query: Any, otherwise: str) -> bytes:
        with self.engine.connect() as connection:
            content = connection.execute(query.limit(1)).scalar_one_or_none()
        if content is None:
            raise RequestError(404, otherwise)
        return bytes(content)

    def _change(self, connection: Connection, image_id: str, **values: Any) -> None:
        if not connection.execute(update(images).where(images.c.id == image_id).values(**values)).rowcount:
            raise RequestError(404, "There is no such image.")

    def _make_room(self, connection: Connection, size: int) -> list[str]:
        """Remove the oldest images without feedback until another one fits; return their ids."""
        removed: list[str] = []
        count, total = connection.execute(select(func.count(), func.coalesce(func.sum(images.c.bytes), 0))).one()
        query = select(images.c.id, images.c.bytes).where(~_has_feedback()).order_by(images.c.uploaded)
        oldest = iter(connection.execute(query.limit(100)).all() if self._is_full(count + 1, total + size) else ())
        while self._is_full(count + 1, total + size):
            image = next(oldest, None)
            if image is None:
                raise RequestError(
                    507, "The store is full of images with a verdict or correction: export and remove some."
                )
            connection.execute(delete(images).where(images.c.id == image.id))
            removed.append(image.id)
            count, total = count - 1, total - image.bytes
        return removed

    def _is_full(self, count: int, total: int) -> bool:
        return count > self._most_images or total > self._most_bytes


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _has_feedback() -> ColumnElement[bool]:
    judged = exists().where(verdicts.c.film == images.c.id)
    return judged | exists().where(masks.c.film == images.c.id, masks.c.corrected)


def _latest() -> Any:
    newest = select(func.max(verdicts.c.number)).group_by(verdicts.c.film)
    return select(verdicts).where(verdicts.c.number.in_(newest))


def _read(connection: Connection, image_id: str) -> Row:
    row = connection.execute(select(*_SHOWN).where(images.c.id == image_id)).mappings().one_or_none()
    if row is None:
        raise RequestError(404, "There is no such image.")
    names = connection.execute(select(masks.c.name).where(masks.c.film == image_id, masks.c.corrected)).scalars()
    query = select(verdicts).where(verdicts.c.film == image_id).order_by(verdicts.c.number.desc()).limit(1)
    verdict = connection.execute(query).mappings().one_or_none()
    return {**row, "corrected": list(names), "verdict": None if verdict is None else dict(verdict)}


def _insert_masks(connection: Connection, image_id: str, pictures: Mapping[str, bytes], *, corrected: bool) -> None:
    rows = [
        {"film": image_id, "name": name, "corrected": corrected, "image": image, "saved": _now()}
        for name, image in pictures.items()
    ]
    if rows:
        connection.execute(insert(masks), rows)
