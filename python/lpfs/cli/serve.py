"""`lpfs serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpfs.cli.options import Device, above, at_least, expanded
from lpfs.cli.processes import complain
from lpfs.cli.refusals import checked, refuse, require_one_process, require_run
from lpfs.cli.signals import signals_call


def serve(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Where models are published, or what lpfs select has written.",
            callback=expanded,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen at; other machines reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8000,
    max_rows: Annotated[
        int, typer.Option(help="Rows of a request.", callback=at_least(1))
    ] = 10_000,
    max_bytes: Annotated[int, typer.Option(help="Bytes of a request.", callback=at_least(1))] = 1
    << 23,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds in which a request must be there, and in which the last answers are sent "
            "at the end.",
            callback=above(0),
        ),
    ] = 10.0,
    connections: Annotated[
        int, typer.Option(help="At a time; more are answered 503.", callback=at_least(1))
    ] = 500,
    poll: Annotated[
        float,
        typer.Option(help="Seconds between two looks for a new version.", callback=above(0)),
    ] = 1.0,
    sparse: Annotated[
        bool,
        typer.Option(
            "--sparse",
            help="A column that no row of a request has is missing there, and no error.",
        ),
    ] = False,
    device: Device = "cpu",
) -> None:
    """Answer POST /predict on raw rows with the present model, until Ctrl-C or SIGTERM.

    It needs the extra: pip install "lpfs[serve]".
    """
    require_one_process("serve")
    if not 0 <= port < 1 << 16:
        refuse(f"--port: expected a number below {1 << 16:,}, got {port}")
    require_run(directory, "model.json", "present")
    try:
        from lpfs.serving.server import Manners, listening, server
    except ImportError as error:
        refuse(f'{error}: lpfs serve needs the extra, pip install "lpfs[serve]"')
    from lpfs.cli.selecting import require_device
    from lpfs.serving import Reader
    from lpfs.serving.app import App, Limits

    require_device(device)
    reader = checked(lambda: Reader(directory, device, sparse=sparse))
    listener = checked(lambda: listening(host, port))
    app = App(reader, Limits(max_bytes, max_rows), poll=poll, tell=complain)
    answering = server(app, Manners(timeout=timeout, connections=connections))
    fields = len(reader.live.model.encoders)
    at = f"[{host}]" if ":" in host else host
    # While uvicorn runs it has handlers of its own, and then sends itself what came once more.
    with signals_call(lambda: setattr(answering, "should_exit", True)):
        print(
            f"Version {reader.live.number} of {directory}, {fields} fields, at "
            f"http://{at}:{listener.getsockname()[1]}",
            flush=True,
        )
        answering.run(sockets=[listener])
