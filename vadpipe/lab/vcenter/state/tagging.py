"""Categories, tags and what carries them, and the sessions of the REST API, which are not those of SOAP.

Kept in `tags.json` of the lab directory; sessions are not.
"""

from __future__ import annotations

import json
import secrets
import threading
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .inventory import replace_file

if TYPE_CHECKING:
    from ..api.sessions import Clock


@dataclass
class Category:
    """tags: their names by id."""

    name: str
    tags: dict[str, str] = field(default_factory=dict)


class Tagging:
    """May be used from any thread. idle_s: idle seconds after which a session ends; clock: monotonic seconds."""

    def __init__(self, root: Path, idle_s: float, clock: Clock) -> None:
        self._path = root / "tags.json"
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last_used_s: dict[str, float] = {}
        self.categories: dict[str, Category] = {}
        self.carriers: dict[str, list[tuple[str, str]]] = {}
        """By the tag's id, (type, moref) of each."""
        if self._path.exists():
            document = json.loads(self._path.read_text())
            self.categories = {id: Category(**fields) for id, fields in document["categories"].items()}
            self.carriers = {
                id: [(kind, moref) for kind, moref in on] for id, on in document["carriers"].items()
            }

    # What the test does

    def create(self, category: str, tag: str) -> str:
        """A new tag, in a new category unless there is one of that name; its id."""
        with self._lock:
            category_id = next((id for id, one in self.categories.items() if one.name == category), None)
            if category_id is None:
                category_id = _new_id("InventoryServiceCategory")
                self.categories[category_id] = Category(category)
            tag_id = _new_id("InventoryServiceTag")
            self.categories[category_id].tags[tag_id] = tag
            self.carriers[tag_id] = []
            self._save()
            return tag_id

    def attach(self, tag_id: str, moref: str, kind: str = "VirtualMachine") -> None:
        """kind: the API's type of the object. Raises KeyError for an unknown tag."""
        with self._lock:
            self.carriers[tag_id].append((kind, moref))
            self._save()

    def attach_once(self, tag_id: str, kind: str, moref: str) -> None:
        """As `attach`; nothing happens where the object carries the tag."""
        if (kind, moref) not in self.carriers[tag_id]:
            self.attach(tag_id, moref, kind)

    def detach(self, tag_id: str, kind: str, moref: str) -> None:
        """Raises KeyError for an unknown tag."""
        with self._lock:
            self.carriers[tag_id] = [one for one in self.carriers[tag_id] if one != (kind, moref)]
            self._save()

    def forget(self, moref: str) -> None:
        """Take every tag from an object that is gone."""
        with self._lock:
            if any(moref == carrier for carriers in self.carriers.values() for _, carrier in carriers):
                for tag_id, carriers in self.carriers.items():
                    self.carriers[tag_id] = [one for one in carriers if one[1] != moref]
                self._save()

    def end_sessions(self) -> None:
        """End every session of the REST API, as idleness or a restart would."""
        with self._lock:
            self._last_used_s.clear()

    @property
    def live_sessions(self) -> int:
        """How many nobody has logged out of."""
        return len(self._last_used_s)

    # What the REST API does

    def open_session(self) -> str:
        """A new session's id, which later requests name."""
        token = secrets.token_hex(16)
        with self._lock:
            self._last_used_s[token] = self._clock()
        return token

    def end_session(self, token: str) -> None:
        with self._lock:
            self._last_used_s.pop(token, None)

    def is_session(self, token: str | None) -> bool:
        """Whether it is a live session, which is marked as used now."""
        with self._lock:
            used_s = self._last_used_s.get(token or "")
            if token is None or used_s is None:
                return False
            if self._clock() - used_s > self._idle_s:
                del self._last_used_s[token]
                return False
            self._last_used_s[token] = self._clock()
            return True

    def _save(self) -> None:
        document = {
            "categories": {id: asdict(category) for id, category in self.categories.items()},
            "carriers": self.carriers,
        }
        replace_file(self._path, json.dumps(document))


def _new_id(kind: str) -> str:
    """In vCenter's form."""
    return f"urn:vmomi:{kind}:{uuid.uuid4()}:GLOBAL"
