"""One number per seed, and what may be said of them together."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator

from posttrain.show.checks import COMPARISONS


class Seeds:
    """One number per seed: prints as mean and 95% interval, calculates seed by seed.

    f"{x:.2f}" is "0.12 [0.10, 0.14]"; "%" cuts the interval of shares at 0 and 100%. A
    word before the format prints something else: f"{x:mean .2f}", f"{x:range .2f}".
    Raises ValueError for no value at all.
    """

    def __init__(self, values: Iterable[float]):
        self.values = tuple(float(value) for value in values)
        if not self.values:
            raise ValueError("Seeds needs one value or more, and here is none")

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def __getitem__(self, seed: int | slice) -> float | Seeds:
        found = self.values[seed]
        return Seeds(found) if isinstance(seed, slice) else found

    def beside(self, other: Seeds) -> Seeds:
        """These numbers without the seeds, at the end, that the other does not have."""
        return self[: len(other)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seeds) and self.values == other.values

    __hash__ = None

    # Arithmetic: seed by seed with other seeds, each seed alike with a number

    def paired(self, other: Seeds | float) -> Iterable[tuple[float, float]]:
        """Values of the same seed. Raises ValueError for unequal numbers of seeds."""
        if not isinstance(other, Seeds):
            return [(value, other) for value in self.values]
        if len(self) != len(other):
            raise ValueError(
                f"{len(self)} seeds and {len(other)} do not pair: compare runs of the "
                "same seeds, or their means"
            )
        return zip(self.values, other.values)

    def apply(
        self, operation: Callable, other: Seeds | float, turned: bool = False
    ) -> Seeds:
        """An operation seed by seed; turned: the other number comes first."""
        pairs = self.paired(other)
        return Seeds(operation(b, a) if turned else operation(a, b) for a, b in pairs)

    def __add__(self, other: Seeds | float) -> Seeds:
        return self.apply(operator.add, other)

    def __sub__(self, other: Seeds | float) -> Seeds:
        return self.apply(operator.sub, other)

    def __mul__(self, other: Seeds | float) -> Seeds:
        return self.apply(operator.mul, other)

    def __truediv__(self, other: Seeds | float) -> Seeds:
        return self.apply(operator.truediv, other)

    def __rsub__(self, other: float) -> Seeds:
        return self.apply(operator.sub, other, turned=True)

    def __rtruediv__(self, other: float) -> Seeds:
        return self.apply(operator.truediv, other, turned=True)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Seeds:
        return self * -1

    # What they say together

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the mean's 95% interval. Raises ValueError for a single seed."""
        # SciPy takes a second to import
        from posttrain.evaluate import interval

        return interval(list(self.values))[1:]

    def held(self, comparison: str, bar: Seeds | float) -> int:
        """The number of seeds for which a comparison is true, as in held(">", 0)."""
        return sum(
            COMPARISONS[comparison](value, other) for value, other in self.paired(bar)
        )

    def of(self, comparison: str, bar: Seeds | float) -> str:
        """As `held`, in words: "4 of 5"."""
        return f"{self.held(comparison, bar)} of {len(self)}"

    # Text

    def range(self, form: str = ".2f") -> str:
        """The least and the greatest value as text: "0.003 to 0.010".

        Where both are written alike, that once.
        """
        least, greatest = f"{min(self):{form}}", f"{max(self):{form}}"
        return least if least == greatest else f"{least} to {greatest}"

    def __format__(self, form: str) -> str:
        word, _, rest = form.rpartition(" ")
        if word == "range":
            return self.range(rest)
        if word == "mean" or len(self) == 1:
            return f"{self.mean:{rest or '.2f'}}"
        form, (low, high) = form or ".2f", self.interval
        # Cut shares off where no share can be; a difference is written with its sign
        if form.endswith("%") and "+" not in form and 0 <= min(self) and max(self) <= 1:
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{self.mean:{form}} [{low:{form}}, {high:{form}}]"

    def __repr__(self) -> str:
        return f"{self:.3g}"
