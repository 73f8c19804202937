"""An error of jsonargparse becomes one line with the wrong key and the nearest valid one."""

from __future__ import annotations

import pytest

from covidcxr.training.parser import in_one_line

KNOWN = {
    "trainer",
    "trainer.max_epochs",
    "trainer.devices",
    "model",
    "data",
    "lr",
    "image_size",
    "model.preprocess.fit",
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Option 'lrr' is not accepted", "Unknown key 'lrr' in the config. Did you mean 'lr'?"),
        (
            "Subcommand 'fit' does not accept option 'trainer.max_epoch'",
            "Unknown key 'trainer.max_epoch' in the config. Did you mean 'trainer.max_epochs'?",
        ),
        (
            "Subcommand 'fit' does not accept option 'modle.lr'",
            "Unknown key 'modle.lr' in the config. Did you mean 'model.lr'?",
        ),
        (
            "Group 'model' does not accept option 'preprocess.fitt'",
            "Unknown key 'model.preprocess.fitt' in the config. Did you mean 'model.preprocess.fit'?",
        ),
        (
            "Option 'xyz' is not accepted",
            "Unknown key 'xyz' in the config. Known: data, image_size, lr, model, trainer.",
        ),
        ("unrecognized arguments: --modle.lr 1", "Unknown argument 'modle.lr'. Did you mean 'model.lr'?"),
        (
            "unrecognized arguments: trainer.devices 1",
            "Unknown argument 'trainer.devices'. Did you mean '--trainer.devices'?",
        ),
        (
            "Parser key \"optimizer\":\n  Expected a typing.Literal['adam', 'sgd']. Got value: adamm",
            "optimizer must be one of adam, sgd, not 'adamm'. Did you mean 'adam'?",
        ),
        (
            "Parser key \"optimizer\":\n  Expected a typing.Literal['adam', 'sgd']. Got value: 7",
            "optimizer must be one of adam, sgd, not '7'.",
        ),
        (
            "Problem with given class_path 'covidcxr.errors.CXREror':\n  module 'covidcxr.errors' has no attribute "
            "'CXREror'",
            "There is no 'covidcxr.errors.CXREror': covidcxr.errors has no 'CXREror'. Did you mean 'CovidCXRError'?",
        ),
        (
            "Parser key \"model\":\n Not a valid subclass\n Given value: {'class_path': 'A', 'init_arg': {'lr': 1}}",
            "Unknown key 'model.init_arg'. Did you mean 'init_args'?",
        ),
        (
            "Parser key \"model\":\n Not a valid subclass\n Given value: {'class_path': <object>}",
            "Parser key \"model\": Not a valid subclass Given value: {'class_path': <object>}",
        ),
        (
            "arguments are required: data.root",
            "These settings are missing: data.root (--data.root DIR names the data set's folder).",
        ),
        (
            'Parser key "model":\n  Does not validate\n  - Expected an instantiatable class, but it is abstract',
            "These settings are missing: model (--config RECIPE, --model classification or segmentation, or "
            "--model.init_from FOLDER for a saved model).",
        ),
        ("word " * 500, "word " * 120),
    ],
)
def test_one_line(message: str, expected: str) -> None:
    assert in_one_line(message, KNOWN) == expected
