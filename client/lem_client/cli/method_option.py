"""The option that names the method of the results to show."""

from __future__ import annotations

from typing import Annotated

import typer

from lem_domain.results.method import DEFAULT_METHOD, MethodVersion

MethodOption = Annotated[
    MethodVersion | None,
    typer.Option(
        "--method",
        help=f"Version of the formulas; if omitted {DEFAULT_METHOD.value}, or another one that is stored.",
    ),
]
