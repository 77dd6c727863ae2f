"""The command line: stanley-fast train | sample | compare | inpaint | fid | ergodicity | bench |
doctor.

The commands are in commands/, one file each. A setting that can't be is one line on stderr and exit
status 2; a file or a run that fails is one with status 1. Options that do not parse tyro explains.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from stanley_fast.backends import select
from stanley_fast.chain import NonFiniteError
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.commands import Command
from stanley_fast.commands.common import Interrupted
from stanley_fast.commands.doctor import Doctor
from stanley_fast.data import DataError
from stanley_fast.doctor import SelfCheckError
from stanley_fast.extras import MissingExtraError
from stanley_fast.methods import SettingsError
from stanley_fast.parallel import WorkerDiedError
from stanley_fast.trainer import DivergedError

DESCRIPTION = """Learns energy-based models by Langevin sampling, each element with its stepsize.

Begin with: stanley-fast train rings --preset demo"""

FAILURES = (
    CheckpointError,
    DataError,
    DivergedError,
    MissingExtraError,
    NonFiniteError,
    SelfCheckError,
    OSError,
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the command line without the program's name; sys.argv's unless told.

    Returns:
        The exit status: 0; 1 a failure; 2 a mistake of the user; 130 stopped by Ctrl-C.

    Raises SystemExit: for --help (0) and options that do not parse (2).
    """
    missing = [name for name in ("tyro", "tqdm", "matplotlib") if find_spec(name) is None]
    if missing:
        return _fail(f"needs {', '.join(missing)}: pip install 'stanley-fast[cli]'", 1)
    try:
        command = _parse(args)
        if not isinstance(command, Doctor):
            _check_backend()
        command.run()
    except SettingsError as error:
        return _fail(str(error), 2)
    except WorkerDiedError as error:
        return _fail(f"{error} Go on: the same command and --resume", 1)
    except FAILURES as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return _fail("not enough memory for that many samples or chains", 1)
    except (Interrupted, KeyboardInterrupt) as error:
        return _fail(str(error) or "stopped", 130)
    return 0


def _parse(args: Sequence[str] | None) -> Command:
    import tyro

    marks = tyro.conf
    return tyro.cli(
        Command,
        prog="stanley-fast",
        description=DESCRIPTION,
        args=args,
        config=(
            marks.DisallowNone,
            marks.FlagCreatePairsOff,
            marks.OmitArgPrefixes,
            marks.OmitSubcommandPrefixes,
            marks.PositionalRequiredArgs,
        ),
    )


def _check_backend() -> None:
    try:
        select("cpu")
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"STANLEY_FAST_BACKEND: {error}") from error


def _fail(message: str, status: int) -> int:
    print(f"stanley-fast: {message}", file=sys.stderr)
    return status
