"""A tiny recipe."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "about": "A tiny classifier.",
    "model": {
        "class_path": "classification",
        "init_args": {
            "model": {
                "task": "classification",
                "network": "timm:test_resnet",
                "classes": ["covid19", "normal", "pneumonia"],
                "preprocess": {"image_size": [32, 32]},
            },
            "loss": "cross_entropy",
        },
    },
    "data": {"class_path": "csv", "init_args": {"image_size": [32, 32], "batch_size": 16, "cache": "memory"}},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
    "compare": {
        "loss": {"plain": {}, "focal": {"model.init_args.loss": "focal"}},
        "lr": {"slow": {"model.init_args.lr": 0.001}, "fast": {"model.init_args.lr": 0.01}},
    },
}
