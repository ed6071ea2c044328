"""Which file belongs to the snapshot: both forms of backupManifest, the difference, the search."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.vsphere.inventory.datastore import DatastorePath
from vadpipe.vsphere.manifest.locate import FoundBy, FoundManifest, ListedFile
from vadpipe.vsphere.manifest.locate import find_manifest as find_in_searches
from vadpipe.vss.fetched import ManifestKind

DISKS = ["[ds1] web01/web01.vmx", "[ds1] web01/web01.vmdk"]
OLD = "[ds1] web01/web01-vss_manifests1.zip"
NEW = "[ds1] web01/web01-vss_manifests2.zip"
LINUX = "[ds1] web01/web01-quiesce_manifest1.xml"
ZIP = ManifestKind.VSS_ZIP


def find_manifest(told, directory, before, after, search):
    """As if the datastore had told no sizes and times, and nothing had been searched before."""
    return find_in_searches(told, directory, before, after, [], [ListedFile(path) for path in search])


def found(path: str, found_by: FoundBy, kind: ManifestKind = ZIP, size: int | None = None) -> FoundManifest:
    return FoundManifest(DatastorePath.parse(path), kind, found_by, size)


@pytest.mark.parametrize("directory", ["[ds1] web01/", "[ds1] web01"])
@pytest.mark.parametrize("told", [NEW, "web01-vss_manifests2.zip", "/web01-vss_manifests2.zip"])
def test_backup_manifest_can_be_full_or_relative(directory, told):
    assert find_manifest(told, directory, [], [], []) == found(NEW, FoundBy.BACKUP_MANIFEST)


def test_backup_manifest_comes_first():
    other = "[ds2] elsewhere/of my own.zip"
    answer = find_manifest(other, "[ds1] web01/", DISKS, [*DISKS, NEW], [NEW])
    assert answer == found(other, FoundBy.BACKUP_MANIFEST)


def test_a_snapshot_directory_can_be_the_root_of_a_datastore():
    answer = find_manifest("vss-manifest.zip", "[ds1] ", [], [], [])
    assert answer == found("[ds1] vss-manifest.zip", FoundBy.BACKUP_MANIFEST)


@pytest.mark.parametrize("told", ["../other/x-vss_manifests1.zip", "", None])
def test_an_unusable_backup_manifest_is_ignored(told):
    answer = find_manifest(told, "[ds1] web01/", DISKS, [*DISKS, NEW], [])
    assert answer == found(NEW, FoundBy.LAYOUT)


def test_a_new_name_in_the_layout_is_used_and_an_old_one_is_not():
    before = [*DISKS, OLD]
    assert find_manifest(None, "[ds1] web01/", before, [*before, NEW], []) == found(NEW, FoundBy.LAYOUT)
    assert find_manifest(None, "[ds1] web01/", before, before, [OLD]) is None


def test_an_old_zip_is_recognised_in_any_notation_of_its_directory():
    seen = "[vvol] naa.600a0b80/web01-vss_manifests1.zip"
    before = ["[vvol] web01/web01.vmx", "[vvol] web01/web01-vss_manifests1.zip"]
    assert find_manifest(None, "[vvol] naa.600a0b80/", before, before, [seen]) is None
    fresh = "[vvol] naa.600a0b80/web01-vss_manifests2.zip"
    answer = find_manifest(None, "[vvol] naa.600a0b80/", before, before, [seen, fresh])
    assert answer == found(fresh, FoundBy.SEARCH)


@pytest.mark.parametrize("directory", ["[ds1] web01", "[ds1] web01/"])
@pytest.mark.parametrize(
    "seen", ["web01-vss_manifests2.zip", NEW, "renamed-vss_manifests2.zip", "vss-manifest.zip"]
)
def test_a_search_can_list_names_or_paths(directory, seen):
    answer = find_manifest(None, directory, DISKS, DISKS, ["web01.vmx", seen])
    full = seen if seen.startswith("[") else f"[ds1] web01/{seen}"
    assert answer == found(full, FoundBy.SEARCH)


def test_nothing_is_new_when_nothing_is_known_from_before():
    assert find_manifest(None, "[ds1] web01/", [], [OLD], [OLD]) is None


def test_several_new_zips_are_ranked_by_number_not_by_text():
    tenth = "[ds1] web01/web01-vss_manifests10.zip"
    answer = find_manifest(None, "[ds1] web01/", DISKS, [*DISKS, NEW, tenth], [])
    assert answer == found(tenth, FoundBy.LAYOUT)


def test_the_manifest_of_a_linux_guest_is_found():
    layout = find_manifest(None, "[ds1] web01/", DISKS, [*DISKS, LINUX], [])
    assert layout == found(LINUX, FoundBy.LAYOUT, ManifestKind.LINUX_XML)
    told = find_manifest("web01-quiesce_manifest1.xml", "[ds1] web01/", [], [], [])
    assert told == found(LINUX, FoundBy.BACKUP_MANIFEST, ManifestKind.LINUX_XML)
    both = find_manifest(None, "[ds1] web01/", DISKS, [LINUX, NEW], [])
    assert both == found(NEW, FoundBy.LAYOUT)


def test_other_files_are_no_manifests():
    after = [*DISKS, "[ds1] web01/web01-000001.vmdk", "[ds1] web01/notes.zip", "garbage"]
    assert find_manifest(None, "[ds1] web01/", DISKS, after, ["vmware.log"]) is None
    assert find_manifest(None, "", DISKS, after, ["web01-vss_manifests2.zip"]) is None


BEFORE = datetime(2024, 5, 1, 22, 0, tzinfo=UTC)
LATER = BEFORE + timedelta(seconds=1)


@pytest.mark.parametrize("layout", [DISKS, [*DISKS, OLD]])
def test_a_reused_number_is_used_when_the_file_was_written_again(layout):
    seen, again = [ListedFile(OLD, 900, BEFORE)], [ListedFile(OLD, 950, LATER)]
    answer = find_in_searches(None, "[ds1] web01/", layout, [*layout, OLD], seen, again)
    assert answer is not None
    assert (str(answer.path), answer.size) == (OLD, 950)


@pytest.mark.parametrize(
    "after",
    [
        ListedFile(OLD, 900, BEFORE),
        ListedFile(OLD, 900, BEFORE - timedelta(days=1)),
        ListedFile(OLD, 950),
        ListedFile("[ds2] web01/web01-vss_manifests1.zip", 950, LATER),
    ],
    ids=["unchanged", "older", "time untold", "moved to another datastore"],
)
@pytest.mark.parametrize("before", [ListedFile(OLD, 900, BEFORE), ListedFile(OLD)])
def test_a_known_name_is_not_used_without_proof_of_a_new_write(before, after):
    assert find_in_searches(None, "[ds1] web01/", DISKS, DISKS, [before], [after]) is None


@pytest.mark.parametrize("told", [OLD, "web01-vss_manifests1.zip"])
def test_an_unchanged_file_is_not_used_even_when_vsphere_names_it(told):
    seen = [ListedFile(OLD, 900, BEFORE)]
    assert find_in_searches(told, "[ds1] web01/", DISKS, DISKS, seen, seen) is None
    anew = find_in_searches(told, "[ds1] web01/", DISKS, DISKS, seen, [ListedFile(OLD, 900, LATER)])
    assert anew == found(OLD, FoundBy.BACKUP_MANIFEST, size=900)
    unlisted = find_in_searches(told, "[ds1] web01/", DISKS, DISKS, seen, [])
    assert unlisted == found(OLD, FoundBy.BACKUP_MANIFEST)


def test_the_size_always_comes_from_the_search():
    search = [ListedFile("web01-vss_manifests2.zip", 123, LATER)]
    answer = find_in_searches(
        None, "[vvol] naa.60", DISKS, ["[vvol] web01/web01-vss_manifests2.zip"], [], search
    )
    assert answer == found("[vvol] web01/web01-vss_manifests2.zip", FoundBy.LAYOUT, size=123)


_names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs", "Cc"]), max_size=12)
_directories = st.tuples(
    st.text(st.characters(exclude_characters="[]/", exclude_categories=["Cs", "Cc"]), min_size=1).map(
        str.strip
    ),
    _names.map(str.strip),
).filter(lambda parts: parts[0] and parts[1] not in ("", ".", ".."))


@given(_directories, _names, st.booleans())
def test_any_directory_and_any_prefix_are_found(directory, prefix, slash):
    place = f"[{directory[0]}] {directory[1]}"
    name = f"{prefix}-vss_manifests3.zip"
    search = [ListedFile(f"{place}/{name}", 5)]
    answer = find_in_searches(None, place + "/" * slash, ["[x] y.vmx"], [], [], search)
    assert answer is not None
    assert (answer.path.name, answer.path.datastore, answer.size) == (name, directory[0], 5)
