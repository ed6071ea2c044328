"""From what a person writes to a backend, and what is refused before anybody is contacted."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError
from vadpipe.repository.backends.cached import Cached
from vadpipe.repository.backends.contract import checked_name, checked_prefix
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.backends.s3 import S3Backend
from vadpipe.repository.backends.s3_location import S3Location
from vadpipe.repository.store import Repository


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    "place", ["/srv/backup", "relative", "./x", "C:\\backup", "a:b", "s3:/x", Path("/srv/x")]
)
def test_a_path_is_a_directory(place):
    backend = backend_at(place)
    assert isinstance(backend, LocalBackend)
    assert backend.root == Path(place)


def test_a_path_that_looks_like_a_url_is_given_as_a_path():
    assert isinstance(backend_at(Path("s3://x")), LocalBackend)


@pytest.mark.parametrize("place", ["http://host/x", "sftp://host/x", "file:///srv", "gs://bucket"])
def test_a_scheme_that_no_backend_has_is_refused(place):
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        backend_at(place)


def test_an_empty_place_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        backend_at("")


def test_a_url_has_a_bucket_a_prefix_and_options():
    location = S3Location.parse(
        "s3://backup.example/a/b/?endpoint=https://s3.example.com:9000&region=eu-1&ca=/etc/ca%20x.pem"
    )
    assert location == S3Location(
        "backup.example", "a/b", "https://s3.example.com:9000", "eu-1", Path("/etc/ca x.pem")
    )
    assert location.place("packs/x.pack") == "s3://backup.example/a/b/packs/x.pack"
    backend = S3Backend(location)
    assert S3Location.parse(backend.place()) == location
    assert backend.place("x") == "s3://backup.example/a/b/x"


names = st.from_regex(r"[A-Za-z0-9_.~%-]{1,8}", fullmatch=True).filter(
    lambda part: part not in (".", "..", "tmp")
)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True),
    st.lists(names, max_size=3).map("/".join),
    st.sampled_from(["", "https://s3.example.com", "http://127.0.0.1:9000", "https://[::1]:9000"]),
    st.sampled_from(["", "eu-central-1"]),
    st.sampled_from([None, Path("/etc/ca & more=1?.pem"), Path("relative#.pem")]),
    st.booleans(),
    st.booleans(),
)
def test_a_location_and_its_url_are_the_same(bucket, prefix, endpoint, region, ca, allow_http, conditional):
    location = S3Location(bucket, prefix, endpoint, region, ca, allow_http, conditional)
    assert S3Location.parse(str(location)) == location


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        (f"s3://KEY:{SECRET}@bucket/prefix", "AWS_ACCESS_KEY_ID"),
        (f"s3://{SECRET}@bucket/prefix", "AWS_ACCESS_KEY_ID"),
        (f"s3://bucket/x?secret_access_key={SECRET}", "AWS_ACCESS_KEY_ID"),
        (f"s3://bucket/x?token={SECRET}", "AWS_ACCESS_KEY_ID"),
        (f"s3://bucket/x?endpoint=https://KEY:{SECRET}@host", "AWS_ACCESS_KEY_ID"),
        (f"s3://bucket/x?endpoint=https://host/?key={SECRET}", "endpoint"),
        ("s3://bucket/x?endpoint=http://s3.example.com", "allow_http"),
        ("s3://bucket/x?endpoint=s3.example.com", "endpoint"),
        ("s3://bucket/x?endpoint=ftp://host", "endpoint"),
        ("s3://bucket/x?endpoint=https://host:port", "endpoint"),
        ("s3://bucket/x?endpoint=https://[host", "endpoint"),
        ("s3://bucket/x?colour=red", "options are"),
        ("s3://bucket/x?region=a&region=b", "twice"),
        ("s3://bucket/x?region=", "empty"),
        ("s3://bucket/x?region", "no URL"),
        ("s3://bucket/x?conditional=maybe", "yes or no"),
        ("s3:///x", "s3://bucket/prefix"),
        ("s3://b/x", "s3://bucket/prefix"),
        ("s3://bucket:99/x", "s3://bucket/prefix"),
        ("s3://bucket/x#y", "s3://bucket/prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/../b", "prefix"),
        ("s3://bucket/a%2F..%2Fb", "prefix"),
        ("s3://bucket/a b", "prefix"),
        ("s3://[bucket/x", "no URL"),
    ],
)
def test_a_url_that_is_wrong_is_refused_before_anybody_is_contacted(url, word, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("somebody was contacted"))
    with pytest.raises(ConfigError, match=re.escape(word)) as caught:
        backend_at(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "[::1]:9000", "127.9.9.9"])
def test_http_is_allowed_to_this_host(host):
    assert S3Location("bucket", endpoint=f"http://{host}/").endpoint_url() == f"http://{host}"


def test_http_is_allowed_to_another_host_when_asked_for():
    assert backend_at("s3://bucket/x?endpoint=http://s3.example.com&allow_http=yes")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_the_endpoint_of_the_environment_is_judged_too(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://s3.example.com")
    with pytest.raises(ConfigError, match="TLS"):
        backend_at("s3://bucket/x")
    monkeypatch.setenv(variable, "https://s3.example.com")
    assert S3Location("bucket").endpoint_url() == "https://s3.example.com"


@given(st.text(max_size=30))
def test_a_name_of_an_object_is_a_path_below_its_root(name):
    try:
        assert checked_name(name) == name
    except ValueError:
        return
    path = Path("/root") / name
    assert path.as_posix() == f"/root/{name}"
    assert ".." not in path.parts
    assert path.parts[2] != "tmp"
    for end in range(len(name) + 1):
        if name[:end].rpartition("/")[2] not in (".", ".."):
            assert checked_prefix(name[:end]) == name[:end]


@given(names, names, names)
def test_allowed_parts_make_a_name(first, second, third):
    assert checked_name(f"{first}/{second}/{third}")
    for wrong in (f"{first}//{second}", f"/{first}", f"{first}/", f"{first}/../{second}", f"tmp/{first}"):
        with pytest.raises(ValueError, match="no name"):
            checked_name(wrong)


def copies_of(place):
    """The directory of the copies of an index."""
    backend = backend_at(place)
    assert isinstance(backend, Cached)
    return backend.directory


def around(backend):
    """The backends from the outside to the inside, by the names of their classes."""
    found = [type(backend).__name__]
    while hasattr(backend, "inner"):
        backend = backend.inner
        found.append(type(backend).__name__)
    return found


def test_a_bucket_has_retries_and_copies_of_its_index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = backend_at("s3://bucket/x?region=eu-1")
    assert around(backend) == ["Cached", "Retrying", "S3Backend"]
    assert copies_of("s3://bucket/x").parent == tmp_path / "vadpipe"
    assert backend.place() == "s3://bucket/x?region=eu-1"
    assert list(tmp_path.iterdir()) == []


def test_repositories_have_caches_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = ["s3://bucket/x", "s3://bucket/y", "s3://other/x", "s3://bucket/x?endpoint=https://s3.example"]
    assert len({copies_of(place) for place in places}) == 4
    assert copies_of("s3://bucket/x?region=eu-1") == copies_of("s3://bucket/x")


def test_without_a_home_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert "Cached" not in around(backend_at("s3://bucket/x"))


def test_the_cache_can_be_named_and_left_out(tmp_path):
    assert copies_of(f"s3://bucket/x?cache={tmp_path}&region=a") == tmp_path
    assert "Cached" not in around(backend_at("s3://bucket/x?cache=none"))


@pytest.mark.parametrize("place", ["s3://bucket/x?throttle=50MiB", "s3://bucket/x?region=a&throttle=50MiB/s"])
def test_a_url_limits_bytes_per_second(place):
    backend = backend_at(place)
    assert "Throttled" in around(backend)
    assert "throttle" not in backend.place()
    assert S3Location.parse(backend.place()).bucket == "bucket"


def test_a_directory_can_be_throttled_too(tmp_path):
    assert around(backend_at(tmp_path, throttle="1.5MiB")) == ["Throttled", "LocalBackend"]
    assert around(Repository(tmp_path, throttle=1 << 20).backend()) == ["Throttled", "LocalBackend"]
    assert around(Repository(tmp_path).backend()) == ["LocalBackend"]


@pytest.mark.parametrize("rate", ["fast", "0MiB", "-1MiB", "", 0, "50MB"])
def test_a_limit_that_is_none_is_refused_when_it_is_written(tmp_path, rate):
    with pytest.raises(ConfigError, match="50MiB"):
        Repository(tmp_path, throttle=rate)


@pytest.mark.parametrize(
    "options", ["cache=", "cache=none&cache=none", "throttle=", "throttle=fast", "cache=relative"]
)
def test_a_wrong_option_of_what_lies_around_the_bucket_is_refused(options):
    with pytest.raises(ConfigError, match=r"cache|throttle"):
        backend_at(f"s3://bucket/x?{options}")
