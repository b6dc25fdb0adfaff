import json
import re
import shutil
import subprocess
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import pytest

from iqa_utils.workshop import readme, report
from iqa_utils.workshop.runs import RESULT_COLUMNS, ROOT, find_runs

CELL = dict.fromkeys(RESULT_COLUMNS) | {"n_runs": 1, "variant": ""}
CELL |= {"paper": "lehmann2023", "table": "Tab. 3", "method": "", "dataset": "koniq10k"}
CELL |= {"metric": "count MOS 0-20", "kind": "re-tabulated"}


@pytest.fixture
def runs(tmp_path):
    """One run on real data that reproduces a count, one on synthetic data with another value."""
    claims = (ROOT / "data/claims.csv").read_text().splitlines()
    row = next(line for line in claims if "count MOS 0-20" in line).split(",")
    cell = CELL | {"method": row[2], "value": float(row[5])}
    for profile, result in {
        "paper": cell | {"data": "koniq10k"},
        "demo": cell | {"data": "demo", "value": 7.0},
    }.items():
        folder = tmp_path / "runs" / profile / "01_dataset_analysis"
        (folder / "figures").mkdir(parents=True)
        figure, _ = plt.subplots()
        figure.savefig(folder / "figures/ranges.png")
        plt.close(figure)
        content = {"stem": folder.name, "profile": profile, "parameters": {}, "results": [result]}
        (folder / "metrics.json").write_text(json.dumps(content))
        seen = {"demo": profile == "demo", "data": {"koniq10k": {}}, "seconds": 1.0}
        seen |= {"device": "cpu", "commit": "abc"}
        (folder / "provenance.json").write_text(json.dumps(seen))
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_markdown_cell("# A page\n\n$x_i^2$ is drawn")]
        nbformat.write(notebook, folder / "01_dataset_analysis.ipynb")
    return find_runs(tmp_path / "runs")


@pytest.fixture
def site(runs, tmp_path):
    return report.build_report(tmp_path / "site", runs=runs)


def test_made_data_is_never_compared(runs):
    assert [r["value"] for r in report.demo_results(runs)] == [7.0]
    counts = report.counts(report.compare(report.real_results(runs)))
    assert counts.loc[("lehmann2023", "re-tabulated"), "reproduced"] == 1
    assert counts.to_numpy().sum() == 744  # distinct quantities
    only_demo = [run for run in runs if run["profile"] == "demo"]
    assert report.compare(report.real_results(only_demo))["ours"].notna().sum() == 0


def test_the_site_needs_no_network(site):
    for page in site.parent.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text), page.name
        assert "cdn" not in text.lower().replace("cdnjs-free", "")


def test_every_link_of_the_index_leads_somewhere(site):
    links = re.findall(r"(?:src|href)=\"([^\"#]+)\"", site.read_text())
    assert len(links) > 20
    for link in links:
        assert (site.parent / link).is_file(), link


def test_pages_hold_formulas_that_a_browser_draws_itself(site):
    page = site.parent / "01_dataset_analysis--paper--run.html"
    assert "<msubsup>" in page.read_text()
    assert 'href="index.html"' in page.read_text()


def test_tables_are_there_as_csv_and_latex(site):
    csv = (site.parent / "tables/lehmann2023.csv").read_text()
    assert csv.count("\n") == 134  # 133 numbers and a header
    tex = (site.parent / "tables/lehmann2023.tex").read_text()
    assert tex.startswith("\\begin{tabular}")
    assert "\\toprule" in tex


def test_a_second_build_replaces_the_first(site, runs):
    (site.parent / "stale.html").write_text("")
    report.build_report(site.parent, runs=runs)
    assert not (site.parent / "stale.html").exists()


def test_the_readme_shows_what_the_published_results_say(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    assert not readme.update_readme(copy), "run: iqa report --readme"


def test_the_best_layer_is_told_with_its_values_in_total_and_within_subsets():
    place = {"network": "net", "layer": "fc7", "regressor": "GPR", "stage": "fine-tuned"}

    def row(metric, value, variant="strict", baseline=""):
        ends = {"ci_low": value - 0.1, "ci_high": value + 0.1}
        words = {"metric": metric, "variant": variant, "baseline": baseline}
        return place | words | {"value": value, **ends}

    results = [
        row("SRCC", 0.2, baseline="BRISQUE"),
        row("SRCC", 0.75),
        row("SRCC within subset", 0.5),
        row("SRCC", 0.9, "as_written"),
    ]
    run = {"stem": "04_deep_features_gpr", "profile": "biq2021", "results": results}
    told = "| net | fine-tuned strict | fc7, GPR | 0.750 [0.650, 0.850] | 0.500 [0.400, 0.600] |"
    assert readme.layer_table([run]).splitlines()[2:] == [told]


def test_speeds_are_told_with_both_legs_and_the_gate(tmp_path):
    legs = {"plain": {"median": 2.5}, "ours": {"median": 0.0125}}
    record = {"title": "sum", "seconds_per_unit": legs, "ratios": {"ours": 200.0}}
    record["gate"] = {"difference": 2e-7, "allowed": 1e-6}
    machine = {"device": "made", "cpus": 2, "torch": "2.8"}
    (tmp_path / "bench_sum.json").write_text(json.dumps({"machine": machine, "results": [record]}))
    table = readme.speed_table(tmp_path).splitlines()
    assert table[2] == "| sum | plain: 2.5 s | ours: 12.5 ms | 200.0x | 2e-07, 1e-06 |"
    assert table[-1] == "Medians on made, 2 CPU cores, torch 2.8."
    record["goal"] = 500
    (tmp_path / "bench_sum.json").write_text(json.dumps({"machine": machine, "results": [record]}))
    assert "| 200.0x, goal of 500x missed |" in readme.speed_table(tmp_path)
    assert readme.speed_table(tmp_path / "nothing") == "No measurements are published."


def test_a_readme_without_markers_is_refused(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing here")
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        readme.update_readme(path)


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_the_index_without_sideways_scrolling(site, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium on PATH")
    probe = site.with_name("probe.html")
    script = (
        "<script>onload=()=>{document.title=[document.documentElement.scrollWidth,innerWidth,"
        "[...document.images].filter(i=>i.complete&&!i.naturalWidth).length].join(' ')}</script>"
    )
    probe.write_text(site.read_text().replace("</body>", f"{script}</body>"))
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom"]
        command = [browser, *flags, probe.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    wide, inner, broken = map(int, re.search(r"<title>([\d ]+)</title>", done.stdout)[1].split())
    assert wide <= inner
    assert broken == 0
