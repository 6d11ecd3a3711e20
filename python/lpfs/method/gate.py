"""The gates of section 3 as one module between embeddings and network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lpfs.method.forms import taken_apart, tracer_of
from lpfs.method.row_products import seen
from lpfs_kernels import KINDS, gated_concat, gated_embedding_concat, gated_linear, reference

if TYPE_CHECKING:
    from lpfs.method.constants import Constants

EPSILON_START = 0.1
"""ε before the first step (section 4.9), as it stands in LPFS's formula."""
EVERY = slice(None)
ALL_ROWS = 2**62
FEWEST_ROWS, SHARE_OF_ROWS = 128, 16
"""Of how many rows of a batch `FeatureGate.asked_of_some` takes moments."""
AMPLITUDES = 0.25, 4.0
"""Within which amplitudes are held."""


class FeatureGate(nn.Module):
    """Multiply every field by its gate and concatenate: a list of `[B, Dᵢ]`, or one packed
    `[B, ΣD]`, becomes `[B, ΣD]`. Other forms of embeddings are gated as they are, see `forward`.

    A field's factor is `a · g(x; ε) / c / rms`: the gate, over its value at the start
    `c = g(1; ε₀)`, so that inserting gates into a trained model changes nothing, over the RMS
    rescale (1 until `update_rescale` is called), times an amplitude (1 until removal costs, or
    `amplify`, move it). One learnable `x` per gate; a field whose x is exactly zero is dead.

    Args:
        fields: name → width of every field, in the order in which `forward` receives them.
        kind: one of `lpfs_kernels.KINDS`.
        alpha: weight of the arctangent of LPFS++, which lets dead fields come back (eq. 8). ≥ 0.
        tau: the root of ε beside it. > 0; the paper's is 2.
        epsilon: ε at the start. Default: 0.1, or √0.1 for the three kinds that use √ε.
        always_keep: fields without a gate; their factor is 1.
        groups: fields that share one gate, and live or die together.
        rescale: fields that `update_rescale` divides by the root mean square of the gates.

    Raises:
        ValueError: for an unknown kind or field, a field in two groups, a group that holds an
            always-kept field, no field to gate, or a number out of range.

    >>> gate = FeatureGate({"age": 2, "city": 3})
    >>> gate
    FeatureGate(2 fields, 2 gates, 2 alive, kind='lpfs', alpha=30.0, tau=2.0, epsilon=0.1)
    >>> embeddings = [torch.ones(1, 2), torch.ones(1, 3)]
    >>> torch.allclose(gate(embeddings), torch.ones(1, 5))
    True
    >>> _ = gate.x.data.copy_(torch.tensor([1.0, 0.0]))
    >>> gate(embeddings)[0, 2:].tolist(), gate.kept()
    ([0.0, 0.0, 0.0], ['age'])
    """

    epsilon: Tensor
    start: Tensor
    rms: Tensor
    amplitude: Tensor
    unamplified: Tensor
    scale: Tensor
    rescaled: Tensor
    ungated: Tensor | None
    gate_of_field: Tensor | None
    first_of_unit: Tensor | None
    moments: Tensor | None
    overlap: Tensor | None
    dead_rows: Tensor | None
    row_scale: Tensor | None

    def __init__(
        self,
        fields: Mapping[str, int],
        kind: str = "lpfs",
        *,
        alpha: float = 30.0,
        tau: float = 2.0,
        epsilon: float | None = None,
        always_keep: Iterable[str] = (),
        groups: Iterable[Sequence[str]] = (),
        rescale: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be in [0, inf), got {alpha}")
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        self.kind, self.alpha, self.tau = kind, float(alpha), float(tau)
        self.fields = dict(fields)
        self.always_keep = tuple(dict.fromkeys(always_keep))
        rescale = set(rescale)
        self._require_known("always_keep", self.always_keep)
        self._require_known("rescale", rescale)
        self.members = self._group(groups)
        self.units = [*self.members, *((name,) for name in self.always_keep)]
        self.living = list(range(len(self.fields)))
        self.moments = self.overlap = self.dead_rows = self.row_scale = None
        self.compares, self.watches_dead, self.fewest_rows = False, True, FEWEST_ROWS
        self.listener: Constants | None = None
        """Hears what is multiplied, in the steps in which somebody listens."""
        if not self.members:
            raise ValueError("fields: none is left to gate")

        names = list(self.fields)
        self.widths = tuple(self.fields.values())
        self.x = nn.Parameter(torch.ones(len(self.members)))
        self.register_buffer("epsilon", torch.tensor(0.0))
        self.set_epsilon(epsilon if epsilon is not None else epsilon_for_kind(kind, EPSILON_START))
        self.register_buffer("start", self.gate_values().detach()[0].clone())
        self.register_buffer("rms", torch.tensor(1.0))
        self.register_buffer("amplitude", torch.ones(len(self.members)))

        owner = {name: i for i, group in enumerate(self.members) for name in group}
        gate_of_field = [owner.get(name, 0) for name in names]
        units = {name: i for i, unit in enumerate(self.units) for name in unit}
        firsts = [names.index(unit[0]) for unit in self.units]
        plain = firsts == list(range(len(names)))
        self.unit_of_field = None if plain else tuple(units[name] for name in names)
        self.register_buffer(
            "first_of_unit", None if plain else torch.tensor(firsts), persistent=False
        )
        self.register_buffer(
            "gate_of_field",
            None if gate_of_field == list(range(len(owner))) else torch.tensor(gate_of_field),
            persistent=False,
        )
        self.register_buffer(
            "ungated",
            torch.tensor([n in self.always_keep for n in names]) if self.always_keep else None,
            persistent=False,
        )
        self.register_buffer(
            "rescaled", torch.tensor([n in rescale for n in names]), persistent=False
        )
        self.register_buffer("unamplified", torch.ones(len(names)), persistent=False)
        self.register_buffer("scale", torch.ones(len(names)), persistent=False)
        self._refresh_scale()
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _require_same_form
        )
        self.register_load_state_dict_post_hook(_refresh_after_loading)  # type: ignore[no-untyped-call]

    def forward(self, embeddings: Any, fields: slice = EVERY) -> Any:
        """`[B, ΣD]` from a list of `[B, Dᵢ]` or one packed `[B, ΣD]`, in the embeddings' dtype; of
        some of the fields where they are named by place.

        In other forms embeddings come back as they were given: `[B, F, D]`, a list of `[B, 1, Dᵢ]`,
        a mapping of names, a KeyedTensor of TorchRec's. Raises ValueError where names, shapes or
        widths are not those of the fields.

        >>> gate = FeatureGate({"age": 2, "city": 3})
        >>> gated = gate({"city": torch.ones(1, 3), "age": torch.ones(1, 2)})
        >>> {name: list(each.shape) for name, each in gated.items()}
        {'city': [1, 3], 'age': [1, 2]}
        """
        if (tracer := tracer_of(embeddings)) is not None:
            # One node, whose values and forms are known when it runs.
            return tracer.create_proxy(
                "call_module", tracer.path_of_module(self), (embeddings, fields), {}
            )
        names, widths = list(self.fields)[fields], self.widths[fields]
        held, back = taken_apart(embeddings, names, widths)
        packed = isinstance(held, Tensor)
        x, scale, ungated = self._of(fields)
        gated = gated_concat(
            [held] if isinstance(held, Tensor) else held,
            x,
            self.epsilon,
            widths if packed else (),
            scale,
            ungated,
            **self.asked(fields),
            **self.formula,
        )
        if self.overlap is not None and self.compares_now and fields == EVERY:
            gated = seen(gated, held, widths, self.overlap, self.unit_of_field, self.row_scale)
        self._tell(gated, range(len(self.fields))[fields])
        return back(gated)

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureGate:
        """Gates stay fp32 in a model of halves, whose steps would be lost in 8 bits."""

        def apart_from_halves(value: Tensor) -> Tensor:
            new: Tensor = fn(value)
            if new.dtype in (torch.float16, torch.bfloat16):
                return value.to(new.device)
            return new

        super()._apply(apart_from_halves, recurse)  # type: ignore[no-untyped-call]
        return self

    def __prepare_scriptable__(self) -> FeatureGate:
        """What `torch.jit.script` calls, and puts into the model for good."""
        return ScriptableGate.take_over(self)

    def linear(
        self, embeddings: Sequence[Tensor] | Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """`[B, H]`, `linear(self(embeddings), weight, bias)` without a pass over the batch for the
        gates. What is packed may hold the fields of `computed` alone."""
        if self.compares_now:
            return nn.functional.linear(self(embeddings), weight, bias)
        packed = isinstance(embeddings, Tensor)
        if isinstance(embeddings, Tensor):
            every = embeddings.shape[1] == sum(self.widths)
            self._tell(embeddings, range(len(self.fields)) if every else self.computed())
        else:
            for i, each in enumerate(embeddings):
                self._tell(each, [i])
        return gated_linear(
            [embeddings] if isinstance(embeddings, Tensor) else embeddings,
            self.x_of_fields(),
            self.epsilon,
            weight,
            bias,
            self.widths if packed else (),
            self.scale,
            self.ungated,
            living=self._living_now(),
            revive=self._listens,
            **self.asked_of_some(len(embeddings if packed else embeddings[0])),
            **self.formula,
        )

    def embedding(
        self,
        table: nn.Embedding | nn.EmbeddingBag,
        codes: Tensor,
        offsets: Sequence[int],
        *,
        fields: slice = EVERY,
        **lookup: Any,
    ) -> Tensor:
        """`[B, ΣD]` of codes `[B, N]`, gated as they are looked up, each field in its rows of the
        table from its offset on; rows of dead fields are not read. `lookup` are the bags, mode and
        check of `lpfs_kernels.gated_embedding_concat`."""
        x, scale, ungated = self._of(fields)
        gates = x, self.epsilon, scale, ungated
        options = {"sparse": table.sparse} | lookup | self.formula
        if self.compares_now and fields == EVERY:
            plain = x, self.epsilon, None, torch.ones_like(x, dtype=torch.bool)
            looked_up = gated_embedding_concat(table.weight, codes, offsets, *plain, **options)
            compared: Tensor = self(looked_up)
            return compared
        options |= self.asked(fields)
        gated = gated_embedding_concat(table.weight, codes, offsets, *gates, **options)
        self._tell(gated, range(len(self.fields))[fields])
        return gated

    def _tell(self, value: Tensor, fields: Sequence[int]) -> None:
        if not torch.compiler.is_compiling() and self.listener is not None:
            self.listener.hear(value, fields)

    @property
    def formula(self) -> dict[str, Any]:
        """What g is, as operators take it."""
        return {"kind": self.kind, "alpha": self.alpha, "tau": self.tau}

    def _of(self, fields: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        x, ungated = self.x_of_fields(), self.ungated
        if fields == EVERY:
            return x, self.scale, ungated
        return x[fields], self.scale[fields], None if ungated is None else ungated[fields]

    def watch(self, *, overlap: bool = False) -> None:
        """Have passes backward leave the moments of the row products, for `RemovalCosts`; and, when
        asked to `compare`, with `overlap` what they have in common.

        `moments` is a leaf whose values mean nothing and whose `.grad` is by definition
        `[3, units]`: of every unit, a gate or a field that stays always, the sum over rows of ∂L/∂φ
        and of its square, and the number of those rows. It is no parameter: nothing that goes over
        a model's parameters clips, averages or decays it. `overlap` is another, whose `.grad` is
        `[units, units]`: of every two units, the sum over rows of the product of their ∂L/∂φ, by
        embeddings less their mean.
        """
        units = len(self.units)
        self.moments = self.x.detach().new_zeros(3, units, requires_grad=True)
        self.overlap = (
            self.x.detach().new_zeros(units, units, requires_grad=True) if overlap else None
        )

    def compare(self, compare: bool) -> None:
        """Whether the next step leaves the overlap of its row products, from all of its rows: all
        fields are then multiplied in one call, with a pass over the batch."""
        self.compares = compare

    @property
    def compares_now(self) -> bool:
        """Whether a pass forward of now will leave the overlap."""
        return self.compares and self.overlap is not None and torch.is_grad_enabled()

    def weigh(self, weights: Tensor | None) -> None:
        """Tell removal costs what the rows of the next passes forward weigh, until told otherwise.

        With a loss of row r that is `w_r · ℓ_r`, squares of row products hold w², and the
        curvature is the mean of w·s². Models of `lpfs.select` tell it by themselves.

        Args:
            weights: `[B]`, at least 0, what each row's loss is multiplied by before their mean, or
                sum, is taken (where it is divided by the sum of the weights instead of by B:
                `w / w.mean()`, over the rows of all processes and micro-batches). None: 1.

        Raises ValueError unless they have one dimension. How many there are is checked in the pass.

        >>> gate = FeatureGate({"age": 2})
        >>> gate.weigh(torch.tensor([1.0, 0.5, 0.0]))
        """
        if weights is None:
            self.row_scale = None
            return
        if weights.dim() != 1:
            raise ValueError(f"weights must have shape [B], got {list(weights.shape)}")
        weights = weights.detach().to(self.x)
        # Where the reciprocal would overflow, w² has long been 0.
        largest = torch.finfo(weights.dtype).max
        self.row_scale = torch.where(weights > 0, 1 / weights, 0.0).clamp(max=largest)

    def watch_dead(self, watch: bool) -> None:
        """Whether the next step takes the moments of dead fields too, from all of its rows."""
        self.watches_dead = watch
        if self.dead_rows is None:
            self.dead_rows = torch.zeros((), dtype=torch.int64, device=self.x.device)
        self.dead_rows.fill_(ALL_ROWS if watch else 0)

    def asked_of_some(self, batch: int) -> dict[str, Any]:
        """What asks an operator that has no pass over the batch to hide in for the moments of some
        rows; in proportion, as if they were of all."""
        asked = self.asked()
        if asked:
            asked["moment_rows"] = min(batch, max(self.fewest_rows, batch // SHARE_OF_ROWS))
        return asked

    def asked(self, fields: slice = EVERY) -> dict[str, Any]:
        """What asks an operator for the moments of these fields; nothing where nobody wants any."""
        if self.moments is None or not torch.is_grad_enabled():
            return {}
        units = self.unit_of_field
        if units is None and fields != EVERY:
            units = tuple(range(len(self.fields)))
        return {
            "moments": self.moments,
            "gate_of_field": None if units is None else units[fields],
            "dead_rows": self.dead_rows,
            "row_scale": self.row_scale,
        }

    def factors_of_units(self) -> Tensor:
        """What every unit is multiplied by at present, `[units]`."""
        factors = self.factors()
        return factors if self.first_of_unit is None else factors[self.first_of_unit]

    @property
    def _listens(self) -> bool:
        """Whether dead fields' embeddings matter to this step: to their gradient or their costs."""
        if not torch.is_grad_enabled():
            return False
        if self.moments is not None:
            return self.watches_dead
        return reference.revives(self.kind, self.alpha)

    def computed(self) -> Sequence[int]:
        """The places of the fields whose embeddings `linear` reads, in order: of all where
        something may be learnt of the dead, else of those that live."""
        every = self._listens or self.compares_now
        return range(len(self.fields)) if every else self._living_now()

    def _living_now(self) -> Sequence[int]:
        """On the CPU the gates are looked at. Elsewhere that would wait, so there, and in a
        compiled program, fields are as `refresh_living` found them last; all of them where they may
        have come back since."""
        if self.x.device.type == "cpu" and not torch.compiler.is_compiling():
            self.refresh_living()
        elif reference.revives(self.kind, self.alpha):
            return range(len(self.fields))
        return self.living

    def refresh_living(self) -> None:
        """Look which fields live, for `linear`; waits for the device. A plan calls it."""
        alive = self.x.detach() != 0
        if self.gate_of_field is not None:
            alive = alive[self.gate_of_field]
        if self.ungated is not None:
            alive = alive | self.ungated
        self.living = alive.nonzero().flatten().tolist()

    def x_of_fields(self) -> Tensor:
        """x of every field, `[N]`; an always-kept field's entry means nothing."""
        return self.x if self.gate_of_field is None else self.x[self.gate_of_field]

    def gate_values(self, x: Tensor | None = None, epsilon: Tensor | None = None) -> Tensor:
        """g(x; ε) without normalisation, element-wise; of the present x and ε by default."""
        return reference.gate(
            self.x if x is None else x,
            self.epsilon if epsilon is None else epsilon,
            self.kind,
            self.alpha,
            self.tau,
        )

    @torch.no_grad()
    def factors(self) -> Tensor:
        """What every field is multiplied by at present, `[N]`; exactly 0 where it is dead."""
        values = self.gate_values(self.x_of_fields())
        if self.ungated is not None:
            values = torch.where(self.ungated, 1.0, values)
        return values * self.scale

    def gates(self) -> dict[str, float]:
        """Field → factor, as pruning folds it into the model."""
        return dict(zip(self.fields, self.factors().tolist(), strict=True))

    def kept(self) -> list[str]:
        """The living fields, always-kept ones included, in the order of `fields`."""
        alive = {
            name
            for group, x in zip(self.members, self.x.tolist(), strict=True)
            if x != 0
            for name in group
        }
        return [name for name in self.fields if name in alive or name in self.always_keep]

    @torch.no_grad()
    def set_epsilon(self, epsilon: float) -> None:
        """Move ε in place, as schedules do. Raises ValueError unless it is positive and finite."""
        rounded = torch.tensor(epsilon, dtype=self.epsilon.dtype, device="cpu").item()
        if not 0 < rounded < math.inf:
            raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
        self.epsilon.fill_(epsilon)

    def amplify(self, by: Tensor) -> None:
        """Multiply every gate's amplitude by a factor, `[gates]`, and hold it to `AMPLITUDES`."""
        self.amplitude.mul_(by.detach()).clamp_(*AMPLITUDES)
        self._amplify_scale()

    @torch.no_grad()
    def update_rescale(self, due: Tensor | bool = True) -> None:
        """Set the RMS rescale from the living gates (section 4.9); no gradient flows through it.

        Divided by c alone, an LPFS++ gate at x = 1 falls to a third of its start as ε decays
        (α = 10); the rescale keeps living fields near the magnitude the network was trained with.
        Where `due` (0-d, bool) is false, it stays as it is.
        """
        x = self.x_of_fields()
        living = self.rescaled & (x != 0)
        if self.ungated is not None:
            living &= ~self.ungated
        squares = (self.gate_values(x) / self.start).square()
        mean = torch.where(living, squares, 0.0).sum() / living.sum()
        self.rms.copy_(torch.where((mean > 0) & due, mean.sqrt(), self.rms))
        self._refresh_scale()

    @torch.no_grad()
    def _refresh_scale(self) -> None:
        scale = torch.where(self.rescaled, 1 / (self.start * self.rms), 1 / self.start)
        self.unamplified.copy_(scale)
        self._amplify_scale()

    def _amplify_scale(self) -> None:
        amplitude = self.amplitude
        if self.gate_of_field is not None:
            amplitude = amplitude[self.gate_of_field]
        scale = self.unamplified * amplitude
        if self.ungated is not None:
            scale = torch.where(self.ungated, 1.0, scale)
        self.scale.copy_(scale)

    def _forget(self) -> None:
        """Amplitudes and scales have moved: let go of what was kept of them. Here nothing is."""

    def _group(self, groups: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
        """The fields behind every gate, gates in the order of their first field."""
        shared = [tuple(group) for group in groups]
        for group in shared:
            self._require_known("groups", group)
            if kept := set(group) & set(self.always_keep):
                raise ValueError(f"groups: {min(kept)!r} is in always_keep and has no gate")
        twice = [n for n, k in Counter(n for group in shared for n in group).items() if k > 1]
        if twice:
            raise ValueError(f"groups: {twice[0]!r} stands twice")
        group_of = {name: group for group in shared for name in group}
        gated = (name for name in self.fields if name not in self.always_keep)
        return list(dict.fromkeys(group_of.get(name, (name,)) for name in gated))

    def _require_known(self, argument: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.fields:
                raise ValueError(f"{argument}: there is no field {name!r}")

    def get_extra_state(self) -> Tensor:
        """Kind, α and τ as the bytes of a text: a tensor, so that safetensors can hold it."""
        return torch.tensor(list(self._form().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: a state of another form has been refused before (ValueError)."""

    def _form(self) -> str:
        return f"kind={self.kind!r}, alpha={self.alpha}, tau={self.tau}"

    def extra_repr(self) -> str:
        """One line: sizes, living fields and what shapes the gate."""
        sizes = f"{len(self.fields)} fields, {len(self.members)} gates"
        if self.x.is_meta:
            return f"{sizes}, {self._form()}"
        return (
            f"{sizes}, {len(self.kept())} alive, {self._form()}, epsilon={self.epsilon.item():.3g}"
        )


class ScriptableGate(FeatureGate):
    """What a `FeatureGate` becomes, in its place, where a model is scripted: the same in Python,
    and in a script with types that are known beforehand. There it takes a list of `[B, Dᵢ]`, one
    packed `[B, ΣD]` or `[B, F, D]`, and leaves no removal costs.
    """

    __jit_unused_properties__ = ("_listens", "formula")

    @classmethod
    def take_over(cls, gate: FeatureGate) -> ScriptableGate:
        """Make one of a gate."""
        gate.__class__ = cls
        assert isinstance(gate, cls)
        vars(gate).update(kind_number=KINDS.index(gate.kind), all_widths=list(gate.widths))
        return gate

    def forward(self, embeddings: Tensor | list[Tensor], fields: Any = None) -> Tensor:
        """See `FeatureGate`; in a script of all fields."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            every = EVERY if fields is None else fields
            gated: Tensor = super().forward(embeddings, every)
            return gated
        x = self.x if self.gate_of_field is None else self.x.index_select(0, self.gate_of_field)
        if isinstance(embeddings, Tensor):
            packed: Tensor = torch.ops.lpfs.gated_concat(
                [embeddings.flatten(1)],
                x,
                self.epsilon,
                self.all_widths,
                self.scale,
                self.ungated,
                self.kind_number,
                self.alpha,
                self.tau,
            )
            return packed.view_as(embeddings)
        side_by_side: Tensor = torch.ops.lpfs.gated_concat(
            embeddings,
            x,
            self.epsilon,
            None,
            self.scale,
            self.ungated,
            self.kind_number,
            self.alpha,
            self.tau,
        )
        return side_by_side


# Types, not their names: a script cannot read the annotations that it would inherit.
ScriptableGate.__annotations__ = {"kind_number": int, "all_widths": list[int]}


def _require_same_form(
    gate: FeatureGate, state: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    """x and c mean nothing to a gate of another kind, α or τ; without an entry torch complains."""
    found = state.get(f"{prefix}_extra_state")
    if found is not None and not torch.equal(found.cpu(), gate.get_extra_state()):
        form = bytes(found.tolist()).decode(errors="replace")
        raise ValueError(f"the state of a gate with {form} does not fit one with {gate._form()}")


def _refresh_after_loading(gate: FeatureGate, _: object) -> None:
    gate._refresh_scale()
    gate.refresh_living()


Epsilon = TypeVar("Epsilon", float, Tensor)


def epsilon_for_kind(kind: str, epsilon: Epsilon) -> Epsilon:
    """ε itself for LPFS and LPFS++; √ε for the kinds of section 2.1 that use it in its place."""
    return epsilon if kind in ("lpfs", "lpfs++") else epsilon**0.5
