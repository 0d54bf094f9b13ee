"""LayerScaling: the way from JSON to metadata to plan and back, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropebend import LayerScaling, RopebendError, RopeMethod, ScalesError
from ropebend.scaling import ShorterPlan, gguf_keys
from ropebend.scaling.rope_method import dynamic_ntk_factor, length_bucket
from ropebend.scaling.validation import as_f32

scales = st.lists(st.floats(0.10000000149011612, 1000, width=32), min_size=1, max_size=40)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BY_LENGTH = LayerScaling(
    (2.0, 3.0),
    "llama",
    provenance={"n_ctx": 512},
    layer_attn_factor=(1.25, 0.5),
    shorter=(ShorterPlan(128, None), ShorterPlan(256, LayerScaling((1.5, 1.25), "llama", provenance={"n_ctx": 256}))),
    up_to=512,
)
free_keys = st.text().filter(
    lambda k: (
        k not in {"format", "architecture", "block_count", "layer_scale", "curve", "rope", "provenance"}
        and k not in {"layer_attn_factor", "attn_curve", "plans"}
    )
)
methods = st.sampled_from(
    [RopeMethod(), RopeMethod("linear", 4.0), RopeMethod("ntk", 2.5), RopeMethod("dynamic-ntk", 2.0, 1024),
     RopeMethod("yarn", 8.0, 4096)]
)  # fmt: skip


@given(scales, methods, st.dictionaries(free_keys, json_values, max_size=3), st.dictionaries(st.text(), json_values))
def test_json_and_metadata_round_trip(
    values: list[float], rope: RopeMethod, extra: dict[str, Any], provenance: dict[str, Any]
) -> None:
    provenance = {k: v for k, v in provenance.items() if not k.startswith(gguf_keys.PREFIX)}
    value = LayerScaling(tuple(values), "llama", rope, None, provenance, extra)
    assert LayerScaling.from_json(json.loads(json.dumps(value.to_json()))) == value
    assert LayerScaling.from_metadata(value.to_metadata(), "llama", len(values)) == value


CURVES = st.none() | st.just(((0.0, 1.0), (0.5, 2.0), (0.5, -1.0), (1.0, 1.5)))


@st.composite
def two_numbers(draw: st.DrawFn, n: int, rope: RopeMethod) -> LayerScaling:
    row = st.lists(st.floats(0.125, 8, width=32), min_size=n, max_size=n)
    factors = draw(st.just([]) | row)
    about = draw(st.dictionaries(st.text(), json_values, max_size=2))
    return LayerScaling(
        tuple(draw(row)),
        "llama",
        rope,
        draw(CURVES),
        {k: v for k, v in about.items() if not k.startswith(gguf_keys.PREFIX)},
        {},
        tuple(factors),
        draw(CURVES),
    )


@given(st.data(), st.integers(1, 4), methods, st.lists(st.integers(1, 2**32 - 2), unique=True, max_size=4))
def test_plans_by_length_round_trip(data: st.DataObject, n: int, rope: RopeMethod, bounds: list[int]) -> None:
    *shorter, up_to = [*sorted(bounds)[:-1], data.draw(st.sampled_from([None, *sorted(bounds)[-1:]]))]
    plans = [ShorterPlan(b, data.draw(st.none() | two_numbers(n, rope))) for b in shorter]
    value = replace(data.draw(two_numbers(n, rope)), shorter=tuple(plans), up_to=up_to, extra={"note": [1]})
    assert LayerScaling.from_json(json.loads(json.dumps(value.to_json()))) == value
    assert LayerScaling.from_metadata(value.to_metadata(), "llama", n) == value


def test_unknown_keys_are_kept_everywhere() -> None:
    data = {
        "format": "ropebend/1",
        "architecture": "llama",
        "block_count": 4,
        "layer_scale": [1, 2, 3, 4],
        "curve": {"control_points": [[0, 1], [1, 2], [2, 3], [3, 4]], "note": "by hand"},
        "rope": {"method": "linear", "factor": 2, "author": "me"},
        "provenance": {"seed": 1},
        "comment": {"nested": [1, 2]},
    }
    value = LayerScaling.from_json(data)
    assert value.to_json() == data
    assert LayerScaling.from_metadata(value.to_metadata(), "llama", 4) == value


def test_layer_scale_wins_over_the_curve() -> None:
    data = {
        "format": "ropebend/1", "block_count": 2, "layer_scale": [1.5, 2.5],
        "curve": {"control_points": [[0, 1], [0, 1], [1, 1], [1, 1]]},
    }  # fmt: skip
    assert LayerScaling.from_json(data).layer_scale == (1.5, 2.5)
    del data["layer_scale"]
    assert LayerScaling.from_json(data).layer_scale == (1.0, 1.0)


def test_a_bare_list_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    path.write_text("[1, 1.25, 2]")
    assert LayerScaling.load(path).layer_scale == (1.0, 1.25, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: line 1 column 2"),
        ("3", "expected an object or a list"),
        ("[NaN]", "NaN is not a number that JSON knows"),
        ('["1"]', r"the list\[0\]: expected a number, got '1'"),
        ("[true]", r"the list\[0\]: expected a number, got True"),
        ("[1e999]", r"layer_scale\[0\]: expected a finite scale"),
        ("[1e300, 2]", r"layer_scale\[0\]: expected a finite scale in \[0.1, 1000\], got 1e\+300"),
        ('{"format": "ropebend/1", "layer_scale": [1], "rope": {"method": "ntk", "factor": 1e300}}', "rope.factor"),
        (
            '{"format": "ropebend/1", "layer_scale": [1, 2], '
            '"curve": {"control_points": [[0, 1e999], [0, 1], [1, 1], [1, 2]]}}',
            "curve.control_points: expected finite numbers",
        ),
        ("[1, 0.05]", r"layer_scale\[1\]: expected a finite scale in \[0.1, 1000\], got 0.05"),
        ("[1000.5]", r"layer_scale\[0\]"),
        ("[]", "layer_scale: expected 0 scales, one per block, got 0"),
        ("{}", "format: expected 'ropebend/1' or 'ropebend/2', got None"),
        ('{"format": "ropebend/3"}', "format: expected 'ropebend/1' or 'ropebend/2', got 'ropebend/3'"),
        ('{"format": "ropebend/2"}', "layer_scale: missing"),
        (
            '{"format": "ropebend/1", "layer_scale": [1], "plans": []}',
            "plans: expected format 'ropebend/2' where",
        ),
        (
            '{"format": "ropebend/1", "layer_scale": [1], "layer_attn_factor": [1]}',
            "layer_attn_factor: expected format 'ropebend/2' where it is present, got 'ropebend/1'",
        ),
        (
            '{"format": "ropebend/2", "layer_scale": [1, 1], "layer_attn_factor": [1, 11]}',
            r"layer_attn_factor\[1\]: expected a finite attention factor in \[0.1, 10\], got 11",
        ),
        (
            '{"format": "ropebend/2", "layer_scale": [1, 1], "layer_attn_factor": [1]}',
            "expected 2 attention factors",
        ),
        ('{"format": "ropebend/2", "plans": 3}', "plans: expected a list of objects, got 3"),
        ('{"format": "ropebend/2", "plans": []}', "plans: expected a list of objects"),
        (
            '{"format": "ropebend/2", "plans": [{"layer_scale": "none"}]}',
            r"plans\[0\].layer_scale: expected scales",
        ),
        ('{"format": "ropebend/2", "layer_scale": [1], "plans": [{}]}', "layer_scale: expected in each of plans"),
        ('{"format": "ropebend/2", "plans": [{"up_to": 8}, {}]}', r"plans\[0\].layer_scale: missing"),
        (
            '{"format": "ropebend/2", "plans": [{"up_to": 8, "layer_scale": "none", "curve": 1}, {}]}',
            r"plans\[0\].curve: expected nothing beside 'none'",
        ),
        (
            '{"format": "ropebend/2", "plans": [{"up_to": 8, "layer_scale": [1], "rope": {}}, {"layer_scale": [1]}]}',
            r"plans\[0\].rope: expected beside plans",
        ),
        (
            '{"format": "ropebend/2", "plans": [{"up_to": 8, "layer_scale": [1]}, {"up_to": 8, "layer_scale": [2]}]}',
            r"plans.up_to\[1\]: expected numbers of tokens that ascend, got 8",
        ),
        (
            '{"format": "ropebend/2", "plans": [{"layer_scale": [1]}, {"layer_scale": [2]}]}',
            r"plans.up_to\[0\]: expected numbers of tokens that ascend, got None",
        ),
        (
            '{"format": "ropebend/2", "plans": [{"up_to": 8, "layer_scale": [1]}, {"layer_scale": [2, 2]}]}',
            "the plan up to 8 tokens: expected 2 scales, one per block, got 1",
        ),
        ('{"format": "ropebend/1"}', "layer_scale: missing"),
        (
            '{"format": "ropebend/1", "layer_scale": [1, 2], "block_count": 3}',
            "expected 3 scales, one per block, got 2",
        ),
        (
            '{"format": "ropebend/1", "layer_scale": [1], "rope": {"method": "pi"}}',
            "rope.method: expected one of none,",
        ),
        ('{"format": "ropebend/1", "layer_scale": [1], "rope": {"factor": 2}}', "method none has factor 1"),
        ('{"format": "ropebend/1", "layer_scale": [1], "rope": {"method": "linear", "factor": 0.5}}', "rope.factor"),
        ('{"format": "ropebend/1", "layer_scale": [1], "rope": {"original_context": 1.5}}', "original_context"),
        ('{"format": "ropebend/1", "block_count": 4, "curve": {"control_points": [[0, 1]]}}', "four \\[x, y\\] pairs"),
        ('{"format": "ropebend/1", "layer_scale": [1], "provenance": {"ropebend.curve": 1}}', "reserved"),
        ("[" * 100_000, "nested too deeply"),
        ("[1" + "0" * 5000 + "]", "not a factors file|does not"),
    ],
)
def test_bad_files_name_the_file_the_key_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "factors.json"
    path.write_text(text)
    with pytest.raises(RopebendError, match=message) as error:
        LayerScaling.load(path)
    assert str(error.value).startswith(str(path))


def test_half_a_surrogate_pair_goes_into_a_file_as_an_escape(tmp_path: Path) -> None:
    value = LayerScaling((1.0,), provenance={"task": "\ud800"})
    value.save(tmp_path / "factors.json")
    assert LayerScaling.load(tmp_path / "factors.json") == value


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(RopebendError, match="No such file"):
        LayerScaling.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RopebendError, match="not UTF-8"):
        LayerScaling.load(tmp_path / "binary.json")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\xff")
    with pytest.raises(RopebendError, match=r"m\.gguf: is a model, expected a factors file"):
        LayerScaling.load(tmp_path / "m.gguf")


def test_scales_must_fit_the_model() -> None:
    value = LayerScaling((1.0, 2.0), "llama")
    value.check_model(2, "llama")
    with pytest.raises(RopebendError, match="expected 3 scales, one per block, got 2"):
        value.check_model(3, "llama")
    with pytest.raises(RopebendError, match="made for 'llama', the model is 'qwen2'"):
        value.check_model(2, "qwen2")
    with pytest.raises(RopebendError, match="'mamba' has no RoPE"):
        LayerScaling((1.0, 2.0)).check_model(2, "mamba")
    with pytest.raises(RopebendError, match="'gemma3n' is not supported: some of its layers read the keys of another"):
        LayerScaling((1.0, 2.0)).check_model(2, "gemma3n")
    value.check_model(2, "llama", "yarn")
    with pytest.raises(RopebendError, match="the model carries linear scaling already"):
        LayerScaling((1.0, 2.0), rope=RopeMethod("yarn", 2.0)).check_model(2, "llama", "linear")


def test_metadata_that_does_not_fit_is_an_error_and_never_unscaled() -> None:
    fields = LayerScaling((1.0, 2.0)).to_metadata()
    assert LayerScaling.from_metadata({"general.name": "x"}, "llama", 2) is None
    for key, value, message in [
        (gguf_keys.VERSION, 3, "expected 1 or 2, got 3; a newer ropebend may read it"),
        (gguf_keys.LAYER_ATTN_FACTOR, [1.0, 1.0], "expected 2, as ropebend.layer_attn_factor is present, got 1"),
        (gguf_keys.PLAN_UP_TO, [8], "expected 2, as ropebend.plan.up_to is present, got 1"),
        (gguf_keys.LAYER_SCALE, [1.0], "expected 2 scales"),
        (gguf_keys.LAYER_SCALE, "x", "expected a list of numbers"),
        (gguf_keys.METHOD, 7, "rope.method"),
        (gguf_keys.PROVENANCE, "[", "expected a JSON object"),
        (gguf_keys.PROVENANCE, '{"a": NaN}', "expected a JSON object"),
        (gguf_keys.PROVENANCE, '{"ropebend.extra": [1, 2]}', "ropebend.extra: expected unknown keys of factors.json"),
        (gguf_keys.PROVENANCE, '{"ropebend.extra": {"rope": 5}}', "ropebend.extra: expected unknown keys"),
        (gguf_keys.PROVENANCE, '{"ropebend.extra": {"rope": {"factor": 5}}}', "ropebend.extra: expected unknown keys"),
        (gguf_keys.PROVENANCE, '{"ropebend.extra": {"layer_scale": [9]}}', "ropebend.extra: expected unknown keys"),
    ]:
        with pytest.raises(RopebendError, match=message):
            LayerScaling.from_metadata({**fields, key: value}, "llama", 2)
    del fields[gguf_keys.LAYER_SCALE]
    with pytest.raises(RopebendError, match=r"ropebend.layer_scale: missing"):
        LayerScaling.from_metadata(fields, "llama", 2)


def test_plans_in_the_metadata_are_checked_one_by_one() -> None:
    fields = BY_LENGTH.to_metadata()
    for key, value, message in [
        (gguf_keys.LAYER_SCALE, [1.0, 1.0], "expected 6 scales, for 3 plans one per block, got 2"),
        (gguf_keys.LAYER_SCALE, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], r"layer_scale\[2\]: expected a finite scale in"),
        (gguf_keys.LAYER_SCALE, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0], r"layer_scale\[4\]: expected a finite scale in"),
        (gguf_keys.LAYER_ATTN_FACTOR, [1.0] * 5, "expected 6 attention factors, for 3 plans"),
        (
            gguf_keys.LAYER_ATTN_FACTOR,
            [1.0] * 5 + [0.01],
            r"layer_attn_factor\[5\]: expected a finite",
        ),
        (
            gguf_keys.PLAN_UP_TO,
            [8, 8, 9],
            r"ropebend.plan.up_to\[1\]: expected numbers of tokens that ascend, got 8",
        ),
        (gguf_keys.PLAN_UP_TO, [], "ropebend.plan.up_to: expected one length or more"),
        (gguf_keys.PLAN_UP_TO, [float("inf")], "expected 2 scales, for 1 plans one per block|ascend"),
        (gguf_keys.PROVENANCE, '{"ropebend.plans": [{}, 3]}', "ropebend.plans: expected objects, got 3"),
    ]:
        with pytest.raises(RopebendError, match=message):
            LayerScaling.from_metadata({**fields, key: value}, "llama", 2)


def test_a_sequence_takes_the_first_plan_that_is_long_enough() -> None:
    assert BY_LENGTH.at(1) is BY_LENGTH.at(128) is None
    assert BY_LENGTH.at(129) == BY_LENGTH.at(256) == BY_LENGTH.shorter[1].scaling
    assert BY_LENGTH.at(257) == BY_LENGTH.at(10**9) == BY_LENGTH.at(None) == BY_LENGTH.longest
    assert BY_LENGTH.plan(128) is None
    two, four = BY_LENGTH.plan(200), BY_LENGTH.plan(513)
    assert two is not None
    assert four is not None
    assert (two.stretch.tolist(), two.attn_factor.tolist()) == ([1.5, 1.25], [1, 1])
    assert (four.stretch.tolist(), four.attn_factor.tolist()) == ([2, 3], [1.25, 0.5])
    assert two.hash != four.hash
    assert str(BY_LENGTH) == (
        "up to 128 tokens unscaled; up to 256 tokens scale 1.25–1.5; beyond scale 2–3, attention factor 0.5–1.25"
    )


def test_an_answer_without_a_bound_stays_in_the_plan_of_its_prompt_if_that_leaves_enough() -> None:
    assert [BY_LENGTH.room(n, 512) for n in (10, 96, 97, 192, 193, 500)] == [118, 32, 159, 64, 319, 12]
    assert BY_LENGTH.room(10, 100) == 90  # the context is smaller than any plan
    assert BY_LENGTH.longest.room(10, 512) == 502
    long = replace(BY_LENGTH, shorter=(ShorterPlan(32768, None),), up_to=None)
    assert [long.room(n, 65536) for n in (30720, 30721)] == [2048, 65536 - 30721]


def test_the_version_is_2_only_where_it_must_be() -> None:
    plain = LayerScaling((1.0, 2.0), "llama", provenance={"seed": 1})
    assert list(plain.to_metadata()) == [
        "ropebend.version", "ropebend.layer_scale", "ropebend.rope.method", "ropebend.rope.factor",
        "ropebend.provenance",
    ]  # fmt: skip
    assert (plain.to_metadata()[gguf_keys.VERSION], plain.to_json()["format"]) == (1, "ropebend/1")
    assert LayerScaling((1.0, 2.0), "llama", provenance={"seed": 1}, layer_attn_factor=(1, 1)) == plain
    for more in ({"layer_attn_factor": (1.0, 1.5)}, {"up_to": 8}, {"shorter": (ShorterPlan(8, None),)}):
        value = LayerScaling((1.0, 2.0), **more)
        assert (value.to_metadata()[gguf_keys.VERSION], value.to_json()["format"]) == (2, "ropebend/2")


def test_methods_multiply_the_layer_scales() -> None:
    one, two = LayerScaling((1.0, 2.0)), (1.0, 2.0)
    assert one.plan().stretch.tolist() == [1, 2]
    assert LayerScaling(two, rope=RopeMethod("linear", 4.0)).plan().stretch.tolist() == [4, 8]
    ntk = LayerScaling(two, rope=RopeMethod("ntk", 4.0)).plan()
    assert (ntk.stretch.tolist(), ntk.base_stretch.tolist()) == ([1, 1], [4, 8])
    yarn = LayerScaling(two, rope=RopeMethod("yarn", 4.0, 512)).plan()
    assert (yarn.stretch.tolist(), yarn.yarn_factor, yarn.yarn_n_ctx_orig) == ([4, 8], 4, 512)


def test_dynamic_ntk_follows_the_length_in_buckets() -> None:
    assert [length_bucket(n, 1024) for n in (1, 1024, 1025, 1448, 1449, 2048, 4000)] == [
        1024, 1024, 1449, 1449, 1449, 2048, 4096,
    ]  # fmt: skip
    assert dynamic_ntk_factor(2.0, 1024, 1024) == 1
    assert dynamic_ntk_factor(2.0, 1024, 4096) == 2 * 4 - 1
    value = LayerScaling((1.0,), rope=RopeMethod("dynamic-ntk", 2.0, 1024))
    assert value.plan(2000).hash == value.plan(2048).hash != value.plan(2049).hash
    with pytest.raises(RopebendError, match="needs the length the model was trained at"):
        LayerScaling((1.0,), rope=RopeMethod("dynamic-ntk", 2.0)).plan(100)


def test_hash_tells_plans_apart() -> None:
    two = (1.0, 2.0)
    methods = [RopeMethod(), RopeMethod("ntk"), RopeMethod("yarn", 1.0, 5), RopeMethod("yarn", 1.0, 6)]
    values = [LayerScaling((2.0, 1.0)), *(LayerScaling(two, rope=m) for m in methods)]
    assert len({v.plan().hash for v in values}) == len(values)
    assert LayerScaling((1.0, 2.0)).plan().hash == LayerScaling((0.5, 1.0), rope=RopeMethod("linear", 2.0)).plan().hash


@given(st.floats(width=64) | st.floats(width=32))
def test_rounding_to_float32_is_numpys(value: float) -> None:
    with np.errstate(over="ignore"):
        expected = float(str(np.float32(value)))
    assert as_f32(value) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_scales_are_float32_everywhere() -> None:
    value = LayerScaling((1.1, 1.0000000001))
    assert value.layer_scale == (1.1, 1.0)
    assert value.plan().stretch.dtype == np.float32


def test_provenance_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(RopebendError, match=r"ropebend\.provenance: expected what JSON can hold"):
        LayerScaling((1.0,), provenance={"score": float("nan")}).to_metadata()


def test_what_is_no_number_and_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScalesError, match=r"layer_scale\[1\]: expected a finite scale in .*, got 'a'"):
        LayerScaling((1.0, "a"))  # type: ignore[arg-type]
    with pytest.raises(ScalesError, match="provenance, extra: JSON cannot hold them"):
        LayerScaling((1.0,), provenance={"a": object()}).save(tmp_path / "factors.json")
    assert not [*tmp_path.iterdir()]
    points = [[0, 1], [9, 1], [1, 1], [2, 1]]
    with pytest.raises(ScalesError, match=r"curve\.control_points"):
        LayerScaling.from_json({"format": "ropebend/1", "block_count": 3, "curve": {"control_points": points}})
