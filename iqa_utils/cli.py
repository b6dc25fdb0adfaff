"""The ``iqa`` command: ``demo``, ``data``, ``run``, ``report`` and ``score``.

Each command calls one function of the package; modules are imported when a command needs them.
"""

from __future__ import annotations

import sys

import typer

app = typer.Typer(
    help="Re-run five papers on no-reference image quality assessment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="List, check, download and cut data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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
