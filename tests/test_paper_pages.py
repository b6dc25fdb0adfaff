"""Headline claims, their evidence, and the page that a paper's authors read."""

import json
import math
import re
from collections import Counter

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from iqa_utils.workshop import claims, committed, paper_pages
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.plots.claims import draw_scoreboard
from iqa_utils.workshop.runs import RESULT_COLUMNS, ROOT, find_runs

LOWER = Headline("It errs less.", "05_lds_fds", {"metric": "MAE", "method": "a"}, "lower")
HIGHER = Headline("As good.", "05_lds_fds", {"metric": "SRCC", "method": "a"}, "higher", -0.02)
HEADLINES = [headline for found in headlines().values() for headline in found]
LDS = headlines()["nguyen2024"][0]


def run_with(*changes, profile="biq2021"):
    base = dict.fromkeys(RESULT_COLUMNS) | LDS.compare | {"data": "biq2021", "value": -0.6}
    base |= {"ci_low": -0.9, "ci_high": -0.3, "dataset": "biq2021"}
    base |= {"paper": "nguyen2024", "kind": "trained here"}
    results = [base | change for change in changes]
    return {"stem": "05_lds_fds", "profile": profile, "results": results}


def test_every_paper_has_three_to_five_headlines_and_every_notebook_one_primary():
    assert list(headlines()) == list(papers())
    assert all(3 <= len(found) <= 5 for found in headlines().values())
    assert len({headline.claim for headline in HEADLINES}) == len(HEADLINES)
    primary = Counter(h.notebook for h in HEADLINES if h.primary)
    assert set(primary) == {h.notebook for h in HEADLINES}
    assert set(primary.values()) == {1}
    secondary = Counter(h.notebook for h in HEADLINES if not h.primary)
    assert max(secondary.values()) <= 3
    for key, paper in papers().items():
        assert {h.notebook for h in headlines()[key]} <= set(paper.NOTEBOOKS)


@pytest.mark.parametrize(
    ("headline", "low", "high", "says"),
    [
        (LOWER, -0.5, -0.1, "confirmed"),
        (LOWER, -0.5, 0.1, "undecided"),
        (LOWER, 0.1, 0.5, "refuted"),
        (HIGHER, -0.01, 0.01, "confirmed"),
        (HIGHER, -0.03, 0.01, "undecided"),
        (HIGHER, -0.05, -0.03, "refuted"),
    ],
)
def test_a_claim_is_judged_only_by_a_whole_interval(headline, low, high, says):
    assert headline.says(low, high) == says


def test_evidence_comes_from_real_runs_of_the_same_comparison_only():
    run = run_with({}, {"data": "demo"}, {"baseline": "MSE"}, {"metric": "MAE"}, {"ci_low": None})
    found = paper_pages.evidence(LDS, [run, run])  # a run and its published copy
    assert [one["value"] for one in found] == [-0.6]
    assert found[0]["says"] == "confirmed"
    assert not paper_pages.evidence(LDS, [run | {"stem": "06_distillation"}])


@pytest.mark.parametrize(
    "change", [{"ci_low": -0.3}, {"pred_spread": 0.0}, {"pred_spread": 0.009}, {"ci_low": None}]
)
def test_an_interval_without_width_and_a_dead_network_are_no_evidence(change):
    assert not paper_pages.evidence(LDS, [run_with(change)])
    assert paper_pages.evidence(LDS, [run_with({"pred_spread": 0.02})])


def test_only_paired_runs_of_ten_seeds_speak_for_smoothing():
    """The sensitivity panel asks where the sign flips: it decides nothing."""
    panel = {"table": "sensitivity", "n_runs": 3, "variant": "plain 64-1-64 raw 0.1"}
    run = run_with(panel, {"n_runs": 3})
    assert not any(paper_pages.evidence(one, [run]) for one in headlines()["nguyen2024"])
    assert all(one.compare["n_runs"] == 10 for one in headlines()["nguyen2024"])


