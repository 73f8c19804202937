"""The verdict and the findings of an audit, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from covidcxr.evaluation.metrics.scores import format_estimate
from covidcxr.evaluation.shortcuts.association import FeatureTest
from covidcxr.evaluation.shortcuts.leakage import HELD_OUT, Copies, Leakage
from covidcxr.evaluation.shortcuts.probes import ProbeScore
from covidcxr.evaluation.shortcuts.targets import ENOUGH, CrossTable, Pair
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from covidcxr.evaluation.shortcuts.drift import Drift
    from covidcxr.evaluation.shortcuts.result import DataAudit, TargetAudit


__all__ = [
    "capital",
    "figure",
    "join",
    "split_findings",
    "state_drift",
    "state_findings",
    "state_verdict",
    "supported_comparisons",
]

_MOST = 6
_TOO_FEW = 0.85  # where only a shortcut above this AUROC would be noticed, an audit without alarms says little


figure = partial(format_estimate, digits=2)
"""Writes an estimate with its interval: "0.91 [0.85, 0.95]"."""


def supported_comparisons(table: CrossTable, unit: str = "patient") -> list[str]:
    """State for each pair of labels where they can be compared.

    Args:
        table: The labels by source or view.
        unit: What is counted: "patient", or "image" where no patient is known.

    Returns:
        A sentence for each pair.
    """
    sentences = []
    for pair in table.pairs:
        labels = " against ".join(pair.labels)
        if pair.supported:
            places = [
                f"{name} ({pair.shared[name][0]:,} and {count_of(pair.shared[name][1], unit)})"
                for name in pair.supported
            ]
            sentences.append(f"{labels}: within {join(places)}.")
        elif pair.shared:
            name, patients = max(pair.shared.items(), key=lambda item: min(item[1]))
            sentences.append(f"{labels}: hardly; {name} has {patients[0]:,} and {count_of(patients[1], unit)}.")
        else:
            sentences.append(f"{labels}: not; no {table.column} has both.")
    return sentences


def state_verdict(audit: DataAudit) -> str:
    """State the conclusion of an audit.

    Args:
        audit: The audit, with its alarms.

    Returns:
        One sentence.
    """
    if not audit.targets:
        return (
            "There is one label only, or too few patients of each: there is nothing to predict, and nothing to score."
        )
    alarmed = [target for target in audit.targets if target.alarms]
    if not alarmed:
        return _no_alarm(audit)
    target = max(alarmed, key=lambda target: target.alarms[0].strength)
    source = target.get("source")
    images = [score for score in target.alarms if score.probe.kind == "image"]
    if source is not None and source.alarm:
        also = f", and so does {_subject(images[0])} ({_short(images[0])})" if images else ""
        return (
            f"The source of an image alone {_result(target, source)}{also}: a score on all images together measures "
            f"the source; {_comparable(target)}."
        )
    best = target.alarms[0]
    return (
        f"{capital(_subject(best))} alone {_result(target, best)}: a score on these images may come from it and not "
        f"from the lungs."
    )


def state_findings(audit: DataAudit) -> list[str]:
    """State the main findings of an audit.

    Args:
        audit: The audit, with its alarms.

    Returns:
        Three to six sentences, the most important first.
    """
    findings = [finding for target in audit.targets for finding in _target_findings(target)]
    findings += [*split_findings(audit), *_patient_findings(audit), *_drift_and_quality(audit)]
    if audit.targets and not any(target.alarms for target in audit.targets):
        findings.append((0.2, _nearest(audit)))
    if audit.targets:
        findings += [(0.95, text) for text in _seeing(audit)]
    ordered = sorted(findings, key=lambda finding: -finding[0])
    return [sentence for _, sentence in ordered[:_MOST]]


def _drift_and_quality(audit: DataAudit) -> Iterator[tuple[float, str]]:
    if audit.drift is not None and (audit.drift.label_shift or audit.drift.covariate_shift or audit.drift.told_apart):
        yield 0.55, state_drift(audit.drift)
    if audit.quality is not None and (clear := audit.quality.clear("label")):
        named = join([f"{score.replace('_', ' ')} of {value} ({test.auroc:.2f})" for score, value, test in clear[:3]])
        yield 0.5, f"The quality of the images goes with the label, as an AUROC: {named}."


def state_drift(drift: Drift) -> str:
    """State how two parts differ.

    Args:
        drift: The differences.

    Returns:
        One to three sentences.
    """
    first, second = drift.names
    sentences = []
    if drift.label is not None and drift.label_shift:
        value = drift.label.largest
        shares = [own[value].value for own in (drift.label.first, drift.label.second)]
        difference = figure(drift.label.difference[value])
        sentences.append(
            f"Label shift: {value} is {shares[0]:.0%} of the {first} and {shares[1]:.0%} of the {second} images "
            f"(difference {difference})."
        )
    told_apart = drift.told_apart
    if drift.covariate_shift or told_apart:
        names = ", ".join(own.name.replace("_", " ") for own in drift.covariate_shift)
        same = " among images of one label" if drift.label else ""
        what = f"they differ{same} in {names}" if names else ""
        if told_apart:
            name, best = max(told_apart.items(), key=lambda item: item[1].auroc.value)
            where = f" among images of {name}" if name else ""
            seen = f"a classifier that sees no lung tells them apart{where} with an AUROC of "
            what = f"{what}; {seen}" if what else seen
            what += figure(best.auroc)
        sentences.append(f"Covariate shift of {first} and {second} images: {what}.")
    if not sentences:
        return (
            f"No difference between {first} and {second} images was found ({drift.patients[0]:,} and "
            f"{drift.patients[1]:,} patients)."
        )
    return " ".join(sentences)


def _comparable(target: TargetAudit) -> str:
    """State which labels can be compared within one source."""
    table = target.by_source
    pairs = [pair for pair in table.pairs if pair.supported] if table is not None else []
    if table is None or not pairs:
        return f"no two labels have {ENOUGH} patients each within one source"
    comparisons = [f"{' against '.join(pair.labels)} (within {_places(table, pair)})" for pair in pairs[:3]]
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    only = "" if len(pairs) == len(table.pairs) else "only "
    return f"{only}{join(comparisons)}{more} can be compared within one source"


def _places(table: CrossTable, pair: Pair) -> str:
    """Name the sources that have both labels, and their share of the images of the two."""
    rows = [table.labels.index(label) for label in pair.labels]
    columns = [table.values.index(value) for value in pair.supported]
    images = table.images[rows]
    share = images[:, columns].sum() / images.sum()
    return f"{join(pair.supported[:3])}: {share:.0%} of their images"


def _subject(score: ProbeScore) -> str:
    return "the image with the lungs removed" if score.probe.name == "background" else f"the {score.probe.title}"


def _result(target: TargetAudit, score: ProbeScore) -> str:
    """State what a probe predicts best, and how well."""
    clearer = _clearer_feature(score)
    name = clearer[0] if clearer else score.best[0]
    what = f"separates {name} from the rest" if len(score.by_class) > 2 else f"predicts {target.name}"
    if len(score.by_class) == 2 and target.name == "label":
        what = f"separates {' from '.join(score.by_class)}"
    how = "" if not clearer or score.probe.kind == "column" else "by one number "
    return f"{how}{what} with an AUROC of {_auroc(score)}"


def _clearer_feature(score: ProbeScore) -> tuple[str, FeatureTest] | None:
    """Return the class and feature that show more than the classifier of a probe, if one does."""
    feature = score.best_feature
    return feature if feature is not None and score.strength > score.best[1].value else None


def _auroc(score: ProbeScore) -> str:
    clearer = _clearer_feature(score)
    return f"{clearer[1].auroc:.2f} (p = {max(clearer[1].p_value, 1e-9):.1g})" if clearer else figure(score.best[1])


def _short(score: ProbeScore) -> str:
    clearer = _clearer_feature(score)
    name = clearer[0] if clearer else score.best[0]
    return f"{name} {_auroc(score)}" if len(score.by_class) > 2 else _auroc(score)


def _noticed_from(audit: DataAudit) -> float:
    """Return the AUROC from which a shortcut of any class would be noticed with a chance of 80 %."""
    return max([auroc for classes in audit.detectable.values() for auroc in classes.values()], default=1.0)


def _no_alarm(audit: DataAudit) -> str:
    count = len({score.probe.name for target in audit.targets for score in target.blind})
    if count == 0:
        return "No shortcut probe could be run: whether there are shortcuts is not known."
    least = _noticed_from(audit)
    seeing = [(target, score) for target in audit.targets for score in target.seeing]
    if seeing:
        target, best = max(seeing, key=lambda pair: pair[1].strength)
        return (
            f"Whether there is a shortcut is not decided: of {count} probes that see no lung none stands out above "
            f"chance, but {_subject(best)} of the whole image {_result(target, best)}: that may be the disease, or a "
            f"shortcut that lies over the lungs."
        )
    if least > _TOO_FEW:
        return (
            f"There are too few {audit.unit}s to decide ({audit.units:,}): {count} probes that see no lung found no "
            f"shortcut, but only one with an AUROC above {least:.2f} would have been noticed."
        )
    return (
        f"No shortcut found by these probes: none of {count} that see no lung stands out above chance on "
        f"{_describe_size(audit)} (one with an AUROC of {least:.2f} or more would have been noticed with a chance of "
        f"80 % or more)."
    )


def _target_findings(target: TargetAudit) -> Iterator[tuple[float, str]]:
    """Yield the findings on one target, each with its weight."""
    source, table = target.get("source"), target.by_source
    if source is not None and source.alarm and table is not None:
        yield (
            1.0 + _excess(source),
            f"The source alone {_result(target, source)}; sources with one label only: "
            f"{len(table.single)} of {len(table.values)} (Cramér's V of label and source {figure(table.cramers_v)}). "
            f"{capital(_comparable(target))}.",
        )
    if alarms := [score for score in target.official if score.alarm]:
        best = max(alarms, key=lambda score: (score.accuracy.value, score.probe.name == "source"))
        yield (
            1.2 + _excess(best),
            f"On the official test images, {_subject(best)} alone is right on {best.accuracy.value:.1%} "
            f"[{best.accuracy.low:.1%}, {best.accuracy.high:.1%}] of {count_of(best.accuracy.count, 'image')}; always "
            f"predicting the most frequent class is right on {best.majority:.1%}.",
        )
    yield from _image_findings(target)
    columns = [score for score in target.alarms if score.probe.kind == "column" and score.probe.name != "source"]
    if columns:
        probes = join([f"{score.probe.title} ({_short(score)})" for score in columns[:3]])
        yield (
            0.5 + _excess(columns[0]),
            f"Columns of the table predict the {target.name} without any image: {probes}"
            f"{_alarms_within(target, 'column')}.",
        )


def _image_findings(target: TargetAudit) -> Iterator[tuple[float, str]]:
    images = [score for score in target.alarms if score.probe.kind == "image"]
    within = _alarms_within(target, "image")
    if images:
        best = images[0]
        others = join([f"{_subject(score)} ({_short(score)})" for score in images[1:]])
        yield (
            0.9 + _excess(best),
            f"{capital(_subject(best))} alone {_result(target, best)}"
            f"{f'; to some degree so do {others}' if others else ''}{within}.",
        )
    elif within:
        yield 0.6, f"On all images together no probe of the image stands out{within}."


def _alarms_within(target: TargetAudit, kind: str) -> str:
    """State where probes of a kind stand out within one source or view, the clearest three."""
    alarms = [
        (name, score)
        for name, scores in target.within.items()
        for score in scores
        if score.alarm and score.probe.kind == kind and score.probe.name != "source"
    ]
    best = dict(sorted(alarms, key=lambda item: item[1].strength))
    clearest = sorted(best.items(), key=lambda item: -item[1].strength)[:3]
    probes = [f"{score.probe.title} within {name} ({_short(score)})" for name, score in clearest]
    return f". This also holds within one source or view: {join(probes)}" if probes else ""


def _seeing(audit: DataAudit) -> Iterator[str]:
    """Say which probes see the lungs too and predict a label, which proves no shortcut and rules none out."""
    for target in audit.targets:
        if target.seeing and not target.alarms:
            probes = join([f"the {score.probe.title} ({_short(score)})" for score in target.seeing])
            yield (
                f"Not blind to the lungs, and above chance for the {target.name}: {probes}. A score no higher than "
                f"that proves nothing about lungs."
            )


def _nearest(audit: DataAudit) -> str:
    """State which probe came nearest to an alarm."""
    scores = [score for target in audit.targets for score in target.blind]
    if not scores:
        return "No probe that sees no lung could be run."
    nearest = max(scores, key=lambda score: score.best[1].value)
    label, auroc = nearest.best
    result = f"{_subject(nearest)}, which predicts {label} with an AUROC of {figure(auroc)}"
    return f"Nearest to a shortcut is {result}: no more than chance may give among {audit.tests} AUROCs."


def _excess(score: ProbeScore) -> float:
    return 2 * (score.strength - 0.5)


_ALIKE = 0.6  # from where on neighbours by number are worth a word


def join(words: Sequence[str]) -> str:
    """Write a list of words.

    Args:
        words: The words.

    Returns:
        "a, b and c".
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def capital(text: str) -> str:
    """Begin a sentence.

    Args:
        text: The sentence.

    Returns:
        It, with a capital letter in front.
    """
    return text[:1].upper() + text[1:]


