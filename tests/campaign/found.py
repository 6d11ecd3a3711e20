"""The faults that were found, what caused them, and the tests that hold them now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A mended fault."""

    kind: str
    harm: str
    """What a user saw."""
    cause: str
    test: str
    """The file of the test, and its function."""


FOUND = [
    Found(
        "damage",
        "a bit changed in an array of the cache gives another selection in silence",
        "nothing knew what the arrays had held",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "damage",
        "a bit changed in the weights, thresholds or vocabularies of a run gives other "
        "probabilities in silence",
        "the same; only what could not be parsed was refused",
        "tests/toolkit/run/test_run.py::test_damaged_files_are_named",
    ),
    Found(
        "damage",
        "a cache in use by a process of another container was removed while it was made, and a "
        "foreign `x.partial` in the directory ended a run",
        "whether the maker of a part lives was asked by the number in its name",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "hostile",
        "a checkpoint of an older version ended `--resume` in a bare KeyError",
        "checkpoints did not say what they hold",
        "tests/toolkit/lifecycle/test_resume.py::test_a_checkpoint_of_another_version_is_named",
    ),
    Found(
        "hostile",
        "a deeply nested line of JSON ended in a traceback, an endless one filled the memory",
        "RecursionError was not expected, and lines had no longest",
        "tests/toolkit/data/test_bad_input.py::test_bad_input",
    ),
    Found(
        "hostile",
        "names with escape sequences in a log reached the terminal",
        "rich passes most control characters on",
        "tests/toolkit/cli/test_terminal.py::test_names_command_no_terminal",
    ),
    Found(
        "hostile",
        "a report had nothing but its escaping between a name and a script",
        "the page had no Content-Security-Policy",
        "tests/toolkit/report/test_report.py::test_a_page_runs_no_script_but_its_own",
    ),
    Found(
        "hostile",
        "`model.json` could ask for any memory, and encoders that do not fit the model were taken",
        "the model was made before its file was looked at, and nothing compared the two",
        "tests/toolkit/run/test_run.py::test_files_that_do_not_fit_are_named",
    ),
    Found(
        "hostile",
        "a summary that keeps a field which it does not know ended `show` in a KeyError",
        "each value was checked, and not whether they belong together",
        "tests/toolkit/run/test_run.py::test_a_summary_is_checked_when_it_is_read",
    ),
    Found(
        "hostile",
        "an infinite cost in a summary ended `show` in a traceback",
        "numbers of a summary were not asked whether they are finite",
        "tests/toolkit/run/test_run.py::test_a_summary_is_checked_when_it_is_read",
    ),
    Found(
        "hostile",
        "a checkpoint with words for numbers ended `--resume` in a traceback",
        "its keys were checked, and not what they hold",
        "tests/toolkit/lifecycle/test_resume.py::test_a_checkpoint_of_another_version_is_named",
    ),
    Found(
        "hostile",
        "a summary whose options of reading are none ended `predict` in a traceback",
        "they are any JSON to the summary, and were used as they are",
        "tests/toolkit/run/test_run.py::test_a_summary_is_checked_when_it_is_read",
    ),
    Found(
        "sanitizers",
        "memset and memcpy got the address of an empty tensor, which is none: undefined, also of 0 "
        "bytes; a compiler may conclude that what comes later is never null",
        "sizes of 0 were tested, and addresses there looked at by nobody",
        "tests/kernels/test_cpu_gated_cross.py::test_both_ways",
    ),
    Found(
        "numbers",
        "`--lr inf` was refused in the words of an operator",
        "the rate had no upper end",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "numbers",
        "another row was named than the one that lacks a further label",
        "rows that are left out were looked at too",
        "tests/toolkit/data/test_bad_input.py::test_a_further_label_is_missed_in_its_row",
    ),
    Found(
        "memory",
        "a model too large for the machine ended by the system's killer, or in a traceback, after "
        "reading",
        "nobody asked what is left",
        "tests/toolkit/lifecycle/test_selection.py"
        "::test_weights_for_which_there_is_no_memory_are_refused_before_training",
    ),
    Found(
        "memory",
        "where memory ended, a command did in a traceback",
        "MemoryError, and what PyTorch raises in its place, were not expected",
        "tests/toolkit/cli/test_terminal.py::test_where_memory_ends_a_line_says_what_needs_less",
    ),
    Found(
        "memory",
        "a column of any number of different values was remembered until memory ended",
        "vocabularies had no end",
        "tests/toolkit/data/test_bad_input.py::test_a_vocabulary_has_an_end",
    ),
    Found(
        "processes",
        "when its terminal went away, a run lost what it had done since the last checkpoint, and "
        "`predict` left a hidden part of a file, after SIGTERM too",
        "only SIGTERM and Ctrl-C were heard, and only by `select` and `demo`",
        "tests/toolkit/lifecycle/test_resume.py::test_a_signal_while_scoring_leaves_nothing",
    ),
    Found(
        "processes",
        "`lpfs select … | head` ended the run when `head` had seen enough",
        "rich ends a program whose reader has gone",
        "tests/toolkit/cli/test_terminal.py::test_a_selection_outlives_who_reads_what_it_says",
    ),
    Found(
        "processes",
        "`lpfs predict --out - | head` could leave a bar on the standard error",
        "the bar was drawn once more at the end, where one had been shown",
        "tests/toolkit/run/test_predict.py::test_scores_on_the_standard_output",
    ),
    Found(
        "disk",
        "on a full or read-only disk `path`, `look`, `report` and `generate` ended in a traceback, "
        "after all their work",
        "only what was read and computed was checked, and not what was written in the end",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "disk",
        "two processes that write the same file at a time gave one's half the other's name, or one "
        "of them failed: cells of an experiment that share a network, two `predict --out` alike",
        "both wrote under the same name before the file took its own",
        "tests/toolkit/test_files.py::test_two_who_write_the_same_file_at_a_time_do_not_mix",
    ),
    Found(
        "disk",
        "a file could not be written if its name was almost as long as names may be",
        "its name before it was complete was longer still",
        "tests/toolkit/test_files.py::test_a_name_may_be_as_long_as_the_disk_allows",
    ),
    Found(
        "disk",
        "`generate --days` left its hidden directory where the truth could not be written",
        "only the files in it were looked after",
        "tests/toolkit/test_files.py::test_a_directory_that_does_not_become_whole_goes",
    ),
    Found(
        "disk",
        "of eight files of the first pass seven stayed open where the first was on a full disk",
        "the first that could not be closed ended the closing",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "disk",
        "a damaged cell of an experiment ended it in a line without a name, or counted; a damaged "
        "model that cells share failed all of them, time and again",
        "neither knew what it had held",
        "tests/toolkit/experiment/test_experiment.py::test_a_damaged_cell_is_run_again",
    ),
    Found(
        "disk",
        "no log could be read with its cache on a file system without flock",
        "the lock that only sweeping needs was demanded",
        "tests/toolkit/test_files.py::test_a_file_system_without_locks",
    ),
    Found(
        "disk",
        "of two runs with one `--out` the second did all its work, and could not write it",
        "whether the place is free was asked only before the first had ended",
        "tests/toolkit/test_files.py::test_a_result_that_appeared_meanwhile_is_not_worked_on",
    ),
    Found(
        "disk",
        "a process could lock a directory that another was just removing, and work in none",
        "the lock was that of a directory without a name",
        "tests/toolkit/test_files.py"
        "::test_a_directory_that_went_while_its_lock_was_awaited_is_not_worked_in",
    ),
    Found(
        "processes",
        "`look -` without a standard input and `predict --out -` without a standard output ended "
        "in a traceback",
        "a stream that is closed is None",
        "tests/toolkit/cli/test_terminal.py::test_a_stream_that_is_closed_is_named",
    ),
    Found(
        "processes",
        "a terminal or a log file that takes no more (`> /dev/full`) ended every command in a "
        "traceback",
        "what the program prints was not expected to fail",
        "tests/toolkit/cli/test_terminal.py::test_a_full_standard_output_is_said_in_a_line",
    ),
    Found(
        "memory",
        "a log read under `ulimit -v` waited for ever, or ended the process without a word",
        "threads of Arrow that cannot be started, or get no memory, tell nobody",
        "tests/toolkit/data/test_bad_input.py::test_where_addresses_end_no_thread_is_started",
    ),
    Found(
        "memory",
        "the same where the rest of the program had taken what was left while it read",
        "the same; what is left is asked before every chunk",
        "tests/toolkit/data/test_bad_input.py::test_addresses_that_end_meanwhile_end_the_reading",
    ),
    Found(
        "memory",
        "under less than 2 GiB of addresses every command was aborted while it loaded PyTorch",
        "nobody asked for the limit before",
        "tests/toolkit/cli/test_terminal.py::"
        "test_too_few_addresses_are_named_before_anything_is_loaded",
    ),
    Found(
        "damage",
        "a bit changed in what `lpfs.save` wrote gave other predictions in silence",
        "it had no checksums",
        "tests/toolkit/method/test_restoring.py::test_a_changed_bit_is_found_and_named",
    ),
    Found(
        "fuzz",
        "a `removal.json` of somebody's making ended `lpfs.restore` in a KeyError or a TypeError, "
        "and weights that are none in an error of another library",
        "nobody expected it to be made by others",
        "tests/toolkit/method/test_restoring.py::test_a_removal_of_somebodys_making_is_refused",
    ),
    Found(
        "fuzz",
        "an experiment with a thousand brackets, with a list for a name, or with a path longer "
        "than the system has, ended in a traceback",
        "what the parser of TOML and the system raise was not expected, nor what it may hold",
        "tests/toolkit/experiment/test_config.py::test_bad_configs",
    ),
    Found(
        "fuzz",
        "encoders with negative buckets, falling edges or knots without scores were taken, and "
        "gave codes that the network has not, or a traceback, when rows came",
        "each value had its type checked, and not its range",
        "tests/toolkit/data/test_bad_input.py::test_no_encoder_gives_what_no_network_has",
    ),
    Found(
        "numbers",
        "with `--decimal , --thousands .` the number 1.5 of a JSON line was 15 to `predict` and "
        "`select`, and 1.5 to `serve`",
        "numbers of JSON were read as text is, by the signs of text",
        "tests/toolkit/serving/test_codes.py::"
        "test_a_number_is_one_whatever_the_decimal_sign_of_text_is",
    ),
    Found(
        "hostile",
        "an id such as `=cmd|…` in a log was a formula in the CSV file of `predict`",
        "ids were written as they are, and spreadsheets run such text",
        "tests/toolkit/run/test_predict.py::"
        "test_ids_are_no_formulas_in_csv_and_stay_as_they_are_in_parquet",
    ),
    Found(
        "processes",
        "of two processes one that died left the other in a traceback; one that hung was waited "
        "for as long as two days at the other's end",
        "what the back end says of it was not expected, and the end of a process waited for all",
        "tests/toolkit/lifecycle/test_resume.py::test_a_process_that_dies_or_hangs_is_found_out",
    ),
    Found(
        "paths",
        "`~nobody/log.csv` ended every command in a traceback",
        "a home that is none raises a RuntimeError",
        "tests/campaign/test_campaign.py::test_a_part_of_every_kind",
    ),
    Found(
        "dependencies",
        "pip admitted any version of numpy, pyarrow, matplotlib, joblib, rich, typer, scipy and "
        "others, and with old ones commands ended in tracebacks",
        "nobody had tried which is the lowest that runs",
        "tests/packaging/test_about.py::test_the_lowest_versions_are_those_that_were_tried",
    ),
]
