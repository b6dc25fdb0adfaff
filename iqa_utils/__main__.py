"""``python -m iqa_utils`` is ``iqa``."""

from iqa_utils.workshop.cli import main

if __name__ == "__main__":
    main()
