"""The commands of the keys of a sealed repository, and the options by which other commands open one.

A passphrase is asked for, or read from a file or an environment variable. It is never an argument: every user of a
machine sees those of all processes.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar, cast

import click

from pipeline.errors import EXIT_DONE, EXIT_FAILED, ConfigError, MoverError
from pipeline.secrets import Secret
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.format.config import read_config
from vadpipe.repository.format.sealing import Secrets
from vadpipe.repository.format.slot_changes import add_slot, change_passphrase, new_epoch, remove_slot
from vadpipe.repository.format.slots import Opened, SlotTable, default_ways, open_slot
from vadpipe.repository.format.ways import (
    AgeIdentity,
    AgeRecipient,
    KeyFile,
    NewWay,
    Passphrase,
    Way,
    make_key_file,
)
from vadpipe.repository.format.wrapping import Slot
from vadpipe.words import counted

from . import ending_signals
from .commands import OnRepository, json_option, key_options, repository_argument
from .output import report, show, table

F = TypeVar("F", bound=Callable[..., Any])

_STILL_KNOWN = "Who opened the repository with it still knows the secrets"


class Prompted(Secret):
    """A passphrase that is asked for on the terminal when it is needed, once."""

    @classmethod
    def new(cls, question: str, *, twice: bool = False) -> Prompted:
        """
        Args:
            twice: Ask until two answers in a row agree.
        """
        return cls(question, int(twice))

    def _read(self) -> str:
        if self._text is None:
            with _interruptible():
                text: str = click.prompt(
                    self.origin,
                    default="",
                    show_default=False,
                    hide_input=True,
                    confirmation_prompt="The same again" if self._place else False,
                    err=True,
                )
            object.__setattr__(self, "_text", text)
        assert self._text is not None
        return self._text


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, a signal ends the question in order, so that the terminal shows again what is typed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _file_option(name: str, what: str, variable: str = "") -> Callable[[F], F]:
    return click.option(
        name,
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar=variable or None,
        show_envvar=True,
        help=what,
    )


def unlock_options(command: F) -> F:
    """Options that open a sealed repository; the command gets the ways as its argument `ways`.

    Without any of them a passphrase is asked for, where there is a terminal, and only when it is needed. Open the
    repository in the main thread, so that Ctrl-C works at the question.
    """

    @functools.wraps(command)
    def with_ways(
        *args: object,
        key_file: Path | None,
        passphrase_file: Path | None,
        passphrase_env: str | None,
        age_identity: Path | None,
        **kwargs: object,
    ) -> object:
        ways = _ways(key_file, passphrase_file, passphrase_env, age_identity)
        if not ways and _can_ask():
            ways = [Passphrase(Prompted.new("Passphrase of the repository"))]
        return command(*args, ways=tuple(ways), **kwargs)

    with_ways.__click_params__ = [*reversed(key_options()), *getattr(command, "__click_params__", [])]  # type: ignore[attr-defined]
    return cast("F", with_ways)


def _ways(
    key_file: Path | None,
    passphrase_file: Path | None,
    passphrase_env: str | None,
    age_identity: Path | None,
) -> list[Way]:
    ways: list[Way] = []
    if key_file is not None:
        ways.append(KeyFile(key_file))
    if age_identity is not None:
        ways.append(AgeIdentity(age_identity))
    if passphrase_file is not None:
        ways.append(Passphrase.from_file(passphrase_file))
    if passphrase_env is not None:
        ways.append(Passphrase(Secret.from_env(passphrase_env)))
    return ways


@contextmanager
def opening(
    repository: str,
    *,
    key_file: Path | None,
    passphrase_file: Path | None,
    passphrase_env: str | None,
    age_identity: Path | None,
) -> Iterator[None]:
    """Inside, these options open sealed repositories. Without any, a passphrase is asked for, if there is a
    terminal and the repository is sealed: here, in the main thread, so that Ctrl-C works at the question."""
    ways = _ways(key_file, passphrase_file, passphrase_env, age_identity)
    if not ways and _can_ask() and _is_sealed(repository):
        question = Prompted.new("Passphrase of the repository")
        question.reveal()
        ways = [Passphrase(question)]
    before = default_ways.set(lambda: ways)
    try:
        yield
    finally:
        default_ways.reset(before)


def _is_sealed(repository: str) -> bool:
    try:
        _check_sealed(backend_at(repository))
    except MoverError:
        return False
    return True


def were_given(ways: Sequence[Way]) -> bool:
    """Whether the user named a way: a repository that is not sealed is then not the one that is meant."""
    return any(not (isinstance(way, Passphrase) and isinstance(way.secret, Prompted)) for way in ways)


_NEW = (
    _file_option("--new-key-file", "Let this key file open it; `vadpipe key file` makes one."),
    _file_option("--new-passphrase-file", "Let the passphrase in the first line open it."),
    click.option(
        "--new-passphrase-env",
        metavar="NAME",
        help="Let the passphrase in this environment variable open it.",
    ),
    click.option(
        "--age-recipient",
        metavar="RECIPIENT",
        help="Let the identity of this age recipient or ssh key open it.",
    ),
)


def new_way_options(command: F) -> F:
    """Options that say what opens the repository from now on; the command gets it as `new_way`, None for nothing.

    `asked` asks for a passphrase instead.
    """

    @functools.wraps(command)
    def with_new_way(
        *args: object,
        new_key_file: Path | None,
        new_passphrase_file: Path | None,
        new_passphrase_env: str | None,
        age_recipient: str | None,
        **kwargs: object,
    ) -> object:
        ways: list[NewWay] = []
        if new_key_file is not None:
            ways.append(KeyFile(new_key_file))
        if new_passphrase_file is not None:
            ways.append(Passphrase.from_file(new_passphrase_file))
        if new_passphrase_env is not None:
            ways.append(Passphrase(Secret.from_env(new_passphrase_env)))
        if age_recipient is not None:
            ways.append(AgeRecipient(age_recipient))
        if len(ways) > 1:
            raise click.UsageError("A key slot has one key: give one of the options that name it.")
        return command(*args, new_way=next(iter(ways), None), **kwargs)

    return cast("F", _with_options(with_new_way, _NEW))


def asked(new_way: NewWay | None) -> NewWay:
    """The new way, or a passphrase that is asked for twice. Raises ConfigError where nobody can be asked."""
    if new_way is not None:
        return new_way
    if not _can_ask():
        raise ConfigError(
            "There is no terminal to ask for the new passphrase.",
            remedy="Give --new-passphrase-file, --new-passphrase-env, --new-key-file or --age-recipient.",
        )
    return Passphrase(Prompted.new("New passphrase", twice=True))


def _with_options(command: Callable[..., object], options: Sequence[Callable[[Any], Any]]) -> object:
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def key() -> None:
    """List, add, change and remove the keys of a sealed repository."""


@key.command("list", cls=OnRepository)
@repository_argument
@unlock_options
@json_option
def list_keys(repository: str, ways: tuple[Way, ...], as_json: bool) -> int:
    """List the key slots. With a key, their seals are checked, too."""
    backend, naming = backend_at(repository), None
    if were_given(ways):
        naming = _opened(repository, ways)[2].secrets.naming
    else:
        _check_sealed(backend)
    found = SlotTable.read(backend)
    rows = [_row(found, slot, naming) for slot in found.slots]
    if naming is not None:
        problems = found.problems(naming)
    else:
        problems = [f"{name}: {problem}." for name, problem in sorted(found.damaged.items())]
    header = ("SLOT", "KIND", "LABEL", "CREATED", "EPOCHS", "SEAL")
    lines = table(header, [list(map(str, row.values())) for row in rows])
    show({"slots": rows, "problems": problems}, lines or ["There is no key slot."], as_json)
    for slot_id in found.without_slot():
        report(
            f"keys/{slot_id}/ has secrets, and their slot is gone. The next command that changes keys deletes "
            f"them, or do it now: vadpipe key remove {slot_id}"
        )
    for problem in problems:
        report(problem)
    return EXIT_FAILED if problems else EXIT_DONE


def _row(found: SlotTable, slot: Slot, naming: bytes | None) -> dict[str, object]:
    seal = "not checked"
    if naming is not None:
        seal = "right" if found.is_sound(slot, naming) else "WRONG"
    return {
        "id": slot.id,
        "kind": slot.kind,
        "label": slot.label,
        "created": slot.created,
        "epochs": ",".join(map(str, sorted(found.wraps.get(slot.id, ())))),
        "seal": seal,
    }


@key.command("add", cls=OnRepository)
@repository_argument
@click.option("--label", required=True, metavar="NAME", help="What the key slot is called.")
@new_way_options
@unlock_options
@json_option
def add_key(
    repository: str, label: str, new_way: NewWay | None, ways: tuple[Way, ...], as_json: bool
) -> None:
    """Let another passphrase, key file or age recipient open the repository."""
    new = asked(new_way)
    backend, identity, opened = _opened(repository, ways)
    slot = add_slot(backend, identity, opened.secrets, new, label)
    show({"slot": slot.id}, [f"Key slot {slot} opens {backend.place()} now."], as_json)


@key.command("remove", cls=OnRepository)
@repository_argument
@click.argument("slot")
@unlock_options
@json_option
def remove_key(repository: str, slot: str, ways: tuple[Way, ...], as_json: bool) -> None:
    """Remove a key slot, by its id, the begin of it, or its label. The last one is never removed."""
    backend, identity, opened = _opened(repository, ways)
    slot_id = SlotTable.read(backend).named(slot)
    remove_slot(backend, identity, opened.secrets, slot_id)
    lines = [
        f"Key slot {slot_id} is removed.",
        f"{_STILL_KNOWN}: `vadpipe key epoch` keeps from them what is written later.",
    ]
    show({"removed": slot_id}, lines, as_json)


@key.command("change", cls=OnRepository)
@repository_argument
@click.option("--slot", metavar="SLOT", help="The slot, by id or label; without it, the one that was opened.")
@new_way_options
@unlock_options
@json_option
def change_key(
    repository: str, slot: str | None, new_way: NewWay | None, ways: tuple[Way, ...], as_json: bool
) -> None:
    """Change a passphrase: add a slot with the new one, then remove that with the old one."""
    backend, identity, opened = _opened(repository, ways)
    old = SlotTable.read(backend).named(slot) if slot is not None else opened.slot.id
    new = asked(new_way)
    if not isinstance(new, Passphrase):
        raise click.UsageError("Only a passphrase can be changed. Add another key, then remove the old one.")
    made = change_passphrase(backend, identity, opened.secrets, old, new)
    lines = [
        f"Key slot {made} takes the place of {old}.",
        f"{_STILL_KNOWN}, with a copy of the old slot: `vadpipe key epoch` keeps from them what is written later.",
    ]
    show({"slot": made.id, "removed": old}, lines, as_json)


@key.command("epoch", cls=OnRepository)
@repository_argument
@unlock_options
@json_option
def make_epoch(repository: str, ways: tuple[Way, ...], as_json: bool) -> None:
    """Draw a new key for what is written from now on, and give it to every slot."""
    backend, identity, opened = _opened(repository, ways)
    secrets = new_epoch(backend, identity, opened.secrets)
    count = counted(len(SlotTable.read(backend).sound(secrets.naming)), "key slot")
    lines = [
        f"New runs write under epoch {secrets.newest}, which {count} can open.",
        "Runs that are going on write under the old one until they end.",
    ]
    show({"epoch": secrets.newest}, lines, as_json)


@key.command("file")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def key_file(file: Path, as_json: bool) -> None:
    """Make a key file that only its owner can read; `key add --new-key-file` lets it open a repository."""
    make_key_file(file)
    show({"file": str(file)}, [f"{file} is a key file. Keep a copy where the repository is not."], as_json)


def _opened(repository: str, ways: Sequence[Way]) -> tuple[Backend, bytes, Opened]:
    """The store, the id of the repository and its secrets, all of them proved."""
    backend = backend_at(repository)
    found: list[Opened] = []

    def opening(backend: Backend, identity: bytes) -> Secrets:
        found.append(open_slot(backend, identity, ways))
        return found[0].secrets

    config = read_config(backend, opening)
    if not found:
        raise _not_sealed(backend)
    return backend, config.id, found[0]


class _Sealed(Exception):
    """It is sealed; that is all that was asked."""


def _check_sealed(backend: Backend) -> None:
    """Raises ConfigError for a repository that is not sealed; what `read_config` raises."""

    def opening(backend: Backend, identity: bytes) -> NoReturn:
        raise _Sealed

    with suppress(_Sealed):
        read_config(backend, opening)
        raise _not_sealed(backend)


def _not_sealed(backend: Backend) -> ConfigError:
    return ConfigError(
        f"The repository {backend.place()} is not sealed, so it has no keys.",
        remedy="Make a sealed one with `vadpipe init --seal`, and copy into it.",
    )
