"""Show where a classifier looks: `python explain_film.py [FILM ...] [--model mini]`. Without films it draws some."""

import argparse
import tempfile
from pathlib import Path

from covidcxr import Pipeline
from covidcxr.errors import CovidCXRError
from covidcxr.phantom import write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", nargs="*", help="image files; none = drawn films")
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository")
    parser.add_argument("--target", help="the class; by default each film's answer")
    parser.add_argument("--out", help="folder for the maps; by default a new temporary one")
    options = parser.parse_args()

    out = Path(options.out or tempfile.mkdtemp(prefix="covidcxr-"))
    films = options.films
    if not films:
        write_dataset(out / "phantoms", 2)
        films = sorted((out / "phantoms" / "images").glob("*.png"))

    pipeline = Pipeline.from_pretrained(options.model)
    for film in films:
        try:
            answer = pipeline(film)
            found = answer.explain(options.target)
        except CovidCXRError as error:
            print(f"{film}: {error}")
            continue
        found.save(out / "heat", Path(film).stem, answer.film)
        print(f"{Path(film).name}: {found.target} {found.probability:.2f} {found.to_dict()['peak']} {found.note}")
    print(f"Maps: {out / 'heat'}\nFor research only; not for clinical use.")


if __name__ == "__main__":
    main()
