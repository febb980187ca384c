"""``manage.py migrate_sessions``: moves sessions from one engine to another."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from tqdm import tqdm

from gsession_django import operations
from gsession_django.backends.memory import MemoryStorage
from gsession_django.engine import Engine, engine_of
from gsession_django.management.common import interrupt, positive, session_store
from gsession_django.moving import steps
from gsession_django.moving.choice import source_of
from gsession_django.moving.our_engines import OurSource
from gsession_django.moving.refused import cure, refused_types
from gsession_django.moving.source import Found, Source
from gsession_django.moving.steps import Outcome
from gsession_django.session_map import SessionMap
from gsession_django.storage import StorageUnavailable
from gsession_django.store import SessionStore

BATCH_SIZE: Final = 500
"""Sessions that are moved in one go, where nobody says otherwise."""

# Seconds that a session lives which is made to see whether two engines keep theirs in one place.
_PROBE_TTL: Final = 60
# Reasons for which the target has refused sessions that are shown, those of the most sessions first.
_ERRORS: Final = 5


class Command(BaseCommand):
    help = (
        "Moves the live sessions of one engine to another, with their keys, their data and what they have left to "
        "live, so that the visitors' cookies go on working. It never overwrites a session, and may be stopped and run "
        "again at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--from", dest="source", metavar="ENGINE", required=True, help="the session engine to move them from"
        )
        parser.add_argument(
            "--to", dest="target", metavar="ENGINE", help="the one to move them to, if it is not SESSION_ENGINE"
        )
        parser.add_argument("--copy", action="store_true", help="leave them where they are, too")
        parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be done")
        parser.add_argument(
            "--batch-size",
            type=positive,
            default=BATCH_SIZE,
            metavar="N",
            help="how many sessions are moved in one go (default: %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            migration = _Migration(options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        with interrupt() as interrupted, tqdm(unit=" sessions", disable=None, leave=False) as bar:
            try:
                if not migration.dry_run:
                    migration.check_places()
                for refs in migration.source.batches(options["batch_size"]):
                    migration.carry(refs)
                    bar.update(len(refs))
                    if interrupted.is_set():
                        break
            except ImproperlyConfigured as error:
                raise CommandError(str(error)) from error
            except (StorageUnavailable, DatabaseError) as error:
                reason = str(error).strip().rstrip(".")
                raise CommandError(f"{migration.summary()} Then: {reason}. Run it again to go on.") from error
        if interrupted.is_set():
            raise CommandError(f"Interrupted. {migration.summary()} Run it again to go on.", returncode=130)
        self.stdout.write(migration.summary())
        for line in migration.remarks():
            self.stdout.write(line)
        if refusals := migration.refusals():
            raise CommandError("\n".join(refusals))


class _Migration:
    """One run of the command: from where, to where, how, and what it has done.

    Raises ``ImproperlyConfigured`` where sessions cannot be moved so.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.source: Source = source_of(options["source"])
        named = options["target"] is not None
        self.target: str = options["target"] if named else settings.SESSION_ENGINE
        store = session_store(
            self.target,
            "--to" if named else "SESSION_ENGINE",
            "Sessions are moved to one of those: name it with --to.",
        )
        _check_engines(self.source, self.target, store)
        self.dry_run: bool = options["dry_run"]
        self._engine: Engine = engine_of(store)
        if lacking := {"create", "apply"} - self._engine.able:
            raise ImproperlyConfigured(
                f"No session can be moved to {self._engine.name}: its storage has no {'() and no '.join(lacking)}()."
            )
        self._id_of = _ids(self.source, self._engine)
        self._age = store().get_session_cookie_age
        self._done: Counter[Outcome | str] = Counter()
        self._types: set[str] = set()
        self._errors: Counter[str] = Counter()
        self._copies: bool = options["copy"]

    def check_places(self) -> None:
        """Refuse two engines that are one place under two names: a session would be taken for its own copy there."""
        if not isinstance(self.source, OurSource):
            return
        with self._probe() as probe:
            same = self.source.present([probe])
        if same:
            raise ImproperlyConfigured(
                f"The engines {self.source.name!r} and {self.target!r} keep their sessions in one and the same place, "
                "so that there is nothing to move."
            )

    @contextmanager
    def _probe(self) -> Iterator[str]:
        """Let the target have a session that is nobody's, for a moment; yield its id."""
        engine, probe = self._engine, self._engine.id_of(secrets.token_hex(16))
        engine.run(operations.create(engine, probe, SessionMap({}), _PROBE_TTL))
        try:
            yield probe
        finally:
            engine.run(operations.remove(engine, probe))

    def carry(self, refs: Sequence[str]) -> None:
        """Move the sessions of one batch, or do what was asked for instead."""
        found = self.source.read(refs)
        self._done["expired"] += len(refs) - len(found)
        batch: dict[str, tuple[str, Found]] = {}
        for ref, session in found.items():
            if session is None:
                self._done["unreadable"] += 1
            elif types := refused_types(session.data):
                self._done["untaken"] += 1
                self._types.update(types)
            else:
                batch[ref] = self._id_of(ref), session
        self._carry(batch)

    def _carry(self, batch: dict[str, tuple[str, Found]]) -> None:
        """Do it, and where that fails do it one by one, so that a session that the target refuses holds up no other."""
        if self.dry_run:
            operation = steps.foresee(self._engine, batch, self._age)
        else:
            operation = (steps.copy if self._copies else steps.move)(self._engine, self.source, batch, self._age)
        try:
            self._done.update(self._engine.run(operation).values())
        except ImproperlyConfigured:
            raise
        except Exception as error:  # each storage has its own
            if len(batch) > 1:
                for ref, session in batch.items():
                    self._carry({ref: session})
            elif self.dry_run or not self._works(batch):
                raise
            else:
                self._errors[f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"] += 1

    def _works(self, refs: Iterable[str]) -> bool:
        """Whether both engines answer, so that what failed did so because of these sessions."""
        try:
            self.source.present(list(refs))
            with self._probe():
                return True
        except Exception:
            return False

    def summary(self) -> str:
        done, moved = self._done, self._done[Outcome.MOVED]
        verb = {
            (False, False): "Moved",
            (False, True): "Copied",
            (True, False): "Would move",
            (True, True): "Would copy",
        }[self.dry_run, self._copies]
        sessions = "1 session" if moved == 1 else f"{moved} sessions"
        refused = done["untaken"] + self._errors.total()
        return (
            f"{verb} {sessions} from {self.source.name} to {self.target}; skipped {done[Outcome.SKIPPED]}, expired "
            f"{done['expired']}, unreadable {done['unreadable']}"
            f"{f', refused {refused}' if refused else ''}"
            f"{f', ended meanwhile {done[Outcome.ENDED]}' if done[Outcome.ENDED] else ''}."
        )

    def remarks(self) -> list[str]:
        """Return what there is to say about those that were not moved."""
        remarks = []
        if self._done[Outcome.SKIPPED]:
            remarks.append(
                f"Skipped: {self.target} has these sessions too, with other data. Both were left as they are."
            )
        if self._done["unreadable"]:
            remarks.append(
                "Unreadable: these were left as they are. Their signature may be that of another SECRET_KEY, or they "
                "were written with another SESSION_SERIALIZER."
            )
        return remarks

    def refusals(self) -> list[str]:
        """Return what the target cannot take, and what to do about it."""
        lines = []
        if untaken := self._done["untaken"]:
            types = sorted(self._types)
            lines.append(
                f"{_sessions(untaken)} values that SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot take "
                f"({', '.join(types)}). {cure(types)} They were left at {self.source.name}: run the command again then."
            )
        for error, number in self._errors.most_common(_ERRORS):
            lines.append(
                f"{self.target} refused {'1 session' if number == 1 else f'{number} sessions'}, left at "
                f"{self.source.name}: {error}."
            )
        return lines


def _sessions(number: int) -> str:
    return "1 session holds" if number == 1 else f"{number} sessions hold"


def _check_engines(source: Source, target: str, store: type[SessionStore]) -> None:
    if source.name == target:
        raise ImproperlyConfigured(
            f"Sessions are to be moved from {target!r} to the same engine. Name another one with --from or --to."
        )
    if issubclass(store.storage_class, MemoryStorage):
        raise ImproperlyConfigured(
            f"The engine {target!r} keeps sessions in the memory of a process, where no other can reach them, so that "
            "they cannot be moved there."
        )


def _ids(source: Source, target: Engine) -> Callable[[str], str]:
    """Return what makes the id at the target of what a session is known by at the source."""
    if not isinstance(source, OurSource) or not source.engine.hash_ids:
        return target.id_of
    if target.hash_ids:
        return str
    raise ImproperlyConfigured(
        f"{source.engine.name} knows sessions by hashed session keys, and {target.name} by the session keys themselves "
        "(hash_ids is off), which nobody can tell from the hashes. Leave hash_ids on at the target."
    )
