"""The command line: a file per command, and what commands share.

- `program` puts the commands together, and runs from the first word to the exit status;
- `options` has every option that several commands have, with its limits;
- `refusals` checks what can be checked before anything is read, and says what is wrong;
- `statuses` names how a command ends;
- `processes` knows whether torchrun started this one, `signals` what Ctrl-C does;
- `reading` is what commands share that read a log;
- `selecting` is what `select` and `demo` share: read → train and select → prune and judge → write.

torch and everything that imports it come late, inside the commands: neither a page of help nor a
refusal should wait seconds for them.
"""

from lpfs.cli.program import app, main

__all__ = ["app", "main"]
