"""Whether encoders give a model the codes that it has embeddings for."""

from __future__ import annotations

from collections.abc import Sequence

from lpfs.data import Encoder
from lpfs.models.named import Network, fields_read


def fields_fitting(network: Network, encoders: Sequence[Encoder]) -> list[str]:
    """The fields that a model reads, in the order of its columns.

    Raises ValueError for one without encoder, or with another number of codes.
    """
    cardinality = {encoder.name: encoder.cardinality for encoder in encoders}
    fields = fields_read(network, [name for name, size in cardinality.items() if not size])
    codes = {**network.config().get("fields", {}), **network.categories}
    for field in fields:
        if field not in cardinality:
            raise ValueError(f"the model reads the field {field!r}, which has no encoder")
        if cardinality[field] != codes.get(field, 0):
            raise ValueError(
                f"field {field!r}: its encoder has {cardinality[field]} codes, "
                f"the model has {codes.get(field, 0)}"
            )
    return fields
