"""The site and the README: what they say, where links lead, and that nothing is fetched."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import pytest
from typer.testing import CliRunner

from iqa_utils.files import read_mapping
from iqa_utils.workshop import claims, cli, notebooks, paper_pages, readme, report
from iqa_utils.workshop.papers import Headline, papers
from iqa_utils.workshop.runs import RESULT_COLUMNS, ROOT, find_runs

CELL = dict.fromkeys(RESULT_COLUMNS) | {"n_runs": 1, "variant": ""}
CELL |= {"paper": "lehmann2023", "table": "Tab. 3", "method": "", "dataset": "koniq10k"}
CELL |= {"metric": "count MOS 0-20", "kind": "re-tabulated"}
LINK = re.compile(r"(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run on real data that reproduces a count, one on synthetic data with another value."""
    folder = tmp_path_factory.mktemp("runs")
    rows = (ROOT / "data/claims.csv").read_text().splitlines()
    row = next(line for line in rows if "count MOS 0-20" in line).split(",")
    cell = CELL | {"method": row[2], "value": float(row[5])}
    for profile, result in {
        "paper": cell | {"data": "koniq10k"},
        "demo": cell | {"data": "demo", "value": 7.0},
    }.items():
        run = folder / ("figures" if profile == "paper" else "runs") / profile
        run = run / "01_dataset_analysis"
        (run / "figures").mkdir(parents=True)
        figure, _ = plt.subplots()
        figure.savefig(run / "figures/ranges.png")
        plt.close(figure)
        content = {"stem": run.name, "profile": profile, "parameters": {}, "results": [result]}
        (run / "metrics.json").write_text(json.dumps(content))
        seen = {"demo": profile == "demo", "data": {"koniq10k": {}}, "seconds": 1.0}
        seen |= {"device": "cpu", "commit": "abc"}
        (run / "provenance.json").write_text(json.dumps(seen))
        if profile == "demo":
            text = "# 01 · A page\n\n$x_i^2$ is drawn, see [01 · A](01_dataset_analysis.ipynb)"
            cells = [nbformat.v4.new_markdown_cell(f"{text} or the [index](../README.md)")]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), run / f"{run.name}.ipynb")
    return find_runs(folder)


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory):
    """Folder of a site, built where an earlier one stood; the plan's table is tested elsewhere."""
    folder = tmp_path_factory.mktemp("report") / "site"
    folder.mkdir()
    (folder / "stale.html").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_pages, "needs_table", lambda: "| a | b |\n| --- | --- |\n| 1 | 2 |")
        return report.build_report(folder, runs=runs).parent


def pages(site):
    return sorted(site.rglob("*.html"))


def test_demo_results_are_never_compared(runs):
    assert [r["value"] for r in paper_pages.demo_results(runs)] == [7.0]
    counts = claims.counts(claims.compare(paper_pages.real_results(runs)))
    assert counts.loc[("lehmann2023", "re-tabulated"), "reproduced"] == 1
    assert counts.to_numpy().sum() == (claims.load_claims()["role"] == "").sum()
    only_demo = [run for run in runs if run["profile"] == "demo"]
    assert claims.compare(paper_pages.real_results(only_demo))["ours"].notna().sum() == 0


def test_a_build_replaces_the_earlier_site_and_warns_of_nothing(site):
    assert not (site / "stale.html").exists()
    assert (site / "warnings.txt").read_text() == ""
    assert sorted(path.name for path in site.parent.iterdir()) == ["site"]