def test_the_published_runs_that_speak_for_smoothing_have_ten_seeds():
    found = paper_pages.evidence(LDS, find_runs(ROOT / "figures"))
    assert {one["n_runs"] for one in found} == {10}
    assert len(found) == len({one["profile"] for one in found}) >= 3


def test_the_sentences_on_where_the_effect_of_lds_changes_its_sign_follow_from_the_panel():
    results = json.loads((ROOT / "figures/05_lds_fds/sensitivity/metrics.json").read_text())
    panel = pd.DataFrame(results["results"]).query("table == 'sensitivity'")
    assert set(panel["n_runs"]) == {3}
    slow = panel["variant"].str.endswith(" 0.001")
    rare, total = panel["metric"] == "MAE 0-20 and 20-40", panel["metric"] == "MAE"
    less, more = panel["ci_high"] < 0, panel["ci_low"] > 0
    assert (rare & slow).sum() == (rare & slow & (panel["value"] < 0)).sum() == 12
    assert (rare & slow & less).sum() == 10
    assert (rare & ~slow).sum() == 18
    assert ((rare & ~slow & more).sum(), (rare & ~slow & less).sum()) == (7, 1)
    assert (total.sum(), (total & more).sum(), (total & less).sum()) == (30, 11, 0)
    notebook = json.loads((ROOT / "notebooks/05_lds_fds.ipynb").read_text())
    prose = ["".join(cell["source"]) for cell in notebook["cells"]]
    for text in ((ROOT / "docs/results.md").read_text(), "\n".join(prose)):
        words = " ".join(text.split())
        for count in ("in all 12 settings", "in 10 with an interval", "in 7 of 18", "in 11 of 30"):
            assert count in words


def test_the_sentences_on_depth_follow_from_its_run():
    results = json.loads((ROOT / "figures/04_deep_features_gpr/depth/metrics.json").read_text())
    rows = pd.DataFrame(results["results"]).query("metric == 'SRCC' and regressor == 'SVR'")
    ours = rows["baseline"].isna() | (rows["baseline"] == "")
    assert (ours & (rows["stage"] == "pre-trained") & (rows["n"] == 400)).sum() == 87
    words = " ".join((ROOT / "docs/results.md").read_text().split())
    words = words[words.index("Profile `depth`") :]
    gains = rows[rows["baseline"] == "last layer"].set_index(["stage", "network"])
    for row in (gains.loc["pre-trained", name] for name in set(gains.loc["pre-trained"].index)):
        told = f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        assert (told if row["ci_low"] > 0 else f"{row['value']:+.3f}") in words
    chosen = gains.loc["pre-trained", "layer"]
    assert chosen["legacy_xception"] == "block8, after"
    assert chosen["vit_base_patch16_clip_quickgelu_224"] == "blocks.4"
    tuned = gains.loc["fine-tuned", "mobilenetv2_100"]
    assert f"{tuned['value']:+.3f} [{tuned['ci_low']:.3f}, {tuned['ci_high']:+.3f}]" in words


def test_a_check_of_a_label_names_its_cell_and_leaves_its_number_alone():
    page = paper_pages.paper_page("lehmann2023", [], claims.compare([]))
    row = claims.load_claims().query("paper == 'lehmann2023' and metric == 'MSE'")
    assert all(f"- {place}: " in page for place in row["place"])
    assert not set(row.index) & set(claims.flags())


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(-0.8, -0.2, "confirmed"), (-0.8, 0.2, "undecided"), (0.2, 0.8, "undecided")],
)
def test_a_claim_holds_only_where_the_mean_within_subsets_agrees(low, high, says):
    inside = {"metric": f"{LDS.compare['metric']} within subset", "value": (low + high) / 2}
    inside |= {"ci_low": low, "ci_high": high}
    run = run_with({}, inside)
    (one,) = paper_pages.evidence(LDS, [run])
    assert (one["value"], one["says"], len(one["within"])) == (-0.6, says, 1)
    assert "; within subsets " in paper_pages.headline_table([run])


