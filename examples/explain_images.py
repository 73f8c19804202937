"""Show where a classifier looks: `explain_images.py [IMAGE ...] [--model mini]`. Without images it draws some."""

import argparse
import tempfile
from pathlib import Path

from covidcxr import Pipeline
from covidcxr.errors import CovidCXRError
from covidcxr.phantom import write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", help="image files; none = drawn images")
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository")
    parser.add_argument("--target", help="the class; by default each image's answer")
    parser.add_argument("--out", help="folder for the maps; by default a new temporary one")
    options = parser.parse_args()

    out = Path(options.out or tempfile.mkdtemp(prefix="covidcxr-"))
    images = options.images
    if not images:
        write_dataset(out / "phantoms", 2)
        images = sorted((out / "phantoms" / "images").glob("*.png"))

    pipeline = Pipeline.from_pretrained(options.model)
    for image in images:
        try:
            answer = pipeline(image)
            found = answer.explain(options.target)
        except CovidCXRError as error:
            print(f"{image}: {error}")
            continue
        found.save(out / "heat", Path(image).stem, answer.image)
        print(f"{Path(image).name}: {found.target} {found.probability:.2f} {found.to_dict()['peak']} {found.note}")
    print(f"Maps: {out / 'heat'}\nFor research only; not for clinical use.")


if __name__ == "__main__":
    main()
