"""`covidcxr predict` and `covidcxr demo`: many images from disk to disk."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from covidcxr.errors import ConfigError
from covidcxr.io.folders import next_folder

__all__ = ["add_demo", "add_predict"]


def add_predict(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `predict`.

    Args:
        verbs: Where the verbs are added.
    """
    predict = verbs.add_parser(
        "predict",
        help="predict for images: JSON lines, masks, overlays and a contact sheet",
        description="Predict for images. An image that cannot be read is one entry with its reason; the others go on. "
        "A run that was stopped goes on where it stopped with the same command.",
        epilog="examples:\n  covidcxr predict images/ extra.dcm --model mini --out predictions\n"
        "  covidcxr predict --manifest images.csv --format parquet --no-overlays --processes 8 --out predictions\n"
        "  covidcxr predict s3://bucket/images --shard 3/100 --out predictions",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument(
        "paths", nargs="*", metavar="PATH", help="images, folders that are searched for images, or URLs of either"
    )
    predict.add_argument(
        "--manifest", metavar="FILE", help="more images: a table with the column path, perhaps id; or a path a line"
    )
    predict.add_argument("--out", metavar="DIR", help="where the results go (runs/predict-1, -2, ...)")
    predict.add_argument("--root", metavar="DIR", help="name the results by the images' paths below DIR")
    overlay = predict.add_mutually_exclusive_group()
    overlay.add_argument(
        "--overlay-format",
        choices=("jpg", "png"),
        default="jpg",
        help="of the overlays: jpg, at most 1024 pixels, or png, of the image's size and slow (%(default)s)",
    )
    overlay.add_argument("--no-overlays", action="store_true", help="write no overlays")
    predict.add_argument("--no-masks", action="store_true", help="write no masks")
    predict.add_argument(
        "--format",
        choices=("jsonl", "parquet"),
        default="jsonl",
        help="of the results: lines and a file a mask, or tables that hold the masks (%(default)s)",
    )
    predict.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that share the images (%(default)s)"
    )
    predict.add_argument(
        "--shard", metavar="I/N", help="every N-th image only, from the I-th on; without it shards come together"
    )
    _add_common(predict)
    predict.set_defaults(run=_predict)


def add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `demo`.

    Args:
        verbs: Where the verbs are added.
    """
    demo = verbs.add_parser(
        "demo",
        help="run the bundled pipeline over drawn images, or over yours",
        description="Run the bundled pipeline over drawn images (phantoms), or over your own, and show the page.",
        epilog="examples:\n  covidcxr demo\n  covidcxr demo my-images/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("paths", nargs="*", metavar="PATH", help="your images or folders; none = drawn images")
    demo.add_argument(
        "--out", metavar="DIR", help="where the results go (covidcxr-demo; of your images, a new folder runs/demo-N)"
    )
    demo.add_argument("--no-open", action="store_true", help="print the page's path, do not open it")
    _add_common(demo)
    demo.set_defaults(run=_demo, root=None, overlay_format="jpg", no_overlays=False, no_masks=False)
    demo.set_defaults(manifest=None, format="jsonl", processes=1, shard=None)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="batch size (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="data-loader threads (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: --model is a folder of `covidcxr export`, and torch is not needed (%(default)s)",
    )
    parser.add_argument(
        "--bits", type=int, metavar="N", help="bits that 16-bit pictures really hold, if fewer (8 to 16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run wrote there; start over")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _predict(options: argparse.Namespace) -> int:
    from covidcxr.pipeline.folder import print_summary

    if not options.paths and options.manifest is None:
        raise ConfigError("Name images, folders or URLs, or a --manifest.")
    if options.out is None:
        if options.shard is not None:
            raise ConfigError("Shards come together in one folder: name it by --out.")
        options.out = str(next_folder("predict"))
    summary = _write(options)
    print_summary(summary, as_json=options.json)
    return 1 if summary["failed"] else 0


def _write(options: argparse.Namespace) -> dict[str, Any]:
    from covidcxr.pipeline.folder import predict_folder

    return predict_folder(
        options.paths,
        options.out,
        manifest=options.manifest,
        root=options.root,
        model=options.model,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=options.device,
        backend=options.backend,
        bits=options.bits,
        overlays=None if options.no_overlays else options.overlay_format,
        masks=not options.no_masks,
        format=options.format,
        processes=options.processes,
        shard=options.shard,
        overwrite=options.overwrite,
    )


def _demo(options: argparse.Namespace) -> int:
    import webbrowser

    if options.out is None:
        options.out = str(next_folder("demo")) if options.paths else "covidcxr-demo"
    code = _predict(options) if options.paths else _predict_phantoms(options)
    page = (Path(options.out) / "index.html").resolve()
    if not options.no_open and sys.stdout.isatty():
        webbrowser.open(page.as_uri())
    return code


def _predict_phantoms(options: argparse.Namespace) -> int:
    """Predict for drawn images, and say beside each prediction what was drawn."""
    from covidcxr.phantom import write_dataset
    from covidcxr.pipeline.folder import print_summary
    from covidcxr.pipeline.results import write_sheet

    out = Path(options.out)
    manifest = out / "phantoms" / "manifest.csv"
    if not manifest.is_file():  # written last
        write_dataset(manifest.parent, 12)
    options.paths = [str(manifest.parent / "images")]
    summary = _write(options)
    with manifest.open(encoding="utf-8", newline="") as file:
        drawn = {row["path"].removeprefix("images/"): row["label"] for row in csv.DictReader(file)}
    entries = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    summary |= {"drawn": drawn, "labels": {entry["name"]: entry.get("label") for entry in entries}}
    write_sheet(out / "index.html", entries, summary)
    print_summary(summary, as_json=options.json)
    return 1 if summary["failed"] else 0