def _describe_size(audit: DataAudit) -> str:
    """Say how many images and patients there are."""
    images, unknown = count_of(audit.images, "image"), audit.leakage.unknown_patients
    if audit.patients is None:
        return f"{images}, of which no patient is known"
    whose = f" and {unknown:,} images whose patient is not known" if unknown else ""
    return f"{images} of {count_of(audit.patients, 'patient')}{whose}"


def split_findings(audit: DataAudit) -> Iterator[tuple[float, str]]:
    """Yield what leaks between the parts of the official split, and which images are copies of each other.

    Args:
        audit: The audit.

    Yields:
        The weight of a finding, and the finding.
    """
    leakage, copies, parts = audit.leakage, audit.leakage.copies, []
    if leakage.shared_patients:
        parts.append(
            f"{count_of(leakage.shared_patients, 'patient')} {_are(leakage.shared_patients)} in more than one part of "
            f"the official split ({count_of(leakage.shared_images or 0, 'image')} for validation or testing "
            f"{_have(leakage.shared_images or 0)} their patient in training)"
        )
    if copies is not None and any(copies.held_out.values()):
        parts.append(f"{_held_out_copies(leakage)} a copy among the training images")
    elif copies is not None and copies.across_splits:
        sets = count_of(copies.across_splits, "set")
        parts.append(
            f"{sets} of copies of one image {_have(copies.across_splits)} images in several parts of the split"
        )
    elif copies is not None and copies.across_patients:
        parts.append(
            f"{count_of(copies.across_patients, 'set')} of copies of one image {_are(copies.across_patients)} not kept "
            f"together by a split by patient"
        )
    if copies is not None and copies.contradicting:
        parts.append(
            f"{count_of(copies.contradicting, 'set')} of copies of one image {_have(copies.contradicting)} several "
            f"labels"
        )
    if parts:
        yield 1.1, f"{capital(join(parts))}."
    if copies is not None and copies.bodies:
        yield 1.04 if leakage.split else 0.4, _bodies(copies)


