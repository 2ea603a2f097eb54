"""`python -m pipeline [group=option] [key=value]`, also `squarehead ...`: a job, or with `-m` a sweep of jobs;
`squarehead explain NAME` describes an option.

Hydra composes the configuration (`command.compose`). A job is planned and run by `command.job`, a sweep by
`hydra_plugins.squarehead_sweeper`.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pipeline import credentials, ending
from pipeline.command import arguments, compose
from pipeline.command.errors import EXPECTED, JobFailedError, explain
from pipeline.command.explain import explain_name
from pipeline.ending import Ending


def main() -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # progress bars of libraries would fill log files; ours print lines there
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as exceptions, which `explain` shows in one line
    sys.argv = [arguments.PROGRAM, *arguments.prepare(sys.argv[1:])]
    if "--version" in sys.argv:
        print(arguments.version())
        return
    ending.listen()
    try:
        if sys.argv[1:2] == ["explain"]:
            print(explain_name(sys.argv[2:]))
            return
        credentials.refuse_elsewhere(sys.argv[1:])
        arguments.check_groups(sys.argv[1:])
        compose.run()
    except JobFailedError:
        sys.exit(1)
    except KeyboardInterrupt:
        _interrupted()
    except EXPECTED as error:
        if Ending.asked:  # the launcher has wrapped the interruption in an error of its own
            _interrupted()
        sys.exit(1 if arguments.completes(sys.argv) else f"squarehead: {explain(error)}")


def _interrupted() -> NoReturn:
    how = "terminated" if Ending.asked else "interrupted"
    print(f"squarehead: {how}; finished stages are stored, the same command resumes", file=sys.stderr)
    sys.exit(ending.EXIT_CODE if Ending.asked else 1)


if __name__ == "__main__":
    main()
