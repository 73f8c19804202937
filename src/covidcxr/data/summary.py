"""What data sets there are, how one is opened by its name, and what is in it, counted.

covidcxr's own data sets are described from their source text: to import one takes seconds, most of it Lightning.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Any, get_args

from covidcxr.data.records import Record, count_by, labels_of
from covidcxr.errors import ConfigError, ImageReadError, did_you_mean
from covidcxr.registry import DATASETS
from covidcxr.types import AgeGroup, SplitName
from covidcxr.utils.threads import Progress

if TYPE_CHECKING:
    from covidcxr.data.datamodule import CXRDataModule


__all__ = [
    "constructor_parameters",
    "count_ages",
    "describe_dataset",
    "labels_shown",
    "list_datasets",
    "open_dataset",
    "parse_settings",
    "survey",
    "what_the_source_tells",
]

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Examples):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^    (\w+): ((?:.+)(?:\n {8,}.+)*)", re.MULTILINE)
_LIGHT = {*sys.stdlib_module_names, "covidcxr.types", "covidcxr.io.tables"}
"""Modules that a description may import: whole packages of the standard library, and ours that need no more."""


def list_datasets() -> list[dict[str, Any]]:
    """List every registered data set, those of other packages too.

    Returns:
        One entry a data set, by name: `name`, `what` (a line), `modality`, `classes`, `release` (that which is read
        by default, else the newest) and `images` of it; for a data set that cannot be loaded `name` and
        `error`.
    """
    return [_entry(name) for name in DATASETS.names()]


def describe_dataset(name: str) -> dict[str, Any]:
    """Tell all that is known about a data set.

    Args:
        name: Its registered name.

    Returns:
        What `list_datasets` says of it, and `class`, `description`, `license`, `citation`, `homepage`, `layout`,
        `caveats`, `releases` (published counts) and `arguments` (its own, each with `name`, `type`, `default`,
        `what`).

    Raises:
        UnknownNameError: If there is no such data set; names the nearest.
    """
    entry = _described(name)
    text, explained = _docstring(entry)
    common = {"root"} if getattr(entry, "__base__", None) is object else set(constructor_parameters(_base()))
    own = [parameter for key, parameter in constructor_parameters(entry).items() if key not in common]
    return {
        **_summary(name, entry),
        "class": getattr(entry, "__qualname__", str(entry)),
        "description": text,
        **{part: str(getattr(entry, part, "")) for part in ("license", "citation", "homepage", "layout")},
        "caveats": list(getattr(entry, "caveats", ())),
        "releases": {release: dict(counts) for release, counts in getattr(entry, "releases", {}).items()},
        "arguments": [
            {
                "name": parameter.name,
                "type": _type_words(entry, parameter),
                "default": None if parameter.default is parameter.empty else parameter.default,
                "required": parameter.default is parameter.empty,
                "what": explained.get(parameter.name, ""),
            }
            for parameter in own
        ],
    }


def open_dataset(name: str, root: str | None, settings: Mapping[str, str] | None = None) -> CXRDataModule:
    """Build a data module by its name; nothing is read yet but what its constructor reads.

    Args:
        name: Its registered name.
        root: Folder of the data set; None = it needs none.
        settings: Further arguments of the constructor, as they would follow `covidcxr fit --data.KEY`.

    Returns:
        The data module.

    Raises:
        UnknownNameError: If there is no such data set; names the nearest.
        ConfigError: If an argument is unknown or of the wrong type.
        DatasetError: If the data set is not there.
    """
    from jsonargparse import ArgumentParser

    entry = DATASETS.get(name)
    if not (isinstance(entry, type) and issubclass(entry, _base())):
        raise ConfigError(f"The data set {name!r} is no CXRDataModule, so there are no records to look at.")
    given = {**({} if root is None else {"root": root}), **(settings or {})}
    known = constructor_parameters(entry)
    for key in given:
        if key not in known:
            raise ConfigError(f"The data set {name!r} has no argument {key!r}. {did_you_mean(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise ConfigError(
                f"The data set {name!r} needs {'--data.root DIR' if key == 'root' else f'--data.{key} ...'}."
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(entry, "data", fail_untyped=False)
    try:
        config = parser.parse_args([f"--data.{key}={value}" for key, value in given.items()])
    except argparse.ArgumentError as error:  # its own words fill a page
        wrong = re.search(r'Parser key "data\.(\w+)', str(error))
        if wrong is None:
            raise ConfigError(f"The data set {name!r} cannot be set so: {' '.join(str(error).split())}") from error
        key = wrong[1]
        raise ConfigError(f"{key} must be {_type_words(entry, known[key])}, not {given.get(key)!r}.") from error
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
    module: CXRDataModule = build(config).data
    return module


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Part `KEY=VALUE` words.

    Args:
        pairs: The words.

    Returns:
        From key to value.

    Raises:
        ConfigError: If a word has no `=`, or a key comes twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes KEY=VALUE, say --set part=infection, not {pair!r}.")
        if key in settings:
            raise ConfigError(f"--set gives {key!r} twice.")
        settings[key] = value
    return settings


def _entry(name: str) -> dict[str, Any]:
    try:
        return _summary(name, _described(name))
    except Exception as error:  # another package's module was imported: whatever it raises costs its own line only
        return {"name": name, "error": " ".join(str(error).split()) or type(error).__name__}


def _described(name: str) -> Any:
    """Return a data set's class, or of covidcxr's own what its source text says of it, which is enough to describe it.

    Args:
        name: Its registered name.

    Returns:
        The class; or one of its name with its docstring, class attributes and the signature of its constructor.

    Raises:
        UnknownNameError: If there is no such data set; names the nearest.
    """
    if name not in DATASETS.sources:
        return DATASETS.get(name)
    file = DATASETS.sources[name]
    try:
        return _read_class(ast.parse(file.read_text(encoding="utf-8")), name)
    except (SyntaxError, NameError, TypeError, AttributeError):  # it computes what it says of itself
        return DATASETS.get(name)


def _read_class(module: ast.Module, name: str) -> Any:
    """Run the part of a module that describes a class; what it imports of heavy modules is not there."""
    scope: dict[str, Any] = {"__name__": f"covidcxr.data.datasets.{name}"}
    for node in module.body:
        of_class = isinstance(node, ast.ClassDef) and any(
            ast.unparse(d).endswith(f"({name!r})") for d in node.decorator_list
        )
        if isinstance(node, ast.ClassDef) and of_class:
            if [ast.unparse(base) for base in node.bases] != ["CXRDataModule"]:
                raise TypeError("it inherits what another data set says of itself")
            node.bases, node.decorator_list = [], []
            node.body = [part for part in node.body if not isinstance(part, ast.FunctionDef) or part.name == "__init__"]
            _run(node, scope)
            return scope[node.name]
        light = isinstance(node, ast.Import | ast.ImportFrom) and _is_light(node)
        if light or isinstance(node, ast.Assign | ast.AnnAssign):
            with suppress(NameError):  # a constant made with a heavy module
                _run(node, scope)
    raise NameError(name)


def _base() -> type[CXRDataModule]:
    from covidcxr.data.datamodule import CXRDataModule

    return CXRDataModule


def _run(node: ast.stmt, scope: dict[str, Any]) -> None:
    code = ast.Module([node], type_ignores=[])
    exec(compile(code, "<data set>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True), scope)


def _is_light(node: ast.Import | ast.ImportFrom) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return all(module in _LIGHT or module.partition(".")[0] in _LIGHT for module in names)


def _summary(name: str, entry: Any) -> dict[str, Any]:
    releases = getattr(entry, "releases", {})
    release = getattr(entry, "release", "") or next(reversed(releases), None)
    return {
        "name": name,
        "what": _docstring(entry)[0].partition("\n\n")[0].replace("\n", " "),
        "modality": getattr(entry, "modality", "X-ray"),
        "classes": list(getattr(entry, "classes", ())),
        "release": release,
        "films": sum(releases[release].values()) if release is not None else None,
    }


def _docstring(entry: Any) -> tuple[str, dict[str, str]]:
    """Return what stands before the sections of a Google-style docstring, and from argument to its explanation."""
    doc = inspect.cleandoc(entry.__doc__ or "")
    text, *sections = _SECTION.split(doc)
    named = dict(zip(sections[::2], sections[1::2], strict=True))
    explained = {match[1]: " ".join(match[2].split()) for match in _ARGUMENT.finditer(named.get("Args", ""))}
    return text.strip(), explained


def constructor_parameters(entry: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor and, as long as it hands on `**base`, of those that it calls.

    Args:
        entry: The class, or a function that builds one.

    Returns:
        From name to parameter.
    """
    owners = [vars(owner)["__init__"] for owner in getattr(entry, "__mro__", ()) if "__init__" in vars(owner)]
    merged: dict[str, inspect.Parameter] = {}
    for constructor in owners or [entry]:
        parameters = list(inspect.signature(constructor).parameters.values())
        for parameter in parameters[bool(owners) :]:  # without self
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                merged.setdefault(parameter.name, parameter)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return merged


