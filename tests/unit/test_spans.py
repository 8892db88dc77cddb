"""Ranges of array elements: the same answers as with a plain list of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpusched.model import spans
from gpusched.model.array import parse_array
from gpusched.model.spans import Span

numbers = st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True).map(sorted)
chosen = st.lists(
    st.builds(lambda first, more, step: range(first, first + more + 1, step), st.integers(0, 60), st.integers(0, 30),
              st.integers(1, 7)),
    max_size=4,
)


@given(numbers)
def test_numbers_become_spans_and_come_back(indices: list[int]) -> None:
    found = spans.spans_of(indices)
    assert list(spans.indices(found)) == indices and spans.size(found) == len(indices)
    assert [spans.with_offset(found, place) for place in range(len(indices))] == [
        Span(place, index) for place, index in enumerate(indices)
    ]
    for index in range(62):
        place = indices.index(index) if index in indices else None
        assert spans.with_index(found, index) == (None if place is None else Span(place, index))


@given(numbers)
def test_what_people_read_is_what_they_could_have_typed(indices: list[int]) -> None:
    text = spans.text(spans.spans_of(indices))
    assert list(parse_array(text).indices) == indices


@given(numbers, chosen)
def test_a_cut_gives_every_element_to_one_side_in_order(indices: list[int], ranges: list[range]) -> None:
    inside, outside = spans.cut(spans.spans_of(indices), ranges)
    wanted = [index for index in indices if any(index in each for each in ranges)]
    assert list(spans.indices(inside)) == wanted
    assert list(spans.indices(outside)) == [index for index in indices if index not in wanted]
    for span in (*inside, *outside):
        assert [indices[span.offset + place] for place in range(span.length)] == list(span.indices)


def test_a_million_elements_are_cut_without_a_list_of_them() -> None:
    whole = parse_array("0-999999").spans
    inside, outside = spans.cut(whole, [range(500, 1000), range(7, 8)])
    assert (inside, outside) == (
        (Span(7, 7), Span(500, 500, 500)),
        (Span(0, 0, 7), Span(8, 8, 492), Span(1000, 1000, 999000)),
    )


def test_single_numbers_are_no_range_but_three_at_one_distance_are() -> None:
    assert spans.text(spans.spans_of([1, 3])) == "1,3"
    assert spans.text(spans.spans_of([1, 3, 5, 6, 7])) == "1-5:2,6-7"
    assert spans.text((Span(0, 7), Span(1, 8, 92))) == "7-99"