def test_the_site_asks_no_other_machine_for_anything(site):
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:img|script|iframe)[^>]*src=\"(?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]*href=\"(?:https?:)?//", text), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_every_link_leads_to_a_file_and_every_anchor_to_a_place(site):
    n_links = 0
    for page in pages(site):
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target, _, anchor = urllib.parse.unquote(link).partition("#")
            if re.match(r"\w+:", target) or page.name in ("search.html", "genindex.html"):
                continue
            file = (page.parent / target.partition("?")[0]) if target else page
            assert file.is_file(), f"{page.name}: {link}"
            known = ("", "content", *claims.PAPERS)  # the scoreboard's script reads the papers
            if file.suffix == ".html" and anchor not in known:
                assert f'id="{anchor}"' in file.read_text(encoding="utf-8"), f"{page.name}: {link}"
            n_links += 1
    assert n_links > 500


def test_every_page_is_reached_from_the_first_over_http(site):
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = f"http://127.0.0.1:{server.server_port}/index.html"
    waiting, seen = [start], set()
    try:
        while waiting:
            address = waiting.pop()
            if address in seen or not address.startswith(start[:-10]):
                continue
            seen.add(address)
            with urllib.request.urlopen(address, timeout=10) as answer:  # an error if it is dead
                text = answer.read() if address.endswith(".html") else b""
            links = LINK.findall(text.decode())
            waiting += [urllib.parse.urldefrag(urllib.parse.urljoin(address, x))[0] for x in links]
    finally:
        server.shutdown()
        server.server_close()
    reached = {urllib.parse.unquote(address.removeprefix(start[:-10])) for address in seen}
    hidden = {page.relative_to(site).as_posix() for page in pages(site)} - reached
    assert hidden <= {"search.html"}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_published_runs_stand_before_demo_runs(site):
    text = (site / "notebooks/index.html").read_text(encoding="utf-8")
    assert 0 < text.index("paper--published.html") < text.index("--demo.html")


def test_an_executed_notebook_has_formulas_links_and_its_provenance(site):
    text = (site / "notebooks/01_dataset_analysis--demo.html").read_text(encoding="utf-8")
    assert "<msubsup>" in text
    assert "synthetic data (koniq10k); 1 s on cpu, commit abc" in text
    assert 'href="../index.html"><span class="std std-doc">index' in text
    assert "jquery" not in text.lower()


def test_a_published_run_tells_of_trainings_that_were_made_before():
    told = read_mapping(ROOT / "figures" / "trained_before.yaml")
    assert all((ROOT / "figures" / run / "provenance.json").is_file() for run in told)
    line = report._provenance(ROOT / "figures" / "06_distillation" / "biq2021")
    assert re.search(r"; \d+ s on .*since\. Its students were trained before.* 17 minutes\.$", line)
    assert report._provenance(ROOT / "figures/01_dataset_analysis/paper").endswith(" since.")


def test_the_scoreboard_puts_the_verdict_first_and_offers_filters(site):
    text = (site / "scoreboard.html").read_text(encoding="utf-8")
    board = text[text.index('<table class="scoreboard">') :]
    assert board.count('<tr data-verdict="') >= len(claims.load_claims())
    assert re.findall(r"<th>(\w+)</th>", board)[:2] == ["verdict", "what"]
    assert text.count("<select") == 3
    assert 'data-paper="lehmann2023" data-table="Tab. 3"' in board


def test_every_paper_has_a_page_with_its_claims_and_tables_to_take_away(site):
    for key in claims.PAPERS:
        text = (site / f"papers/{key}.html").read_text(encoding="utf-8")
        assert "Headline claims" in text
        assert f"scoreboard.html#{key}" in text
        assert f"/{key}.csv" in text
    (table,) = (site / "_downloads").rglob("lehmann2023.csv")
    assert table.read_text().count("\n") == 134  # 133 numbers and a header


