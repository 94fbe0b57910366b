"""The command line, `fedjax-het train|compare|...|init|list`; `launch/` calls the same code.

Input errors, on the command line or in a file, end a program with one line and exit status 2. Any
other error is a fault of the program and keeps its traceback. What a command needs is imported when
its program runs, so that help, the version and mistakes in flags take no time.
"""

import sys

from fedjax_het.cli.inventory import listing
from fedjax_het.cli.programs import compare, plan, profile, report, sweep, train
from fedjax_het.cli.running import Command, refuse, show_version, wants_help
from fedjax_het.cli.starting import init
from fedjax_het.cli.watching import watch
from fedjax_het.common.errors import InputError, require_known

__all__ = [
    "COMMANDS",
    "compare",
    "init",
    "listing",
    "main",
    "plan",
    "profile",
    "report",
    "sweep",
    "train",
    "watch",
]

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (train, compare, sweep, plan, profile, report, watch, init, listing)
}


def main() -> None:
    """Entry point of `fedjax-het`."""
    arguments = sys.argv[1:]
    if not arguments or wants_help(arguments[:1]):
        width = max(map(len, COMMANDS))
        print("Federated learning on unequal devices. Commands:\n")
        for name, command in COMMANDS.items():
            print(f"  fedjax-het {name:{width}}  {command.about}")
        print(
            "\nfedjax-het COMMAND --help lists its flags. fedjax-het --version prints the version."
        )
        sys.exit(0)
    show_version(arguments[:1])
    try:
        require_known(arguments[0], COMMANDS, "command")
    except InputError as error:
        refuse(error)
    sys.argv = [f"fedjax-het {arguments[0]}", *arguments[1:]]
    COMMANDS[arguments[0]]()
