"""Datastore paths and their URL; the standard library's URL parser is the witness."""

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.vsphere.inventory.datastore import DatastorePath, folder_url

segments = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text not in (".", "..")
)
datastores = st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"]), min_size=1)
paths = st.builds(DatastorePath, datastores, st.lists(segments, min_size=1, max_size=4).map("/".join))


@pytest.mark.parametrize(
    ("text", "datastore", "path"),
    [
        ("[ds] dir/file.zip", "ds", "dir/file.zip"),
        ("[ds] dir/", "ds", "dir"),
        ("[ds]", "ds", ""),
        ("[ds] ", "ds", ""),
        ("[a]b] [c] d/e", "a]b", "[c] d/e"),
        ("[vvol] naa.60/x  y.zip", "vvol", "naa.60/x  y.zip"),
    ],
)
def test_a_datastore_path_is_parsed(text, datastore, path):
    assert DatastorePath.parse(text) == DatastorePath(datastore, path)


@pytest.mark.parametrize("text", ["", "dir/file", "[] x", "[ds]x", "[ds", "[ds] a/../b", "[ds] ./a"])
def test_other_texts_are_no_datastore_paths(text):
    with pytest.raises(ValueError, match="datastore path"):
        DatastorePath.parse(text)


@given(paths)
def test_formatting_and_parsing_are_inverse(path):
    assert DatastorePath.parse(str(path)) == path


@given(paths, segments)
def test_join_parent_and_name_are_inverse(path, name):
    assert path.join(name).parent == path
    assert path.join(name).name == name


@given(paths, st.lists(segments, min_size=1, max_size=3).map("/".join))
def test_the_url_keeps_every_character_of_a_path(path, datacenter):
    url = urlsplit(folder_url("vc01.example.com", path, datacenter))
    assert (url.scheme, url.netloc, url.fragment) == ("https", "vc01.example.com", "")
    assert [unquote(one) for one in url.path.split("/")] == ["", "folder", *path.path.split("/")]
    assert parse_qs(url.query, strict_parsing=True) == {"dcPath": [datacenter], "dsName": [path.datastore]}


def test_the_url_of_a_vcenter_names_the_datacenter_and_that_of_a_host_does_not():
    path = "[data store] web 01/web#1%.zip"
    assert folder_url("vc:8443", path, "/Sites/DC 1") == (
        "https://vc:8443/folder/web%2001/web%231%25.zip?dcPath=Sites%2FDC%201&dsName=data%20store"
    )
    assert folder_url("esx", path, None) == "https://esx/folder/web%2001/web%231%25.zip?dsName=data%20store"
