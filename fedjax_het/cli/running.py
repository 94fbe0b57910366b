"""What all commands share: flags, help, the version, and errors of one line."""

import io
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from absl import app, flags, logging

from fedjax_het import __version__
from fedjax_het.common.errors import InputError

_HELP = ("--help", "-help", "-h", "--helpshort", "-?")
_WIDTH, _MARGIN = 100, 26
# What stands for the value of a flag, by its name or its type.
_VALUES = {"config": "FILE", "figures": "DIR", "host": "HOST", "out": "PATH", "workdir": "DIR"}
_VALUES |= {"int": "N", "comma separated list of strings": "A,B,..."}


@dataclass(frozen=True)
class Command:
    """A command, which is called to run as the program of this process.

    Attributes:
      name: name of the command.
      about: what it does, in one line.
      examples: command lines that show it.
      define: function that defines its flags.
      program: function that does its work, given the flags and the arguments that are no flags.
      arguments: names of the arguments that are no flags.
    """

    name: str
    about: str
    examples: Sequence[str]
    define: Callable[[flags.FlagValues], None]
    program: Callable[[flags.FlagValues, Sequence[str]], None]
    arguments: Sequence[str] = ()

    def __call__(self) -> None:
        """Runs the program with `sys.argv`; it exits."""
        if wants_help(sys.argv[1:]):
            print(self.help())
            sys.exit(0)
        show_version(sys.argv[1:])
        self.define(flags.FLAGS)
        app.run(self._main, flags_parser=_parse)

    def help(self) -> str:
        """The flags of the command with their meaning, and examples."""
        values = flags.FlagValues()
        self.define(values)
        own = [values[name] for name in values]
        needed = [f"--{flag.name}={_value(flag)}" for flag in own if _required(flag)]
        usage = " ".join([f"fedjax-het {self.name}", *self.arguments, *needed])
        more = " [--FLAG=VALUE ...]" if len(own) > len(needed) else ""
        told = [_described(flag) for flag in sorted(own, key=lambda flag: not _required(flag))]
        shown = "\n".join(["examples:", *(f"  {example}" for example in self.examples)])
        parts = [self.about, f"usage: {usage}{more}", "\n".join(told), shown]
        return "\n\n".join(part for part in parts if part)

    def _main(self, argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            # The checkpoint library reports every step of its work at the info level.
            logging.set_verbosity(logging.WARNING)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # The last line of a run must not fail because a terminal cannot show a character.
            sys.stdout.reconfigure(errors="backslashreplace")
        given = argv[1:]
        try:
            if len(given) > len(self.arguments):
                extra = given[len(self.arguments)]
                raise InputError(f"argument {extra!r}: is not a flag; write --name=value")
            if len(given) < len(self.arguments):
                lacking = self.arguments[len(given)]
                raise InputError(
                    f"argument {lacking} is missing: must be given; try {self.examples[0]}"
                )
            self.program(flags.FLAGS, given)
        except InputError as error:
            refuse(error)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return any(argument in _HELP for argument in arguments)


def show_version(arguments: Sequence[str]) -> None:
    """Prints the version and exits if it is asked for."""
    if "--version" in arguments:
        print(f"fedjax-het {__version__}")
        sys.exit(0)


def refuse(error: Exception) -> NoReturn:
    """Ends the program with an error of one line."""
    print("error:", *str(error).split(), file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    # If an option is overridden, a configuration file that is missing or not Python fails here.
    except (flags.Error, OSError, SyntaxError) as error:
        refuse(error)
    except KeyError as error:
        refuse(
            InputError(
                f"override of --config: {error.args[0]}: is not in the file; write "
                "--config.section.option=value for one of its sections"
            )
        )


def _required(flag: Any) -> bool:
    return any("must have a value" in validator.message for validator in flag.validators)


def _value(flag: Any) -> str:
    return _VALUES.get(flag.name) or _VALUES.get(flag.flag_type(), "NAME")


def _described(flag: Any) -> str:
    """Help on a flag."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={_value(flag)}"
    usual = "" if flag.default_as_str is None else flag.default_as_str.strip("'")
    default = f" (default: {usual})" if usual else ""
    told = flag.help.strip() + (" (required)" if _required(flag) else default)
    lines = textwrap.wrap(told, _WIDTH - _MARGIN)
    first = f"  {name:{_MARGIN - 2}}{lines[0]}"
    return "\n".join([first, *(" " * _MARGIN + line for line in lines[1:])])
