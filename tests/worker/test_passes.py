"""Attention of the passes against plain softmax of each sequence alone; plans of batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_worker.model.passes import (
    DecodePass,
    KeyValueRows,
    PrefixPass,
    QuestionPass,
    StaticDecodePass,
)
from halp_worker.model.plan import plan_chunks
from halp_worker.model.segments import Segments, attend
from tolerance import assert_within, relative, rounding

HEADS, KV_HEADS, SIZE = 6, 2, 8


def states(tokens, heads, seed):
    return torch.randn(tokens, heads, SIZE, generator=torch.Generator().manual_seed(seed))


def plain_attention(query, key, value, *, causal):
    """One sequence: (T, H, d) over (C, Hkv, d), whose last T columns are the queries' own."""
    key, value = (one.repeat_interleave(HEADS // one.shape[1], 1) for one in (key, value))
    scores = torch.einsum("thd,chd->htc", query, key) / math.sqrt(SIZE)
    if causal:
        behind = (
            torch.arange(len(key)) - (len(key) - len(query)) > torch.arange(len(query))[:, None]
        )
        scores = scores.masked_fill(behind, float("-inf"))
    return torch.einsum("htc,chd->thd", scores.softmax(-1), value)


def assert_same_rows(got, expected):
    """But for rounding: of two products and a softmax, over at most twenty keys. What is absolute
    in its scores, which reach 5, is relative in its weights."""
    assert got.shape == expected.shape
    assert_within(relative(got.flatten(-2), expected.flatten(-2)), 5 * rounding(3, 20))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 7, 1, 7, 2]])
def test_attention_stays_inside_each_segment(lengths, causal):
    """Equal and mixed lengths, in any order, with shared key heads."""
    total = sum(lengths)
    query, key, value = (
        states(total, HEADS, 1),
        states(total, KV_HEADS, 2),
        states(total, KV_HEADS, 3),
    )
    got = attend(query, key, value, Segments(lengths), causal=causal)
    parts = (torch.split(one, lengths) for one in (query, key, value))
    expected = [plain_attention(*one, causal=causal) for one in zip(*parts, strict=True)]
    assert_same_rows(got, torch.cat(expected))


lengths_of = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    prefixes=lengths_of,
    questions=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=6),
    ahead=st.integers(0, 2),
    data=st.data(),
)
def test_questions_and_answers_see_their_own_prompt_alone(prefixes, questions, ahead, data):
    """Prefix, question and three steps of decoding, static and not, with rows that leave between:
    each equals attention over that one prompt."""
    prefix_of = sorted(index % len(prefixes) for index, _ in questions)
    own = [length for _, length in questions]
    prompts = [prefixes[group] + length for group, length in zip(prefix_of, own, strict=True)]
    rows = KeyValueRows([*[4] * ahead, *prompts], 4)  # the first rows are another chunk's
    first = PrefixPass(prefixes)
    packed = [states(sum(prefixes), heads, seed) for seed, heads in enumerate((6, 2, 2))]
    first.attend(0, *(one[None] for one in packed))
    second = QuestionPass(first, prefix_of, own, rows, ahead)
    asked = [states(sum(own), heads, seed + 3) for seed, heads in enumerate((6, 2, 2))]
    got = second.attend(0, *(one[None] for one in asked))[0]

    prefix_parts = [torch.split(one, prefixes) for one in packed]
    own_parts = [torch.split(one, own) for one in asked]
    seen = []
    for row, group in enumerate(prefix_of):
        keys, values = (
            torch.cat([prefix_parts[kind][group], own_parts[kind][row]]) for kind in (1, 2)
        )
        seen.append([keys, values])
    expected = [
        plain_attention(own_parts[0][row], *seen[row], causal=True) for row in range(len(own))
    ]
    assert_same_rows(got, torch.cat(expected))

    kept = data.draw(st.lists(st.sampled_from(range(len(own))), min_size=1, unique=True))
    rows.keep([ahead + row for row in kept])
    seen = [seen[row] for row in kept]
    plan = DecodePass(rows, rows.prompt_width)
    column = torch.tensor([rows.prompt_width])
    static = StaticDecodePass(rows, column, asked[0])
    for step in range(3):
        query, key, value = (
            states(len(kept), heads, 10 * step + seed)[:, None]
            for seed, heads in enumerate((6, 2, 2), 6)
        )
        for row, (keys, values) in enumerate(seen):
            seen[row] = [torch.cat([keys, key[row]]), torch.cat([values, value[row]])]
        expected = torch.stack(
            [plain_attention(query[row], *seen[row], causal=True) for row in range(len(kept))]
        )
        assert_same_rows(plan.attend(0, query, key, value), expected)
        static.begin()
        assert_same_rows(static.attend(0, query, key, value), expected)
        plan.column += 1
        column += 1


@dataclass(frozen=True)
class Image:
    sha256: str


@dataclass(frozen=True)
class Prompt:
    """What a plan needs of a sample."""

    image: Image
    input_ids: torch.Tensor
    prefix_tokens: int

    @property
    def prompt_tokens(self):
        return len(self.input_ids)


def prompt(name, image_tokens, question_tokens, template=0):
    ids = [template, *[9] * image_tokens, *range(100, 100 + question_tokens)]
    return Prompt(Image(name), torch.tensor(ids), 1 + image_tokens)


batches = st.lists(
    st.builds(
        lambda name, question, template: prompt(name, 3 + ord(name) % 3, question, template),
        st.sampled_from("abcdefg"),
        st.integers(1, 5),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=20,
)


@given(batches, st.integers(1, 60))
def test_a_plan_has_every_question_once_and_every_prefix_once(samples, chunk_tokens):
    """And no chunk has more tokens than it may, but for a single group that is larger."""
    chunks = plan_chunks(samples, chunk_tokens)
    assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(len(samples)))
    groups = [group for chunk in chunks for group in chunk.groups]
    prefixes = [
        {
            (
                samples[row].image.sha256,
                tuple(samples[row].input_ids[: group.prefix_tokens].tolist()),
            )
            for row in group.rows
        }
        for group in groups
    ]
    assert all(len(one) == 1 for one in prefixes)
    assert len(set.union(*prefixes)) == len(groups)
    for chunk in chunks:
        tokens = sum(
            group.prefix_tokens
            + sum(samples[row].prompt_tokens - group.prefix_tokens for row in group.rows)
            for group in chunk.groups
        )
        assert tokens <= chunk_tokens or len(chunk.groups) == 1


def test_prefixes_of_equal_length_are_neighbours():
    """Their attention is one call."""
    samples = [
        prompt(name, size, 2) for name, size in zip("abcdef", [5, 3, 5, 4, 3, 5], strict=True)
    ]
    (chunk,) = plan_chunks(samples, 1000)
    assert [group.prefix_tokens for group in chunk.groups] == [4, 4, 5, 6, 6, 6]
