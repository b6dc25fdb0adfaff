"""Models, samplers and metrics behind the notebooks on five image-quality papers.

Import the module you need (``from iqa_utils import metrics``); nothing heavy is loaded here.

============= ================================================================================
data          datasets, mixed_sets, ratings, splits, decoding, images, indicators,
              natural_scenes, files
networks      backbones, models, features, scorer, deep_quality
training      samplers, losses, imbalance, training, distill
regression    regression: ridge, support vectors on Gram matrices, Gaussian processes;
              layer_regression
judging       metrics, statistics, evaluate
============= ================================================================================

``iqa_utils.workshop`` runs the notebooks and tells their results. It knows the modules above, and
none of them knows it; ``tests/test_imports.py`` proves it.
"""

__version__ = "0.1.0"
