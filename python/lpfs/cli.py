"""The command line.

Exit status 2: the input is wrong, nothing was written; 1: the run failed; 130: it was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from lpfs.files import appearing
from lpfs.unfinished import StoppedError, unfinished, working_on

if TYPE_CHECKING:
    from lpfs.data import Data, Split
    from lpfs.lifecycle.selection import Selection, Settings
    from lpfs.report.terminal import StageBars
    from lpfs.run import Summary

# torch, pyarrow and matplotlib are imported where they are used: --help should not wait for them.

app = typer.Typer(
    help="Find the feature fields that a click model needs, and remove the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Names of fields are not markup, whatever is in them.
console = Console(markup=False, emoji=False)
# typer exports none of click's exceptions but this one's child.
UsageError: Any = typer.BadParameter.__base__
INTERRUPTED = 128 + signal.SIGINT
"""What shells say of a program that Ctrl-C ended."""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _named(files: list[Path]) -> str:
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else str(files[0])


def _buckets(text: str) -> dict[str, int]:
    pairs = [name.rpartition("=") for name in _names(text)]
    for column, _, buckets in pairs:
        if not column or not buckets.isascii() or not buckets.isdigit():
            _refuse(f"--hash: expected COL=BUCKETS,… with whole numbers, got {text!r}")
    return {column: int(buckets) for column, _, buckets in pairs}


Out = Annotated[Path, typer.Option("--out", help="The directory to write; must not exist.")]
Run = Annotated[
    Path, typer.Argument(metavar="DIR", help="The directory that lpfs select has written.")
]
DataPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA…",
        help="Parquet, CSV or Criteo TSV: a file, several in order, a directory or a pattern.",
    ),
]
Label = Annotated[str, typer.Option(help="The column with 0 and 1.")]
SplitColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="A column that says train or test.")
]
TestShare = Annotated[float, typer.Option(help="The share of test rows, without --split.")]
LastRows = Annotated[
    bool, typer.Option("--in-order", help="The last rows are the test rows, not random ones.")
]
Categories = Annotated[
    str,
    typer.Option(
        metavar="COL,…", help="Columns of codes, such as whole numbers with over 64 values."
    ),
]
Numbers = Annotated[str, typer.Option(metavar="COL,…", help="Columns of quantities.")]
Ignored = Annotated[str, typer.Option(metavar="COL,…", help="Columns to leave out.")]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the encoded log there, for further runs with the same data and columns.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Of all processes together. Default: by the number of rows."),
]
ProtocolName = Annotated[
    str | None,
    typer.Option(help="one-pass or held-out: the rows that gates learn from. Default: by rows."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, or begin it.")
]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights.")]


@app.command()
def demo(
    out: Out = Path("lpfs-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the log and of the initial weights.")] = 0,
    rows: Annotated[int, typer.Option(min=1000, help="Rows to generate.")] = 300_000,
    resume: Resume = False,
) -> None:
    """Generate a click log with 27 fields, 10 of them informative, and find those."""
    _require_new(out, resume)
    from lpfs.data import ClickLog, InOrder, Recipe, load
    from lpfs.lifecycle.selection import Settings

    log = ClickLog(Recipe(rows=rows, seed=seed))
    console.print(f"A click log of {rows:,} rows: 27 fields, 10 of which decide about the click.")
    settings = Settings(keep=10, seed=seed)
    notes = {
        field.name: field.role if field.of is None else f"{field.role} of {field.of}"
        for field in log.truth
    }
    summary = _select(
        lambda bars, cache: load(
            log, label="click", split=InOrder(test=0.2), cache=cache, progress=bars.reading
        ),
        settings,
        out,
        f"a generated log of {rows:,} rows",
        notes,
        resume=resume,
    )
    found, noise = log.judge(summary.kept)
    console.print(
        f"Seed {seed}: {found} of 10 informative fields found (a near copy counts for its "
        f"original, once), {noise} noise fields kept. Written to {out}."
    )


@app.command()
def select(
    data: DataPaths,
    keep: Annotated[int | None, typer.Option(help="How many fields to keep.")] = None,
    out: Out = Path("lpfs-run"),
    label: Label = "label",
    split: SplitColumn = None,
    test: TestShare = 0.2,
    in_order: LastRows = False,
    category: Categories = "",
    number: Numbers = "",
    ignore: Ignored = "",
    hash_: Annotated[
        str,
        typer.Option("--hash", metavar="COL=BUCKETS,…", help="Categories too large to be listed."),
    ] = "",
    always_keep: Annotated[
        str, typer.Option(metavar="COL,…", help="Fields without a gate; they count as kept.")
    ] = "",
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COL,…", help="Fields that share one gate; may be given again."),
    ] = None,
    lam: Annotated[
        float | None, typer.Option(help="The paper's λ, instead of --keep.", min=0)
    ] = None,
    gate: Annotated[
        str, typer.Option(help="lpfs++, lpfs, gaussian, sinarctan or tanh.")
    ] = "lpfs++",
    alpha: Annotated[float, typer.Option(help="How readily LPFS++ revives a field.")] = 30.0,
    tau: Annotated[float, typer.Option(help="The root of ε in LPFS++.")] = 2.0,
    rescale: Annotated[
        bool | None,
        typer.Option(
            "--rescale/--no-rescale",
            help="Divide gates by their root mean square. Default: for lpfs++.",
        ),
    ] = None,
    operator: Annotated[
        str,
        typer.Option(
            help="Where gates are multiplied in: concat, linear, embedding. Default: the fastest."
        ),
    ] = "auto",
    numbers: Annotated[
        str, typer.Option(help="bins; log, quantile; or mlp: all through one dense MLP.")
    ] = "bins",
    min_count: Annotated[int, typer.Option(help="Rarer values share one code.", min=1)] = 2,
    negatives: Annotated[
        float, typer.Option(help="Share of the rows with label 0 to train on; corrected for.")
    ] = 1.0,
    dim: Annotated[int, typer.Option(help="Width of every embedding.")] = 16,
    lr: Annotated[float, typer.Option(help="Adagrad's learning rate.")] = 0.01,
    batch_size: BatchSize = None,
    protocol: ProtocolName = None,
    epochs: Annotated[int, typer.Option(help="Passes after pruning, at most.")] = 1,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cache: CacheDirectory = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write scalars for TensorBoard there.")
    ] = None,
    resume: Resume = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Besides at the end of each stage.", min=0)
    ] = 60.0,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Start from that run's pre-trained model."),
    ] = None,
) -> None:
    """Select fields of a log, remove the others, and train the smaller model on."""
    _require_new(out, resume)
    from lpfs.data import load
    from lpfs.lifecycle.selection import Settings

    settings = _checked(
        lambda: Settings.model_validate(
            {
                "keep": keep,
                "lam": lam,
                "always_keep": _names(always_keep),
                "groups": [_names(names) for names in group or []],
                "gate": gate,
                "alpha": alpha,
                "tau": tau,
                "rescale": rescale,
                "operator": operator,
                "dim": dim,
                "numbers": "mlp" if numbers == "mlp" else "fields",
                "lr": lr,
                "batch_size": batch_size,
                "protocol": protocol,
                "epochs": epochs,
                "seed": seed,
                "device": device,
            }
        )
    )
    rows_for = _rows_for(split, test, in_order)
    if numbers not in ("bins", "log", "quantile", "mlp"):
        _refuse(f"--numbers must be bins, log, quantile or mlp, got {numbers}")
    hashed = _buckets(hash_)
    _require_device(device)
    if cache is not None:
        _require_directory("--cache", cache)
    _select(
        lambda bars, scratch: load(
            data,
            label=label,
            split=rows_for,
            categories=_names(category),
            numbers=_names(number),
            ignore=_names(ignore),
            hashed=hashed,
            min_count=min_count,
            negatives=negatives,
            transform="log" if numbers == "mlp" else numbers,  # type: ignore[arg-type]
            cache=cache or scratch,
            progress=bars.reading,
        ),
        settings,
        out,
        _named(data),
        tensorboard=tensorboard,
        resume=resume,
        checkpoint_every=checkpoint_every,
        start=start,
    )
    console.print(f"Written to {out}.")


@app.command()
def path(
    data: DataPaths,
    keep: Annotated[
        str, typer.Option(metavar="K,…", help="Numbers of fields to judge the subsets of.")
    ] = "",
    alone: Annotated[
        bool, typer.Option("--alone", help="Beside each of them, make a selection of its own.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="The file to write; must not exist.")
    ] = Path("path.json"),
    label: Label = "label",
    split: SplitColumn = None,
    test: TestShare = 0.2,
    in_order: LastRows = False,
    category: Categories = "",
    number: Numbers = "",
    ignore: Ignored = "",
    batch_size: BatchSize = None,
    protocol: ProtocolName = None,
    seed: Seed = 0,
    cache: CacheDirectory = None,
) -> None:
    """Nested subsets for every number of fields from one run: λ rises until one field is left."""
    _require_one_process("path")
    _require_new_file(out, ".json")
    counts = _names(keep)
    if not all(count.isascii() and count.isdigit() for count in counts):
        _refuse(f"--keep: expected whole numbers with commas between them, got {keep!r}")
    from lpfs.data import load
    from lpfs.lifecycle.path import follow
    from lpfs.lifecycle.selection import Settings
    from lpfs.lifecycle.training import DivergedError
    from lpfs.report.terminal import StageBars, print_path

    settings = _checked(
        lambda: Settings.model_validate(
            {"keep": 1, "batch_size": batch_size, "protocol": protocol, "seed": seed}
        )
    )
    rows_for = _rows_for(split, test, in_order)
    if cache is not None:
        _require_directory("--cache", cache)
    try:
        with StageBars(console) as bars:
            read = _checked(
                lambda: load(
                    data,
                    label=label,
                    split=rows_for,
                    categories=_names(category),
                    numbers=_names(number),
                    ignore=_names(ignore),
                    cache=cache,
                    progress=bars.reading,
                )
            )
            found = _checked(
                lambda: follow(read, settings, [*map(int, counts)], alone=alone, progress=bars)
            )
    except DivergedError as error:
        _fail(str(error), status=1)
    with appearing(out) as place:
        place.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print_path(console, found)
    console.print(f"Written to {out}.")


@app.command()
def predict(
    run: Run,
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA…", help="Raw rows; columns of removed fields may be gone."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.parquet", help="The file to write; must not exist.")
    ] = Path("predictions.parquet"),
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with 0 and 1, to judge by.")
    ] = None,
) -> None:
    """Score raw rows with the model that a run left: the probability of a click, row by row."""
    _require_one_process("predict")
    _require_new_file(out, ".parquet")
    from lpfs.report.terminal import StageBars
    from lpfs.run.scoring import score_file

    with StageBars(console) as bars:
        scored = _checked(lambda: score_file(run, data, out, label=label, progress=bars.reading))
    if scored.metrics is not None:
        console.print(f"AUC {scored.metrics.auc:.6f}, log loss {scored.metrics.log_loss:.6f}")
    console.print(f"{scored.rows:,} rows scored, written to {out}.")


@app.command()
def show(run: Run) -> None:
    """Print what a run found once more."""
    _require_one_process("show")
    from lpfs.report.terminal import print_run, print_summary
    from lpfs.run import load_summary

    summary = _checked(lambda: load_summary(run))
    print_run(console, summary)
    print_summary(console, summary)


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What lpfs select or lpfs experiment has written."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The file to write; must not exist. Default: report.html; of an experiment, the "
            "one in DIR, anew and with pictures beside it.",
        ),
    ] = None,
) -> None:
    """Write one page about a run or about an experiment."""
    _require_one_process("report")
    from lpfs.report.results import is_experiment

    if is_experiment(run):
        _report_experiment(run, out)
        return
    out = out or Path("report.html")
    _require_new_file(out, ".html")
    from lpfs.report.page import page
    from lpfs.run import load_history, load_summary

    text: str = _checked(lambda: page(load_summary(run), load_history(run)))
    with appearing(out) as place:
        place.write_text(text, encoding="utf-8")
    console.print(f"Written to {out}.")


def _report_experiment(directory: Path, out: Path | None) -> None:
    if out is not None:
        _require_new_file(out, ".html")
    written = out or directory / "report.html"
    _require_writable(written)
    from lpfs.report.experiment import page
    from lpfs.report.pictures import draw
    from lpfs.report.results import load_results

    results = _checked(lambda: load_results(directory))
    with appearing(written) as place:
        place.write_text(page(results), encoding="utf-8")
    pictures = [] if out is not None else draw(results, directory)
    beside = f", beside it {', '.join(path.name for path in pictures)}" if pictures else ""
    console.print(f"Written to {written}{beside}.")


@app.command()
def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The directory to write, or to go on in. Default: the config's name."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a log of the config lies; may be repeated."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="loky (processes of this machine) or ray (a Ray cluster).")
    ] = "loky",
) -> None:
    """Compare methods of selection: every method, budget, model, log and seed of a config."""
    if backend not in ("loky", "ray"):
        _refuse(f"--backend: expected loky or ray, got {backend}")
    places = {}
    for entry in data or []:
        name, _, path = entry.partition("=")
        if not path:
            _refuse(f"--data: expected NAME=PATH, got {entry}")
        places[name] = path
    from lpfs.experiment import read, run
    from lpfs.experiment.results import read as read_results
    from lpfs.experiment.summary import print_summary
    from lpfs.report.terminal import PieceBars

    wanted = _checked(lambda: read(config, places))
    directory = out or Path(wanted.name)
    _require_writable(directory)
    with PieceBars(console) as bars:
        done = _checked(lambda: run(wanted, directory, jobs=jobs, backend=backend, report=bars))
    print_summary(console, read_results(directory)[1])
    console.print(f"{done.cells - len(done.failed)} of {done.cells} cells, in {directory}.")
    for name, error in done.failed:
        _complain(f"{name}: {error}")
    if done.failed:
        raise typer.Exit(1)


@app.command()
def generate(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="FILE.parquet, FILE.csv or FILE.tsv[.gz] (Criteo); see --days."
        ),
    ],
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 300_000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal logs.")] = 0,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="demo, criteo, crossed or avazu (with .csv in Avazu's format). Default: by FILE."
        ),
    ] = None,
    signal: Annotated[
        float, typer.Option(min=0, help="The smaller, the noisier the log; 1 as it is meant.")
    ] = 1.0,
    drift: Annotated[
        float | None, typer.Option(min=0, max=1, help="How far the log changes over time.")
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Make FILE a directory of day files like Criteo's Terabyte."),
    ] = None,
) -> None:
    """Write a click log, and beside it what its fields really are (FILE.truth.json)."""
    _require_one_process("generate")
    import json
    from dataclasses import asdict, replace

    from lpfs.data import RECIPES, ClickLog, write_avazu, write_days

    name = recipe or ("criteo" if days or ".tsv" in out.suffixes else "demo")
    if name not in RECIPES:
        _refuse(f"--recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    changes: dict[str, Any] = {"signal": signal} | ({} if drift is None else {"drift": drift})
    log: ClickLog = _checked(lambda: ClickLog(replace(RECIPES[name](rows, seed), **changes)))

    def write(place: Path) -> None:
        if days is not None:
            place.mkdir()
            try:
                write_days(log, place, days)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
        elif name == "avazu" and out.suffix == ".csv":
            write_avazu(log, place)
        else:
            log.write(place)

    if days is not None and out.exists():
        _refuse(f"{out}: already exists")
    with appearing(out) as place:
        _checked(lambda: write(place))
    truth = out.with_name(out.name + ".truth.json")
    truth.write_text(json.dumps([asdict(field) for field in log.truth], indent=1) + "\n")
    console.print(f"{rows:,} rows written to {out}, the truth about their fields to {truth}.")


def _rows_for(split: str | None, test: float, in_order: bool) -> Split:
    """The test rows that the options name."""
    from lpfs.data import ByColumn, ByFraction, InOrder

    if split is not None and in_order:
        _refuse("--split and --in-order exclude each other")
    chosen: Split = _checked(
        lambda: ByColumn(split) if split else (InOrder if in_order else ByFraction)(test=test)
    )
    return chosen


def _select(
    load: Callable[[StageBars, Path], Data],
    settings: Settings,
    out: Path,
    source: str,
    notes: dict[str, str] | None = None,
    tensorboard: Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    start: Path | None = None,
) -> Summary:
    from lpfs.lifecycle import distributed
    from lpfs.lifecycle.checkpoint import Checkpoints
    from lpfs.lifecycle.selection import select
    from lpfs.lifecycle.training import DivergedError, Progress
    from lpfs.report.illustrations import illustrate
    from lpfs.report.tensorboard import Scalars
    from lpfs.report.terminal import StageBars, print_columns, print_summary
    from lpfs.run import load_pretrained, save, summarise

    started_from = str(start) if start else None
    if resume and (finished := _finished(out, settings, source, started_from)):
        print_summary(console, finished)
        return finished
    pretrained = _checked(lambda: load_pretrained(start) if start else None)
    wanted = tensorboard if not console.quiet else None
    scalars = _checked(lambda: Scalars(wanted) if wanted else None)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_call(_interrupt))
        first = distributed.first_on_machine()
        hold = working_on(out) if first else contextlib.nullcontext(unfinished(out))
        place: Path = _checked(lambda: stack.enter_context(hold))
        checkpoints = Checkpoints(place, checkpoint_every, partial(console.print, soft_wrap=True))

        def progress(step: Progress) -> None:
            bars(step)
            if scalars is not None:
                scalars(step)

        begun_here = not checkpoints.files()

        def choose(data: Data) -> Selection:
            try:
                return select(
                    data,
                    settings,
                    progress=progress,
                    checkpoints=checkpoints,
                    pretrained=pretrained,
                )
            except ValueError:
                # To go on would end in the same.
                if begun_here and first:
                    for file in checkpoints.files():
                        file.unlink()
                raise

        def stop() -> None:
            # torchrun passes on what its processes have already got.
            if checkpoints.asked_to_stop and not _one_of_several():
                _interrupt()
            checkpoints.stop()

        try:
            with StageBars(console) as bars:
                data = _load_once(lambda: load(bars, place / "cache"))
                if notes is None:
                    print_columns(console, data.fields)
                with _signals_call(stop):
                    selection = _checked(lambda: choose(data))
        except DivergedError as error:
            left = f"; the checkpoint before it is in {place}" if checkpoints.files() else ""
            _fail(f"{error}{left}", status=1)
        except KeyboardInterrupt:
            raise StoppedError("interrupted") from None
        console.print(
            f"Protocol: {selection.protocol}, batches of {selection.batch_size}"
            + (" (chosen by the number of rows)" if settings.protocol is None else "")
        )
        write = (
            summarise
            if console.quiet
            else partial(save, directory=out, scratch=place, illustrate=illustrate)
        )
        summary: Summary = _checked(
            lambda: write(selection, data, source=source, notes=notes, started_from=started_from)
        )
        if scalars is not None:
            scalars.finish(selection.trajectory.table())
    print_summary(console, summary)
    return summary


def _finished(
    out: Path, settings: Settings, source: str, started_from: str | None
) -> Summary | None:
    """The result of this very run, if it is there. Refuses that of another."""
    from lpfs.lifecycle.stages import first_difference
    from lpfs.run import load_summary

    def find() -> Summary | None:
        if not _is_taken(out):
            return None
        summary = load_summary(out)
        there, here = (
            {"DATA": data, "from": start, **chosen.model_dump(mode="json")}
            for data, start, chosen in (
                (summary.source, summary.started_from, summary.settings),
                (source, started_from, settings),
            )
        )
        if difference := first_difference(there, here):
            raise ValueError(f"{out}: of another run, {difference}")
        return summary

    summary: Summary | None = _checked(find)
    if summary is not None:
        console.print(f"{out} is finished.", soft_wrap=True)
        # Killed at its last breath, it could not clear this away.
        if not console.quiet:
            shutil.rmtree(unfinished(out), ignore_errors=True)
    return summary


def _load_once(load: Callable[[], Data]) -> Data:
    """One process of each machine reads the log, the others map what it has made of it."""
    from lpfs.lifecycle import distributed

    if distributed.size() > 1:
        _checked(lambda: load() if distributed.first_on_machine() else None)
    data: Data = _checked(load)
    return data


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_call(action: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call that, wherever the program is at that moment."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where none arrive
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda *_: action()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _require_new(out: Path, resume: bool) -> None:
    """Refuse what could not be written in the end, before hours of work."""

    def look() -> None:
        if os.path.lexists(out) and not out.is_dir():  # a link to nothing too
            raise ValueError(f"{out}: already exists")
        if _is_taken(out) and not resume:
            raise ValueError(f"{out}: already exists")
        if unfinished(out).exists() and not resume:
            raise ValueError(
                f"{unfinished(out)}: left by an interrupted run; --resume goes on with it, without "
                "that it must be removed"
            )

    # Another process may be ahead and have made the directory already.
    _checked(lambda: None if console.quiet else look())
    _require_writable(out)


def _is_taken(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _require_one_process(command: str) -> None:
    if _one_of_several():
        _refuse(f"{command} runs in one process; torchrun is for select and demo")


def _require_new_file(out: Path, ending: str) -> None:
    if out.suffix != ending:
        _refuse(f"--out: expected a name that ends in {ending}, got {out}")
    if out.exists():
        _refuse(f"{out}: already exists")
    if not out.parent.exists():
        _refuse(f"{out}: there is no directory {out.parent}")
    _require_writable(out)


def _require_writable(out: Path) -> None:
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir():
        _refuse(f"{out}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        _refuse(f"{out}: {parent} cannot be written")


def _require_directory(option: str, path: Path) -> None:
    if path.exists() and not path.is_dir():
        _refuse(f"{option}: {path} is not a directory")
    _require_writable(path)


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        _refuse(f"--device: expected cpu or cuda where there is one, got {device!r}")


def _checked(action: Callable[[], Any]) -> Any:
    """Run it; whatever is wrong with the input becomes one line and exit status 2, on all
    processes if on one."""
    result, fault = None, None
    try:
        result = action()
    except ValidationError as error:
        first = error.errors()[0]
        where = "--" + "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        fault = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            fault = f"{where}: {fault}, got {first['input']!r}"
    except (ValueError, OSError) as error:
        fault = str(error)
    if _one_of_several():
        from lpfs.lifecycle import distributed

        fault = next(filter(None, distributed.exchange(fault)), None)
    if fault is not None:
        _refuse(fault)
    return result


def _refuse(message: str) -> NoReturn:
    _fail(message, status=2)


def _fail(message: str, status: int) -> NoReturn:
    _complain(message)
    raise typer.Exit(status)


def _complain(message: str) -> None:
    if not console.quiet:
        print("lpfs:", " ".join(message.split()), file=sys.stderr)


def _one_of_several() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point of `lpfs` and `python -m lpfs`; ends in SystemExit.

    Of several processes that torchrun started, the first speaks and writes.
    """
    if _one_of_several():
        from lpfs.lifecycle.distributed import joined

        console.quiet = os.environ["RANK"] != "0"
        with joined():
            _run(arguments)
    _run(arguments)


def _run(arguments: list[str] | None) -> NoReturn:
    try:
        status = app(arguments, prog_name="lpfs", standalone_mode=False)
    except StoppedError as stop:
        words = ["lpfs", *(sys.argv[1:] if arguments is None else arguments)]
        again = shlex.join([*words, "--resume"] if "--resume" not in words else words)
        if _one_of_several():
            again = "the same torchrun command with --resume"
        _complain(f"{stop}; to go on: {again}")
        status = INTERRUPTED
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted")
        status = INTERRUPTED
    except UsageError as error:
        message = " ".join(error.format_message().split())
        if message:  # none where help was asked for by saying nothing
            help_ = f" ({error.ctx.command_path} --help says more)" if error.ctx else ""
            print(f"lpfs: {message}{help_}", file=sys.stderr)
        status = 2
    sys.exit(status)
