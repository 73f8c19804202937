"""Films and what readers said of them, in one database: a picture and its row come and go together."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import ColumnElement

from covidcxr.serve.errors import RefusalError
from covidcxr.serve.tables import films, masks, open_store, verdicts

if TYPE_CHECKING:
    from covidcxr.serve.decoder import DecodedFilm

__all__ = ["Row", "Store"]

Row = dict[str, Any]

_SHOWN = [column for column in films.c if column.name not in ("image", "thumbnail")]
_PICTURES = {"image": films.c.image, "thumbnail": films.c.thumbnail}


class Store:
    """Keeps films, masks and verdicts. Whatever returns has been written to the disk.

    Args:
        where: Folder of an embedded SQLite database, or a database's URL.
        most_films: Films kept; the oldest that nobody judged or corrected goes first.
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
        """Keep a film with its answer and drawn masks, and return its row; makes room first.

        Raises:
            RefusalError: If the store is full of films with feedback.
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
        """Return the row of a film, with its latest verdict and the names of its corrected masks.

        Raises:
            RefusalError: If there is no such film.
        """
        with self.engine.connect() as connection:
            return _read(connection, film_id)

    def films(self) -> list[Row]:
        """Return the rows of all films, newest first."""
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
        """Return the number of films."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(films)).scalar_one()

    def picture(self, film_id: str, name: str) -> bytes:
        """Return the film ("image") or its thumbnail ("thumbnail") as PNG.

        Raises:
            RefusalError: If there is no such film.
        """
        return self._bytes(select(_PICTURES[name]).where(films.c.id == film_id), "There is no such film.")

    def mask(self, film_id: str, name: str) -> bytes:
        """Return a mask as PNG: the corrected one, else the drawn one.

        Raises:
            RefusalError: If there is no such mask.
        """
        query = select(masks.c.image).where(masks.c.film == film_id, masks.c.name == name)
        return self._bytes(query.order_by(masks.c.corrected.desc()), "This film has no such mask.")

    def corrected(self, film_id: str) -> dict[str, bytes]:
        """Return the corrected masks of a film as PNG, by mask class."""
        query = select(masks.c.name, masks.c.image).where(masks.c.film == film_id, masks.c.corrected)
        with self.engine.connect() as connection:
            return {row.name: bytes(row.image) for row in connection.execute(query)}

    def revise(
        self, film_id: str, answer: Row, drawn: Mapping[str, bytes], corrected: Mapping[str, bytes] | None = None
    ) -> Row:
        """Keep another answer of a film, and return its row.

        Args:
            film_id: The film.
            answer: What is said of it now.
            drawn: Masks that the model drew, as PNG.
            corrected: All masks that a reader corrected, as PNG; None leaves them as they are.

        Raises:
            RefusalError: If there is no such film.
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
        """Keep the pre-test probabilities of a film, and return its row.

        Raises:
            RefusalError: If there is no such film.
        """
        with self.engine.begin() as connection:
            self._change(connection, film_id, prior=None if prior is None else dict(prior))
            return _read(connection, film_id)

    def judge(self, film_id: str, *, label: str | None, comment: str, consent: bool) -> Row:
        """Keep a verdict with the answer that the reader saw, and return the film's row; earlier ones stay.

        Raises:
            RefusalError: If there is no such film.
        """
        with self.engine.begin() as connection:
            answer = _read(connection, film_id)["answer"]
            row = {"film": film_id, "label": label, "comment": comment, "consent": consent, "saved": _now()}
            row |= {"classes": answer["classes"], "model": answer["model"], "model_sha256": answer["model_sha256"]}
            connection.execute(insert(verdicts), row | {"answer": answer})
            return _read(connection, film_id)

    def remove(self, film_id: str) -> None:
        """Forget a film and all that was said of it.

        Raises:
            RefusalError: If there is no such film.
        """
        with self.engine.begin() as connection:
            if not connection.execute(delete(films).where(films.c.id == film_id)).rowcount:
                raise RefusalError(404, "There is no such film.")

    def _bytes(self, query: Any, otherwise: str) -> bytes:
        with self.engine.connect() as connection:
            found = connection.execute(query.limit(1)).scalar_one_or_none()
        if found is None:
            raise RefusalError(404, otherwise)
        return bytes(found)

    def _change(self, connection: Connection, film_id: str, **values: Any) -> None:
        if not connection.execute(update(films).where(films.c.id == film_id).values(**values)).rowcount:
            raise RefusalError(404, "There is no such film.")

    def _make_room(self, connection: Connection, size: int) -> None:
        """Remove the oldest films without feedback until another one fits."""
        count, total = connection.execute(select(func.count(), func.coalesce(func.sum(films.c.bytes), 0))).one()
        query = select(films.c.id, films.c.bytes).where(~_has_feedback()).order_by(films.c.uploaded)
        oldest = iter(connection.execute(query.limit(100)).all() if self._is_full(count + 1, total + size) else ())
        while self._is_full(count + 1, total + size):
            film = next(oldest, None)
            if film is None:
                raise RefusalError(
                    507, "The store is full of films with a verdict or correction: export and remove some."
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
        raise RefusalError(404, "There is no such film.")
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