def _bodies(copies: Copies) -> str:
    """Say how many images show one body without being copies."""
    pairs = len(copies.bodies)
    held_out = sum(map(len, copies.bodies_held_out.values()))
    trained = (
        f"; {count_of(held_out, 'image')} for validation or testing {_have(held_out)} such an image in training"
        if copies.bodies_held_out
        else ""
    )
    return (
        f"{count_of(pairs, 'pair')} of images that are no copies {'shows' if pairs == 1 else 'show'} near-identical "
        f"bodies, most likely one patient at two times{trained}. Most images of one patient differ more and are not "
        f"found so."
    )


def _held_out_copies(leakage: Leakage) -> str:
    """Say how many held-out images have a copy in training; "" where nothing is held out."""
    held_out = {} if leakage.copies is None else leakage.copies.held_out
    words = {"test": "test images", "val": "validation images"}
    parts = [f"{len(held_out[part]):,} of {leakage.split[part]:,} {words[part]}" for part in words if part in held_out]
    return f"{join(parts)} have" if parts else ""


def _patient_findings(audit: DataAudit) -> Iterator[tuple[float, str]]:
    """Yield what a random split by image would leak, patients with several labels, and that patients are not known."""
    leakage, parts, weight = audit.leakage, [], 0.3
    whole = leakage.random.get("all")
    if whole is not None and whole.share > 0:
        shares = {name: split.share for name, split in leakage.random.items()}
        worst = max((name for name in shares if name != "all"), key=lambda name: shares[name], default="")
        most = f" ({shares[worst]:.0%} of {worst})" if worst else ""
        parts.append(
            f"a random split by image that holds out {HELD_OUT:.0%} would have the patient of {whole.share:.0%} of its "
            f"images{most} in training too: split by patient"
        )
        weight += 0.6 * max(shares.values())
    if leakage.contradictory:
        parts.append(
            f"{len(leakage.contradictory):,} patients have images of more than one label "
            f"({count_of(leakage.contradictory_images, 'image')})"
        )
    if parts:
        yield weight, f"{capital('; '.join(parts))}."
    if leakage.unknown_patients:
        yield 1.05 if leakage.split else 0.4, _unknown_patients(audit)


def _unknown_patients(audit: DataAudit) -> str:
    """Say that patients are not known, and what that leaves open."""
    if audit.patients is None:
        who = f"The patient of no image is known ({count_of(audit.images, 'image')})"
    else:
        who = f"The patients of {audit.leakage.unknown_patients:,} of {count_of(audit.images, 'image')} are not known"
    if len(audit.leakage.split) > 1:
        who = f"{who}: whether one of them is in more than one part of the official split cannot be checked."
    else:
        who = f"{who}: no split can keep their images together."
    return f"{who}{_series(audit.leakage)}"


def _series(leakage: Leakage) -> str:
    """Say what the numbers in file names tell of unknown patients; "" where they tell nothing."""
    series = leakage.series
    if series is None or series.alike < _ALIKE:
        return ""
    held_out = f"{count_of(series.held_out, 'image')} for validation or testing {_have(series.held_out)}"
    return (
        f" Images with neighbouring numbers in their names are more alike than others ({series.alike:.2f} of "
        f"{series.pairs:,} pairs; 0.50 = chance), so some may show one patient"
        f"{f'; {held_out} such a neighbour in training' if len(leakage.split) > 1 else ''}."
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"
