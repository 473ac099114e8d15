"""Quality of a model: perplexity and accuracy on data that comes with the package."""

from mecroute_quantize.evaluation.accuracy import Accuracy, accuracy_standard_error, measure_accuracy
from mecroute_quantize.evaluation.dataset import Question, dataset_name, load_questions, load_text
from mecroute_quantize.evaluation.evaluate import evaluate
from mecroute_quantize.evaluation.perplexity import Perplexity, measure_perplexity

__all__ = [
    "Accuracy",
    "Perplexity",
    "Question",
    "accuracy_standard_error",
    "dataset_name",
    "evaluate",
    "load_questions",
    "load_text",
    "measure_accuracy",
    "measure_perplexity",
]
