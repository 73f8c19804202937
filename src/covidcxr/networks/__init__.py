"""Networks: bare modules, image to logits, found by name.

`timm:NAME` is any timm classifier and `smp:NAME` any segmentation_models_pytorch architecture, with no list of
ours to go stale; every other name is looked up in `CLASSIFICATION_NETWORKS` or `SEGMENTATION_NETWORKS`.
A registered network is a class or function `(in_channels, num_classes, **network_args) -> nn.Module`.
"""

from covidcxr.networks.build import backbone_of, build_network

__all__ = ["backbone_of", "build_network"]
