"""The ``iqa`` command: each command calls one function of the package, imported when needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from iqa_utils.workshop import IS_CHECKOUT, ROOT, VARIABLES, NoCheckoutError, need_checkout

variables = VARIABLES | {"HF_ENDPOINT": "another server for weights from the hub"}
app = typer.Typer(
    help="Re-run five papers on no-reference image quality assessment.",
    epilog=". ".join(["Variables", *(f"{name}: {said}" for name, said in variables.items())]) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="List, check, split, download and cut data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
DATA_ROOT = (ROOT if IS_CHECKOUT else Path()) / "data"
DataRoot = Annotated[Path, Option(help="Folder with one folder per data set.")]
SetName = Annotated[str, Argument(help="One of `iqa data list`.")]
SetFolder = Annotated[Path, Argument(help="Folder of this data set.")]
BatchSize = Annotated[int, Option(min=1, help="Images per forward pass.")]
Profile = Annotated[str, Option(help="notebooks/params/STEM.PROFILE.yaml")]
_RUN = "Notebooks by name or number, or 'all'; -p sets a parameter, read as YAML."
_TRUE_SIZE = "Time the true networks instead, a few steps each."
_SCALE = "At most 1, shrinks batches and sides at true size."
_PUBLISH = "Copy the times at true size to figures/true_size/."
_KEEP = "If all runs finish, copy what each took to figures/rehearsal/times.json."
_METHOD = "model or brisque (0-100, higher is better); niqe (lower is better)."
_CHECKPOINT = "A model.safetensors of a run; else the shipped model."


def _version(asked: bool) -> None:
    if asked:
        from iqa_utils import __version__

        print(f"iqa {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, Option("--version", callback=_version, help="Print version.")] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(name="list")
def list_all(data_root: DataRoot = DATA_ROOT) -> None:
    """Show the notebooks with their profiles and runs, and which data and weights are here."""
    need_checkout()
    from iqa_utils.workshop import downloads

    print("\n".join([*_notebook_lines(), *downloads.describe_data(data_root)]))


def _notebook_lines() -> list[str]:
    """Say in lines of text which notebooks there are, with their profiles and finished runs."""
    from iqa_utils.workshop.notebooks import notebook_head, notebook_stems, profiles_of
    from iqa_utils.workshop.runs import find_runs

    lines, published, here = ["notebooks"], ROOT / "figures", ROOT / "runs"
    runs = [run for more in (False, True) for run in find_runs(published, here, rehearsal=more)]
    for stem in notebook_stems():
        told: dict[str, list[str]] = {"profiles": profiles_of(stem)}
        told |= {"published": [], "run here": []}
        for run in (one for one in runs if one["stem"] == stem):
            where = "run here" if run["folder"].is_relative_to(here) else "published"
            name = run["folder"].name.removeprefix(stem) if where == "run here" else ""
            told[where].append(run["profile"] + name)
        lines.append(f"  {notebook_head(stem)[0]}")
        lines += [f"      {what:9}  {', '.join(names)}" for what, names in told.items() if names]
    return lines


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    arguments: Annotated[list[str], Argument(metavar="STEM... [-p NAME VALUE]...", help=_RUN)],
    profile: Profile = "demo",
    publish: Annotated[bool, Option(help="Copy real results to figures/.")] = False,
) -> None:
    """Run notebooks through papermill, one line each; results land in runs/PROFILE/STEM."""
    need_checkout()
    from iqa_utils.workshop import notebooks
    from iqa_utils.workshop.plan import preflight

    stems, parameters = _split_parameters(arguments)
    chosen = notebooks.stems_with(profile) if stems == ["all"] else stems
    options = {"profile": profile, "parameters": parameters, "publish_results": publish}
    options["check"] = preflight
    _fail_if(notebooks.run_notebooks(chosen, **options))


@app.command()
def rehearse(
    stems: Annotated[list[str] | None, Argument(help="Notebooks; all if none.")] = None,
    annotations: Annotated[Path | None, Option(help="Real annotations, a folder per set.")] = None,
    true_size: Annotated[bool, Option("--true-size", help=_TRUE_SIZE)] = False,
    steps: Annotated[int | None, Option(min=1, help="Timed steps of each network; 20.")] = None,
    scale: Annotated[float | None, Option(min=0.01, max=1, help=_SCALE)] = None,
    publish: Annotated[bool, Option("--publish", help=_PUBLISH)] = False,
    keep_times: Annotated[bool, Option("--keep-times", help=_KEEP)] = False,
) -> None:
    """Run every paper profile end to end at its true counts, with tiny networks and pictures."""
    need_checkout()
    if true_size and annotations:
        raise ValueError("--true-size reads no annotations: its images are synthetic")
    if true_size and keep_times:
        raise ValueError("--keep-times belongs to a rehearsal, not to --true-size")
    if not true_size and (steps or scale or publish):
        raise ValueError("--steps, --scale and --publish belong to --true-size")
    if true_size:
        from iqa_utils.workshop import true_size as timed

        chosen = {"stems": [stem[:2] for stem in stems]} if stems else {}
        timed.true_size(steps or 20, **chosen, scale=scale or 1.0, publish=publish)
        return
    from iqa_utils.workshop.rehearsal import rehearse as run_rehearsal

    _fail_if(run_rehearsal(stems or [], annotations=annotations, keep_times=keep_times))


@app.command()
def plan(
    stems: Annotated[list[str], Argument(help="Notebooks by name or number, or 'all'.")],
    profile: Profile = "paper",
    rate: Annotated[float | None, Option(min=0.001, help="Images/s of every training.")] = None,
    json: Annotated[bool, Option("--json", help="Write JSON in place of text.")] = False,
) -> None:
    """Say what notebooks ask for before they start: trainings, disk, GPU memory, time."""
    need_checkout()
    from json import dumps

    from iqa_utils.workshop.notebooks import stems_with
    from iqa_utils.workshop.plan import make_plan, plan_lines

    chosen = stems_with(profile) if stems == ["all"] else stems
    plans = [make_plan(stem, profile, rate=rate) for stem in chosen]
    print(dumps(plans, indent=1) if json else "\n\n".join("\n".join(plan_lines(p)) for p in plans))


@app.command()
def compare_runs(
    a: Annotated[Path, Argument(help="A run, or a folder of runs.")],
    b: Annotated[Path, Argument(help="The same, run again.")],
) -> None:
    """Print the largest difference between the numbers of two runs; exit code 1 if there is one."""
    from iqa_utils.workshop.tables import differences

    found = list(differences(a, b))
    moved = [row for row in found if row[3] > 0]
    for name, file, column, difference in moved:
        print(f"{name}: {file}, {column}: {difference:.3g}")
    n_runs, largest = len({row[0] for row in found}), max(row[3] for row in found)
    print(f"{n_runs} runs compared, largest relative difference {largest:.3g}")
    _fail_if(moved)


@app.command()
def label(
    folders: Annotated[list[Path], Argument(help="Folders of images without scores.")],
    teacher: Annotated[Path, Option(help="Model file of any notebook.")],
    out: Annotated[Path, Option(help="Folder for the scores (parquet).")],
    crop: Annotated[tuple[int, int], Option(min=1, help="Height, width.")] = (768, 1024),
    batch_size: BatchSize = 64,
    part_size: Annotated[int, Option(min=1, help="Images per parquet file.")] = 1024,
    drop_bad: Annotated[bool, Option(help="Note undecodable images and go on.")] = False,
) -> None:
    """Score images without scores; resumes, and shares them under torchrun."""
    from iqa_utils import distill

    options = {"crop": crop, "batch_size": batch_size, "part_size": part_size}
    options["on_bad_image"] = "drop" if drop_bad else "raise"
    scored, corrupt = distill.label_folders(folders, teacher, out, **options)
    print(f"{scored} images scored, {corrupt} corrupt -> {out}")


def _fail_if(failed: object) -> None:
    if failed:
        raise typer.Exit(1)


def _split_parameters(arguments: list[str]) -> tuple[list[str], dict[str, object]]:
    import yaml

    stems, parameters, words = [], {}, iter(arguments)
    for word in words:
        if word in ("-p", "--parameter"):
            name, value = next(words, None), next(words, None)
            if value is None:
                raise ValueError("-p needs a name and a value")
            try:
                parameters[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                problem = getattr(error, "problem", None) or error
                raise ValueError(f"-p {name}: {value!r} is not YAML: {problem}") from error
        elif word.startswith("-"):
            raise ValueError(f"unknown option {word}; parameters are given as -p NAME VALUE")
        else:
            stems.append(word)
    if not stems:
        raise ValueError("name the notebooks to run, or 'all'")
    return stems, parameters


@app.command()
def demo(
    scale: Annotated[float, Option(help="1 is small; 64 has the official sizes.")] = 1.0,
) -> None:
    """Make the demo data, run every notebook on it and build the report."""
    need_checkout()
    from iqa_utils.workshop import notebooks, report
    from iqa_utils.workshop.demo import DEMO_ROOT, make_demo

    print("making the demo data ...", flush=True)
    made = make_demo(DEMO_ROOT, scale=scale)
    print(f"  {sum(made.values())} images in {len(made)} sets -> {DEMO_ROOT.relative_to(ROOT)}")
    failures = notebooks.run_notebooks([], profile="demo", workers=min(2, os.cpu_count() or 1))
    print("executed notebooks and figures: runs/demo/<notebook>/")
    print(f"index of everything:            {report.build_report().relative_to(ROOT)}")
    _fail_if(failures)


@data_app.command(name="list")
def data_list(data_root: DataRoot = DATA_ROOT) -> None:
    """Show what each data set is, its terms, and whether it is here or where it comes from."""
    from iqa_utils.workshop.downloads import catalogue

    print("\n\n".join(catalogue(data_root)))


@data_app.command(name="splits")
def data_splits(
    name: SetName,
    data_root: DataRoot = DATA_ROOT,
    seed: Annotated[int, Option(min=0, help="Where there is no official split.")] = 0,
    csv: Annotated[bool, Option("--csv", help="Print image,split as CSV.")] = False,
) -> None:
    """Show the split of a data set: the official one, or 60/20/20 by reference image."""
    from iqa_utils import datasets, splits
    from iqa_utils.workshop.tables import write_csv

    frame = datasets.load_scores(name, data_root / name)
    split = splits.official_or_content_split(frame, seed=seed)
    if csv:
        write_csv(frame[["image"]].assign(split=split), sys.stdout)
    else:
        print(", ".join(f"{(split == word).sum()} {word}" for word in datasets.SPLITS))


@data_app.command(name="check")
def data_check(name: SetName, root: SetFolder) -> None:
    """Say whether a folder holds a data set whole; exit code 1 if not."""
    from iqa_utils.datasets import check_dataset, report_lines

    report = check_dataset(name, root)
    print("\n".join(report_lines(name, report)))
    _fail_if(not report["whole"])


@data_app.command(name="download")
def data_download(
    name: SetName,
    root: SetFolder,
    mirror: Annotated[str, Option(help="Folder of the same files on another server.")] = "",
) -> None:
    """Fetch an openly served data set, or say what you must do to get it."""
    from iqa_utils.workshop.downloads import download

    _fail_if(not download(name, root, mirror=mirror))


@data_app.command(name="cut")
def data_cut(
    name: Annotated[str, Argument(help="biq2021")],
    root: Annotated[Path, Argument(help="Folder of the full data set.")],
    out: Annotated[Path | None, Option(help="Small set's folder; mini/NAME beside ROOT.")] = None,
) -> None:
    """Cut out the 2,000 images that our real results are shown on."""
    need_checkout()
    from iqa_utils.workshop.downloads import cut_biq2021

    if name != "biq2021":
        raise ValueError(f"only biq2021 has a small set, found {name!r}")
    out = out or root.resolve().parent / "mini" / name
    counts = cut_biq2021(root, out)
    print(", ".join(f"{count} {part}" for part, count in counts.items()), "images:", out)


@app.command(name="report")
def write_report(
    readme: Annotated[bool, Option(help="Update README and docs/papers/.")] = False,
) -> None:
    """Turn the runs into one offline HTML site."""
    need_checkout()
    from iqa_utils.workshop import committed, report
    from iqa_utils.workshop.readme import update_readme

    if readme:
        committed.write_data_files()
        changed = [update_readme(), committed.write_paper_pages()]
        print("README, docs/papers", "updated" if any(changed) else "were up to date")
    print(report.build_report())


@app.command()
def score(
    paths: Annotated[list[Path], Argument(help="Image files and folders.")],
    checkpoint: Annotated[Path | None, Option(help=_CHECKPOINT)] = None,
    method: Annotated[str, Option(help=_METHOD)] = "model",
    out: Annotated[Path, Option(help="Where OUT.csv and OUT.html go.")] = Path("scores"),
    batch_size: BatchSize = 4,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, mps")] = None,
) -> None:
    """Score images: a table, a CSV (full precision) and a contact sheet, best first; resumes."""
    from iqa_utils.workshop import scoring

    options = {"method": method, "batch_size": batch_size, "device": device}
    scores, note = scoring.score_to_files(paths, checkpoint, out, **options)
    bad = scores[scores["error"] != ""]
    print(scoring.text_table(scores), note, sep="\n")
    print(f"{len(scores) - len(bad)} images scored, {len(bad)} not: {out}.csv, {out}.html")
    for image, error in zip(bad["image"], bad["error"], strict=True):
        print(f"iqa: not scored: {image}: {error.removeprefix(f'{image}: ')}", file=sys.stderr)
    _fail_if(len(bad))


@app.command()
def export(
    model: Annotated[Path, Argument(help="A model.safetensors of a run.")],
    out: Annotated[Path, Argument(help="The ONNX file to write.")],
) -> None:
    """Write a model as ONNX; the file is kept where it gives the same scores."""
    from iqa_utils.workshop.scoring import export_onnx

    print(f"{out}: scores equal within {export_onnx(model, out):.2g}")


def main() -> None:
    """Run the command line; an expected error is one line on stderr: 2 without a clone, else 1."""
    try:
        app()
    except ModuleNotFoundError as error:
        extras = "pip install iqa-utils[notebooks], or [batch], [onnx], [dev]"
        raise SystemExit(f"iqa: {error}; an extra may bring it: {extras}") from error
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"iqa: {text}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, NoCheckoutError) else 1) from error


if __name__ == "__main__":
    main()
