"""Sizes of the layers that ahmed2020 taps, against the feature counts it prints."""

from math import prod

import pandas as pd

from iqa_utils.claims.checks import Check

# activation shapes at each network's own input size: height, width, channels, or units
LAYER_SHAPES: dict[str, tuple[int, ...]] = {
    "AlexNet / fc8": (1000,), "AlexNet / fc7": (4096,), "AlexNet / fc6": (4096,),
    "Vgg16 / conv5_3": (14, 14, 512), "Vgg16 / conv5_2": (14, 14, 512),
    "Vgg16 / conv5_1": (14, 14, 512), "VGG16 / fc8": (1000,), "VGG16 / fc7": (4096,),
    "VGG16 / fc6": (4096,), "GoogleNet / loss3-classifier": (1000,),
    "GoogleNet / Inception5bOutput": (7, 7, 1024), "GoogleNet / Inception4eOutput": (14, 14, 832),
    "SqueezeNet / fire8-concat": (14, 14, 512), "SqueezeNet / fire7-concat": (14, 14, 384),
    "SqueezeNet / fire6-connect": (14, 14, 384), "ShuffleNet / node_202": (1000,),
    "ShuffleNet / node_198": (7, 7, 544), "ShuffleNet / node_186": (7, 7, 544),
    "ShuffleNet / node_174": (7, 7, 544), "InceptionV3 / mixed9": (8, 8, 2048),
    "InceptionV3 / mixed8": (8, 8, 1280), "InceptionV3 / mixed6": (17, 17, 768),
    "DenseNet201 / conv5_block32_concat": (7, 7, 1920),
    "DenseNet201 / conv5_block31_concat": (7, 7, 1888),
    "DenseNet201 / conv5_block30_concat": (7, 7, 1856), "DenseNet201 / fc1000": (1000,),
    "MobileNetV2 / block_15_add": (7, 7, 160), "MobileNetV2 / Conv_1": (7, 7, 1280),
    "MobileNetV2 / block_16_project": (7, 7, 320), "MobileNet-V2 / Logits": (1000,),
    "MobileNet-V2 / Conv_1": (7, 7, 1280), "MobileNet-V2 / block_16_project": (7, 7, 320),
    "ResNet50 / add_12": (14, 14, 1024), "ResNet50 / add_14": (7, 7, 2048),
    "ResNet50 / add_15": (7, 7, 2048), "ResNet50 / add_16": (7, 7, 2048),
    "ResNet50 / fc1000": (1000,), "ResNet101 / res4b21": (14, 14, 1024),
    "ResNet101 / res5a": (7, 7, 2048), "ResNet101 / res5b": (7, 7, 2048),
    "Inception-ResNet-V2 / block8_7": (8, 8, 2080), "Inception-ResNet-V2 / block8_8": (8, 8, 2080),
    "Inception-ResNet-V2 / block8_9": (8, 8, 2080), "Xception / add_10": (19, 19, 728),
    "Xception / add_11": (19, 19, 728), "Xception / add_12": (10, 10, 1024),
    "Xception / predictions": (1000,), "NASNet / predictions": (1000,),
    "NASNet / normal_concat_13": (11, 11, 4032),
    "NASNet / reduction_concat_reduce12": (11, 11, 2688), "NASNet-Large / predictions": (1000,),
    "NASNet-Large / normal_concat_16": (11, 11, 4032),
    "NASNet-Large / normal_concat_17": (11, 11, 4032), "complete architecture": (1000,),
    "without last 41 layers": (11, 11, 4032), "without last 82 layers": (11, 11, 4032),
}  # fmt: skip


def check_features(claims: pd.DataFrame) -> list[Check]:
    """Multiply out every layer's activation and hold the printed feature count to it."""
    found = []
    for index, cell in claims[claims["metric"] == "feature count"].iterrows():
        layer = cell["method"].split(" (")[0]
        shape = LAYER_SHAPES[layer]
        size = float(prod(shape))
        good = size == cell["value"]
        product = " x ".join(map(str, shape))
        meaning = (
            f"{product}, as printed."
            if good
            else f"The layer gives {product} = {size:,.0f}; the printed size belongs to another."
        )
        found.append(
            Check(
                cell["paper"], cell["table"], "feature size", layer, size, size, size,
                cell["value"], "consistent" if good else "inconsistent", meaning, (index,),
            )
        )  # fmt: skip
    return found
