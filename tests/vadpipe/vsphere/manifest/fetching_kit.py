"""A manifest in a datastore of the lab, with names that need care, and what fetching it gives."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.quiescing import QuiesceRequest
from vadpipe.lab.vss.recipe import manifest_zip
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.inventory.datastore import DatastorePath
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.manifest.fetch import ManifestFetcher, ManifestPlace, fetch_in_order, place_of
from vadpipe.vsphere.manifest.locate import FoundBy, FoundManifest
from vadpipe.vss.fetched import FetchedManifest, ManifestKind

DIRECTORY, NAME = "web 01 [a] 50% +#ä", "älter's-vss_manifests1.zip"
CONTENT = manifest_zip(QuiesceRequest("application", 5, True, False, 15, "web01"))


@dataclass
class Lying:
    """One manifest in the lab: `path`, on this machine; `session` and `place`, for the fetchers."""

    lab: LabVcenter
    path: Path
    session: VcenterSession
    found: FoundManifest
    place: ManifestPlace

    async def fetched(self, *fetchers: ManifestFetcher) -> FetchedManifest:
        return await fetch_in_order(self.session, self.found, self.place, fetchers)

    async def problem(self, fetcher: ManifestFetcher) -> str:
        """Why it could not be fetched."""
        fetched = await self.fetched(fetcher)
        assert (fetched.content, fetched.absent) == (None, False)
        (attempt,) = fetched.attempts
        assert fetched.reason == attempt.problem
        return attempt.problem


@asynccontextmanager
async def lying(lab: LabVcenter, vcenter: Vcenter, content: bytes = CONTENT) -> AsyncIterator[Lying]:
    directory = lab.datastore("data store") / DIRECTORY
    lab.register_vm(directory, "web01", [], datastore="data store")
    (directory / NAME).write_bytes(content)
    async with vcenter.connect() as session:
        path = DatastorePath("data store", f"{DIRECTORY}/{NAME}")
        found = FoundManifest(path, ManifestKind.VSS_ZIP, FoundBy.LAYOUT, len(content))
        place = await place_of(session, await find_vm(session, "web01"), found)
        yield Lying(lab, directory / NAME, session, found, place)
