"""What `|` knows of the types of items at run time."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pytest

from pipeline import ConfigError, Gap, Sink, Source, Span, Stage, Window, Zeros
from pipeline.composition import readable, type_arguments
from pipeline.testing import Items, PatternDisk
from sinks import NullSink
from stages import AllocatedExtents, CutChunks, MarkZeros, ReadSpans

T = TypeVar("T")
K = TypeVar("K")


class Pairs(Stage[K, tuple[K, T]], Generic[T, K]):
    async def run(self, inbox, outbox): ...


class OfSpans(Pairs[int, Span | Gap]): ...


class Unnamed(Stage):
    async def run(self, inbox, outbox): ...


class Quoted(Stage["Span", "Span"]):
    async def run(self, inbox, outbox): ...


class Faster(MarkZeros): ...


class Windows(Sink[Window, int]):
    async def run(self, inbox): ...


def test_type_arguments_are_those_of_the_class_through_all_its_bases():
    assert type_arguments(OfSpans, Stage)[0] == Span | Gap
    assert type_arguments(Faster, Stage) == (Span | Gap, Span | Gap)
    assert type_arguments(AllocatedExtents, Source) == (Window,)
    assert type_arguments(Windows, Sink) == (Window, int)


@pytest.mark.parametrize("stage", [OfSpans(), Unnamed(), Quoted(), Faster()])
def test_an_unknown_type_and_a_subclass_fit(stage):
    disk = PatternDisk(1 << 20)
    assert AllocatedExtents(disk) | ReadSpans(disk) | stage | NullSink()


def test_a_source_of_unknown_items_fits_everything():
    assert Items([1, 2]) | MarkZeros() | NullSink()


def test_types_of_the_caller_are_compared_too():
    disk = PatternDisk(1 << 20)
    with pytest.raises(
        ConfigError, match=r"Windows cannot follow MarkZeros: Windows takes Window, gets Span\."
    ):
        AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros() | Windows()


class OnlySpans(Sink[Span, int]):
    async def run(self, inbox): ...


def test_a_sink_that_takes_fewer_kinds_of_gaps_is_no_mistake_at_run_time():
    """A full read leaves nothing unchanged, which the types cannot say."""
    disk = PatternDisk(1 << 20)
    assert AllocatedExtents(disk) | ReadSpans(disk) | OnlySpans()


@dataclass(frozen=True)
class Named(Stage[Any, Any]):
    identity: str

    async def run(self, inbox, outbox): ...


@dataclass(frozen=True)
class Masked(Stage[Span, Span]):
    table: object
    keep: object

    async def run(self, inbox, outbox): ...


class Plain:
    def keep(self): ...


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Masked(np.arange(4), len), "Masked(table=array([0, 1, 2, 3]), keep=<built-in function len>)"),
        (Masked(None, readable), "Masked(table=None, keep=readable)"),
        (Masked(None, Plain()), "Masked(table=None, keep=Plain(...))"),
        (Masked(None, Plain().keep), "Masked(table=None, keep=<bound method Plain.keep of Plain(...)>)"),
    ],
)
def test_a_stage_is_shown_without_addresses(value, shown):
    assert readable(value) == shown


def test_a_large_array_is_shown_in_one_short_line():
    shown = readable(Masked(np.arange(500).reshape(50, 10), None))
    assert "\n" not in shown
    assert len(shown) < 200


def test_parts_with_an_identity_have_to_agree():
    assert Items([Zeros(0, 1)]) | Named("a") | CutChunks() | Named("a") | NullSink()
    with pytest.raises(
        ConfigError, match="Named names chunks with 'a', but Named takes only those of its own"
    ):
        Items([Zeros(0, 1)]) | Named("a") | Named("b")
