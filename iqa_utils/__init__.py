"""Models, samplers and metrics behind the notebooks that re-run five image-quality papers.

Import the module you need (``from iqa_utils import metrics``); nothing heavy is loaded here.
"""

__version__ = "0.1.0"
