"""Checks of single places: a matrix, repeated cells, and numbers in the prose.

The papers' texts are not part of the repository; each number taken from one is written here with
the section it stands in, with what other numbers, the network or the data set make of it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from iqa_utils.claims.checks import RANGES, Check, Interval, overlap, printed_interval


def check_matrix(claims: pd.DataFrame) -> list[Check]:
    """Hold the correlation matrix of lehmann2023 to what a correlation matrix is."""
    rows = claims[(claims["paper"] == "lehmann2023") & (claims["table"] == "Fig. 2")]
    names = list(dict.fromkeys(rows["method"]))
    others = rows["metric"].str.removeprefix("pearson with ")
    matrix = rows.assign(other=others).pivot_table(index="method", columns="other", values="value")
    values = matrix.loc[names, names].to_numpy()
    upper = np.triu_indices(len(names), 1)
    smallest = float(np.linalg.eigvalsh(values)[0])
    facts = (
        ("pairs equal in both orders", float((values == values.T)[upper].sum()), len(upper[0]),
         "The 64 cells are 28 numbers and a diagonal."),
        ("ones on the diagonal", float((np.diag(values) == 1).sum()), len(names),
         "Every variable correlates fully with itself."),
        ("eigenvalues below zero", float(smallest < 0), 0,
         f"The rounded matrix is a possible one: its smallest eigenvalue is {smallest:.2f}."),
    )  # fmt: skip
    return [
        Check(
            "lehmann2023", "Fig. 2", "matrix", what, seen, seen, seen, float(expected),
            "consistent" if seen == expected else "inconsistent", meaning,
        )
        for what, seen, expected, meaning in facts
    ]  # fmt: skip


REPEATS: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
    # paper, table, table it repeats, dataset ("" for any), method -> method
    ("feng2023", "Table 2", "Table 1", "",
     {"Five CFCLs and Four ELUs (Proposed)": "Proposed (All databases)"}),
    ("ahmed2020", "Table 10", "Table 2", "",
     {"complete architecture": "NASNet-Large / predictions (fine-tuned, linear SVR)",
      "without last 41 layers": "NASNet-Large / normal_concat_17 (fine-tuned, linear SVR)",
      "without last 82 layers": "NASNet-Large / normal_concat_16 (fine-tuned, linear SVR)"}),
    ("ahmed2020", "Table 8", "Table 4", "", {"Proposed": "NASNet-Large + GPR"}),
    ("ponomarenko2022", "Table 4", "Table 3", "koniq10k",
     {"IMQNet": "IMQNet pre-trained on TMP by transfer"}),
    ("lehmann2023", "Tab. 6", "Tab. 4", "", {"with cross-sampling": "method 2"}),
)  # fmt: skip


def check_same(claims: pd.DataFrame) -> list[Check]:
    """Compare cells that a paper prints twice; the coarser one may be rounded or cut."""
    found = []
    for paper, table, source, dataset, methods in REPEATS:
        rows = claims[(claims["paper"] == paper) & (claims["table"] == table)]
        rows = rows[rows["method"].isin(methods)]
        for index, cell in (rows[rows["dataset"] == dataset] if dataset else rows).iterrows():
            # LIVE in Table 8 of ahmed2020 is LIVE-I of Table 4: LIVE-II would print otherwise
            name = "live1" if cell["dataset"] == "live" and source == "Table 4" else cell["dataset"]
            other = claims[
                (claims["paper"] == paper) & (claims["table"] == source)
                & (claims["method"] == methods[cell["method"]]) & (claims["dataset"] == name)
                & (claims["metric"] == cell["metric"])
            ].iloc[0]  # fmt: skip
            bounds = printed_interval(other["printed"])
            good = overlap(bounds, printed_interval(cell["printed"]))
            found.append(
                Check(
                    paper, table, "repeated cell",
                    f"{cell['method']}, {name}, {cell['metric']}, as in {source}",
                    other["value"], *bounds, cell["value"],
                    "consistent" if good else "inconsistent",
                    "The same number in both places." if good else "The two places differ.",
                    (index,),
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Fact:
    """A number of the prose (or of a table outside the ledger) and what it must be.

    Attributes:
        paper: Ledger key.
        where: Section or table.
        kind: Family of the check.
        what: The quantity.
        recomputed: Interval of values that other numbers allow; one value twice where it is exact.
        printed: Interval of values that the words allow.
        meaning: One sentence, true for the verdict that comes out.
        verdict: Set only where a disagreement is odd and not impossible (``implausible``).
    """

    paper: str
    where: str
    kind: str
    what: str
    recomputed: Interval
    printed: Interval
    meaning: str
    verdict: str = "inconsistent"


def _same(value: float) -> Interval:
    return (value, value)


def _lehmann(claims: pd.DataFrame) -> list[Fact]:
    rows = claims[claims["paper"] == "lehmann2023"]
    counts = rows[rows["table"] == "Tab. 3"]["value"].to_numpy()
    seconds = rows[rows["metric"].str.startswith("epoch")].set_index("method")["value"]
    plain, fast = seconds["without cross-sampling"], seconds["method 1"]
    hours = 60 * seconds / 3600
    # seconds per image and a fixed overhead, both from the first two columns
    sampled = {"without cross-sampling": 7058, "method 1": 645, "method 2": 903, "method 3": 2193}
    cost = (plain - fast) / (sampled["without cross-sampling"] - sampled["method 1"])
    expected = {m: plain - cost * (7058 - n) for m, n in sampled.items()}
    lehmann = "lehmann2023"
    return [
        Fact(lehmann, "Tab. 3", "count", "images in all ranges", _same(counts.sum()), _same(10073),
             "The five classes hold every image of KonIQ-10k."),
        Fact(lehmann, "Tab. 3", "count", "largest class over smallest",
             _same(counts.max() / counts.min()), (29, 30), "Nearly 30 times, as the text says."),
        Fact(lehmann, "Tab. 3", "count", "lower limit of the last class, MOS", _same(80), _same(8),
             "A slip of the pen: the class printed (8, 100) is 80 to 100."),
        Fact(lehmann, "section 2.1", "count", "images in the three parts",
             _same(7058 + 1000 + 2015), _same(10073), "The official parts cover the set."),
        Fact(lehmann, "section 3.2", "sampler", "classes doubled by method 2, training counts",
             _same(2), _same(2), "Counted on the training part (20-40 holds 833) two classes pass "
             "1,000; on Tab. 3 three would."),
        Fact(lehmann, "section 2.2.1", "parameters", "parameters of one Xception, millions",
             _same(22.855952), printed_interval("22.8"), "22.86 million, cut and not rounded."),
        Fact(lehmann, "section 2.2.1", "parameters", "units of Xception's last linear layer",
             _same(1000), _same(1024), "The layer has 2,048 inputs and 1,000 outputs; no part of "
             "the network's end has 1,024."),
        Fact(lehmann, "Tab. 5", "parameters", "parameters of KonCept512, millions",
             _same(59.82), printed_interval("56.0"), "With its own head KonCept512 has 59.8 "
             "million; 55.8 is Inception-ResNet-v2 for ImageNet.", "implausible"),
        Fact(lehmann, "section 3.2", "epoch time", "epoch time saved by method 1",
             ((plain - 0.5) / (fast + 1), (plain + 1) / (fast - 0.5)), (6.5, 7.5),
             "6.6 times, which the text calls up to seven."),
        Fact(lehmann, "section 3.2", "epoch time", "epoch time saved by method 3",
             ((plain - 0.5) / (seconds["method 3"] + 1), (plain + 1) / (seconds["method 3"] - 0.5)),
             (3.5, 4.5), "Tab. 5 gives 3.2 times; the text says four."),
        Fact(lehmann, "section 3.2", "epoch time", "KonCept512 over method 1",
             _same(seconds["KonCept512"] / fast), (5, 5.5), "More than fivefold, but only for "
             "method 1, the least accurate of the three."),
        *[Fact(lehmann, "Tab. 5", "epoch time", f"seconds of {m}, {sampled[m]:,} images an epoch",
               _same(expected[m]), (0.8 * seconds[m], 1.2 * seconds[m]), why, "implausible")
          for m, why in (("method 2", "With a cost per image and a fixed one, from the columns "
                          "beside it, the text's 903 images take 66 s."),
                         ("method 3", "Within a fifth of what those two costs predict."))],
        Fact(lehmann, "section 2.2.4", "epoch time", "hours of a session of method 1, 60 epochs",
             _same(hours["method 1"]), (5, 20), "Tab. 5 makes it an hour; the text gives every "
             "session 5 to 20 hours.", "implausible"),
        Fact(lehmann, "section 2.2.4", "epoch time", "hours of a session without cross-sampling",
             _same(hours["without cross-sampling"]), (5, 20), "Six hours, within the 5 to 20."),
    ]  # fmt: skip


def _feng(claims: pd.DataFrame) -> list[Fact]:
    feng = "feng2023"
    gflops = claims[(claims["paper"] == feng) & (claims["method"] == "Proposed")]["value"].iloc[0]
    means = claims[(claims["paper"] == feng) & (claims["table"] == "Table 1")]
    means = means[means["dataset"] == "weighted"].set_index(["metric", "method"])["value"]
    floor = 3.6 * (768 / 224) ** 2  # ResNet-34 trunk: 3.6 GMAC at 224 squared
    return [
        Fact(feng, "Fig. 3", "architecture", "constrained layers of widths 1-10-20-20-10-1",
             _same(5), _same(5), "Five layers, as the text says."),
        Fact(feng, "section Experiments", "setting", "learning rate of the connected layers, 1e-5",
             _same(30), _same(3), "They belong to the regressor (3e-5) and to the rest of the "
             "model (3e-4); the released code uses 3e-4."),
        Fact(feng, "text", "complexity", "least GMAC with the short side at 768 pixels",
             (floor, 2 * floor), (gflops, gflops), "3.95 holds at 224 x 224; at the stated test "
             "size the cost is eleven times that, and the order against KonCept512 turns."),
        *[Fact(feng, "Table 1", "claim", f"weighted {m} of the proposed method, called the best",
               _same(means[m].max()), _same(means[m]["Proposed (All databases)"]),
               "The highest of its column.") for m in ("SRCC", "PLCC")],
    ]  # fmt: skip


def _ahmed(claims: pd.DataFrame) -> list[Fact]:
    ahmed = "ahmed2020"
    rows = claims[claims["paper"] == ahmed]
    sets = (  # references, images and range: true, printed
        ("LIVE-I", 29, 29, 344, 460, (-2.64, 111.78), (0, 100)),
        ("LIVE-II", 29, 29, 779, 982, (-2.64, 111.78), (0, 100)),
        ("TID2008", 25, 25, 1700, 1700, (0, 9), (1, 10)),
        ("TID2013", 25, 25, 3000, 3000, (0, 9), (1, 10)),
        ("CSIQ", 30, 30, 866, 900, (0, 1), (0, 1)),
    )
    why = {
        "LIVE-I": "460 = 227 + 233 counts 116 references.",
        "LIVE-II": "982 counts 203 references.",
        "CSIQ": "900 = 30 x 6 x 5, but contrast has 116 images.",
    }
    facts = []
    for name, refs, refs_p, images, images_p, scale, scale_p in sets:
        facts.append(Fact(ahmed, "Table 3", "data set", f"{name}, reference images", _same(refs),
                          _same(refs_p), "As published."))  # fmt: skip
        facts.append(Fact(ahmed, "Table 3", "data set", f"{name}, distorted images", _same(images),
                          _same(images_p), why.get(name, "As published.")))  # fmt: skip
        if name.startswith("TID"):
            facts.append(Fact(ahmed, "Table 3", "data set", f"{name}, lowest possible score",
                              _same(scale[0]), _same(scale_p[0]), "Scores count won comparisons, 0 "
                              "to 9; the files hold values below 1."))  # fmt: skip
            facts.append(Fact(ahmed, "Table 3", "data set", f"{name}, highest possible score",
                              _same(scale[1]), _same(scale_p[1]), "Scores count won comparisons, "
                              "0 to 9."))  # fmt: skip
        elif name == "CSIQ":
            facts.append(Fact(ahmed, "Table 3", "data set", "CSIQ, highest score", _same(1),
                              _same(scale_p[1]), "DMOS lies within 0 and 1."))  # fmt: skip
        else:
            facts.append(Fact(ahmed, "Table 3", "data set", f"{name}, highest DMOS",
                              (80.8, 111.78), _same(100), "Between the old scale (to 84.5) and the "
                              "realigned one (to 111.8)."))  # fmt: skip
    for table, networks, layers in (("Table 1", 13, 39), ("Table 2", 8, 24)):
        names = rows[rows["table"] == table]["method"].drop_duplicates()
        facts.append(
            Fact(
                ahmed,
                table,
                "count",
                "networks",
                _same(names.str.split(" / ").str[0].nunique()),
                _same(networks),
                "As the text says.",
            )
        )
        facts.append(
            Fact(
                ahmed,
                table,
                "count",
                "layers, three a network",
                _same(len(names)),
                _same(layers),
                "As the text says.",
            )
        )
    two = rows[rows["table"].isin(["Table 1", "Table 2"])]
    implied = two.pivot_table(index=["table", "method"], columns="metric", values="value")
    implied = implied["RMSE"] / np.sqrt(1 - implied["PLCC"] ** 2)
    final = rows[(rows["table"] == "Table 4") & (rows["dataset"] == "tid2013")]
    final = final.set_index("metric")["value"]
    ours = final["RMSE"] / np.sqrt(1 - final["PLCC"] ** 2)
    facts += [
        Fact(ahmed, "Tables 1, 2", "error floor", "median score SD that 63 rows imply",
             _same(implied.median()), (1.1, 1.4), "The spread of TID2013 (1.24): these tables are "
             "TID2013, not five sets together, as Table 10 confirms."),
        Fact(ahmed, "Table 4", "error floor", "TID2013, score SD implied by RMSE and PLCC",
             _same(ours), (implied.min(), implied.max()), "PLCC rises from .936 to .969 while RMSE "
             "stays: outside what the paper's other 63 rows show.", "implausible"),
        Fact(ahmed, "section 4.1", "count", "20 % of TID2013's 3,000 images", _same(600),
             _same(750), "750 images are 25 %."),
        Fact(ahmed, "sections 3.3, 4.5", "setting", "images in a training set, from 1,000 steps of "
             "16 in 30 epochs", (500, 550), (2000, 8000), "1,000 iterations and 30 epochs cannot "
             "both hold for five sets together."),
        Fact(ahmed, "Table 8", "claim", "PLCC on LIVE of reference [17], against the highest",
             printed_interval("0.98"), printed_interval("0.977"), "[17] prints 0.98, which may "
             "stand for 0.975: the proposed 0.977 can be the highest."),
        Fact(ahmed, "section 4.5", "arithmetic", "hours of training in total",
             _same(120 + 23 / 60), (120.25, 120.75), "120 h and 23 min, to the half hour."),
        Fact(ahmed, "section 4.5", "arithmetic", "seconds of testing an image",
             _same(1.8 + 0.12), (0, 2), "Below two seconds."),
        Fact(ahmed, "Table 9", "matrix", "pairs where each method beats the other", _same(0),
             _same(78), "A one-sided test cannot find A better than B and B better than A; every "
             "pair off the diagonal says so."),
        Fact(ahmed, "Eq. (2)", "formula", "mean at a training point, kernel 1, noise 0.1, score 1",
             _same(1 / 1.1), _same(1.1), "The inverse of the noisy kernel is missing."),
        Fact(ahmed, "Eq. (3)", "formula", "Matern 5/2, factor of the squared distance",
             _same(5 / 3), _same(5 / 9), "The square stands outside the bracket: 5r^2/(3s)^2 for "
             "5r^2/(3s^2)."),
    ]  # fmt: skip
    return facts


def _nguyen(claims: pd.DataFrame) -> list[Fact]:
    nguyen = "nguyen2024"
    rows = claims[claims["paper"] == nguyen]
    values = rows.pivot_table(index=["table", "method"], columns="metric", values="value")
    shares = {}
    inside = rows[rows["table"] == "Table 2"].set_index(["method", "metric"])["printed"]
    for method in dict.fromkeys(inside.index.get_level_values(0)):
        three, four, both = (
            printed_interval(inside[method, f"MAE {k}"]) for k in ("3", "4", "3 and 4")
        )
        corners = [(b - t) / (f - t) for t in three for f in four for b in both]
        shares[method] = (min(corners), max(corners))
    vanilla = shares["CLIP"]
    counts = claims[claims["table"] == "Tab. 3"]["value"].to_numpy()
    mean_at_most = counts @ np.array([20, 40, 60, 80, 100]) / counts.sum() / 20
    uneven = values.loc["Table 1"][[f"MAE {r}" for r in RANGES]].std(axis=1)
    whole, inner = values.loc["Table 1"]["MAE all"], values.loc["Table 2"]["MAE all"]
    return [
        Fact(nguyen, "section 2.1", "data set", "images of KonIQ-10k", _same(10073), _same(10173),
             "The set has 10,073 scored images."),
        Fact(nguyen, "section 2.1", "data set", "images of SPAQ", _same(11125), _same(11125),
             "As published."),
        Fact(nguyen, "section 3.2.1", "data set", "images of KonIQ-10k with a label below 1 of 5",
             _same(counts[0]), _same(0), "Called zero-shot, yet 183 images lie there and Table 1 "
             "scores them."),
        Fact(nguyen, "Fig. 3", "data set", "highest possible mean label, against the mode 3.5",
             (0, mean_at_most), (3.5, 5), "The mean lies below the mode and the tail to the left: "
             "left-skewed, not right-skewed."),
        Fact(nguyen, "abstract", "repeated cell", "MAE on KonIQ-10k",
             printed_interval("6.9449"), printed_interval("6.945"), "Table 1, rounded."),
        Fact(nguyen, "abstract", "repeated cell", "MAE of rare internal labels",
             printed_interval("0.3458"), printed_interval("0.345"), "Table 2, cut."),
        Fact(nguyen, "Table 1", "claim", "MAE of CLIP + LDS, called the optimum of the whole set",
             _same(whole.min()), _same(whole["CLIP + LDS"]), "The same caption calls CLIP + LDS + "
             "FDS best, which the cells support by 0.003."),
        Fact(nguyen, "Table 1", "claim", "MAE 60-80 of CLIP + LDS + FDS, called the best",
             _same(values.loc["Table 1"]["MAE 60-80"].min()),
             _same(values.loc["Table 1"]["MAE 60-80"]["CLIP + LDS + FDS"]), "The lowest."),
        Fact(nguyen, "section 5", "claim", "SD over ranges of CLIP + LDS + FDS, called balancing",
             _same(uneven["CLIP + LDS + FDS"]), (0, uneven["CLIP"]), "More even than plain CLIP "
             f"({uneven['CLIP']:.2f}), less than CLIP + LDS alone ({uneven['CLIP + LDS']:.2f})."),
        Fact(nguyen, "section 5", "claim", "MAE on the internal set, called best of all",
             _same(inner.min()), _same(inner["CLIP + LDS + FDS"]), "Plain CLIP has the lowest "
             "error of the whole internal set, 0.3297."),
        Fact(nguyen, "Table 2", "pooled error", "share of label 4 that pools 3 and 4, CLIP + LDS",
             shares["CLIP + LDS"], vanilla, "The same test images as in the row of CLIP."),
        Fact(nguyen, "Table 2", "pooled error", "share of label 4 that pools 3 and 4, "
             "CLIP + LDS + FDS", shares["CLIP + LDS + FDS"], vanilla, "Half the share that the two "
             "other rows need: one of its three errors is wrong, or the test images differ."),
    ]  # fmt: skip


def _ponomarenko(claims: pd.DataFrame) -> list[Fact]:
    key = "ponomarenko2022"
    rows = claims[(claims["paper"] == key) & (claims["table"] == "Table 1")]
    means = rows[rows["dataset"] == "weighted"]["value"].to_numpy()
    sizes = (("KonIQ-10k", 10073, 10000, 500), ("FLIVE", 39810, 40000, 500),
             ("SPAQ", 11125, 11000, 500), ("WILD", 1162, 1200, 50))  # fmt: skip
    return [
        Fact(key, "Eq. (1)", "arithmetic", "sum of the five weights",
             _same(0.25 + 0.15 + 0.2 + 0.25 + 0.15), _same(1), "The weights are a mean's."),
        Fact(key, "Table 1", "claim", "SROCC of KonCept512 on KonIQ-10k, in two other papers",
             (0.9165, 0.93), printed_interval("0.83"), "The public network reaches .92 on the test "
             "part; which one this row tests is not said.", "implausible"),
        Fact(key, "Table 1", "arithmetic", "metrics out of order of the weighted mean",
             _same(float((np.diff(means) > 0).sum())), _same(0), "Sorted by the last column."),
        *[Fact(key, "Introduction", "data set", f"images of {name}", _same(true),
               (said - half, said + half), "As published, rounded.")
          for name, true, said, half in sizes],
        Fact(key, "section IMQNet training", "arithmetic", "passes over 360,000 images",
             _same(100_000 * 10 / 360_000), (2.7, 2.8), "100,000 steps of 10 see each image "
             "2.8 times: too few for overlearning to show."),
        Fact(key, "section Network architecture", "architecture", "blocks of Space-to-Depth that "
             "divide 7 x 7", _same(7), _same(7), "Seven is prime: the layer can only flatten."),
    ]  # fmt: skip


def check_texts(claims: pd.DataFrame) -> list[Check]:
    """Check the numbers of the prose and of the tables that the ledger leaves out."""
    found = []
    for part in (_lehmann, _feng, _ahmed, _nguyen, _ponomarenko):
        for fact in part(claims):
            good = overlap(fact.recomputed, fact.printed)
            middle = float(np.mean(fact.recomputed))
            found.append(
                Check(
                    fact.paper, fact.where, fact.kind, fact.what, middle,
                    *map(float, fact.recomputed), float(np.mean(fact.printed)),
                    "consistent" if good else fact.verdict, fact.meaning,
                )
            )  # fmt: skip
    return found
