"""Low-rank layers become plain Keras layers: every exact form, and the model rewritten."""

from dprp_tf.folding.forms import FORMS, build_form, two_stage_obstacle
from dprp_tf.folding.model import FoldedLayer, choose_forms, fold

__all__ = ["FORMS", "FoldedLayer", "build_form", "choose_forms", "fold", "two_stage_obstacle"]
