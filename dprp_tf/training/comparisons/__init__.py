"""Low-rank training methods of others, at the level of a baseline to compare with."""

from dprp_tf.training.comparisons.base import LowRankTraining
from dprp_tf.training.comparisons.compression_aware import CompressionAware, soft_thresholded
from dprp_tf.training.comparisons.learning_compression import LearningCompression, best_rank
from dprp_tf.training.comparisons.trained_rank_pruning import TrainedRankPruning

__all__ = [
    "CompressionAware",
    "LearningCompression",
    "LowRankTraining",
    "TrainedRankPruning",
    "best_rank",
    "soft_thresholded",
]
