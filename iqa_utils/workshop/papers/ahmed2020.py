"""Ahmed and Asif: deep features of thirteen networks, support vectors and Gaussian processes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from iqa_utils.workshop.audit import SLACK, Check, Facts, Interval, printed_interval
from iqa_utils.workshop.papers import Answer

KEY = "ahmed2020"
TITLE = "Ahmed & Asif 2020: deep features and Gaussian processes"
DOI = "10.31577/cai_2020_3_385"
NOTEBOOKS = ("04_deep_features_gpr",)
LEDGER = (442, "692be9a1914e1956")
# sample SD of a whole set in its own units; the interval covers every scale in circulation
SCORE_SD: dict[str, Interval] = {
    "tid2008": (1.3423, 1.3423),
    "tid2013": (1.2399, 1.2399),
    "csiq": (0.2627, 0.2627),
    "live1": (16.11, 32.42),
    "live2": (16.11, 31.31),
}
TRAINED_ON = {"Table 5": "tid2013", "Table 6": "csiq", "Table 7": "live2"}
ALIASES = {"live1": ("live (jp2k + jpeg)",), "live2": ("live",), "live": ("live1",)}
DATA = {"live1": {"live"}, "live2": {"live"}}
SAME = ("Vgg16", "VGG16", "SqueezeNet", "DenseNet201", "ResNet50", "ResNet101", "Xception")
NETWORKS = {name: name.lower() for name in SAME} | {  # the paper's name to ours
    "AlexNet": "alexnet, two columns",  # this and the next two are not to be had as used there
    "GoogleNet": "googlenet without batch normalisation",
    "ShuffleNet": "shufflenet v1",
    "InceptionV3": "inception_v3",
    "MobileNetV2": "mobilenet_v2",
    "MobileNet-V2": "mobilenet_v2",
    "Inception-ResNet-V2": "inception_resnet_v2",
    "NASNet": "nasnetalarge",
    "NASNet-Large": "nasnetalarge",
}
ONE_CROP = {"weights": "imagenet", "protocol": {"crops": 1}}
READINGS = ("as_written", "strict")  # section 3.2 is silent on test images
TUNING = {"weights": "imagenet", "recipe": READINGS, "protocol": {"crops": 1, "epochs": 30}}
# NASNet-Large is fine-tuned for 1,000 iterations in section 3.3 and for 30 epochs in section 4.5
NASNET = {"network": "nasnetalarge", "weights": "imagenet", "recipe": READINGS}
LENGTHS = ({"steps": 1000}, {"epochs": 30})
ONCE, WHOLE = (
    NASNET | {"protocol": tuple({"crops": crops} | length for length in LENGTHS)}
    for crops in (1, 10)
)
COUNT = ("feature count",)


def _layers(name: str, network: str) -> list[Answer]:
    """What answers the rows of one network: a size needs no more than the network itself."""
    own, rows = {"network": network}, []
    tuned = ONCE if network == NASNET["network"] else TUNING
    for table, stage in (("Table 1", ONE_CROP), ("Table 2", tuned)):
        size = {"arithmetic": own if " " in network else {}}
        rows.append(Answer(table, size, (f"{name} /",), COUNT))
        rows.append(Answer(table, {"trained here": own | stage}, (f"{name} /",)))
    return rows


ANSWERS = (
    *(answer for name, network in NETWORKS.items() for answer in _layers(name, network)),
    Answer("Table 10", {"arithmetic": {}}, metrics=COUNT),
    Answer("Table 10", {"trained here": ONCE}),
    *(Answer(f"Table {k}", {"trained here": WHOLE}) for k in (4, 5, 6, 7)),
    Answer("Table 8", {"trained here": WHOLE}, ("Proposed",)),
)
EASY = "Layers are named with their sizes, so that most taps can be found without doubt."
DIFFICULT = (
    "Whether test images took part in fine-tuning is not said, the recipe is given three times, "
    "units of errors change between tables, and three of the networks are no longer distributed."
)


def checks(rows: pd.DataFrame) -> Iterator[Check]:
    """Compare errors with RMSE >= SD sqrt(1 - PLCC^2), which follows from least squares.

    The SD of a data set is used only where the whole set is the test set: the cross-set tests.
    Eq. (4) and section 4.2 standardise scores across sets, so that an error may be in the set's own
    units, in those of the set it was trained on, or in standard deviations: a cell is inconsistent
    only if all of them fail, and implausible if those that do not fail make it more than three
    standard deviations, more than any other cell of the paper shows.
    """
    rows = rows[rows["table"].isin(TRAINED_ON)]
    plcc = rows[rows["metric"] == "PLCC"].set_index(["table", "dataset"])["printed"]
    for index, cell in rows[rows["metric"] == "RMSE"].iterrows():
        correlation = min(1.0, printed_interval(plcc[cell["table"], cell["dataset"]])[1])
        factor = float(np.sqrt(1 - correlation**2))
        units = {
            "the set's own units": SCORE_SD[cell["dataset"]],
            "standard deviations": (1.0, 1.0),
            "units of the training set": SCORE_SD[TRAINED_ON[cell["table"]]],
        }
        printed, said, told = printed_interval(cell["printed"])[1], [], []
        for unit, (low, high) in units.items():
            if printed < low * factor - SLACK:
                said.append("inconsistent")
                told.append(f"{unit}: at least {low * factor:.3g}, impossible")
            else:
                far = printed > 3 * high
                said.append("implausible" if far else "consistent")
                told.append(f"{unit}: {cell['value'] / high:.2g} deviations")
        verdict = next(v for v in ("consistent", "implausible", "inconsistent") if v in said)
        place = (KEY, cell["table"], "least error", f"{cell['dataset']}, least RMSE")
        ends = (factor, factor, float("inf"), cell["value"])  # as in units of the score's SD
        yield Check(*place, *ends, verdict, f"In {'; in '.join(told)}.", (index,))


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute what the text says of Tables 1 and 2, and the score SD that errors imply."""
    found: Facts = {}
    for table in ("Table 1", "Table 2"):
        names = rows[rows["table"] == table]["method"].drop_duplicates()
        found[f"networks of {table}"] = [names.str.split(" / ").str[0].nunique()]
        found[f"layers of {table}, three a network"] = [len(names)]
    two = rows[rows["table"].isin(["Table 1", "Table 2"])]
    implied = two.pivot_table(index=["table", "method"], columns="metric", values="value")
    implied = implied["RMSE"] / np.sqrt(1 - implied["PLCC"] ** 2)
    final = rows.query("table == 'Table 4' and dataset == 'tid2013'").set_index("metric")["value"]
    own = float(final["RMSE"] / np.sqrt(1 - final["PLCC"] ** 2))
    found["median score SD that 63 rows imply"] = [implied.median()]
    words = "TID2013, score SD implied by RMSE and PLCC"
    return found | {words: [own, (implied.min(), implied.max())]}
