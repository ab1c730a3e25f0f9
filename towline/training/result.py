"""The result of training: what the steps after it (registration, packaging, the gate) need to know."""

from towline.config import Frozen
from towline.data.validation.suite import Validation
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel


class TrainingResult(Frozen):
    """The models of one run and their scores; the files are in the workspace.

    Attributes:
        candidates: cross-validation of each candidate, the baseline first.
        model: the model to release.
        evaluation: of the selected candidate on the holdout.
        validation: of the table.
        advice: of the comparison with the reference model; empty if there is none.
    """

    candidates: tuple[CrossValidationResult, ...]
    model: FittedModel
    evaluation: Evaluation
    validation: Validation
    advice: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the candidates: models that are fitted on fewer rows, and the advice."""
        notes = [note for scores in self.candidates for note in scores.row_notes]
        return tuple(dict.fromkeys([*notes, *([self.advice] if self.advice else [])]))

    @property
    def chosen(self) -> CrossValidationResult:
        """Cross-validation of the candidate that was selected."""
        return next(scores for scores in self.candidates if scores.candidate == self.model.candidate)
