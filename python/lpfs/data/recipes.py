"""Recipes of generated click logs: how many fields of which kind, and where the signal lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """What a log is made of. Equal recipes give equal logs, bit for bit.

    The default is the log of `lpfs demo`: 27 fields, 5 of them numbers.
    """

    rows: int = 300_000
    seed: int = 0
    informative: int = 10
    informative_numbers: int = 2
    """How many informative fields are numbers; a copy is of the same kind as its original."""
    copies: int = 7
    """Near copies of informative fields, one each, the strong ones first."""
    fidelity: float = 0.85
    """Share of rows in which a copy equals its original."""
    nested: int = 3
    """Ids that determine an informative field: its values, each divided into many."""
    noise: int = 7
    noise_numbers: int = 2
    values: tuple[int, int] = (8, 30)
    """Distinct values of an informative field, from and to."""
    many_values: tuple[int, int] = (1_000, 20_000)
    """Distinct values of nested and noise categories, spread evenly over this range in log."""
    strong: float = 0.27
    weak: float = 0.03
    interaction: float = 0.26
    signal: float = 1.0
    """Scales what decides about the click; the smaller, the noisier the log."""
    click_rate: float = 0.25
    drift: float = 0.3
    """Over the log, scores turn by this many radians, the base logit rises by this much, and this
    share of the rows moves to other popular values."""
    missing: float = 0.1
    """Share of missing values in every number and in every other category."""
    alone: int = 0
    """Informative categories outside the ring."""
    items: int = 0
    """Item fields; with any, the log is an industrial one, and what is left are user fields."""
    combined: int = 0
    """Combined fields of an industrial log, those of `alone` among them."""
    vectors: tuple[int, ...] = ()
    """Widths of numeric vectors, which nothing selects; one column for each element."""
    tasks: tuple[float, ...] = ()
    """Affinities of further tasks to the click, from 0 to 1."""
    triple: float = 0.0
    """Weight of what three neighbours of the ring say together."""
    tailed: int = 0
    """Informative categories outside the ring with as many values as the longest id has."""
    absent: int = 0
    """Ids of which only whether they are there says something: missing, but not at random."""
    seldom: int = 0
    """Informative categories outside the ring that say something in `segment` of the rows alone,
    those in which one further category, the marker, has a certain value."""
    segment: float = 0.05
    within: float = 1.2
    """Weight of the seldom ones within their segment."""
    shadows: int = 0
    """Numbers that are correlated with an informative number, and say nothing beside it."""
    correlation: float = 0.9
    hidden: float = 0.0
    """Deviation of what makes people click and no field says. With any, a field tells how the same
    row's click came out the day before: what there is to know of it."""

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows must be at least 0, got {self.rows}")
        if not self.signal >= 0:
            raise ValueError(f"signal must be at least 0, got {self.signal}")
        if self.informative < 3:
            raise ValueError(f"informative must be at least 3 (a ring), got {self.informative}")
        for part, whole in (
            ("informative_numbers", "informative"),
            ("copies", "informative"),
            ("noise_numbers", "noise"),
        ):
            if not 0 <= getattr(self, part) <= getattr(self, whole):
                raise ValueError(
                    f"{part} must be between 0 and {whole} = {getattr(self, whole)}, "
                    f"got {getattr(self, part)}"
                )
        if self.nested and self.informative_numbers == self.informative:
            raise ValueError("nested ids need an informative field that is a category")
        if not 3 <= self.values[0] <= self.values[1] <= self.many_values[0] <= self.many_values[1]:
            raise ValueError(
                "values and many_values must be rising ranges from 3, the first below the second, "
                f"got {self.values} and {self.many_values}"
            )
        self._require_traps()
        self._require_industrial()

    def _require_traps(self) -> None:
        counts = self.tailed, self.absent, self.seldom, self.shadows
        if min(counts) < 0:
            raise ValueError("tailed, absent, seldom and shadows must be at least 0")
        if self.shadows and not self.informative_numbers:
            raise ValueError("shadows need an informative field that is a number")
        if not 0 < self.segment < 1:
            raise ValueError(f"segment must be between 0 and 1, got {self.segment}")
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation must be from 0 to 1, got {self.correlation}")
        if not self.hidden >= 0:
            raise ValueError(f"hidden must be at least 0, got {self.hidden}")
        if self.items and (any(counts) or self.hidden):
            raise ValueError(
                "an industrial log has no fields that are tailed, absent, seldom, shadows or hidden"
            )

    def _require_industrial(self) -> None:
        if self.alone < 0 or self.items < 0 or self.combined < 0:
            raise ValueError("alone, items and combined must be at least 0")
        if any(width < 1 for width in self.vectors):
            raise ValueError(f"vectors must be at least 1 wide, got {self.vectors}")
        # Pairs of the ring 3, 5, … apart, up to half around it.
        most = max(0, (self.informative // 2 - 1) // 2)
        if len(self.tasks) > most or not all(0 <= affinity <= 1 for affinity in self.tasks):
            raise ValueError(
                f"tasks must be at most {most} affinities from 0 to 1 for a ring of "
                f"{self.informative}, got {self.tasks}"
            )
        if not self.items:
            if self.combined:
                raise ValueError("combined fields need item fields (items)")
            return
        if self.informative % 2 or self.informative_numbers or self.noise_numbers:
            raise ValueError("an industrial log needs an even ring and no fields that are numbers")
        fixed = self._groups_of_ring_and_copies()
        users = self.informative + self.alone + self.copies + self.nested + self.noise
        users -= self.items + self.combined
        for what, count, least in (
            ("items", self.items, fixed.count("item")),
            ("combined", self.combined, self.alone),
            ("user fields", users, fixed.count("user")),
        ):
            if count < least:
                raise ValueError(f"{what} must be at least {least} in this log, got {count}")

    def _groups_of_ring_and_copies(self) -> list[str]:
        ring = ["item" if i % 2 else "user" for i in range(self.informative)]
        return ring + [ring[i] for i in self._strong_first[: self.copies]]

    @property
    def _strong_first(self) -> list[int]:
        return [*range(0, self.informative, 2), *range(1, self.informative, 2)]

    @classmethod
    def criteo(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """A log with the columns of Criteo's: 13 numbers and 26 categories."""
        return cls(rows=rows, seed=seed, informative_numbers=3, nested=4, noise=18, noise_numbers=9)

    @classmethod
    def crossed(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """A log of 27 categories for models with all 378 first- and second-order features: pairs
        carry most of the signal, every other informative field has no term of its own."""
        return cls(
            rows=rows,
            seed=seed,
            informative=8,
            informative_numbers=0,
            copies=4,
            noise=12,
            noise_numbers=0,
            strong=0.2,
            weak=0.0,
            interaction=0.4,
        )

    @classmethod
    def avazu(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """A log with as many categories as Avazu's has besides the hour, none of them missing."""
        return cls(
            rows=rows,
            seed=seed,
            informative=8,
            informative_numbers=0,
            copies=4,
            nested=3,
            noise=6,
            noise_numbers=0,
            missing=0.0,
        )

    @classmethod
    def industrial(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """The paper's industrial log, scaled down: 25 user, 8 item and 10 combined fields, vectors
        of 21 numbers, two further tasks."""
        return cls(
            rows=rows,
            seed=seed,
            informative=10,
            informative_numbers=0,
            copies=6,
            nested=4,
            noise=20,
            noise_numbers=0,
            many_values=(50, 5_000),
            strong=0.2,
            interaction=0.35,
            alone=3,
            items=8,
            combined=10,
            vectors=(1, 4, 16),
            tasks=(0.8, 0.5),
        )

    @classmethod
    def industrial_full(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """The paper's industrial log in its full shape (section 4.2): 250 user, 46 item and 96
        combined fields, 25 vectors of 1 to 128 numbers, five further tasks."""
        return cls(
            rows=rows,
            seed=seed,
            informative=40,
            informative_numbers=0,
            copies=30,
            nested=40,
            noise=262,
            noise_numbers=0,
            many_values=(50, 5_000),
            strong=0.1,
            interaction=0.17,
            alone=20,
            items=46,
            combined=96,
            vectors=(1,) * 6 + (2,) * 4 + (4, 8, 16) * 3 + (32, 64, 128) * 2,
            tasks=(0.9, 0.8, 0.7, 0.6, 0.5),
        )

    @classmethod
    def triples(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Three fields decide together; no field and no pair of fields says anything, but for the
        strong ones."""
        return cls(
            rows=rows,
            seed=seed,
            informative=9,
            informative_numbers=0,
            copies=4,
            nested=3,
            noise=10,
            noise_numbers=0,
            values=(3, 5),
            strong=0.2,
            weak=0.0,
            interaction=0.0,
            triple=0.5,
        )

    @classmethod
    def tails(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Ids of up to a million values with a heavy tail: four that decide, others that are noise
        or refine a field."""
        return cls(
            rows=rows,
            seed=seed,
            informative=6,
            informative_numbers=1,
            copies=3,
            nested=2,
            noise=6,
            noise_numbers=1,
            many_values=(1_000, 1_000_000),
            tailed=4,
        )

    @classmethod
    def missing_tells(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Values that are missing not at random: four ids say something by being there alone."""
        return cls(rows=rows, seed=seed, informative=6, informative_numbers=1, copies=3, absent=4)

    @classmethod
    def rare(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Four fields that matter in 5 % of the rows alone."""
        return cls(rows=rows, seed=seed, informative=6, informative_numbers=1, copies=3, seldom=4)

    @classmethod
    def duplicates(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Every informative field stands twice, value by value."""
        return cls(rows=rows, seed=seed, copies=10, fidelity=1.0)

    @classmethod
    def yesterday(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """One field is the label of the day before: it stands in for all the others at once, and
        tells something that none of them does."""
        return cls(rows=rows, seed=seed, hidden=0.8)

    @classmethod
    def correlated(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """Numbers: ten that decide, ten correlated with these, seven of noise."""
        return cls(
            rows=rows,
            seed=seed,
            informative_numbers=10,
            copies=0,
            nested=0,
            noise=7,
            noise_numbers=7,
            shadows=10,
        )

    @classmethod
    def wide(cls, rows: int = 300_000, seed: int = 0) -> Recipe:
        """400 fields, of which 20 matter."""
        return cls(
            rows=rows,
            seed=seed,
            informative=20,
            informative_numbers=4,
            copies=20,
            nested=10,
            noise=350,
            noise_numbers=50,
            many_values=(50, 2_000),
            strong=0.2,
            interaction=0.18,
        )


RECIPES: Mapping[str, Callable[[int, int], Recipe]] = {
    "demo": Recipe,
    "criteo": Recipe.criteo,
    "crossed": Recipe.crossed,
    "avazu": Recipe.avazu,
    "industrial": Recipe.industrial,
    "industrial-full": Recipe.industrial_full,
    "triples": Recipe.triples,
    "tails": Recipe.tails,
    "missing": Recipe.missing_tells,
    "rare": Recipe.rare,
    "duplicates": Recipe.duplicates,
    "yesterday": Recipe.yesterday,
    "correlated": Recipe.correlated,
    "wide": Recipe.wide,
}
"""Name → recipe of a number of rows and a seed."""
