"""The ``iqa`` command: ``demo``, ``data``, ``run``, ``plan``, ``report``, ``score``, ``label``.

Each command calls one function of the package; modules are imported when a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Re-run five papers on no-reference image quality assessment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="List, check, download and cut data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="STEM... [-p NAME VALUE]...",
            help="Notebooks by name or number, or 'all'; -p sets a parameter, read as YAML.",
        ),
    ],
    profile: Annotated[str, typer.Option(help="notebooks/params/STEM.PROFILE.yaml")] = "demo",
    publish: Annotated[bool, typer.Option(help="Copy real results to figures/.")] = False,
) -> None:
    """Run notebooks through papermill, one line each; results land in runs/PROFILE/STEM."""
    from iqa_utils.workshop import notebooks

    stems, parameters = _split_parameters(arguments)
    failures = notebooks.run_notebooks(
        [] if stems == ["all"] else stems,
        profile=profile,
        parameters=parameters,
        publish_results=publish,
    )
    if failures:
        raise typer.Exit(1)


@app.command()
def rehearse(
    stems: Annotated[
        list[str] | None, typer.Argument(help="Notebooks by name or number; all if none.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of real annotation files, one folder per set.")
    ] = None,
    true_size: Annotated[
        bool, typer.Option("--true-size", help="Time the true networks instead, a few steps each.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Timed steps of each network at true size.")] = 20,
    scale: Annotated[float, typer.Option(help="Below 1, shrinks batches and sides.")] = 1.0,
    publish: Annotated[bool, typer.Option(help="Copy the times to figures/true_size/.")] = False,
) -> None:
    """Run every paper profile end to end at its true counts, with tiny networks and pictures."""
    if true_size:
        from iqa_utils.workshop import true_size as timed

        chosen = {"stems": [stem[:2] for stem in stems]} if stems else {}
        timed.true_size(steps, **chosen, scale=scale, publish=publish)
        return
    from iqa_utils.workshop.rehearsal import rehearse as run_rehearsal

    if run_rehearsal(stems or [], annotations=annotations):
        raise typer.Exit(1)


@app.command()
def plan(
    stems: Annotated[list[str], typer.Argument(help="Notebooks by name or number, or 'all'.")],
    profile: Annotated[str, typer.Option(help="notebooks/params/STEM.PROFILE.yaml")] = "paper",
    rate: Annotated[float | None, typer.Option(help="Images/s of every training.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON in place of text.")] = False,
) -> None:
    """Say what notebooks ask for before they start: trainings, disk, GPU memory, time."""
    from json import dumps

    from iqa_utils.workshop.notebooks import notebook_stems
    from iqa_utils.workshop.plan import make_plan, plan_lines

    chosen = notebook_stems() if stems == ["all"] else stems
    plans = [make_plan(stem, profile, rate=rate) for stem in chosen]
    print(dumps(plans, indent=1) if json else "\n\n".join("\n".join(plan_lines(p)) for p in plans))


@app.command()
def compare_runs(
    a: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")],
    b: Annotated[Path, typer.Argument(help="The same, run again.")],
) -> None:
    """Print the largest difference between the numbers of two runs; exit code 1 if there is one."""
    from iqa_utils.workshop.compare_runs import differences

    found = list(differences(a, b))
    moved = [row for row in found if row[3] > 0]
    for name, file, column, difference in moved:
        print(f"{name}: {file}, {column}: {difference:.3g}")
    largest = max(row[3] for row in found)
    print(
        f"{len({row[0] for row in found})} runs compared, largest relative difference {largest:.3g}"
    )
    if moved:
        raise typer.Exit(1)


@app.command()
def label(
    folders: Annotated[list[Path], typer.Argument(help="Folders of images without scores.")],
    teacher: Annotated[Path, typer.Option(help="Model file of any notebook.")],
    out: Annotated[Path, typer.Option(help="Folder for the scores (parquet).")],
    crop: Annotated[tuple[int, int], typer.Option(min=1, help="Height, width.")] = (
        768,
        1024,
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    part_size: Annotated[int, typer.Option(min=1, help="Images per parquet file.")] = 1024,
    drop_bad: Annotated[bool, typer.Option(help="Note undecodable images and go on.")] = False,
) -> None:
    """Score images without scores; resumes, and shares them under torchrun."""
    from iqa_utils import distill

    scored, corrupt = distill.label_folders(
        folders,
        teacher,
        out,
        crop=crop,
        batch_size=batch_size,
        part_size=part_size,
        on_bad_image="drop" if drop_bad else "raise",
    )
    print(f"{scored} images scored, {corrupt} corrupt -> {out}")


def _split_parameters(arguments: list[str]) -> tuple[list[str], dict[str, object]]:
    import yaml

    stems, parameters, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word not in ("-p", "--parameter"):
            if word.startswith("-"):
                raise ValueError(f"unknown option {word}; parameters are given as -p NAME VALUE")
            stems.append(word)
        elif len(rest) < 2:
            raise ValueError("-p needs a name and a value")
        else:
            name, value = rest.pop(0), rest.pop(0)
            try:
                parameters[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                problem = getattr(error, "problem", None) or error
                raise ValueError(f"-p {name}: {value!r} is not YAML: {problem}") from error
    if not stems:
        raise ValueError("name the notebooks to run, or 'all'")
    return stems, parameters


@app.command()
def demo(
    scale: Annotated[float, typer.Option(help="1 is small; 64 has the official sizes.")] = 1.0,
) -> None:
    """Make the demo data, run every notebook on it and build the report."""
    from iqa_utils.workshop import notebooks, report
    from iqa_utils.workshop.demo import DEMO_ROOT, make_demo
    from iqa_utils.workshop.runs import ROOT

    print("making the demo data ...", flush=True)
    made = make_demo(DEMO_ROOT, scale=scale)
    print(f"  {sum(made.values())} images in {len(made)} sets -> {DEMO_ROOT.relative_to(ROOT)}")
    failures = notebooks.run_notebooks([], profile="demo", workers=2)
    index = report.build_report()
    print("executed notebooks and figures: runs/demo/<notebook>/")
    print(f"index of everything:            {index.relative_to(ROOT)}")
    if failures:
        raise typer.Exit(1)


@data_app.command(name="list")
def data_list() -> None:
    """Show what each data set is, its terms and where it comes from."""
    from iqa_utils.datasets import DATASETS, describe

    print("\n\n".join(describe(name) for name in DATASETS))


@data_app.command(name="check")
def data_check(
    name: Annotated[str, typer.Argument(help="One of `iqa data list`.")],
    root: Annotated[Path, typer.Argument(help="Folder of this data set.")],
) -> None:
    """Say whether a folder holds a data set whole; exit code 1 if not."""
    from iqa_utils.datasets import check_dataset, report_lines

    report = check_dataset(name, root)
    print("\n".join(report_lines(name, report)))
    if not report["whole"]:
        raise typer.Exit(1)


@data_app.command(name="download")
def data_download(
    name: Annotated[str, typer.Argument(help="One of `iqa data list`.")],
    root: Annotated[Path, typer.Argument(help="Folder of this data set.")],
) -> None:
    """Fetch an openly served data set, or say what you must do to get it."""
    from iqa_utils.workshop.downloads import download

    if not download(name, root):
        raise typer.Exit(1)


@data_app.command(name="cut")
def data_cut(
    name: Annotated[str, typer.Argument(help="biq2021")],
    root: Annotated[Path, typer.Argument(help="Folder of the full data set.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the small set; mini/NAME beside ROOT.")
    ] = None,
) -> None:
    """Cut out the 2,000 images that our real results are shown on."""
    from iqa_utils.workshop.downloads import cut_biq2021

    if name != "biq2021":
        raise ValueError(f"only biq2021 has a small set, found {name!r}")
    out = out or root.resolve().parent / "mini" / name
    counts = cut_biq2021(root, out)
    print(", ".join(f"{count} {part}" for part, count in counts.items()), "images:", out)


@app.command(name="report")
def write_report(
    readme: Annotated[bool, typer.Option(help="Update the README's result tables.")] = False,
) -> None:
    """Turn the runs into one offline HTML site."""
    from iqa_utils.workshop import report
    from iqa_utils.workshop.readme import update_readme

    if readme:
        print("README updated" if update_readme() else "README was up to date")
    print(report.build_report())


@app.command()
def score(
    paths: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model.safetensors of a run; else the shipped model.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="model or brisque (0-100, higher is better); niqe (lower is better)."),
    ] = "model",
    out: Annotated[Path, typer.Option(help="Where OUT.csv and OUT.html go.")] = Path("scores"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps")] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, max=178, help="Larger images are refused undecoded.")
    ] = 100,
) -> None:
    """Score images: a table, a CSV (full precision) and a contact sheet, best first; resumes."""
    from iqa_utils.workshop import scoring

    options = {"batch_size": batch_size, "device": device, "max_megapixels": max_megapixels}
    scores, note = scoring.score_to_files(paths, checkpoint, out, method=method, **options)
    bad = scores[scores["error"] != ""]
    print(scoring.text_table(scores))
    print(note)
    print(f"{len(scores) - len(bad)} images scored, {len(bad)} not: {out}.csv, {out}.html")
    for row in bad.itertuples():
        reason = row.error.removeprefix(f"{row.image}: ")
        print(f"iqa: not scored: {row.image}: {reason}", file=sys.stderr)
    if len(bad):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; an expected error is one line on stderr and exit code 1."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"iqa: {text}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