def _type_words(entry: Any, parameter: inspect.Parameter) -> str:
    """Return a parameter's type as a reader of Python would write it."""
    if parameter.annotation is parameter.empty:
        return "anything"
    hint: Any = parameter.annotation
    for constructor in (vars(owner).get("__init__") for owner in getattr(entry, "__mro__", ())):
        if parameter.name in getattr(constructor, "__annotations__", {}) and isinstance(hint, str):
            with suppress(NameError):  # a type that is imported for the type checker only
                hint = eval(hint, constructor.__globals__)
            break
    words = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    words = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace(", ", " | "), words)
    return re.sub(r"\b(?:typing|collections\.abc|pathlib|os)\.|<class '|'>|covidcxr(?:\.\w+)+\.", "", words)


def __getattr__(name: str) -> Any:
    if name not in ("draw_charts", "draw_contact_sheet"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from covidcxr.data import pictures

    return getattr(pictures, name)


_UNKNOWN = "unknown"
_MOST = 6  # names in one sentence, sentences of one kind


def survey(
    data: CXRDataModule, *, pixels: bool = True, sample: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Count the images of a data set by all that is known of them.

    Args:
        data: The data set; its images are opened for `pixels` only.
        pixels: Also compute the mean and standard deviation of the training images' grey values, at the data module's
            size.
        sample: Do so over that many training images, drawn at random; None = over all.
        progress: Called with how many training images of how many were read.

    Returns:
        `images`, `left_out` (by reason), `label`, `view`, `sex`, `age` (bands), `source`, `split`, `mask` (images by
        value), `label_by_source` and `label_by_split` (images by label for each), `patients`, `pixels`, and `notes`:
        what to know before trusting a number measured on it, a sentence each. What is not stated counts as "unknown".

    Raises:
        DatasetError: If the data set is not there, lacks files, or contradicts itself.
    """
    records = data.records
    counts = Counter(label for record in records for label in labels_shown(record))
    order = [*data.classes, *sorted(counts.keys() - {*data.classes})]
    labels = {name: counts[name] for name in order if counts[name]}
    sources, splits = count_by(records, "source"), count_by(records, "split")
    by_source = _cross(records, "source", labels, sources)
    return {
        "films": len(records),
        "left_out": dict(data.left_out.most_common()),
        "label": labels,
        **{name: count_by(records, name) for name in ("view", "sex")},
        "age": count_ages(records),
        "source": sources,
        "split": {name: splits[name] for name in get_args(SplitName) if name in splits},
        "mask": count_by(records, "mask"),
        "label_by_source": by_source,
        "label_by_split": _cross(records, "split", labels, get_args(SplitName)),
        "patients": _count_patients(records),
        "pixels": _grey_values(data, sample, progress) if pixels else None,
        "notes": [] if data.multilabel else [*what_the_source_tells(by_source), *_two_labels(records)],
    }


def labels_shown(record: Record) -> tuple[str, ...]:
    """Return the labels for which an image counts.

    Args:
        record: The image.

    Returns:
        Its labels; "none of these" where it shows none of several findings.
    """
    return labels_of(record) or ("none of these",)


def count_ages(records: Iterable[Record]) -> dict[str, int]:
    """Count images by bands of ten years.

    Args:
        records: The images.

    Returns:
        From band ("40-49") to number of images, youngest first, without a gap; then images of which the age group is
        all that is known ("adult", "child"); "unknown" comes last.
    """
    records = list(records)
    bands = Counter(min(int(record.age) // 10, 9) for record in records if record.age is not None)
    groups = Counter(record.age_group or _UNKNOWN for record in records if record.age is None)
    known = list(bands)
    span = range(min(known), max(known) + 1) if known else range(0)
    counts = {f"{10 * band}-{10 * band + 9}" if band < 9 else "90+": bands[band] for band in span}
    return counts | {name: groups[name] for name in (*get_args(AgeGroup), _UNKNOWN) if groups[name]}


def _cross(
    records: Iterable[Record], name: str, labels: Iterable[str], values: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Count by label for each value of another field; every row has every label, in one order."""
    table = {value: dict.fromkeys(labels, 0) for value in values}
    for record in records:
        for label in labels_shown(record):
            table[getattr(record, name)][label] += 1
    return table


def _count_patients(records: Sequence[Record]) -> dict[str, Any]:
    """Count the patients, and how many have how many images; images without a patient stand apart."""
    images = Counter(record.patient_id for record in records)
    unknown = images.pop(None, 0)
    by_images = Counter(images.values())
    return {
        "patients": len(images),
        "by_films": {str(number): by_images[number] for number in sorted(by_images)},
        "films_of_unknown_patients": unknown,
    }


def _grey_values(data: CXRDataModule, sample: int | None, progress: Progress | None) -> dict[str, Any]:
    from covidcxr.data.datamodule import compute_mean_std

    try:
        mean, std = compute_mean_std(data, sample=sample, progress=progress)
    except ImageReadError as error:  # the counts are right all the same
        return {"error": str(error)}
    images = len(data.train_dataset)
    size = list(data.geometry.image_size)
    return {
        "mean": mean,
        "std": std,
        "films": min(images, sample or images),
        "training_films": images,
        "image_size": size,
    }


def what_the_source_tells(by_source: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say where the source gives the label away: a model can then score highly without looking at a lung.

    Args:
        by_source: From source to label to number of images.

    Returns:
        A sentence each; none where there is one class.
    """
    labelled = {
        source: known
        for source, counts in by_source.items()
        if (known := {label: count for label, count in counts.items() if count and label != _UNKNOWN})
    }
    totals = sum((Counter(labels) for labels in labelled.values()), Counter[str]())
    if len(totals) < 2:
        return []
    if len(labelled) == 1:
        return ["All images come from one source: a score on them says nothing of another hospital."]
    only: dict[str, list[str]] = {}
    for source, labels in labelled.items():
        if len(labels) == 1:
            only.setdefault(next(iter(labels)), []).append(source)
    sentences = [f"Every image of {_and(sources)} is of class {label}." for label, sources in only.items()]
    where = {label: {source for source, labels in labelled.items() if label in labels} for label in totals}
    apart = [f"{first} and {second}" for first, second in combinations(totals, 2) if not where[first] & where[second]]
    sentences += [f"No source holds both {pair}: the source alone tells these two apart." for pair in apart[:_MOST]]
    if len(apart) > _MOST:
        sentences.append(f"That holds for {len(apart) - _MOST} more pairs of classes.")
    images, (best, most) = totals.total(), totals.most_common(1)[0]
    guessed = sum(max(labels.values()) for labels in labelled.values())
    return [
        *sentences,
        f"Guessing by the source, without looking at it, is right for {100 * guessed / images:.1f} % of the images; "
        f'always guessing "{best}" for {100 * most / images:.1f} %.',
    ]


def _two_labels(records: Iterable[Record]) -> list[str]:
    labels: dict[str, set[str]] = {}
    for record in records:
        if record.label is not None:
            labels.setdefault(record.patient, set()).add(record.label)
    several = sum(len(names) > 1 for names in labels.values())
    return [f"{several} patients have images of more than one class."] if several else []


def _and(names: Sequence[str]) -> str:
    shown = [*names[:_MOST], f"{len(names) - _MOST} more"] if len(names) > _MOST else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
