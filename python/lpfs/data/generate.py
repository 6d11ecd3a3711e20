"""Click logs whose truth is known: which fields matter, which only repeat or refine others.

>>> log = ClickLog(Recipe(rows=1_000, seed=3))
>>> table = log.table()
>>> table.num_rows, table.num_columns
(1000, 28)
>>> sum(field.role == "informative" for field in log.truth)
10

How a click comes about. Every informative field f has a latent score u_f per value, with mean 0
and variance 1 over the rows. With the n informative fields in a ring,

    logit(click) = bias(t) + Σ_f main_f · u_f(t) + interaction · Σ_f u_f(t) · u_{f+1}(t)

where main_f is `strong` for every other field and `weak` for those between them; `signal` scales
both sums. A weak field says next to nothing alone, but as much as its neighbours together with
them, so a ranking of single fields takes the copies of the strong fields first. t runs from 0 to 1
over the log.

An industrial log has user, item and combined fields, numeric vectors and labels of further tasks.
User and item fields take turns in the ring, so that every pair that decides is one of a user and an
item field. Informative fields outside the ring, the combined ones, have a strong term each, and so
has every other vector, along one direction. With s for all of these terms, and s' for the
interactions of pairs that stand 3, 5, … apart in the ring,

    logit(task)  = bias(t) + affinity · s + √(1 − affinity²) · s'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

__all__ = ["RECIPES", "ClickLog", "FieldTruth", "Recipe", "Role"]

Role = Literal["informative", "copy", "nested", "noise"]

# Rows that share one random stream. The log would change with it, so it is no parameter.
BLOCK = 1 << 14


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
        self._require_industrial()

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


RECIPES: Mapping[str, Callable[[int, int], Recipe]] = {
    "demo": Recipe,
    "criteo": Recipe.criteo,
    "crossed": Recipe.crossed,
    "avazu": Recipe.avazu,
    "industrial": Recipe.industrial,
    "industrial-full": Recipe.industrial_full,
}
"""Name → recipe of a number of rows and a seed."""


@dataclass(frozen=True)
class FieldTruth:
    """What a field of a generated log really is."""

    name: str
    kind: Literal["category", "number"]
    role: Role
    of: str | None
    """The original of a copy, the parent of a nested id, None for other roles."""
    cardinality: int


@dataclass
class _Field:
    """A field on its way into the log: codes in [0, size), code 0 shown as missing if `missing`."""

    role: Role
    number: bool
    size: int
    missing: bool
    source: int = -1
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))
    cumulative: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    group: str = ""
    """`user`, `item` or `combined` in an industrial log."""
    words: pa.Array | None = None


class ClickLog:
    """A log made from a recipe, block by block, in memory bounded by one block.

    Columns: `click` (int8, 0 or 1), then numbers `I1`, `I2`, … (float64, counts with a heavy tail)
    and categories `C1`, `C2`, … (dictionary of strings), roles in random order; in an industrial
    log `user_1`, …, `item_1`, …, `combined_1`, … instead. Behind `click` the labels of further
    tasks, `task_1`, …, at the end vectors: the j-th number of the k-th is `number_k_j`. Rows are in
    order of time. Raises nothing of its own; `Recipe` checks its values.

    >>> log = ClickLog(Recipe.criteo(rows=10))
    >>> log.schema.names[:3], log.schema.names[-1]
    (['click', 'I1', 'I2'], 'C26')
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        rng = np.random.default_rng((recipe.seed, 0))
        self._fields = _plan(recipe, rng)
        kinds = ["I", "C"]
        kind_of = ["I" if f.number else "C" for f in self._fields]
        if recipe.items:
            kinds = ["user_", "item_", "combined_"]
            kind_of = [f"{f.group}_" for f in self._fields]
        names, order = [""] * len(self._fields), []
        for kind in kinds:
            own = rng.permutation([i for i, k in enumerate(kind_of) if k == kind]).astype(int)
            order.append(own)
            for place, i in enumerate(own, 1):
                names[i] = f"{kind}{place}"
        self._order = np.concatenate(order)
        self.tasks = tuple(f"task_{k}" for k, _ in enumerate(recipe.tasks, 1))
        """The columns with the labels of further tasks."""
        self._vectors = _directions(recipe)
        self.truth: tuple[FieldTruth, ...] = tuple(
            FieldTruth(
                name=names[i],
                kind="number" if f.number else "category",
                role=f.role,
                of=names[f.source] if f.source >= 0 else None,
                cardinality=f.size,
            )
            for i in self._order
            for f in [self._fields[i]]
        )
        ring = [names[i] for i in range(recipe.informative)]
        alone = [(name,) for i, name in enumerate(ring) if recipe.signal * self._main(i)]
        if recipe.signal * recipe.strong:
            alone += [(name,) for name in names[len(names) - recipe.alone :]]
        pairs = list(zip(ring, ring[1:] + ring[:1], strict=True))
        self.signals: tuple[tuple[str, ...], ...] = (
            *alone,
            *(pairs if recipe.signal * recipe.interaction else ()),
        )
        """The terms of the logit: fields that say something alone, and pairs that do together."""
        self.schema: pa.Schema = pa.schema(
            [(name, pa.int8()) for name in ("click", *self.tasks)]
            + [
                (
                    truth.name,
                    pa.float64()
                    if truth.kind == "number"
                    else pa.dictionary(pa.int32(), pa.string()),
                )
                for truth in self.truth
            ]
            + [
                (f"number_{k}_{j}", pa.float64())
                for k, width in enumerate(recipe.vectors, 1)
                for j in range(1, width + 1)
            ]
        )

    def judge(self, kept: Sequence[str]) -> tuple[int, int]:
        """How many informative fields are among the kept ones, a near copy counting once for its
        original, and how many noise fields."""
        truth = {field.name: field for field in self.truth}
        found = {
            truth[name].of or name for name in kept if truth[name].role in ("informative", "copy")
        }
        return len(found), sum(truth[name].role == "noise" for name in kept)

    def judge_signals(self, kept: Iterable[Sequence[str]]) -> int:
        """How many of `signals` are among kept features, each one field or a pair of them in any
        order; a near copy stands for its original, and every term counts once."""
        original = {f.name: f.of if f.role == "copy" and f.of else f.name for f in self.truth}
        found = {frozenset(original[name] for name in feature) for feature in kept}
        return sum(frozenset(signal) in found for signal in self.signals)

    def batches(self, chunk_rows: int = BLOCK) -> Iterator[pa.RecordBatch]:
        """The log in pieces of at most `chunk_rows` rows; their size does not change the log."""
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
        for block in range(-(-self.recipe.rows // BLOCK)):
            batch = self._block(block)
            for start in range(0, batch.num_rows, chunk_rows):
                yield batch.slice(start, chunk_rows)

    def table(self) -> pa.Table:
        """The whole log in memory."""
        return pa.Table.from_batches(list(self.batches()), schema=self.schema)

    def write(self, path: str | Path) -> None:
        """Write `.parquet`, `.csv` (with header) or Criteo's `.tsv`, the last two also `.gz`.

        Raises ValueError for another ending, and for `.tsv` without 13 numbers and 26 categories.
        """
        path = Path(path)
        kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if kind not in (".csv", ".tsv") and path.suffix != ".parquet":
            raise ValueError(f"{path}: expected .parquet, .csv, .csv.gz, .tsv or .tsv.gz")
        numbers = sum(truth.kind == "number" for truth in self.truth)
        if kind == ".tsv" and (numbers, len(self.truth)) != (13, 39):
            raise ValueError(
                f"{path}: Criteo's format has 13 numbers and 26 categories, this log has {numbers} "
                f"and {len(self.truth) - numbers}; see Recipe.criteo"
            )
        if path.suffix == ".parquet":
            with pa.parquet.ParquetWriter(path, self.schema) as parquet:
                for batch in self.batches():
                    parquet.write_batch(batch)
            return
        counts = {truth.name for truth in self.truth if truth.kind == "number"}
        written = {
            f.name: pa.string() if pa.types.is_dictionary(f.type) else pa.int64()
            for f in self.schema
            if f.name in counts or not pa.types.is_floating(f.type)
        }
        text = pa.schema([(f.name, written.get(f.name, f.type)) for f in self.schema])
        options = pa.csv.WriteOptions(
            include_header=kind == ".csv",
            delimiter="," if kind == ".csv" else "\t",
            quoting_style="none",
            quoting_header="none",
        )
        with ExitStack() as stack:
            file = stack.enter_context(pa.OSFile(str(path), "wb"))
            if path.suffix == ".gz":
                file = stack.enter_context(pa.CompressedOutputStream(file, "gzip"))
            writer = stack.enter_context(pa.csv.CSVWriter(file, text, write_options=options))
            for batch in self.batches():
                writer.write_batch(batch.cast(text))

    def _block(self, block: int) -> pa.RecordBatch:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 1, block))
        time = (block * BLOCK + np.arange(BLOCK)) / max(recipe.rows, 1)
        codes: list[NDArray[np.int64]] = []
        places: list[NDArray[np.float64]] = []
        base = self._bias + recipe.drift * (time - 0.5)
        logit = base
        for f in self._fields:
            late = rng.random(BLOCK) < recipe.drift * time
            draw = rng.random(BLOCK)
            if f.role == "copy":
                shift = 1 + np.floor(draw * (f.size - 1)).astype(np.int64)
                other = rng.random(BLOCK) >= recipe.fidelity
                code = (codes[f.source] + other * shift) % f.size
            else:
                # Both distributions in one search: the late one lies between 1 and 2.
                size = len(f.cumulative) // 2
                code = np.searchsorted(f.cumulative, draw + late) - late * size
                if f.role == "nested":
                    code += codes[f.source] * size
            codes.append(code)
            if f.role == "copy":
                places.append(places[f.source])
            else:
                places.append(rng.random(BLOCK) if f.number else draw)
        turn = np.stack([np.cos(recipe.drift * time), np.sin(recipe.drift * time)])
        scores = [
            (f.scores[:, codes[i]] * turn).sum(0)
            for i, f in enumerate(self._fields)
            if f.role == "informative"
        ]
        scores, alone = scores[: recipe.informative], scores[recipe.informative :]
        for i, score in enumerate(scores):
            logit = logit + recipe.signal * self._main(i) * score
            logit += recipe.signal * recipe.interaction * score * scores[(i + 1) % len(scores)]
        for score in alone:
            logit = logit + recipe.signal * recipe.strong * score
        vectors = [rng.standard_normal((BLOCK, len(direction))) for direction in self._vectors]
        for vector, direction in zip(vectors[::2], self._vectors[::2], strict=True):
            logit = logit + recipe.signal * recipe.strong * (vector @ direction)
        labels = [rng.random(BLOCK) < 1 / (1 + np.exp(-logit))]
        for k, affinity in enumerate(recipe.tasks):
            own = (
                recipe.signal
                * recipe.interaction
                * sum(scores[i] * scores[j] for i, j in _pairs_apart(len(scores), 3 + 2 * k))
            )
            of_task = base + affinity * (logit - base) + (1 - affinity**2) ** 0.5 * own
            labels.append(rng.random(BLOCK) < 1 / (1 + np.exp(-of_task)))
        size = min(BLOCK, recipe.rows - block * BLOCK)
        columns = [pa.array(label.astype(np.int8)[:size]) for label in labels]
        for i in self._order:
            f, code = self._fields[i], codes[i]
            null = (code == 0)[:size] if f.missing else None
            if f.number:
                # Each code is a bin of counts, twice as wide as the one before.
                low = 2.0 ** (np.minimum(code, 40) - 1)
                value = np.floor(low * (1 + places[i]))[:size]
                columns.append(pa.array(value, mask=null))
            else:
                indices = pa.array(code[:size].astype(np.int32), mask=null)
                columns.append(pa.DictionaryArray.from_arrays(indices, f.words))
        columns += [pa.array(column[:size]) for vector in vectors for column in vector.T]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _main(self, informative: int) -> float:
        return self.recipe.weak if informative % 2 else self.recipe.strong

    @property
    def _bias(self) -> float:
        # The logistic-normal mean, by the probit approximation σ(b / √(1 + π·variance / 8)).
        recipe = self.recipe
        mains = [self._main(i) for i in range(recipe.informative)]
        mains += [recipe.strong] * (recipe.alone + len(recipe.vectors[::2]))
        variance = sum(m * m for m in mains) + recipe.informative * recipe.interaction**2
        variance *= recipe.signal**2
        odds = recipe.click_rate / (1 - recipe.click_rate)
        return float(np.log(odds) * np.sqrt(1 + np.pi * variance / 8))