def test_the_page_of_a_paper_leads_to_its_own_notebooks_and_their_runs(site, runs):
    text = (site / "papers/lehmann2023.html").read_text(encoding="utf-8")
    text = text.split("All 133 printed numbers")[1].split("Headline claims")[0]
    published = "notebooks/01_dataset_analysis--paper--published.html"
    assert re.findall(r'href="../([^"]+)"', text.split("CSV")[1]) == [
        "notebooks/index.html#dataset-analysis",
        published,
    ]
    assert "nothing is trained" in text
    assert "no run on real data yet" in text  # of 02
    (run,) = (run for run in runs if run["profile"] == "paper")
    trained = [CELL | {"kind": "trained here", "n_runs": n} for n in (1, 5)]
    told = report._runs_of("lehmann2023", {"name": run | {"results": trained}})
    assert "[paper (published)](../notebooks/name), 5 runs" in told


def test_the_package_is_documented_from_its_docstrings(site):
    text = (site / "api/imbalance.html").read_text(encoding="utf-8")
    assert 'id="iqa_utils.imbalance.lds_weights"' in text
    assert "Parameters" in text
    assert not list((site / "api").glob("workshop*"))


def test_the_readme_shows_what_the_published_results_say(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    assert not readme.update_readme(copy), "run: iqa report --readme"
    assert len(copy.read_text().splitlines()) <= 120


def test_a_readme_without_markers_is_refused(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing here")
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        readme.update_readme(path)


def test_links_of_the_readme_and_of_docs_lead_to_files_and_headings():
    built = {page: ROOT / path for path, page in report.PAGES.items()}  # where the site has them
    n_anchors = 0
    for path in [*(ROOT / name for name in report.PAGES), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", path.read_text()):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if target.parent == ROOT / "docs":
                target = built.get(target.name, target) if target.name != "index.md" else target
            drawn = target == ROOT / "docs/scoreboard.png"
            assert target.exists() or drawn, f"{path.name}: {link}"
            if anchor:
                assert anchor in headings(target), f"{path.name}: {link}"
                n_anchors += 1
    assert n_anchors > 0


def headings(path):
    """The anchors that GitHub and the site give to the headings of a file."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).strip().replace(" ", "-") for text in found}


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/howto/own_code.md"])
def test_pasted_code_runs_as_it_stands(name):
    namespace = {}
    for block in blocks(ROOT / name, "python"):
        exec(block, namespace)
    assert len(namespace["weights"]) == 500
    assert 0 < len(namespace["rows"]) < 500
    assert len(namespace["pred"]) == 8
    assert namespace.get("across", 1) > 0.5


def test_pasted_commands_run_as_they_stand(tmp_path, monkeypatch):
    """The first block through a shell that knows of `.venv` only what the block itself says."""
    import skimage
    from PIL import Image

    score, again = blocks(ROOT / "README.md", "bash")[:2]
    assert score.splitlines()[0] == again.splitlines()[0] == ". .venv/bin/activate"
    if not (Path(sys.prefix) / "bin/activate").is_file():
        pytest.skip("needs a virtual environment: this Python has no bin/activate")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "photos").mkdir()
    Image.fromarray(skimage.data.cat()).save(tmp_path / "photos/cat.png")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(notebooks, "run_notebooks", lambda s, **o: asked.append((s, o)) or [])
    bare = os.environ | {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-e"], input=score, text=True, env=bare, check=True, capture_output=True)
    for line in again.splitlines()[1:]:
        done = CliRunner().invoke(cli.app, line.split()[1:])
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception}"
    assert "cat.png" in (tmp_path / "scores.csv").read_text()
    assert [(s, o["profile"]) for s, o in asked] == [(["05"], "demo")]


def test_a_headline_says_its_numbers_the_way_round_that_it_states():
    headline = Headline("C.", "05_x", {"metric": "MAE", "method": "a", "baseline": "b"}, "lower")
    cell = CELL | {"metric": "MAE", "method": "b", "baseline": "a", "data": "biq2021"}
    cell |= {"value": 0.5, "ci_low": 0.25, "ci_high": 0.75, "n_runs": 10}
    runs = [{"stem": "05_x", "profile": "biq2021", "results": [cell]}]
    groups = readme._by_profile(paper_pages.evidence(headline, runs))
    told = "MAE, a minus b: -0.500 [-0.750, -0.250]; 10 runs"
    assert readme._numbers(headline, groups) == told
    keys = {"metric": "RMSE ranges SD", "method": "method3", "baseline": "none"}
    words = "SD of RMSE over ranges, method 3 minus no sampling: -0.5"
    assert readme._numbers(headline._replace(compare=keys), groups).startswith(words)
    short = headline._replace(short="one minus another")
    assert readme._numbers(short, groups).startswith("MAE, one minus another: -0.5")
    assert readme._verdict(headline, runs) == "confirmed; 10 runs"
    other = {**runs[0], "profile": "a_variant", "results": [cell | {"ci_low": -0.1, "n_runs": 3}]}
    told = "confirmed (biq2021); undecided (a_variant); 3 to 10 runs"
    assert readme._verdict(headline, [other, *runs]) == told  # the run that decides comes first
    settings = [cell, cell | {"ci_low": -0.1, "value": 0.4}, cell | {"value": 0.6}]
    several = [{**runs[0], "results": settings}]
    assert readme._verdict(headline, several) == "confirmed in 2 of 3, undecided in 1; 10 runs"
    assert readme._verdict(headline, []) == "not run yet"


def test_the_row_of_a_notebook_answers_its_question_with_the_price_and_every_claim():
    runs = find_runs(ROOT / "figures")
    told = {line[3:5]: line.split(" | ") for line in readme.notebook_rows(runs).splitlines()[2:-2]}
    said = {number: cells[2] for number, cells in told.items()}
    assert max(map(len, said.values())) <= 450
    assert re.search(r"method 3 minus no sampling: -.*at the price of SRCC .*, RMSE ", said["02"])
    assert re.search(r"at equal steps: [+-].*ranks better: ", said["02"])
    assert re.search(
        r"same passes: [+-].*at equal steps: [+-].*<br>beats ridge: [+-].*, refuted$", said["06"]
    )
    assert re.findall(r"\((\d) runs\)", said["02"]) == ["3"]  # where they are others
    assert "(biq2021_raw)" in said["05"]
    assert all(f"subset {n} " in said["08"] for n in (1, 2, 3))
    assert "checks, not distinct errors" in said["00"]
    assert all(re.search(r"\d runs?\b", said[number]) for number in ("02", "03", "04", "05", "06"))


def test_the_row_of_a_paper_tells_the_claims_with_numbers_and_what_is_unknown_of_it():
    rows = readme.paper_rows(find_runs(ROOT / "figures")).splitlines()[2:]
    told = {row[2:].split()[0]: row.split(" | ") for row in rows}
    for name in ("Lehmann", "Ponomarenko"):
        assert re.fullmatch(r"\w+; \d runs<br>at equal steps: \w+; \d runs", told[name][2])
    assert told["Nguyen"][0].endswith("Assessment*, venue unknown to us")
    assert [name for name, cells in told.items() if "unknown" in cells[0]] == ["Nguyen"]


def test_a_published_run_whose_code_has_changed_is_marked(monkeypatch):
    run = {"stem": "02_cross_sampling", "profile": "biq2021"}
    for changed, mark in ((True, " (code changed since)"), (False, "")):
        monkeypatch.setattr(readme, "has_changed", lambda folder, changed=changed: changed)
        assert readme._executed(run).endswith(f"02_cross_sampling.ipynb){mark}")
    assert readme._executed(run | {"profile": "none"}).endswith("/none)")  # nothing is recorded


def test_the_scoreboard_of_the_readme_is_the_executed_one():
    last = readme.notebook_rows([]).splitlines()[-1]
    assert last.startswith("[Scoreboard](figures/07_scoreboard/paper/07_scoreboard.ipynb): ")


def test_public_addresses_come_from_one_setting(monkeypatch):
    assert readme._badges() == " · ".join(
        f"[{text}]({paper_pages.address(name)})"
        for name, text in {"pages": "the site", "repository": "the repository"}.items()
        if paper_pages.address(name)
    )
    monkeypatch.setattr(readme, "address", lambda name: f"https://example.org/{name}")
    assert "[the site](https://example.org/pages)" in readme._badges()


def test_the_best_layer_is_told_with_its_values_in_total_and_within_subsets():
    place = {
        "data": "biq2021",
        "network": "net",
        "layer": "fc7",
        "regressor": "GPR",
        "stage": "fine-tuned",
    }

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
    run["parameters"] = {"TAP_SIZE": 0}
    whole = run | {"profile": "biq2021_384", "parameters": {"TAP_SIZE": 384}}
    inputs = ("crops of the network's own size", "whole photographs, 384 px")
    cells = "fine-tuned strict | fc7, GPR | 0.750 [0.650, 0.850] | 0.500 [0.400, 0.600] |"
    told = [f"| net | {seen} | {cells}" for seen in inputs]
    demo = run | {"results": [one | {"data": "demo"} for one in results]}
    assert paper_pages.layer_table([run, run, demo, whole]).splitlines()[2:] == told


def test_settings_that_differ_from_the_papers_stand_side_by_side():
    (run,) = (
        run
        for run in find_runs(ROOT / "figures")
        if (run["stem"], run["profile"]) == ("05_lds_fds", "biq2021")
    )
    rows = dict(line[2:].split(" | ", 1) for line in paper_pages.settings_table(run).splitlines())
    assert rows["epochs"] == "200 | 25 |"
    assert rows["dataset"] == "KonIQ-10k | BIQ2021 |"
    assert rows["encoder"] == "CLIP ViT-B/32 | CLIP ViT-B/16 |"
    assert rows["weights"] == f"hub | {run['parameters']['PRETRAINED']} |"
    assert paper_pages._label("KONCEPT_LR") == "KonCept512's learning rate"
    assert not {"profile", "threads", "data root", "loss"} & set(rows)
    assert paper_pages.settings_table(run | {"profile": "demo"}) == ""
    told = report.settings_of("nguyen2024", [run])
    assert told[1].startswith("### Notebook 05, biq2021 (published)\n\n| setting |")


def test_a_page_counts_printed_numbers_and_not_kinds_of_answers():
    board = claims.compare(paper_pages.real_results(find_runs(ROOT / "figures")))
    for key, paper in papers().items():
        part = board[board["paper"] == key]
        assert f"All {paper.LEDGER[0]} printed numbers" in report._links_of(key, part)
    assert (board["paper"] == "feng2023").sum() > papers()["feng2023"].LEDGER[0]


def test_the_cases_of_the_rule_are_a_table_of_the_site(tmp_path):
    table = report.cases_table().splitlines()
    assert len(table) == 2 + len((ROOT / "tests/verdict_cases.csv").read_text().splitlines()) - 1
    (row,) = (line for line in table if "a constant prediction" in line)
    assert row.startswith("| not comparable | a constant prediction | nguyen2024 | Table 1, CLIP")
    assert "not here" in report.cases_table(tmp_path / "none.csv")


def test_speeds_are_told_with_both_implementations_and_the_gate(tmp_path):
    implementations = {"plain": {"median": 2.5}, "ours": {"median": 0.0125}}
    record = {"title": "sum", "seconds_per_unit": implementations, "ratios": {"ours": 200.0}}
    record |= {"goal": 500, "gate": {"difference": 2e-7, "allowed": 1e-6}}
    scan = {"title": "bytes per file", "gate": {"difference": 150.0, "allowed": 200.0}}
    scan |= {"naive": 900.0, "ratios": {"ours": 6.0}}
    memory = {"title": "memory", "gate": {"difference": 3.0, "allowed": 64.0}, "ratios": {}}
    memory["megabytes"] = {"200": 889.5, "2000": 892.5}
    results = [record, scan, memory, record | {"title": "scoring"}]
    machine = {"device": "any", "cpus": 2, "torch": "2.8"}
    (tmp_path / "bench_sum.json").write_text(json.dumps({"machine": machine, "results": results}))
    table = report.speed_table(tmp_path).splitlines()
    assert table[2].split(" | ")[1:6] == ["plain: 2.5 s", "ours: 12.5 ms", "200x", "500x", "**no**"]
    assert table[2].endswith("| 2e-07, allowed 1e-06 |")
    assert table[3] == "| bytes per file | 900 | 150 | 6x | at most 200 | yes |  |"
    peaks = "3 (890 MB for 200 images, 892 MB for 2000 images)"
    assert table[4] == f"| memory |  | {peaks} |  | at most 64 | yes |  |"
    assert table[5].split(" | ")[2] == "ours: 12.5 ms, 80 images/s"
    assert table[-1] == "Medians on any, 2 CPU cores, torch 2.8."
    assert report.speed_table(tmp_path / "nothing") == "No measurements are published."


DRAWN = ["index", "scoreboard", "papers/lehmann2023", "notebooks/01_dataset_analysis--demo"]
DRAWN += ["speed", "model_card", "results", "howto/gpu"]


@pytest.mark.system
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
@pytest.mark.parametrize("name", DRAWN)
def test_a_browser_draws_pages_without_sideways_scrolling_or_requests(
    site, tmp_path, name, width, dark
):
    """A frame of the asked width holds the page: a browser window is never that narrow."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if (browser := next(filter(None, map(shutil.which, names)), None)) is None:
        pytest.skip("needs chromium on PATH")
    probe = (
        "<script>onload=()=>{const d=document.documentElement;"
        "const v=[...document.querySelectorAll('td.verdict')];"
        "const r=Math.max(0,...v.map(i=>i.getBoundingClientRect().right));"
        "const c=[...(getComputedStyle(document.querySelector('h1')).color+"
        "getComputedStyle(document.body).backgroundColor).matchAll(/rgb\\((\\d+)/g)];"
        "const b=[...document.images].filter(i=>i.complete&&!i.naturalWidth).length;"
        "parent.postMessage([d.scrollWidth,innerWidth,b,r,c[0][1],c[1][1]].join(' '),'*')}"
        "</script>"
    )
    page = site / f"{name}.html"
    framed = page.with_name(f"probe-{width}-{page.name}")
    framed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>onmessage=e=>document.title=e.data</script>"
        f'<iframe src="{framed.as_uri()}" width="{width}" height="900" style="border:0"></iframe>'
    )
    log = tmp_path / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom"]
    flags += ["--virtual-time-budget=4000", f"--log-net-log={log}"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [browser, *flags, outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    framed.unlink()
    found = re.search(r"<title>([\d. ]+)</title>", done.stdout)[1].split()
    wide, inner, broken, verdict, text, ground = map(float, found)
    assert inner == width
    assert wide <= inner
    assert broken == 0
    assert verdict <= width
    assert (text - ground > 127) if dark else (ground - text > 127)
    assert (verdict > 0) == (name == "scoreboard")
    asked = re.findall(r'"url":"(https?://[^"/]*)', log.read_text())
    assert not {host for host in asked if not host.endswith(".google.com")}  # the browser's own


def test_what_another_paper_says_of_itself_does_not_age_a_run():
    folder = "iqa_utils/workshop/papers"
    files = dict.fromkeys([f"{folder}/feng2023.py", f"{folder}/nguyen2024.py", "b.py"], "1")
    kept = paper_pages.without_other_papers({"stem": "05_lds_fds", "files": files})["files"]
    assert list(kept) == [f"{folder}/nguyen2024.py", "b.py"]
    board = paper_pages.without_other_papers({"stem": "07_scoreboard", "files": files})
    assert board["files"] == files  # it tells of all of them
