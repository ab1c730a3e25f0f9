"""The result of training, the input of the steps after it (registration, packaging, the gate)."""

from towline.config import Frozen
from towline.data.validation.suite import Validation
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.model_selection.reference_model import ReferenceComparison


class TrainingResult(Frozen):
    """The models of one run and their scores; the files are in the workspace.

    Attributes:
        candidates: cross-validation of each candidate, the baseline first.
        model: the model to release.
        evaluation: of the selected candidate on the holdout.
        validation: of the table.
        behaviour: results of the behaviour tests.
        comparison: of the selected candidate with the reference model; None if the reference model is a candidate.
    """

    candidates: tuple[CrossValidationResult, ...]
    model: FittedModel
    evaluation: Evaluation
    validation: Validation
    behaviour: tuple[BehaviourCheck, ...] = ()
    comparison: ReferenceComparison | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on reductions and missing calibration, and the advice of comparison and evaluation; each once."""
        notes = [note for scores in self.candidates for note in scores.reductions]
        advice = [self.comparison.advice] if self.comparison and self.comparison.far_below else []
        advice += [self.evaluation.advice] if self.evaluation.advice else []
        return tuple(dict.fromkeys([*notes, *self.chosen.calibration_notes, *advice]))

    @property
    def chosen(self) -> CrossValidationResult:
        """Cross-validation of the candidate that was selected."""
        return next(scores for scores in self.candidates if scores.candidate == self.model.candidate)