def _plan(recipe: Recipe, rng: np.random.Generator) -> list[_Field]:
    """Informative fields in ring order, then copies, nested, noise."""
    fields: list[_Field] = []

    def add(role: Role, number: bool, size: int, source: int = -1) -> None:
        missing = recipe.missing > 0 and (number or len(fields) % 2 == 0)
        fields.append(_Field(role, number, size, missing, source))

    first_number = recipe.informative - recipe.informative_numbers
    for i in range(recipe.informative):
        add("informative", i >= first_number, int(rng.integers(*recipe.values, endpoint=True)))
    strong_first = recipe._strong_first
    for i in strong_first[: recipe.copies]:
        fields.append(_Field("copy", fields[i].number, fields[i].size, fields[i].missing, i))
    ids = np.geomspace(
        recipe.many_values[1],
        recipe.many_values[0],
        max(recipe.nested, recipe.noise - recipe.noise_numbers),
    ).round()
    for i in range(recipe.nested):
        # From the end of the list, where the originals without a copy are.
        parent = [j for j in strong_first[::-1] if j < first_number][i % first_number]
        divided = max(2, int(ids[i]) // fields[parent].size)
        fields.append(_Field("nested", False, fields[parent].size * divided, False, parent))
    for i in range(recipe.noise):
        number = i < recipe.noise_numbers
        add("noise", number, 20 if number else int(ids[i - recipe.noise_numbers]))
    for _ in range(recipe.alone):
        add("informative", False, int(rng.integers(*recipe.values, endpoint=True)))
    if recipe.items:
        for f, group in zip(fields, _groups(recipe, len(fields)), strict=True):
            f.group = group

    for i, f in enumerate(fields):
        if f.role == "copy":
            f.words = fields[f.source].words
            continue
        drawn = f.size // fields[f.source].size if f.role == "nested" else f.size
        shares = np.stack([_popularity(f, drawn, recipe.missing, rng) for _ in range(2)])
        cumulative = shares.cumsum(1)
        # Searching for a draw above the last sum would give a code that does not exist.
        cumulative[:, -1] = 1.0
        f.cumulative = np.concatenate([cumulative[0], 1 + cumulative[1]])
        if f.role == "informative":
            f.scores = _scores(f, shares.mean(0), rng)
        # An odd factor is a bijection modulo 2³², so values stay distinct.
        words = (np.arange(f.size, dtype=np.uint64) * 2654435761 + i * 40503) % (1 << 32)
        f.words = None if f.number else pa.array([f"{word:08x}" for word in words])
    return fields


def _groups(recipe: Recipe, fields: int) -> list[str]:
    """Of every field of an industrial log: nested ids and noise fill up at random."""
    fixed = recipe._groups_of_ring_and_copies()
    rest = ["item"] * (recipe.items - fixed.count("item"))
    rest += ["combined"] * (recipe.combined - recipe.alone)
    rest += ["user"] * (fields - len(fixed) - recipe.alone - len(rest))
    mixed = np.random.default_rng((recipe.seed, 2)).permutation(rest).tolist()
    return [*fixed, *mixed, *["combined"] * recipe.alone]


def _directions(recipe: Recipe) -> list[NDArray[np.float64]]:
    """Of every vector, the direction of length 1 along which it may say something."""
    rng = np.random.default_rng((recipe.seed, 3))
    drawn = [rng.standard_normal(width) for width in recipe.vectors]
    return [np.asarray(direction / np.linalg.norm(direction)) for direction in drawn]


def _pairs_apart(ring: int, distance: int) -> list[tuple[int, int]]:
    """The pairs of a ring that stand so far apart, each once."""
    starts = range(ring // 2 if 2 * distance == ring else ring)
    return [(i, (i + distance) % ring) for i in starts]


def _popularity(
    f: _Field, size: int, missing: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Probability of each code, `[size]`: a Zipf-like tail, or for numbers a hump over the bins."""
    if f.number:
        centre = size * rng.uniform(0.4, 0.6)
        share = np.exp(-0.5 * ((np.arange(size) - centre) / (size / 4)) ** 2)
    else:
        share = rng.permutation(1 / (np.arange(size) + 3.0))
    if f.missing:
        share[0] = 0
        share *= (1 - missing) / share.sum()
        share[0] = missing
    return np.asarray(share / share.sum())


def _scores(f: _Field, share: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Scores `[2, size]`, now and a quarter turn later; mean 0 and variance 1 under `share`."""
    scores = rng.standard_normal((2, f.size))
    if f.number:
        # Along a number the score rises: a network sees the number, not its bin.
        scores[:, 1:].sort(axis=1)
    scores -= (scores @ share)[:, None]
    return np.asarray(scores / np.sqrt(scores**2 @ share)[:, None])
