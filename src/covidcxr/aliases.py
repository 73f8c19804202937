"""Old names, which 0.1 keeps importable without a warning: the one place where they stand.

0.1.0 had another layout. Code, configs and saved files that name its modules (`covidcxr.hub`,
`covidcxr.data.table.CSVDataModule`) find them under their present names, and get the very same objects.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

__all__ = ["MODULES", "NAMES", "RECIPES", "find", "old_arguments"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MODULES = {
    "audit_verb": "cli.audit",
    "augmentations": "transforms.augment",
    "batch": "pipeline.folder",
    "complaints": "training.parser_errors",
    "data.archive_entries": "io.archives",
    "data.archives": "io.archives",
    "data.balance": "data.sampler",
    "data.check": "data.curation.integrity",
    "data.combined": "data.datasets.combined",
    "data.coronahack": "data.datasets.coronahack",
    "data.covid19_radiography": "data.datasets.covid19_radiography",
    "data.covid_ct_ucsd": "data.datasets.covid_ct_ucsd",
    "data.covid_cxnet": "data.datasets.covid_cxnet",
    "data.covid_qu_ex": "data.datasets.covid_qu_ex",
    "data.covid_xray_5k": "data.datasets.covid_xray_5k",
    "data.covidx_ct2": "data.datasets.covidx_ct2",
    "data.covidx_cxr3": "data.datasets.covidx_cxr3",
    "data.darkcovidnet": "data.datasets.darkcovidnet",
    "data.duplicates": "data.curation.duplicates",
    "data.faults": "data.collection",
    "data.feedback": "data.datasets.feedback",
    "data.fitting": "data.dataset",
    "data.folder": "data.datasets.folder",
    "data.gate": "data.datasets.view_check",
    "data.hannover": "data.datasets.hannover",
    "data.ieee8023": "data.datasets.ieee8023",
    "data.labels": "data.records",
    "data.likeness": "data.curation.near_duplicates",
    "data.linked": "data.curation.duplicates",
    "data.manifest": "data.datasets.manifest",
    "data.names": "data.curation.prepare",
    "data.prepare": "data.curation.prepare",
    "data.prepared": "data.curation.prepared",
    "data.rows": "io.tables",
    "data.series": "data.datasets.manifest",
    "data.statistics": "data.summary.summary",
    "data.table": "data.datasets.csv",
    "data.targets": "data.dataset",
    "data.threads": "utils.threads",
    "data.views": "data.records",
    "data.xrayvision": "data.datasets.torchxrayvision",
    "data.xrayvision_parts": "data.datasets.torchxrayvision",
    "datasets": "data.summary",
    "datasets.catalogue": "data.summary.catalogue",
    "datasets.charts": "data.summary.charts",
    "datasets.console": "utils.console",
    "datasets.contact": "data.summary.contact_sheet",
    "datasets.counting": "data.summary.summary",
    "datasets.lettering": "data.summary.contact_sheet",
    "datasets.tables": "cli.tables",
    "datasets.verbs": "cli.datasets",
    "dicom": "io.dicom",
    "doctor": "cli.doctor",
    "ensembling": "recipes.ensemble",
    "evaluate_verb": "cli.evaluate",
    "evaluation.agreement": "evaluation.metrics.agreement",
    "evaluation.answers": "evaluation.predictions.predictions",
    "evaluation.attention": "evaluation.stress.attention",
    "evaluation.audit": "evaluation.shortcuts",
    "evaluation.audit.alarm": "evaluation.shortcuts.probes",
    "evaluation.audit.asking": "evaluation.shortcuts.run",
    "evaluation.audit.audit": "evaluation.shortcuts.run",
    "evaluation.audit.classifiers": "evaluation.shortcuts.probes",
    "evaluation.audit.confounding": "evaluation.shortcuts.targets",
    "evaluation.audit.features": "evaluation.shortcuts.features",
    "evaluation.audit.films": "evaluation.shortcuts.images",
    "evaluation.audit.headers": "evaluation.shortcuts.images",
    "evaluation.audit.leakage": "evaluation.shortcuts.leakage",
    "evaluation.audit.pictures": "evaluation.shortcuts.report",
    "evaluation.audit.probes": "evaluation.shortcuts.probes",
    "evaluation.audit.questions": "evaluation.shortcuts.targets",
    "evaluation.audit.result": "evaluation.shortcuts.result",
    "evaluation.audit.sections": "evaluation.shortcuts.report",
    "evaluation.audit.sheets": "evaluation.shortcuts.images",
    "evaluation.audit.verdict": "evaluation.shortcuts.verdict",
    "evaluation.audit.words": "evaluation.shortcuts.verdict",
    "evaluation.calibration": "evaluation.metrics.reliability",
    "evaluation.changed_answers": "evaluation.stress.robustness",
    "evaluation.comparison": "evaluation.metrics.comparison",
    "evaluation.explained": "evaluation.predictions.sample",
    "evaluation.faithful_maps": "evaluation.stress.faithfulness",
    "evaluation.films": "evaluation.predictions.run_pipeline",
    "evaluation.findings": "evaluation.metrics.classification",
    "evaluation.folders": "evaluation.predictions.table",
    "evaluation.intervals": "evaluation.metrics.bootstrap",
    "evaluation.masks": "evaluation.metrics.segmentation",
    "evaluation.operating": "evaluation.metrics.operating_point",
    "evaluation.perturbations": "evaluation.stress.perturbations",
    "evaluation.reliability": "evaluation.metrics.reliability",
    "evaluation.report.agreement": "evaluation.report.masks",
    "evaluation.report.card": "evaluation.report.evaluation",
    "evaluation.report.chief": "evaluation.report.headline",
    "evaluation.report.curves": "evaluation.report.classes",
    "evaluation.report.gallery": "evaluation.report.errors",
    "evaluation.report.held_out": "evaluation.report.sources",
    "evaluation.report.learning": "evaluation.report.sources",
    "evaluation.report.lineage": "evaluation.report.provenance",
    "evaluation.report.mask_scores": "evaluation.report.masks",
    "evaluation.report.mistakes": "evaluation.report.errors",
    "evaluation.report.model_card": "evaluation.report.evaluation",
    "evaluation.report.points": "evaluation.report.classes",
    "evaluation.report.versus": "evaluation.report.model_comparison",
    "evaluation.report.weigh": "evaluation.report.verdict",
    "evaluation.robustness": "evaluation.stress.robustness",
    "evaluation.rows": "evaluation.predictions.table",
    "evaluation.sample": "evaluation.predictions.sample",
    "evaluation.shelf": "evaluation.predictions.run_pipeline",
    "evaluation.shortcuts.confounding": "evaluation.shortcuts.targets",
    "evaluation.statistics": "evaluation.metrics.weighted",
    "explain.explanation": "explain.engine",
    "explain.layers": "explain.methods",
    "explain_verb": "cli.explain",
    "files": "io.atomic",
    "gate": "pipeline.view_check",
    "golden": "pipeline.parts",
    "hub": "io.pretrained",
    "masks": "pipeline.lung_masks",
    "models.films": "models.network",
    "networks.backbone": "networks.weights",
    "networks.boosted": "networks.zoo.boosted",
    "networks.cnn19": "networks.zoo.cnn19",
    "networks.compiler": "networks.build",
    "networks.covidcnn": "networks.zoo.dense_head",
    "networks.dense_head": "networks.zoo.dense_head",
    "networks.download": "networks.weights",
    "networks.hog": "networks.zoo.hog",
    "networks.one_encoder": "networks.segmentation",
    "networks.residual_unet": "networks.zoo.residual_unet",
    "networks.smp": "networks.segmentation",
    "networks.timm": "networks.classification",
    "networks.torchvision": "networks.classification",
    "networks.vgg_head": "networks.zoo.dense_head",
    "networks.vision": "networks.classification",
    "networks.xrv": "networks.classification",
    "one_core": "utils.threads",
    "orientation": "transforms.orientation",
    "phantom.dataset": "phantom.draw",
    "phantom.findings": "phantom.chest",
    "phantom.other_pictures": "phantom.others",
    "phantom.shapes": "phantom.anatomy",
    "phantom.types": "phantom.anatomy",
    "pooling": "recipes.cross_validation",
    "postprocess": "transforms.postprocess",
    "prediction": "pipeline.prediction",
    "preprocess": "transforms.preprocess",
    "recipe": "training.recipe",
    "recipe_verbs": "cli.recipes",
    "run": "recipes.run",
    "runs": "recipes.sweep",
    "search": "training.search_space",
    "serve.app": "serve.server",
    "serve.bayes": "serve.schema",
    "serve.body": "serve.security",
    "serve.desk": "serve.service",
    "serve.facts": "serve.engine",
    "serve.pages": "serve.routes",
    "serve.parts": "serve.multipart",
    "serve.pdf": "serve.report",
    "serve.refusal": "serve.errors",
    "serve.report_routes": "serve.routes",
    "serve.tables": "serve.database",
    "serve_verb": "cli.serve",
    "sheet": "pipeline.folder",
    "steps": "transforms.step_chain",
    "surfaces": "transforms.surface_distance",
    "tasks.optim": "tasks.objective",
    "tasks.start": "tasks.base",
    "tune": "recipes.tune",
    "tune.engine": "recipes.tune.engine",
    "tune.findings": "recipes.tune.findings",
    "tune.plots": "recipes.tune.findings",
    "tune.study": "recipes.tune.study",
    "tune.trial": "recipes.tune.study",
    "tune.verbs": "cli.tune",
}
"""From the name of a module in 0.1.0 to its present name, both below `covidcxr`."""

NAMES = {
    "cli.explain.explain_films": "cli.explain.explain_images",
    "data.curation.duplicates.find_shared_films": "data.curation.duplicates.find_shared_images",
    "data.dataset.FittedFilm": "data.dataset.FittedImage",
    "data.dataset.fit_film": "data.dataset.fit_record",
    "data.find_shared_films": "data.curation.duplicates.find_shared_images",
    "data.summary.contact_sheet.choose_films": "data.summary.contact_sheet.choose_images",
    "evaluation.metrics.BINS": "evaluation.metrics.classification.BINS",
    "evaluation.metrics.CURVES": "evaluation.metrics.classification.CURVES",
    "evaluation.metrics.Statistics": "evaluation.metrics.bootstrap.Statistics",
    "evaluation.metrics.agreement.film_agreement": "evaluation.metrics.agreement.image_agreement",
    "evaluation.metrics.areas_of": "evaluation.metrics.classification.areas_of",
    "evaluation.metrics.brier_of": "evaluation.metrics.calibration.brier_of",
    "evaluation.metrics.by_class": "evaluation.metrics.classification.by_class",
    "evaluation.metrics.check_classes": "evaluation.metrics.classification.check_classes",
    "evaluation.metrics.check_labels": "evaluation.metrics.classification.check_labels",
    "evaluation.metrics.check_predictions": "evaluation.metrics.classification.check_predictions",
    "evaluation.metrics.check_probabilities": "evaluation.metrics.classification.check_probabilities",
    "evaluation.metrics.classification_metrics": "evaluation.metrics.classification.classification_metrics",
    "evaluation.metrics.classification_statistics": "evaluation.metrics.classification.classification_statistics",
    "evaluation.metrics.rates_of": "evaluation.metrics.classification.rates_of",
    "evaluation.metrics.reliability.conformal_threshold": "evaluation.metrics.conformal.conformal_threshold",
    "evaluation.metrics.reliability.score_sets": "evaluation.metrics.conformal.score_sets",
    "evaluation.metrics.segmentation.Agreement": "evaluation.metrics.agreement.Agreement",
    "evaluation.metrics.segmentation.PLACES": "evaluation.metrics.agreement.PLACES",
    "evaluation.metrics.segmentation.SEVERITIES": "evaluation.metrics.agreement.SEVERITIES",
    "evaluation.metrics.segmentation.film_agreement": "evaluation.metrics.agreement.image_agreement",
    "evaluation.metrics.segmentation.image_agreement": "evaluation.metrics.agreement.image_agreement",
    "evaluation.metrics.segmentation.infected_fractions": "evaluation.metrics.agreement.infected_fractions",
    "evaluation.metrics.segmentation.limits_of_agreement": "evaluation.metrics.agreement.limits_of_agreement",
    "evaluation.predictions.predictions.Answers": "evaluation.predictions.predictions.PredictionTable",
    "evaluation.predictions.predictions.looked_for": "evaluation.predictions.predictions.find_positive",
    "evaluation.predictions.run_pipeline.FilmShelf": "evaluation.predictions.run_pipeline.ImageLookup",
    "evaluation.predictions.run_pipeline.Look": "evaluation.predictions.run_pipeline.ImageView",
    "evaluation.predictions.sample.ExplainedFilm": "evaluation.predictions.sample.ExplainedImage",
    "evaluation.predictions.sample.FilmSample": "evaluation.predictions.sample.ImageSample",
    "evaluation.predictions.sample.Films": "evaluation.predictions.sample.Images",
    "evaluation.predictions.sample.explained_films": "evaluation.predictions.sample.explained_images",
    "evaluation.predictions.table.calibrate": "evaluation.metrics.reliability.calibrate",
    "evaluation.report.Lineage": "evaluation.report.provenance.Provenance",
    "evaluation.report.classes.Abstention": "evaluation.report.abstention.Abstention",
    "evaluation.report.classes.score_abstention": "evaluation.report.abstention.score_abstention",
    "evaluation.report.errors.FilmGallery": "evaluation.report.errors.ImageGallery",
    "evaluation.report.errors.Mistake": "evaluation.report.errors.WrongPrediction",
    "evaluation.report.errors.MistakeGroup": "evaluation.report.errors.ErrorGroup",
    "evaluation.report.errors.Mistakes": "evaluation.report.errors.ErrorAnalysis",
    "evaluation.report.errors.find_mistakes": "evaluation.report.errors.find_errors",
    "evaluation.report.headline.asked_classes": "evaluation.report.headline.scored_classes",
    "evaluation.report.headline.chief_scores": "evaluation.report.headline.group_scores",
    "evaluation.report.headline.in_words": "evaluation.metrics.scores.title",
    "evaluation.report.headline.on_picture": "evaluation.metrics.scores.on_picture",
    "evaluation.report.headline.plain": "utils.plain.plain_result",
    "evaluation.report.model_comparison.Versus": "evaluation.report.model_comparison.ModelComparison",
    "evaluation.report.provenance.Lineage": "evaluation.report.provenance.Provenance",
    "evaluation.shortcuts.QuestionAudit": "evaluation.shortcuts.TargetAudit",
    "evaluation.shortcuts.features.Sheet": "evaluation.shortcuts.features.FeatureTable",
    "evaluation.shortcuts.images.Films": "evaluation.shortcuts.images.ImageFeatures",
    "evaluation.shortcuts.images.look_at_films": "evaluation.shortcuts.images.read_images",
    "evaluation.shortcuts.images.make_sheets": "evaluation.shortcuts.images.make_feature_tables",
    "evaluation.shortcuts.images.reads_itself": "data.collection.has_own_reader",
    "evaluation.shortcuts.probes.Question": "evaluation.shortcuts.targets.Target",
    "evaluation.shortcuts.probes.standard_errors_wanted": "evaluation.shortcuts.probes.standard_errors_required",
    "evaluation.shortcuts.report.draw_cross_table": "evaluation.shortcuts.report._draw_cross_table",
    "evaluation.shortcuts.report.draw_probes": "evaluation.shortcuts.report._draw_probes",
    "evaluation.shortcuts.report.draw_random_split": "evaluation.shortcuts.report._draw_random_split",
    "evaluation.shortcuts.result.QuestionAudit": "evaluation.shortcuts.result.TargetAudit",
    "evaluation.shortcuts.result.judged": "evaluation.shortcuts.result.mark_alarms",
    "evaluation.shortcuts.run.AskedTable": "evaluation.shortcuts.run._ProbeInputs",
    "evaluation.shortcuts.run.ask_all": "evaluation.shortcuts.run._run_probes",
    "evaluation.shortcuts.targets.ask_labels": "evaluation.shortcuts.targets.label_targets",
    "evaluation.shortcuts.targets.ask_source": "evaluation.shortcuts.targets.source_target",
    "evaluation.shortcuts.targets.strata": "evaluation.shortcuts.targets.targets_within",
    "evaluation.shortcuts.verdict.capital": "evaluation.shortcuts.leakage_words.capital",
    "evaluation.shortcuts.verdict.list_words": "evaluation.shortcuts.verdict.join",
    "evaluation.shortcuts.verdict.named": "evaluation.shortcuts.verdict._subject",
    "evaluation.shortcuts.verdict.noticed_from": "evaluation.shortcuts.verdict._noticed_from",
    "evaluation.shortcuts.verdict.say_findings": "evaluation.shortcuts.verdict.state_findings",
    "evaluation.shortcuts.verdict.say_verdict": "evaluation.shortcuts.verdict.state_verdict",
    "evaluation.shortcuts.verdict.supported_words": "evaluation.shortcuts.verdict.supported_comparisons",
    "evaluation.shortcuts.verdict.told": "evaluation.shortcuts.verdict._result",
    "evaluation.shortcuts.verdict.told_short": "evaluation.shortcuts.verdict._short",
    "evaluation.shortcuts.verdict.what_can_be_compared": "evaluation.shortcuts.verdict._comparable",
    "evaluation.stress.robustness.compare_answers": "evaluation.stress.robustness._compare",
    "explain.engine.evaluating": "models.base.evaluation_mode",
    "explain.methods.Question": "explain.methods.Attribution",
    "io.image.is_one_film": "io.image.is_single_image",
    "io.is_one_film": "io.image.is_single_image",
    "models.base.check_films": "models.base.check_images",
    "models.network.fit_films": "models.network.resize_images",
    "models.network.fit_images": "models.network.resize_images",
    "networks.classification.TorchvisionNetwork": "networks.classification._TorchvisionNetwork",
    "networks.classification.XRayVisionNetwork": "networks.classification._XRayVisionNetwork",
    "networks.classification.load_backbone": "networks.classification._load_backbone",
    "networks.weights.answer_tensors": "networks.weights.head_tensors",
    "networks.zoo.dense_head.DenseHeadNetwork": "networks.zoo.dense_head._DenseHeadNetwork",
    "networks.zoo.residual_unet.ResidualBlock": "networks.zoo.residual_unet._ResidualBlock",
    "pipeline.folder.find_films": "pipeline.folder.find_images",
    "pipeline.parts.write_golden": "pipeline.parts._write_golden",
    "pipeline.prediction.MASK_COLORS": "transforms.overlay.MASK_COLORS",
    "pipeline.view_check.Admission": "pipeline.view_check.ViewCheck",
    "pipeline.view_check.admit": "pipeline.view_check.check_views",
    "pipeline.view_check.check_gate": "pipeline.view_check.check_view_model",
    "pipeline.view_check.in_words_of_gate": "pipeline.view_check.view_in_words",
    "recipes.Comparison": "recipes.sweep.Sweep",
    "recipes.cross_validation.HeldOut": "recipes.cross_validation.Fold",
    "recipes.sweep.Comparison": "recipes.sweep.Sweep",
    "recipes.tune.findings.draw_course": "recipes.tune.findings._draw_course",
    "recipes.tune.findings.draw_importances": "recipes.tune.findings._draw_importances",
    "recipes.tune.findings.draw_slices": "recipes.tune.findings._draw_slices",
    "recipes.tune.study.retry": "recipes.tune.study._retry",
    "serve.database.films": "serve.database.images",
    "serve.decoder.DecodedFilm": "serve.decoder.DecodedImage",
    "serve.errors.RefusalError": "serve.errors.RequestError",
    "serve.report.film_report": "serve.report.image_report",
    "serve.routes.film_routes": "serve.routes.image_routes",
    "serve.schema.CANNOT_SAY": "serve.schema.INDETERMINATE",
    "serve.schema.Film": "serve.schema.Image",
    "serve.schema.Films": "serve.schema.Images",
    "serve.schema.film_of": "serve.schema.to_json",
    "serve.security.Doorkeeper": "serve.security.SecurityMiddleware",
    "serve.security.refusal_response": "serve.security.error_response",
    "serve.service.Desk": "serve.service.PredictionService",
    "serve.service.infected_by_lung": "serve.answers.infected_by_lung",
    "serve.worker.decode_film": "serve.worker.decode_image",
    "tasks.rows.film_rows": "tasks.rows.image_rows",
    "tasks.rows.labelled_films": "tasks.rows.labelled_images",
    "training.TrainingCLI": "training.session.Session",
    "training.run": "cli.fit.train",
    "transforms.fit_image": "transforms.geometry.resize_image",
    "transforms.fit_mask": "transforms.geometry.resize_mask",
    "transforms.geometry.CHILD": "transforms.orientation.CHILD",
    "transforms.geometry.NOT_A_FILM": "transforms.orientation.NOT_A_FRONTAL_IMAGE",
    "transforms.geometry.NOT_A_FRONTAL_IMAGE": "transforms.orientation.NOT_A_FRONTAL_IMAGE",
    "transforms.geometry.ORIENTATIONS": "transforms.orientation.ORIENTATIONS",
    "transforms.geometry.Orientation": "transforms.orientation.Orientation",
    "transforms.geometry.UPRIGHT": "transforms.orientation.UPRIGHT",
    "transforms.geometry.fit_image": "transforms.geometry.resize_image",
    "transforms.geometry.fit_mask": "transforms.geometry.resize_mask",
    "transforms.geometry.unfit_map": "transforms.geometry.restore_map",
    "transforms.orientation.NOT_A_FILM": "transforms.orientation.NOT_A_FRONTAL_IMAGE",
    "transforms.preprocess.binarize_film": "transforms.preprocess.binarize_image",
    "transforms.preprocess.crop_film": "transforms.preprocess.crop_image",
    "transforms.preprocess.equalize_film": "transforms.preprocess.equalize_image",
    "transforms.preprocess.normalize_film": "transforms.preprocess.normalize_image",
    "transforms.preprocess.sharpen_film": "transforms.preprocess.sharpen_image",
    "transforms.unfit_map": "transforms.geometry.restore_map",
    "utils.threads.one_core": "utils.threads.single_threaded",
}
"""From a public name of 0.1.0 in its present module to its present name, both below `covidcxr`."""

RECIPES = {"multitask": "das2021-multitask", "vit": "das2021-vit"}
"""From the name of a bundled recipe in 0.1.0 to its present name."""


def find(module: str, name: str) -> Any:
    """Return the object that had a public name in 0.1.0.

    Args:
        module: Present full name of the module, `covidcxr.pipeline.prediction`.
        name: Its old public name there.

    Returns:
        The object, under its present name.

    Raises:
        AttributeError: If the module never had it.
    """
    present = NAMES.get(f"{module.partition('.')[2]}.{name}")
    if present is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    place, _, renamed = present.rpartition(".")
    return getattr(import_module(f"covidcxr.{place}"), renamed)


def old_arguments(**renamed: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that lets a function be called with the old names of its keyword arguments too.

    Args:
        renamed: From old to present name. Type checkers know the present one only.

    Returns:
        The decorator.

    Raises:
        TypeError: When the decorated function gets a keyword argument under both its names.

    Example:
        ```python
        from covidcxr.aliases import old_arguments

        @old_arguments(max_films="max_images")
        def draw(*, max_images: int) -> int:
            return max_images

        assert draw(**{"max_films": 3}) == draw(max_images=3) == 3
        ```
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            for old in renamed.keys() & keywords.keys():
                if renamed[old] in keywords:
                    raise TypeError(f"{old} is the old name of {renamed[old]}: give one of them.")
                keywords[renamed[old]] = keywords.pop(old)
            return function(*arguments, **keywords)

        return call

    return decorate