def test_a_run_of_many_settings_gets_one_row_that_counts_them():
    settings = [{"variant": f"setting {k}", "ci_high": -0.3 + 0.2 * k} for k in range(6)]
    table = paper_pages.headline_table([run_with(*settings)])
    (row,) = [line for line in table.splitlines() if LDS.claim in line]
    assert "6 settings | median -0.600 [-0.900, +0.200]" in row
    assert row.endswith("undecided 4, confirmed 2 |")


def test_the_detectable_difference_has_eighty_percent_power():
    (one,) = paper_pages.evidence(LDS, [run_with({})])
    error = 0.3 / 1.959964
    power = 0.5 * math.erfc((1.959964 - one["detectable"] / error) / math.sqrt(2))
    assert power == pytest.approx(0.8, abs=2e-3)


def test_a_level_is_not_mistaken_for_a_difference():
    level = run_with({"baseline": "", "method": LOWER.compare["method"], "metric": "MAE"})
    assert paper_pages.evidence(LOWER, [level])
    level["results"][0]["baseline"] = "ridge"
    assert not paper_pages.evidence(LOWER, [level])


def test_the_page_of_a_paper_holds_claims_evidence_contradictions_and_the_way_to_answer():
    runs = [run_with({})]
    board = claims.compare(runs[0]["results"])
    page = paper_pages.paper_page("nguyen2024", runs, board)
    assert "BIQ2021: -0.600 [-0.900, -0.300], 10 runs; **confirmed**" in page
    assert page.count("No run has measured this yet.") == 3
    assert "section 2.1: images of KonIQ-10k; printed 10173, recomputed 10073" in page
    assert "open an issue" in page
    assert "Numbers of trained networks compared so far: 0." in page
    for key in claims.PAPERS:
        assert paper_pages.paper_page(key, [], board).startswith(f"# {papers()[key].TITLE}")


def test_a_claim_says_which_results_decide_and_that_both_means_must():
    first, second, *_ = map(paper_pages.condition, headlines()["lehmann2023"])
    assert first != second
    assert first.endswith("both intervals must say so. Only results with stage: not named.")
    assert second.endswith("Only results with stage: equal steps.")
    told = paper_pages.condition(headlines()["ahmed2020"][3])
    assert told.endswith("Only results with variant: not named or strict.")
    assert paper_pages.condition(HIGHER).endswith("both intervals must say so.")
    said = [paper_pages.condition(headline) for headline in HEADLINES]
    assert len(said) == len(set(said))
    for key, found in headlines().items():
        page = paper_pages.paper_page(key, [], claims.compare([]))
        assert all(paper_pages.condition(headline) in page for headline in found)


def test_the_page_of_a_paper_names_the_commits_of_its_runs(tmp_path):
    runs = []
    for profile, commit, demo in (("a", "1" * 12, False), ("b", "1" * 12, False), ("c", "2", True)):
        folder = tmp_path / profile
        folder.mkdir()
        (folder / "provenance.json").write_text(json.dumps({"commit": commit, "demo": demo}))
        runs.append(run_with({}, profile=profile) | {"folder": folder})
    page = paper_pages.paper_page("nguyen2024", runs, claims.compare([]))
    assert "\nCommits of the runs: 1111111 (05 a, 05 b).\n" in page
    assert "Commits of the runs" not in paper_pages.paper_page("feng2023", runs, claims.compare([]))


def test_the_committed_pages_are_current_and_hold_the_settings(tmp_path):
    assert committed.write_paper_pages(tmp_path)
    folder = ROOT / "docs" / "papers"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(papers())
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert text == (folder / path.name).read_text(), "run: iqa report --readme"
        for target in re.findall(r"\]\((\.\.[^)#]+)", text):
            assert (folder / target).exists(), f"{path.name}: no file at {target}"
    for run in find_runs(ROOT / "figures"):
        if table := paper_pages.settings_table(run):
            (key,) = [key for key, paper in papers().items() if run["stem"] in paper.NOTEBOOKS]
            assert table in (folder / f"{key}.md").read_text()


