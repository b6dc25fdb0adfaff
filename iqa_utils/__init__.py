"""Models, samplers and metrics behind the notebooks on five image-quality papers.

Import the module you need (``from iqa_utils import metrics``); nothing heavy is loaded here.

=================== ==========================================================================
data                datasets, demo, splits, images, indicators, natural_scenes, downloads
networks            backbones, models, features
training            samplers, losses, imbalance, training, distill
without training    regression
judging             metrics, statistics
one run             workshop, runs, parameters, plots, engine, batch, grids
a reader's side     report, scoring, browse, cli
what notebooks do   studies: the steps of each paper's protocol, called by its notebook
=================== ==========================================================================

A name above is a module, or a package whose ``__init__`` holds what its name says and whose other
modules hold the parts. Imports point down the table's rows of work: data and metrics know nothing
of training, training nothing of runs, and only notebooks and the command line see everything.
"""

__version__ = "0.1.0"
