"""Low-rank layers become plain Keras layers: every exact form, and the model rewritten."""

from dprp_tf.folding.assembly import assemble, build_form
from dprp_tf.folding.form import KINDS, OWN_KIND, Form
from dprp_tf.folding.model import FoldedLayer, choose_forms, fold, require_finite_factors
from dprp_tf.folding.plan import Candidate, FoldPlan, PlannedLayer
from dprp_tf.folding.weights import (
    dense_kernel,
    form_error,
    form_weights,
    layer_forms,
    obstacle,
    own_form,
    random_weights,
)

__all__ = [
    "KINDS",
    "OWN_KIND",
    "Candidate",
    "FoldPlan",
    "FoldedLayer",
    "Form",
    "PlannedLayer",
    "assemble",
    "build_form",
    "choose_forms",
    "dense_kernel",
    "fold",
    "form_error",
    "form_weights",
    "layer_forms",
    "obstacle",
    "own_form",
    "random_weights",
    "require_finite_factors",
]
