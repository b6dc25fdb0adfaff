import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from iqa_utils.workshop import cli
from iqa_utils.workshop.tables import differences


@pytest.fixture
def runs(tmp_path):
    """Two recordings of one run that differ in their seconds alone."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name / "02_cross_sampling"
        folder.mkdir(parents=True)
        rows = [
            {"method": "none", "metric": "SRCC", "value": 0.7, "ci_low": None},
            {"method": "none", "metric": "epoch seconds", "value": seconds, "ci_low": None},
        ]
        (folder / "metrics.json").write_text(json.dumps({"results": rows}))
        history = pd.DataFrame({"epoch": [1, 2], "val_srcc": [0.5, np.nan], "seconds": seconds})
        history.to_parquet(folder / "history.parquet")
    return tmp_path / "a", tmp_path / "b"


def rewrite(folder, change):
    path = folder / "02_cross_sampling" / "history.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def test_runs_that_differ_in_seconds_alone_are_equal(runs):
    a, b = runs
    assert {row[3] for row in differences(a, b)} == {0.0}
    done = CliRunner().invoke(cli.app, ["compare-runs", str(a), str(b)])
    assert done.exit_code == 0
    assert "1 runs compared, largest relative difference 0" in done.output


def test_the_last_bit_of_a_number_is_seen(runs):
    a, b = runs
    rewrite(b, lambda t: t.assign(val_srcc=[np.nextafter(0.5, 1), np.nan]))
    found = {row[2]: row[3] for row in differences(a, b) if row[3]}
    assert found == {"val_srcc": pytest.approx(2.2e-16, rel=0.1)}
    done = CliRunner().invoke(cli.app, ["compare-runs", str(a), str(b)])
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda t: t.assign(val_srcc=[0.5, 0.6]), "val_srcc"),
        (lambda t: t.assign(epoch=["1", "two"]), "epoch"),
        (lambda t: t.assign(lr=0.1), "lr"),
        (lambda t: t.iloc[:1], "rows"),
    ],
)
def test_words_gaps_columns_and_rows_that_differ_are_infinitely_far(runs, change, column):
    a, b = runs
    rewrite(b, change)
    assert [row[2] for row in differences(a, b) if np.isinf(row[3])] == [column]


def test_an_empty_column_is_as_if_it_were_absent(runs):
    a, b = runs
    rewrite(b, lambda t: t.assign(stage=None, subset=""))
    assert {row[3] for row in differences(a, b)} == {0.0}


def test_a_run_without_a_partner_is_named(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="02_cross_sampling"):
        list(differences(runs[0], tmp_path / "c"))
