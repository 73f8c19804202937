"""Stress tests of a model: where it looks, whether its heat maps are faithful, and how it predicts changed images.

The sections of a report that show them stand here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from covidcxr.evaluation.metrics.scores import format_estimate, on_picture
from covidcxr.evaluation.plots import COLORS, as_picture, panels, plot_estimates, plot_panels
from covidcxr.evaluation.stress.ablation import Ablation
from covidcxr.evaluation.stress.attention import Attention, MapFaithfulness
from covidcxr.evaluation.stress.robustness import Effect, Robustness
from covidcxr.page import Block, Gallery, Picture, Section, Table, Words, sections_of
from covidcxr.utils.plain import count_of

__all__ = ["ablation_sections", "attention_sections", "faithfulness_sections", "robustness_sections"]


@sections_of.register
def robustness_sections(result: Robustness) -> list[Section]:
    """Return the section on robustness.

    Args:
        result: What `robustness` returned.

    Returns:
        One section.
    """
    lead = (
        f"{result.summary} Each of {result.images} images was changed in ways that leave the lungs as they are. "
        f"Nothing changes by chance: the same image always gets the same prediction."
    )
    dice = dict.fromkeys(name for effect in result.effects for name in effect.scores if name.startswith("dice_"))
    titles = {"changed": "predictions that change", "macro_auroc_change": "macro AUROC, change"}
    titles |= {name: f"Dice of {name.removeprefix('dice_')}" for name in dice}
    shown = {name: title for name, title in titles.items() if result.ranked(name)}
    blocks: list[Block] = []
    if shown:
        alt = f"By perturbation: {', '.join(shown.values())}"
        caption = f"{alt}; with 95 % intervals over patients, compared with the clean images."
        blocks.append(
            as_picture(plot_panels({effect.title: effect.scores for effect in result.effects}, shown), alt, caption)
        )
    if top := result.ranked()[:5]:
        blocks.append(_effect_table(top))
    return [Section("Robustness", lead, blocks)]


def _effect_table(effects: Sequence[Effect]) -> Table:
    heads = {
        "changed": "Predictions changed",
        "unanswered": "Predictions lost",
        "shift": "Change of probability",
        "accuracy_change": "Accuracy",
        "macro_auroc_change": "Macro AUROC",
    }
    names = [name for name in heads if any(name in effect.scores for effect in effects)]
    rows = [
        (effect.title, *(str(effect.scores[name]) if name in effect.scores else "" for name in names))
        for effect in effects
    ]
    caption = "The five that change most predictions"
    return Table(("Perturbation", *(heads[name] for name in names)), rows, caption)


@sections_of.register
def ablation_sections(result: Ablation) -> list[Section]:
    """Return the section on the chief control: the lungs painted out, and the lungs alone.

    Args:
        result: What `ablation` returned.

    Returns:
        One section.
    """
    titles = {"whole": "whole image", "without_lungs": "lungs painted out", "lungs_only": "lungs alone"}
    lead = (
        f"A model that reads the lungs falls to chance when they are painted out, and keeps its score on the lungs "
        f"alone; one that reads something else does the opposite. {count_of(result.images, 'image')} of "
        f"{count_of(result.patients, 'patient')}; lungs drawn by {result.lungs}."
    )
    if result.models > 1:
        lead += (
            f" Each image was shown to the one of {result.models} models that was tested on it and did not train on "
            f"it; images are compared with those of the same model only."
        )
    several = len(result.scores) > 2
    shown = {
        f"{words}, {on_picture(name) if name else 'mean'}" if several else words: scores[view]
        for name, scores in result.scores.items()
        if several or not name
        for view, words in titles.items()
    }
    figure = plot_estimates(shown, title="AUROC (0.5 = chance)", chance=0.5)
    caption = "AUROC of the same model on the same images; dotted: chance"
    picture = as_picture(figure, "AUROC on whole images, without lungs and on lungs alone", caption)
    differences = {
        "needs_lungs": "whole image less lungs painted out",
        "needs_rest": "whole image less lungs alone",
        "lungs_lead": "lungs alone less lungs painted out",
    }
    rows = [(words, format_estimate(result.overall[name], signed=True)) for name, words in differences.items()]
    head = ("difference of the AUROC", "value [95 % interval]")
    blocks: list[Block] = [picture, Table(head, rows, "Paired, on the same patients")]
    if result.pictures:
        blocks.append(Gallery([Picture(png, f"Three views of {name}", name) for name, png in result.pictures.items()]))
    return [Section("With the lungs painted out", lead, [*blocks, *map(Words, _caveats(result))])]


def _caveats(result: Ablation) -> Iterator[str]:
    yield (
        "Painted out is the upright rectangle around both lungs, widened by 3 % of the longer side, with a grey that "
        "is the same in all images: no outline of the lungs is left. Of the lungs alone, everything else is that grey. "
        "The image fades into it within another 3 %."
    )
    if result.region != "full":
        yield (
            f"The model sees a region of the image by construction ({result.region}): that it does not need what lies "
            f"outside is no merit."
        )
    if result.left_out:
        yield f"Left out: {', '.join(f'{count} images {why}' for why, count in result.left_out.items())}."


@sections_of.register
def attention_sections(result: Attention) -> list[Section]:
    """Return the section on attention.

    Args:
        result: What `attention` returned.

    Returns:
        One section.
    """
    blocks: list[Block] = []
    groups = {"all images": result.overall, **result.by_class}
    groups |= {f"source {name}": scores for name, scores in result.by_source.items()}
    shares = {name: scores["share"] for name, scores in groups.items() if not math.isnan(scores["share"].value)}
    if shares:
        title, chance = "Share of the heat within the lungs", result.overall["chance"].value
        figure = plot_estimates(shares, title=title, chance=chance)
        caption = f"{title}, by class and by source; dotted: the share of the image that they cover."
        blocks.append(as_picture(figure, f"{title}, by class and by source", caption))
    counts = {
        "have no prediction": sum(not row.target for row in result.rows),
        "have an empty map": sum(row.empty for row in result.rows),
        "could not be read": len(result.failed),
    }
    if any(counts.values()):
        words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        blocks.append(Words(f"Left out of {count_of(len(result.rows) + len(result.failed), 'image')}: {words}."))
    if result.least:
        rows = {row.image_id: row for row in result.rows}
        blocks.append(Words("The images with the least heat in the lungs:"))
        pictures = []
        for image_id, png in result.least.items():
            row = rows[image_id]
            truth = f", truth {row.label}" if row.label else ""
            caption = f"{image_id}: {row.share:.0%} in the lungs; for {row.target}{truth}"
            pictures.append(Picture(png, f"Heat map of {image_id}", caption))
        blocks.append(Gallery(pictures))
    return [Section("Where the model looks", result.summary, blocks)]


@sections_of.register
def faithfulness_sections(result: MapFaithfulness) -> list[Section]:
    """Return the section on the faithfulness of heat maps.

    Args:
        result: What `map_faithfulness` returned.

    Returns:
        One section.
    """
    figure, axes = panels(2, width=3.6, height=2.8)
    for axis, name, action in zip(axes, ("deletion", "insertion"), ("removed", "shown"), strict=True):
        axis.plot(result.fractions, result.curves[name], color=COLORS[0], label="by the map")
        axis.plot(result.fractions, result.curves[f"random_{name}"], color=COLORS[1], linestyle="--", label="by chance")
        axis.set(title=name.capitalize(), xlabel=f"share {action}", ylabel="probability", ylim=(0, 1))
        axis.legend(frameon=False, fontsize=8)
    caption = "Mean probability of the class while what the map marks is removed, or shown, first."
    return [Section("Faithfulness of the heat maps", result.summary, [as_picture(figure, caption, caption)])]
