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

What else can make a selection hard, `Recipe` has by name: terms of three neighbours of the ring,
`triple · Σ_f u_f · u_{f+1} · u_{f+2}`, and further informative fields outside it, of which some say
something in few rows alone, or only by being missing, or are the label of the day before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from lpfs.data.recipes import Recipe

__all__ = ["ClickLog", "FieldTruth", "Role"]

Role = Literal["informative", "copy", "nested", "noise", "shadow"]

# Rows that share one random stream. The log would change with it, so it is no parameter.
BLOCK = 1 << 14
IN_SEGMENT = 1
"""The code of a marker in the rows in which seldom fields say something."""
ABSENT = 0.3
"""Share of the rows in which an id is missing that says something by that."""


@dataclass(frozen=True)
class FieldTruth:
    """What a field of a generated log really is."""

    name: str
    kind: Literal["category", "number"]
    role: Role
    of: str | None
    """The original of a copy or a shadow, the parent of a nested id, None for other roles."""
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
    outside: Literal["", "alone", "seldom", "absent", "marker", "yesterday"] = ""
    """How an informative field outside the ring enters the logit."""


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
                of=None if f.role == "informative" or f.source < 0 else names[f.source],
                cardinality=f.size,
            )
            for i in self._order
            for f in [self._fields[i]]
        )
        ring = [names[i] for i in range(recipe.informative)]
        outside: dict[str, list[str]] = {}
        for name, f in zip(names, self._fields, strict=True):
            outside.setdefault(f.outside, []).append(name)
        alone = [(name,) for i, name in enumerate(ring) if recipe.signal * self._main(i)]
        if recipe.signal * recipe.strong:
            alone += [(name,) for kind in ("alone", "absent") for name in outside.get(kind, ())]
        alone += [(name,) for name in outside.get("yesterday", ())]
        together = [*zip(ring, ring[1:] + ring[:1], strict=True)] if recipe.interaction else []
        if recipe.within:
            markers = outside.get("marker", ())
            together += [(m, name) for m in markers for name in outside.get("seldom", ())]
        triples = [*zip(ring, ring[1:] + ring[:1], ring[2:] + ring[:2], strict=True)]
        self.signals: tuple[tuple[str, ...], ...] = (
            *alone,
            *(together if recipe.signal else ()),
            *(triples if recipe.signal * recipe.triple else ()),
        )
        """The terms of the logit: fields that say something alone, and what pairs or three of them
        say together."""
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
            include_header=False,
            delimiter="," if kind == ".csv" else "\t",
            quoting_style="none",
        )
        with ExitStack() as stack:
            file = stack.enter_context(pa.OSFile(str(path), "wb"))
            if path.suffix == ".gz":
                file = stack.enter_context(pa.CompressedOutputStream(file, "gzip"))
            if kind == ".csv":
                write_header(file, text)
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
            elif f.role == "shadow":
                code = self._shadow(f, codes[f.source], draw, rng)
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
            for i, f in enumerate(self._fields[: recipe.informative])
        ]
        for i, score in enumerate(scores):
            logit = logit + recipe.signal * self._main(i) * score
            pair = score * scores[(i + 1) % len(scores)]
            logit += recipe.signal * recipe.interaction * pair
            if recipe.triple:
                third = scores[(i + 2) % len(scores)]
                logit += recipe.signal * recipe.triple * pair * third
        for i, f in enumerate(self._fields):
            if f.outside in ("alone", "absent", "seldom"):
                score = (f.scores[:, codes[i]] * turn).sum(0)
                weight: NDArray[np.float64] | float = recipe.strong
                if f.outside == "seldom":
                    weight = recipe.within * (codes[f.source] == IN_SEGMENT)
                logit = logit + recipe.signal * weight * score
        vectors = [rng.standard_normal((BLOCK, len(direction))) for direction in self._vectors]
        for vector, direction in zip(vectors[::2], self._vectors[::2], strict=True):
            logit = logit + recipe.signal * recipe.strong * (vector @ direction)
        if recipe.hidden:
            logit = logit + recipe.hidden * rng.standard_normal(BLOCK)
            before = rng.random(BLOCK) < 1 / (1 + np.exp(-logit))
            # Its own code says by now only whether anything is known of the day before.
            codes[-1] = np.where(codes[-1] == 0, 0, 1 + before)
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

    def _shadow(
        self,
        f: _Field,
        original: NDArray[np.int64],
        draw: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Codes around those of the original, missing on their own account."""
        r, centre = self.recipe.correlation, f.size / 2
        apart = (1 - r * r) ** 0.5 * f.size / 4 * rng.standard_normal(BLOCK)
        # Where the original is missing, the shadow says nothing of it.
        known = np.where(original == 0, centre + f.size / 4 * rng.standard_normal(BLOCK), original)
        code = np.clip(np.round(centre + r * (known - centre) + apart), 1, f.size - 1)
        return np.where(draw < self.recipe.missing, 0, code.astype(np.int64))

    def _main(self, informative: int) -> float:
        return self.recipe.weak if informative % 2 else self.recipe.strong

    @property
    def _bias(self) -> float:
        # The logistic-normal mean, by the probit approximation σ(b / √(1 + π·variance / 8)).
        recipe = self.recipe
        mains = [self._main(i) for i in range(recipe.informative)]
        outside = recipe.alone + recipe.tailed + recipe.absent
        mains += [recipe.strong] * (outside + len(recipe.vectors[::2]))
        products = recipe.interaction**2 + recipe.triple**2
        variance = sum(m * m for m in mains) + recipe.informative * products
        variance += recipe.seldom * recipe.segment * recipe.within**2
        variance *= recipe.signal**2
        variance += recipe.hidden**2
        odds = recipe.click_rate / (1 - recipe.click_rate)
        return float(np.log(odds) * np.sqrt(1 + np.pi * variance / 8))


def _plan(recipe: Recipe, rng: np.random.Generator) -> list[_Field]:
    """Informative fields in ring order, then copies, nested, noise, and what stands outside the
    ring; the label of the day before comes last."""
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
        fields[-1].outside = "alone"
    _add_traps(recipe, fields, rng)
    if recipe.items:
        for f, group in zip(fields, _groups(recipe, len(fields)), strict=True):
            f.group = group

    for i, f in enumerate(fields):
        if f.role == "copy":
            f.words = fields[f.source].words
            continue
        if f.role == "shadow":
            continue
        drawn = f.size // fields[f.source].size if f.role == "nested" else f.size
        missing = ABSENT if f.outside == "absent" else recipe.missing
        shares = np.stack([_popularity(f, drawn, missing, rng) for _ in range(2)])
        if f.outside == "marker":
            shares[:] = (1 - recipe.segment) / (f.size - 1)
            shares[:, IN_SEGMENT] = recipe.segment
        cumulative = shares.cumsum(1)
        # Searching for a draw above the last sum would give a code that does not exist.
        cumulative[:, -1] = 1.0
        f.cumulative = np.concatenate([cumulative[0], 1 + cumulative[1]])
        if f.role == "informative":
            f.scores = _scores(f, shares.mean(0), rng)
        if f.outside == "absent":
            there = ABSENT / (1 - ABSENT)
            f.scores = np.zeros((2, f.size))
            f.scores[0] = -(there**0.5)
            f.scores[0, 0] = there**-0.5
        # An odd factor is a bijection modulo 2³², so values stay distinct.
        words = (np.arange(f.size, dtype=np.uint64) * 2654435761 + i * 40503) % (1 << 32)
        f.words = None if f.number else _hexadecimal(words)
    return fields


def _add_traps(recipe: Recipe, fields: list[_Field], rng: np.random.Generator) -> None:
    """The fields that only logs with traps have, at the end of the list."""

    def add(
        outside: Literal["alone", "seldom", "absent", "marker", "yesterday"],
        size: int,
        missing: bool,
        source: int = -1,
    ) -> None:
        fields.append(_Field("informative", False, size, missing, source, outside=outside))

    shown = recipe.missing > 0
    for _ in range(recipe.tailed):
        add("alone", recipe.many_values[1], shown)
    for size in np.geomspace(*recipe.many_values, max(recipe.absent, 1)).round()[: recipe.absent]:
        add("absent", int(size), True)
    if recipe.seldom:
        marker = len(fields)
        add("marker", recipe.values[1], False)
        for _ in range(recipe.seldom):
            add("seldom", int(rng.integers(*recipe.values, endpoint=True)), shown, marker)
    first = recipe.informative - recipe.informative_numbers
    for k in range(recipe.shadows):
        of = first + k % recipe.informative_numbers
        fields.append(_Field("shadow", True, fields[of].size, shown, of))
    if recipe.hidden:
        add("yesterday", 3, shown)


def _hexadecimal(words: NDArray[np.uint64]) -> pa.Array:
    """Eight digits each, from `[n]`."""
    digits = words.astype(">u4").tobytes().hex().encode()
    offsets = np.arange(0, 8 * len(words) + 8, 8, dtype=np.int32)
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(offsets), pa.py_buffer(digits))


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


def write_header(file: pa.NativeFile, schema: pa.Schema) -> None:
    """The first line of a CSV file, without the quotes that older versions of pyarrow write."""
    file.write(f"{','.join(schema.names)}\n".encode())
