"""Numbers of parameters that libraries and papers state."""

from __future__ import annotations

from torch import nn


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


LIBRARY_COUNTS = {  # of 1,000 classes and three channels, by torchvision, Keras (less running statistics) or timm
    "timm:vgg16": 138_357_544,
    "timm:vgg19": 143_667_240,
    "timm:vgg19_bn": 143_678_248,
    "timm:resnet18": 11_689_512,
    "timm:resnet50": 25_557_032,
    "timm:resnet152": 60_192_808,
    "timm:densenet121": 7_978_856,
    "timm:mobilenetv1_100": 4_253_864 - 21_888,
    "timm:mobilenetv2_100": 3_504_872,
    "timm:tf_efficientnet_b7": 66_347_960,
    "timm:inception_v3": 23_834_568,
    "timm:inception_resnet_v2": 55_813_192 + 60_544 // 2,  # Keras leaves out the scales of batch norms
    "timm:legacy_xception": 22_910_480 - 54_528,
    "timm:vit_base_patch16_224": 86_567_656,
    "torchvision:alexnet": 61_100_840,
    "torchvision:squeezenet1_0": 1_248_424,
    "torchvision:squeezenet1_1": 1_235_496,
}
