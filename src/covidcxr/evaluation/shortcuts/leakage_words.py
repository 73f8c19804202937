"""What an audit says of patients and copies in several parts, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from covidcxr.evaluation.shortcuts.leakage import HELD_OUT, Copies, Leakage
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from covidcxr.evaluation.shortcuts.result import DataAudit

__all__ = ["capital", "describe_size", "join", "patient_findings", "split_findings"]

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


def describe_size(audit: DataAudit) -> str:
    """Say how many images and patients there are.

    Args:
        audit: The audit.

    Returns:
        "60 images of 30 patients"; where patients are not known, that.
    """
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


def patient_findings(audit: DataAudit) -> Iterator[tuple[float, str]]:
    """Yield what a random split by image would leak, patients with several labels, and that patients are not known.

    Args:
        audit: The audit.

    Yields:
        The weight of a finding, and the finding.
    """
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
