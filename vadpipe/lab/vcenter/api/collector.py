"""PropertyCollector: bulk reads in pages, and waiting for changes.

Waiting compares: a filter keeps a fingerprint of every value it reported and looks again at the objects that
were touched since. A version string counts the update sets of one collector; the newest set is kept, so that a
client whose answer was lost may ask once more with the version it had.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from .managed import Call, Managed, vim_property
from .selection import Selected, read_path, select
from .soap import fingerprint

if TYPE_CHECKING:
    from ..service import SessionScope


def _read(
    selected: Selected,
) -> tuple[dict[str, object], list[vmodl.query.PropertyCollector.MissingProperty]]:
    """The values of the wanted paths, and those that the lab cannot give. Unset ones are in neither."""
    values: dict[str, object] = {}
    missing = []
    service = selected.managed.service
    service.asked.update((selected.managed.vim_type, path) for path in selected.paths)
    for path in selected.paths:
        if path in service.unset:
            continue
        try:
            value = read_path(selected.managed, path)
        except vmodl.fault.NotSupported as fault:
            missing.append(vmodl.query.PropertyCollector.MissingProperty(path=path, fault=fault))
        else:
            if value is not None:
                values[path] = value
    return values, missing


class Filter(Managed):
    """One filter of a collector and what it reported last: a fingerprint per object and path."""

    vim_type = vmodl.query.PropertyCollector.Filter

    def __init__(
        self,
        collector: PropertyCollector,
        moref: str,
        filter_spec: vmodl.query.PropertyCollector.FilterSpec,
    ) -> None:
        super().__init__(collector.service, moref)
        self._collector = collector
        self._spec = filter_spec
        self._reported: dict[str, tuple[Managed, dict[str, str]]] = {}
        self._looked_at = 0

    @vim_property
    def spec(self) -> vmodl.query.PropertyCollector.FilterSpec:
        return self._spec

    @vim_property
    def partialUpdates(self) -> bool:
        return False

    def DestroyPropertyFilter(self, call: Call) -> None:
        self._collector.forget(self)

    def reset(self) -> None:
        self._reported.clear()

    def update(self) -> vmodl.query.PropertyCollector.FilterUpdate | None:
        """What changed since the last report, None for nothing. Called with the lock held."""
        changes = self.service.changes
        updates = []
        current = {one.managed.moref: one for one in self._selected()}
        for moref, selected in current.items():
            if moref not in self._reported or changes.stamp(moref) > self._looked_at:
                update = self._update_of(selected)
                updates += [update] if update else []
        for moref in self._reported.keys() - current.keys():
            gone, _ = self._reported.pop(moref)
            updates.append(vmodl.query.PropertyCollector.ObjectUpdate(kind="leave", obj=gone.ref))
        self._looked_at = changes.clock
        return (
            vmodl.query.PropertyCollector.FilterUpdate(filter=self.ref, objectSet=updates)
            if updates
            else None
        )

    def _selected(self) -> list[Selected]:
        try:
            return list(select(self._collector.scope, self._spec))
        except vmodl.fault.ManagedObjectNotFound:
            return []  # what the filter starts from is gone, so everything leaves

    def _update_of(self, selected: Selected) -> vmodl.query.PropertyCollector.ObjectUpdate | None:
        moref = selected.managed.moref
        _, before = self._reported.get(moref, (None, {}))
        values, missing = _read(selected)
        now = {path: fingerprint(value) for path, value in values.items()}
        changed = [path for path in selected.paths if before.get(path) != now.get(path)]
        entering = moref not in self._reported
        self._reported[moref] = (selected.managed, now)
        if not changed and not entering:
            return None
        return vmodl.query.PropertyCollector.ObjectUpdate(
            kind="enter" if entering else "modify",
            obj=selected.managed.ref,
            changeSet=[
                vmodl.query.PropertyCollector.Change(name=path, op="assign", val=values.get(path))
                for path in changed
            ],
            missingSet=missing,
        )


class PropertyCollector(Managed):
    """One collector of one session: the session's own, or one made by CreatePropertyCollector."""

    vim_type = vmodl.query.PropertyCollector

    def __init__(self, scope: SessionScope, moref: str) -> None:
        super().__init__(scope.service, moref)
        self.scope = scope
        self._filters: dict[str, Filter] = {}
        self._pages: dict[str, list[Selected]] = {}
        self._version = 0
        self._newest: vmodl.query.PropertyCollector.UpdateSet | None = None
        self._cancellations = 0

    @vim_property
    def filter(self) -> list[vmodl.query.PropertyCollector.Filter]:
        return [vmodl.query.PropertyCollector.Filter(moref) for moref in self._filters]

    def CreatePropertyCollector(self, call: Call) -> vmodl.query.PropertyCollector:
        collector = PropertyCollector(self.scope, self.scope.session.new_moref())
        self.scope.session.objects[collector.moref] = collector
        return vmodl.query.PropertyCollector(collector.moref)

    def DestroyPropertyCollector(self, call: Call) -> None:
        self.scope.session.objects.pop(self.moref, None)
        self.service.changes.touch()

    def RetrieveProperties(
        self, call: Call, spec_set: list[vmodl.query.PropertyCollector.FilterSpec]
    ) -> list[vmodl.query.PropertyCollector.ObjectContent]:
        with self.service.changes.lock:
            return self._contents([one for spec in spec_set for one in select(self.scope, spec)])

    def RetrievePropertiesEx(
        self,
        call: Call,
        spec_set: list[vmodl.query.PropertyCollector.FilterSpec],
        options: vmodl.query.PropertyCollector.RetrieveOptions,
    ) -> vmodl.query.PropertyCollector.RetrieveResult | None:
        with self.service.changes.lock:
            selected = [one for spec in spec_set for one in select(self.scope, spec)]
        size = min(options.maxObjects or self.service.settings.page_size, self.service.settings.page_size)
        return self._page(selected, size) if selected else None

    def ContinueRetrievePropertiesEx(
        self, call: Call, token: str
    ) -> vmodl.query.PropertyCollector.RetrieveResult:
        if token not in self._pages:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="token", msg=f"There is no retrieval {token!r}."
            )
        size = int(token.partition(":")[0])
        return self._page(self._pages.pop(token), size)

    def CancelRetrievePropertiesEx(self, call: Call, token: str) -> None:
        self._pages.pop(token, None)

    def CreateFilter(
        self, call: Call, spec: vmodl.query.PropertyCollector.FilterSpec, partial_updates: bool
    ) -> vmodl.query.PropertyCollector.Filter:
        created = Filter(self, self.scope.session.new_moref(), spec)
        with self.service.changes.lock:
            list(select(self.scope, spec))  # a wrong spec fails here
            self._filters[created.moref] = created
            self.scope.session.objects[created.moref] = created
            self.service.changes.touch()
        return vmodl.query.PropertyCollector.Filter(created.moref)

    def forget(self, gone: Filter) -> None:
        self._filters.pop(gone.moref, None)
        self.scope.session.objects.pop(gone.moref, None)

    def CheckForUpdates(
        self, call: Call, version: str | None
    ) -> vmodl.query.PropertyCollector.UpdateSet | None:
        return self.WaitForUpdatesEx(
            call, version, vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=0)
        )

    def WaitForUpdates(
        self, call: Call, version: str | None
    ) -> vmodl.query.PropertyCollector.UpdateSet | None:
        return self.WaitForUpdatesEx(call, version, None)

    def CancelWaitForUpdates(self, call: Call) -> None:
        with self.service.changes.lock:
            self._cancellations += 1
            self.service.changes.touch()

    def WaitForUpdatesEx(
        self, call: Call, version: str | None, options: vmodl.query.PropertyCollector.WaitOptions | None
    ) -> vmodl.query.PropertyCollector.UpdateSet | None:
        limit_s = options.maxWaitSeconds if options else None
        deadline = None if limit_s is None else time.monotonic() + limit_s
        with self.service.changes.lock:
            if self._newest is not None and version == str(self._version - 1):
                return self._newest
            if not version:
                for one in self._filters.values():
                    one.reset()
            elif version != str(self._version):
                raise vmodl.query.InvalidCollectorVersion()
            cancellations = self._cancellations
            while True:
                self._raise_if_ended(cancellations)
                updates = [update for one in self._filters.values() if (update := one.update())]
                if updates:
                    self._version += 1
                    self._newest = vmodl.query.PropertyCollector.UpdateSet(
                        version=str(self._version), filterSet=updates, truncated=False
                    )
                    return self._newest
                if not self.service.changes.wait(deadline):
                    return None

    def _raise_if_ended(self, cancellations: int) -> None:
        session = self.scope.session
        if not session.alive:
            raise vim.fault.NotAuthenticated(object=self.ref, privilegeId="System.View")
        destroyed = session.objects.get(self.moref) is not self
        if destroyed or self._cancellations != cancellations or self.service.stopping:
            raise vmodl.fault.RequestCanceled(msg="The request was canceled.")

    def _page(self, selected: list[Selected], size: int) -> vmodl.query.PropertyCollector.RetrieveResult:
        now, later = selected[:size], selected[size:]
        token = None
        if later:
            token = f"{size}:{uuid.uuid4()}"
            self._pages[token] = later
        with self.service.changes.lock:
            return vmodl.query.PropertyCollector.RetrieveResult(token=token, objects=self._contents(now))

    def _contents(self, selected: list[Selected]) -> list[vmodl.query.PropertyCollector.ObjectContent]:
        contents = []
        for one in selected:
            try:
                values, missing = _read(one)
            except vmodl.fault.ManagedObjectNotFound:
                continue  # removed between two pages
            properties = [vmodl.DynamicProperty(name=path, val=value) for path, value in values.items()]
            contents.append(
                vmodl.query.PropertyCollector.ObjectContent(
                    obj=one.managed.ref, propSet=properties, missingSet=missing
                )
            )
        return contents
