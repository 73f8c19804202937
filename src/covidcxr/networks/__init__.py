"""Networks: bare modules, image to logits, found by name.

`timm:NAME` is any timm classifier, `torchvision:NAME` any torchvision classifier and `smp:NAME` any
segmentation_models_pytorch architecture, with no list of ours to go stale; `xrv:NAME` takes torchxrayvision's weights.
Every other name is looked up in `CLASSIFICATION_NETWORKS` or `SEGMENTATION_NETWORKS`. A registered network is a class
or function `(in_channels, num_classes, **network_args) -> nn.Module`; where it has a parameter `image_size`, that is
the config's.
"""

from covidcxr.networks.build import build_network
from covidcxr.networks.weights import backbone_of

__all__ = ["backbone_of", "build_network"]
