"""Images and what readers said of them, in one database: a picture and its row come and go together."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
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

from covidcxr.errors import ConfigError
from covidcxr.serve.errors import RefusalError

if TYPE_CHECKING:
    from covidcxr.serve.decoder import DecodedFilm

__all__ = ["Row", "Store", "FILE", "SCHEMA_VERSION", "films", "masks", "open_store", "settings", "verdicts"]

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


films = Table(
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
    Column("name", String(40), primary_key=True),
    Column("corrected", Boolean, primary_key=True),  # else drawn by the model
    Column("image", LargeBinary, nullable=False),
    Column("saved", String(40), nullable=False),
)


verdicts = Table(
    "verdicts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("film", ForeignKey("films.id", ondelete="CASCADE"), nullable=False),
    Column("label", String(80), nullable=True),
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

    Raises:
        ConfigError: If the database cannot be had, or was made by a newer covidcxr.
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
            return create_engine(make_url(str(where)), pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(f"The store is no database URL that SQLAlchemy knows: {error}.") from error
        except ModuleNotFoundError as error:
            raise ConfigError(f"The store's database needs {error.name}: pip install {error.name}") from error
    folder = Path(where)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients are nobody else's
    engine = create_engine(f"sqlite:///{folder / FILE}", connect_args={"timeout": 30})
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """What is committed is on the disk (FULL), and what is deleted is overwritten."""
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


Row = dict[str, Any]


_SHOWN = [column for column in films.c if column.name not in ("image", "thumbnail")]


_PICTURES = {"image": films.c.image, "thumbnail": films.c.thumbnail}


class Store:
    """Keeps images, masks and verdicts. Whatever returns has been written to the disk.

    Args:
        where: Folder of an embedded SQLite database, or a database's URL.
        most_films: Images kept; the oldest that nobody judged or corrected goes first.
        most_bytes: Size of their pictures together.

    Raises:
        ConfigError: If the database cannot be had, or was made by a newer covidcxr.
        OSError: If the folder cannot be made.
    """

    def __init__(self, where: str | Path, *, most_films: int = 2000, most_bytes: int = 4_000_000_000) -> None:
        self._most_films, self._most_bytes = most_films, most_bytes
        self.engine = open_store(where)

    def close(self) -> None:
        """Let the database go."""
        self.engine.dispose()

    def add(self, name: str, film: DecodedFilm, answer: Row, drawn: Mapping[str, bytes]) -> Row:
        """Keep an image with its answer and drawn masks, and return its row; makes room first.

        Raises:
            RefusalError: If the store is full of images with feedback.
        """
        size = len(film.png) + len(film.thumbnail) + sum(map(len, drawn.values()))
        row = {
            "id": secrets.token_urlsafe(16),
            "name": name,
            "uploaded": _now(),
            "sha256": film.sha256,
            "height": film.pixels.shape[0],
            "width": film.pixels.shape[1],
            "bytes": size,
            "image": film.png,
            "thumbnail": film.thumbnail,
            "notes": list(film.notes),
            "identifiers": film.identifiers,
            "answer": answer,
        }
        with self.engine.begin() as connection:
            self._make_room(connection, size)
            connection.execute(insert(films), row)
            _draw(connection, row["id"], drawn, corrected=False)
            return _read(connection, row["id"])

    def film(self, film_id: str) -> Row:
        """Return the row of an image, with its latest verdict and the names of its corrected masks.

        Raises:
            RefusalError: If there is no such image.
        """
        with self.engine.connect() as connection:
            return _read(connection, film_id)

    def films(self) -> list[Row]:
        """Return the rows of all images, newest first."""
        with self.engine.connect() as connection:
            rows = [
                dict(row) for row in connection.execute(select(*_SHOWN).order_by(films.c.uploaded.desc())).mappings()
            ]
            corrected: dict[str, list[str]] = {}
            for film, name in connection.execute(select(masks.c.film, masks.c.name).where(masks.c.corrected)):
                corrected.setdefault(film, []).append(name)
            said = {row["film"]: dict(row) for row in connection.execute(_latest()).mappings()}
        return [row | {"corrected": corrected.get(row["id"], []), "verdict": said.get(row["id"])} for row in rows]

    def count(self) -> int:
        """Return the number of images."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(films)).scalar_one()

    def picture(self, film_id: str, name: str) -> bytes:
        """Return the image ("image") or its thumbnail ("thumbnail") as PNG.

        Raises:
            RefusalError: If there is no such image.
        """
        return self._bytes(select(_PICTURES[name]).where(films.c.id == film_id), "There is no such image.")

    def mask(self, film_id: str, name: str) -> bytes:
        """Return a mask as PNG: the corrected one, else the drawn one.

        Raises:
            RefusalError: If there is no such mask.
        """
        query = select(masks.c.image).where(masks.c.film == film_id, masks.c.name == name)
        return self._bytes(query.order_by(masks.c.corrected.desc()), "This image has no such mask.")

    def corrected(self, film_id: str) -> dict[str, bytes]:
        """Return the corrected masks of an image as PNG, by mask class."""
        query = select(masks.c.name, masks.c.image).where(masks.c.film == film_id, masks.c.corrected)
        with self.engine.connect() as connection:
            return {row.name: bytes(row.image) for row in connection.execute(query)}

    def revise(
        self, film_id: str, answer: Row, drawn: Mapping[str, bytes], corrected: Mapping[str, bytes] | None = None
    ) -> Row:
        """Keep another answer of an image, and return its row.

        Args:
            film_id: The image.
            answer: What is said of it now.
            drawn: Masks that the model drew, as PNG.
            corrected: All masks that a reader corrected, as PNG; None leaves them as they are.

        Raises:
            RefusalError: If there is no such image.
        """
        with self.engine.begin() as connection:
            self._change(connection, film_id, answer=answer)
            connection.execute(delete(masks).where(masks.c.film == film_id, masks.c.corrected.is_(False)))
            _draw(connection, film_id, drawn, corrected=False)
            if corrected is not None:
                connection.execute(delete(masks).where(masks.c.film == film_id, masks.c.corrected))
                _draw(connection, film_id, corrected, corrected=True)
            return _read(connection, film_id)

    def state_prior(self, film_id: str, prior: Mapping[str, float] | None) -> Row:
        """Keep the pre-test probabilities of an image, and return its row.

        Raises:
            RefusalError: If there is no such image.
        """
        with self.engine.begin() as connection:
            self._change(connection, film_id, prior=None if prior is None else dict(prior))
            return _read(connection, film_id)

    def judge(self, film_id: str, *, label: str | None, comment: str, consent: bool) -> Row:
        """Keep a verdict with the answer that the reader saw, and return the image's row; earlier ones stay.

        Raises:
            RefusalError: If there is no such image.
        """
        with self.engine.begin() as connection:
            answer = _read(connection, film_id)["answer"]
            row = {"film": film_id, "label": label, "comment": comment, "consent": consent, "saved": _now()}
            row |= {"classes": answer["classes"], "model": answer["model"], "model_sha256": answer["model_sha256"]}
            connection.execute(insert(verdicts), row | {"answer": answer})
            return _read(connection, film_id)

    def remove(self, film_id: str) -> None:
        """Forget an image and all that was said of it.

        Raises:
            RefusalError: If there is no such image.
        """
        with self.engine.begin() as connection:
            if not connection.execute(delete(films).where(films.c.id == film_id)).rowcount:
                raise RefusalError(404, "There is no such image.")

    def _bytes(self, query: Any, otherwise: str) -> bytes:
        with self.engine.connect() as connection:
            found = connection.execute(query.limit(1)).scalar_one_or_none()
        if found is None:
            raise RefusalError(404, otherwise)
        return bytes(found)

    def _change(self, connection: Connection, film_id: str, **values: Any) -> None:
        if not connection.execute(update(films).where(films.c.id == film_id).values(**values)).rowcount:
            raise RefusalError(404, "There is no such image.")

    def _make_room(self, connection: Connection, size: int) -> None:
        """Remove the oldest images without feedback until another one fits."""
        count, total = connection.execute(select(func.count(), func.coalesce(func.sum(films.c.bytes), 0))).one()
        query = select(films.c.id, films.c.bytes).where(~_has_feedback()).order_by(films.c.uploaded)
        oldest = iter(connection.execute(query.limit(100)).all() if self._is_full(count + 1, total + size) else ())
        while self._is_full(count + 1, total + size):
            film = next(oldest, None)
            if film is None:
                raise RefusalError(
                    507, "The store is full of images with a verdict or correction: export and remove some."
                )
            connection.execute(delete(films).where(films.c.id == film.id))
            count, total = count - 1, total - film.bytes

    def _is_full(self, count: int, total: int) -> bool:
        return count > self._most_films or total > self._most_bytes


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _has_feedback() -> ColumnElement[bool]:
    judged = exists().where(verdicts.c.film == films.c.id)
    return judged | exists().where(masks.c.film == films.c.id, masks.c.corrected)


def _latest() -> Any:
    newest = select(func.max(verdicts.c.number)).group_by(verdicts.c.film)
    return select(verdicts).where(verdicts.c.number.in_(newest))


def _read(connection: Connection, film_id: str) -> Row:
    row = connection.execute(select(*_SHOWN).where(films.c.id == film_id)).mappings().one_or_none()
    if row is None:
        raise RefusalError(404, "There is no such image.")
    names = connection.execute(select(masks.c.name).where(masks.c.film == film_id, masks.c.corrected)).scalars()
    said = select(verdicts).where(verdicts.c.film == film_id).order_by(verdicts.c.number.desc()).limit(1)
    verdict = connection.execute(said).mappings().one_or_none()
    return {**row, "corrected": list(names), "verdict": None if verdict is None else dict(verdict)}


def _draw(connection: Connection, film_id: str, pictures: Mapping[str, bytes], *, corrected: bool) -> None:
    rows = [
        {"film": film_id, "name": name, "corrected": corrected, "image": image, "saved": _now()}
        for name, image in pictures.items()
    ]
    if rows:
        connection.execute(insert(masks), rows)
