"""Ask a pipeline about images: `python predict_images.py [IMAGE ...] [--model mini]`. Without images it draws some."""

import argparse
import tempfile
from pathlib import Path

from covidcxr import FailedPrediction, Pipeline
from covidcxr.phantom import write_dataset
from covidcxr.pipeline.prediction import in_words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", help="image files; none = drawn images")
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository")
    parser.add_argument("--out", help="folder for masks and overlays; by default a new temporary one")
    options = parser.parse_args()

    out = Path(options.out or tempfile.mkdtemp(prefix="covidcxr-"))
    images = options.images
    if not images:
        write_dataset(out / "phantoms", 4)
        images = sorted((out / "phantoms" / "images").glob("*.png"))

    pipeline = Pipeline.from_pretrained(options.model)
    for answer in pipeline.predict(images, on_error="return"):
        if isinstance(answer, FailedPrediction):
            print(f"{answer.image_id}: {answer.error}")
            continue
        chances = ", ".join(f"{name} {value:.2f}" for name, value in answer.probabilities.items())
        reasons = " ".join(map(in_words, answer.reasons))
        print(f"{Path(answer.image_id).name}: {answer.label or 'cannot say'} ({chances}) {reasons}")
        answer.save(out / "answers")
    print(f"Masks and overlays: {out / 'answers'}\nFor research only; not for clinical use.")


if __name__ == "__main__":
    main()
