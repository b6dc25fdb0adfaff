"""What runs the notebooks and tells their results; the science below knows nothing of it.

ROOT is where the repository lies, with its notebooks, ledger and runs.
"""

import os
from pathlib import Path

ROOT = Path(os.environ.get("IQA_ROOT") or Path(__file__).resolve().parents[2]).resolve()
IS_CHECKOUT = (ROOT / "notebooks").is_dir()
VARIABLES = {
    "IQA_ROOT": "the clone to work in, where the package is installed elsewhere",
    "IQA_MAX_MEGAPIXELS": "largest image that is decoded, in millions of pixels (64)",
    "IQA_TEST_DATA": "folder of real data sets for the tests",
}


class NoCheckoutError(RuntimeError):
    """The package is installed without the repository."""


def need_checkout() -> Path:
    """Return the repository's folder, or say that there is none."""
    if not IS_CHECKOUT:
        raise NoCheckoutError(
            f"this needs a clone of the repository and {ROOT} is none: work inside one, or name it "
            "with IQA_ROOT"
        )
    return ROOT