def test_methods_of_no_row_are_ours_and_a_misspelt_one_is_seen():
    """A new method of a printed table is listed here, or its name is wrong."""
    real = paper_pages.real_results(find_runs(ROOT / "figures"))
    table = paper_pages.strays_table(real)
    assert table["known methods"].sum() + sum(
        int(n) for cell in table["methods of no row"] for n in re.findall(r"\((\d+)\)", cell)
    ) == len(claims.strays(real))
    ours = table.set_index(["paper", "table"])["methods of no row"].str.replace(
        r" \(\d+\)", "", regex=True
    )
    assert ours[ours != ""].to_dict() == {
        ("lehmann2023", "Tab. 4"): "rule of section 2.2.3, range-weighted loss",
        ("lehmann2023", "Tab. 5"): "rule of section 2.2.3, KonCept512, method 1, "
        "KonCept512, method 2, KonCept512, method 3, KonCept512, rule of section 2.2.3, "
        "images only, dual, variant A",
        ("ponomarenko2022", "Table 2"): "brightness, contrast, colorfulness, sharpness, bitrate",
        ("ponomarenko2022", "Table 3"): "IMQNet trained on BIQ2021 MOS",
    }
    wrong = next(r for r in real if r["table"] == "Tab. 4") | {"method": "methud 3"}
    assert "methud 3 (1)" in paper_pages.strays_table([wrong]).iloc[0]["methods of no row"]


def test_the_scoreboard_says_every_verdict_in_a_number_or_in_words_within_its_frame():
    board = claims.compare(paper_pages.real_results(find_runs(ROOT / "figures")))
    figure = draw_scoreboard(board)
    (axes,) = figure.axes
    figure.canvas.draw()
    words = dict.fromkeys(range(len(claims.counts(board))), "")
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.x1 < axes.get_window_extent().x1
        middle = axes.transData.inverted().transform((box.x0, (box.y0 + box.y1) / 2))[1]
        words[round(middle)] += f"{text.get_text()}; " * bool(text.get_text())
    for place, (_, row) in enumerate(claims.counts(board).iterrows()):
        for verdict, n in row[row > 0].items():
            assert re.search(rf"\b{n}(;| {verdict})", words[place]), (words[place], verdict)
    assert not [label for label in axes.get_yticklabels() if "no result" in label.get_text()]
    plt.close(figure)


def test_the_issue_template_that_the_pages_name_offers_every_paper():
    template = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/paper.yml").read_text())
    assert f"*{template['name']}*" in paper_pages.paper_page("feng2023", [], claims.compare([]))
    choice = next(part for part in template["body"] if part.get("id") == "paper")
    assert choice["attributes"]["options"][:-1] == list(papers())


def test_the_table_shows_only_headlines_with_evidence_and_counts_the_others():
    table = paper_pages.headline_table([run_with({})]).splitlines()
    assert len(table) == 2 + 1 + 2
    assert f"**{LDS.claim}**" in table[2]
    assert table[-1] == f"{len(HEADLINES) - 1} more headline claims wait for a run on real data."


def test_a_difference_the_other_way_round_counts_with_its_sign_turned():
    turned = {"method": LDS.compare["baseline"], "baseline": LDS.compare["method"]}
    turned |= {"value": 0.6, "ci_low": 0.3, "ci_high": 0.9}
    (one,) = paper_pages.evidence(LDS, [run_with(turned)])
    assert (one["value"], one["ci_low"], one["ci_high"]) == (-0.6, -0.9, -0.3)
    assert one["says"] == "confirmed"


def test_a_headline_may_allow_several_values_of_a_field():
    either = LDS._replace(compare=LDS.compare | {"dataset": ["weighted", "total"]})
    found = paper_pages.evidence(either, [run_with({"dataset": "total"}, {"dataset": "live"})])
    assert [one["dataset"] for one in found] == ["total"]
