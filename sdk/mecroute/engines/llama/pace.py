"""What a step of the engine takes, from steps that it has made."""

from __future__ import annotations

from dataclasses import dataclass

#: What a step's weight is multiplied by at each later one: those of the last ten seconds or so count.
_KEEP = 0.99
#: How many steps the last solution counts as: it decides only where the steps say nothing.
_INERTIA = 0.05
#: A step that took this many times what was expected says something about the machine's other work.
_OUTLIER = 3.0
#: Steps between two solutions, which take some microseconds each.
_SOLVED_EVERY = 8
#: Steps with fewer prompt tokens than this say little about how fast prompts are computed.
MEASURABLE_PREFILL_ROWS = 16

_Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pace:
    """The parts of a step's time, in seconds.

    Attributes:
        step_s: of a step, whatever it computes.
        answer_s: that each answer adds which goes on by a token in it.
        prompt_s: that each prompt token adds; > 0.
        growth: tokens by which an answer grows in a step: more than one where drafts are accepted.
    """

    step_s: float
    answer_s: float
    prompt_s: float
    growth: float = 1.0

    def of_step(self, answers: int, prompt_tokens: float = 0.0) -> float:
        """What a step takes that goes on with so many answers and computes so many prompt tokens."""
        return self.step_s + answers * self.answer_s + prompt_tokens * self.prompt_s


class PaceMeter:
    """Least squares of step time over answers and prompt tokens, with a memory of some hundred steps.

    One thread adds, any may read.
    """

    def __init__(self) -> None:
        #: Sums of the products of (1, answers, prompt tokens) with each other, and with seconds.
        self._products = [[0.0] * 3 for _ in range(3)]
        self._times = [0.0] * 3
        self._solution: _Three = (0.0, 0.0, 0.0)
        self._steps = 0
        self._pending: list[tuple[int, int, float, int | None]] = []
        self._seen_answers = self._seen_prompts = False
        self._growth = 1.0

    def add(self, *, answers: int, prompt_tokens: int, seconds: float, grown: int | None = None) -> None:
        """Count a step that went on with so many answers and computed so many prompt tokens.

        Args:
            answers: that were begun in an earlier step.
            prompt_tokens: in this one.
            seconds: it took.
            grown: tokens that those answers have got from it; None: one each.
        """
        self._pending.append((answers, prompt_tokens, seconds, grown))
        self._steps += 1
        if self._steps % _SOLVED_EVERY == 0 or self._steps < _SOLVED_EVERY:
            # Several in a row take far less than one after each step, which leaves nothing of this in caches.
            for step in self._pending:
                self._count(*step)
            self._pending.clear()
            self._solution = self._solve()

    def _count(self, answers: int, prompt_tokens: int, seconds: float, grown: int | None) -> None:
        row = (1.0, float(answers), float(prompt_tokens))
        expected = sum(part * of for part, of in zip(self._solution, row, strict=True))
        if self._seen_answers and self._seen_prompts and expected > 0:
            seconds = min(seconds, _OUTLIER * expected)
        for at, value in enumerate(row):
            self._times[at] = self._times[at] * _KEEP + value * seconds
            for other, second in enumerate(row):
                self._products[at][other] = self._products[at][other] * _KEEP + value * second
        self._seen_answers |= answers > 0
        self._seen_prompts |= prompt_tokens >= MEASURABLE_PREFILL_ROWS
        if answers and grown is not None:
            self._growth += (1 - _KEEP) * (grown / answers - self._growth)

    @property
    def pace(self) -> Pace | None:
        """The pace; None while answers or prompts have not been measured."""
        step_s, answer_s, prompt_s = self._solution
        if not (self._seen_answers and self._seen_prompts and prompt_s > 0 and step_s + answer_s > 0):
            return None
        return Pace(step_s, answer_s, prompt_s, max(1.0, self._growth))

    def _solve(self) -> _Three:
        matrix = [line[:] for line in self._products]
        right = self._times[:]
        for at in range(3):
            # In units of what was seen, so that it means as much for tokens as for steps.
            inertia = _INERTIA * max(1.0, matrix[at][at] / max(1.0, matrix[0][0]))
            matrix[at][at] += inertia
            right[at] += inertia * self._solution[at]
        whole = _determinant(matrix)
        if whole <= 0:
            return self._solution
        step_s, answer_s, prompt_s = (
            max(
                0.0,
                _determinant(
                    [[*line[:at], value, *line[at + 1 :]] for line, value in zip(matrix, right, strict=True)]
                ),
            )
            / whole
            for at in range(3)
        )  # Cramer's rule
        return step_s, answer_s, prompt_s


def _determinant(m: list[list[float]]) -> float:
    return (
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )
