"""The preload library under a C program that is linked against llama-cpp-python's libllama, and under ctypes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from c_programs import ROOT, SANITIZERS, compile_c, compile_decode, compiler
from random_models import write_llama

from ropebend import Context, LayerScaling, Model, RopeMethod, preload
from ropebend.scaling.plan import Plan

F32 = npt.NDArray[np.float32]
TOKENS = [1 + 37 * i % 120 for i in range(27)]  # decode.c's
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the preload library is for Linux")


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_decode(tmp_path_factory.mktemp("bin") / "decode")


def run(*command: object, env: dict[str, str] | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr
    return done


def preloaded(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run(*command, env=preload.environment(os.environ), code=code)


def rows(done: subprocess.CompletedProcess[str]) -> list[F32]:
    return [np.array([float.fromhex(x) for x in line.split()], np.float32) for line in done.stdout.splitlines()]


def in_process(path: Path, plan: Plan | None = None, n_ctx: int = 256) -> list[F32]:
    """What decode.c does, by ropebend's own hook; plan: instead of the file's."""
    with Model(path) as model, Context(model, n_ctx=n_ctx, n_batch=64, n_threads=1) as context:
        if plan is not None:
            context.switch_plan(plan)
        context.decode(TOKENS[:24], 0)
        first = context.logits(-1).copy()
        context.seq_rm(0, 4, 8)
        context.seq_add(0, 8, -1, -4)
        context.decode([1 + 37 * (20 + i) % 120 for i in range(3)], 20)
        return [first, context.logits(-1).copy()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("plain") / "plain.gguf")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scaling = LayerScaling((1.0, 2.5, 1.75))
    return write_llama(tmp_path_factory.mktemp("scaled") / "scaled.gguf", scaling=scaling)


def test_uniform_scales_in_the_file_are_rope_freq_scale_bit_for_bit(tmp_path: Path, plain: Path, decode: Path) -> None:
    path = write_llama(tmp_path / "uniform.gguf", scaling=LayerScaling((2.0,) * 3))
    ours = preloaded(decode, 256, path)
    assert ours.stdout == run(decode, 256, f"{plain}@0.5").stdout  # the K-shift included
    assert ours.stdout != run(decode, 256, path).stdout
    assert ours.stderr == f"ropebend: {path}: scales of 3 layers applied, 2 to 2, method none, factor 1\n"


#: Unscaled up to 256 tokens, two numbers a layer beyond.
PLANS: dict[str, Any] = {
    "ropebend.version": 2,
    "ropebend.layer_scale": [0.0, 0.0, 0.0, 1.1, 2.5, 1.7],
    "ropebend.layer_attn_factor": [1.0, 1.0, 1.0, 1.25, 0.8, 1.0],
    "ropebend.plan.up_to": np.array([256, 1024], np.uint32),
}
SECOND = Plan(*(np.array(row, np.float32) for row in ([1.1, 2.5, 1.7], [1.0, 1.0, 1.0], [1.25, 0.8, 1.0])))


def test_both_numbers_are_the_hooks_bit_for_bit(tmp_path: Path, plain: Path, decode: Path) -> None:
    fields = {key: value[3:] if key.startswith("ropebend.layer") else value for key, value in PLANS.items()}
    del fields["ropebend.plan.up_to"]
    ours = preloaded(decode, 256, write_llama(tmp_path / "both.gguf", fields=fields))
    assert "1.1 to 2.5, method none, factor 1, attention factors 0.8 to 1.25\n" in ours.stderr
    for got, expected in zip(rows(ours), in_process(plain, SECOND), strict=True):
        assert np.array_equal(got, expected)
    for got, expected in zip(rows(ours), in_process(tmp_path / "both.gguf"), strict=True):
        assert np.array_equal(got, expected)


def test_plans_by_length_go_by_the_size_of_the_cache(tmp_path: Path, plain: Path, decode: Path) -> None:
    path = write_llama(tmp_path / "plans.gguf", fields=PLANS)
    short = preloaded(decode, 256, path)
    assert short.stdout == run(decode, 256, plain).stdout  # the K-shift included
    assert short.stderr == f"ropebend: {path}: runs unscaled, the plan for up to 256 tokens\n"
    long = preloaded(decode, 512, path)
    assert "attention factors 0.8 to 1.25, the plan for more than 256 tokens\n" in long.stderr
    for got, expected in zip(rows(long), in_process(plain, SECOND, 512), strict=True):
        assert np.array_equal(got, expected)
    for n_ctx, done in ((256, short), (512, long)):
        for got, expected in zip(rows(done), in_process(path, n_ctx=n_ctx), strict=True):
            assert np.array_equal(got, expected)
    assert "the plan for more than 256 tokens" in preloaded(decode, 2048, path).stderr  # beyond all of them the last


METHODS = [
    RopeMethod(),
    RopeMethod("linear", 3.0),
    RopeMethod("ntk", 1.7),
    RopeMethod("yarn", 4.0),
    RopeMethod("dynamic-ntk", 2.0),
    RopeMethod("dynamic-ntk", 1.0, 100),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.method}-{m.factor:g}")
def test_every_method_is_the_hooks_bit_for_bit(tmp_path: Path, decode: Path, method: RopeMethod) -> None:
    path = write_llama(tmp_path / "m.gguf", scaling=LayerScaling((1.1, 2.5, 1.7), rope=method))
    for n_ctx in (256, 512):
        ours = rows(preloaded(decode, n_ctx, path))
        assert len(ours) == 2
        for got, expected in zip(ours, in_process(path, n_ctx=n_ctx), strict=True):
            assert np.array_equal(got, expected)


def test_only_the_model_whose_file_carries_scales_is_touched(plain: Path, scaled: Path, decode: Path) -> None:
    alone_plain, alone_scaled = run(decode, 256, plain).stdout, preloaded(decode, 256, scaled).stdout
    assert preloaded(decode, 256, plain).stdout == alone_plain
    assert preloaded(decode, 256, plain).stderr == ""
    for models in ([plain, scaled], [scaled, plain], [plain, scaled, plain, scaled]):
        for late in ("", "+"):  # loaded when the ones before have decoded already
            names = [f"{late}{model}" for model in models]
            lines = preloaded(decode, 256, *names).stdout.splitlines(keepends=True)
            for i, model in enumerate(models):
                expected = alone_plain if model == plain else alone_scaled
                assert lines[i] + lines[i + len(models)] == expected


def test_addresses_of_freed_models_mean_nothing(plain: Path, scaled: Path, decode: Path) -> None:
    alone_plain, alone_scaled = run(decode, 256, plain).stdout, preloaded(decode, 256, scaled).stdout
    assert preloaded(decode, 256, scaled, f"-{plain}").stdout == alone_plain
    assert preloaded(decode, 256, plain, f"-{scaled}").stdout == alone_scaled


@pytest.mark.parametrize("named", [False, True], ids=["", "architecture in each"])
def test_a_split_model(tmp_path: Path, scaled: Path, decode: Path, named: bool) -> None:
    """llama.cpp opens the second part before it allocates buffers; that part carries no scales."""
    import gguf

    reader = gguf.GGUFReader(scaled)
    parts = [tmp_path / f"split-{i + 1:05d}-of-00002.gguf" for i in range(2)]
    half = len(reader.tensors) // 2
    for i, path in enumerate(parts):
        w = gguf.GGUFWriter(path, "llama")
        if i == 0:
            for field in list(reader.fields.values()):
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    sub = field.types[-1] if len(field.types) > 1 else None
                    w.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
        elif not named:
            del w.kv_data[0]["general.architecture"]
        w.add_uint16("split.no", i)
        w.add_uint16("split.count", 2)
        w.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[:half] if i == 0 else reader.tensors[half:]:
            w.add_tensor(tensor.name, tensor.data)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    assert preloaded(decode, 256, parts[0]).stdout == preloaded(decode, 256, scaled).stdout


def test_a_model_that_the_program_read_itself(plain: Path, scaled: Path) -> None:
    """Nothing tells of its file; it is neither unscaled for that, nor scaled as the model before it."""
    script = Path(__file__).parent / "from_user.py"
    done = preloaded(sys.executable, script, "file", scaled, "memory", plain, "memory", scaled, "memory", plain)
    for got, path in zip(rows(done), (scaled, plain, scaled, plain), strict=True):
        assert np.array_equal(got, in_process(path)[0])
    told = "scales of 3 layers applied, 1 to 2.5, method none, factor 1"
    assert done.stderr == f"ropebend: {scaled}: {told}\nropebend: the program's own metadata: {told}\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ropebend.version": 1}, "ropebend.layer_scale: missing, although ropebend.version is present"),
        ({"ropebend.version": 3, "ropebend.layer_scale": [1.0] * 3}, "ropebend.version: expected 1 or 2, got 3"),
        (
            {"ropebend.version": 1, "ropebend.layer_scale": [2.0] * 3, "ropebend.layer_attn_factor": [1.0] * 3},
            "ropebend.version: expected 2, as ropebend.layer_attn_factor is present, got 1",
        ),
        (
            {"ropebend.version": 2, "ropebend.layer_scale": [2.0] * 3, "ropebend.layer_attn_factor": [1.0, 11.0, 1.0]},
            "ropebend.layer_attn_factor[1]: expected a finite factor in [0.1, 10], got 11",
        ),
        (
            PLANS | {"ropebend.plan.up_to": np.array([8, 8], np.uint32)},
            "plan.up_to[1]: expected numbers of tokens that",
        ),
        (PLANS | {"ropebend.layer_scale": [2.0] * 3}, "expected 6 scales, for 2 plans one per block, got 3"),
        (PLANS | {"ropebend.layer_scale": [0.0, 1.0, 1.0] * 2}, "layer_scale[0]: expected a finite scale"),
        (PLANS | {"ropebend.layer_scale": [1.0] * 3 + [0.0] * 3}, "layer_scale[3]: expected a finite scale"),
        ({"ropebend.version": 2, "ropebend.layer_scale": [0.0] * 3}, "layer_scale[0]: expected a finite scale"),
        ({"ropebend.version": 1, "ropebend.layer_scale": [1.0] * 2}, "expected 3 scales, one per block, got 2"),
        ({"ropebend.version": 1, "ropebend.layer_scale": [1.0, 0.0, 1.0]}, "layer_scale[1]: expected a finite"),
        ({"ropebend.version": 1, "ropebend.layer_scale": 2.0}, "expected an array of f32, got a f32"),
        ({"ropebend.version": 1, "ropebend.layer_scale": ["a"]}, "expected an array of f32, got an array of strings"),
        (
            {"ropebend.version": 1, "ropebend.layer_scale": [2.0] * 3, "ropebend.rope.method": "pi"},
            "ropebend.rope.method: expected one of none, linear, ntk, dynamic-ntk, yarn, got 'pi'",
        ),
        (
            {"ropebend.version": 1, "ropebend.layer_scale": [2.0] * 3, "ropebend.rope.factor": 2.0},
            "ropebend.rope.factor: method none has factor 1, got 2",
        ),
    ],
)
def test_wrong_keys_end_the_program(tmp_path: Path, decode: Path, fields: dict[str, object], message: str) -> None:
    path = write_llama(tmp_path / "wrong.gguf", fields=fields)
    done = preloaded(decode, 256, path, code=1)
    assert f"ropebend: error: {path}: " in done.stderr
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("method", ["dynamic-ntk", "yarn"])
def test_a_model_must_say_how_long_it_was_trained(tmp_path: Path, decode: Path, method: str) -> None:
    scaling = LayerScaling((1.0,) * 3, rope=RopeMethod(method, 2.0))
    path = write_llama(tmp_path / "zero.gguf", n_ctx_train=0, scaling=scaling)
    done = preloaded(decode, 256, path, code=1)
    assert f"{path}: llama.context_length: expected a positive number of tokens, got 0" in done.stderr


def test_yarn_on_yarn_is_refused_by_the_node(tmp_path: Path, decode: Path) -> None:
    fields = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    scaling = LayerScaling((1.0,) * 3, rope=RopeMethod("yarn", 2.0))
    done = preloaded(decode, 256, write_llama(tmp_path / "y.gguf", fields=fields, scaling=scaling), code=1)
    assert "has YaRN already, so method yarn does not fit" in done.stderr


def test_a_program_that_cannot_be_patched_is_ended(tmp_path: Path, plain: Path, scaled: Path) -> None:
    program = compile_c(tmp_path / "reads_gguf", [Path(__file__).parent / "reads_gguf.c"], "-DLLAMA_CPP_INSIDE")
    assert preloaded(program, plain).stdout == "read GGUF\n"
    done = preloaded(program, scaled, code=1)
    assert "llama.cpp is not a shared library that can be patched" in done.stderr
    assert done.stdout == ""


def test_a_program_without_llama_cpp_reads_what_it_likes(tmp_path: Path, scaled: Path) -> None:
    program = compile_c(tmp_path / "reads_gguf", [Path(__file__).parent / "reads_gguf.c"])
    done = preloaded(program, scaled)
    assert (done.stdout, done.stderr) == ("read GGUF\n", "")


def test_llama_cpp_in_a_library_that_hides_it_is_ended(tmp_path: Path, scaled: Path) -> None:
    source = tmp_path / "inside.c"
    source.write_text('const char * inside(void) { return "/src/ggml-backend.cpp"; }\n')
    compile_c(tmp_path / "libinside.so", [source], "-fPIC", "-shared")
    flags = [f"-L{tmp_path}", f"-Wl,-rpath,{tmp_path}", "-Wl,--no-as-needed", "-linside"]
    program = compile_c(tmp_path / "reads_gguf", [Path(__file__).parent / "reads_gguf.c"], *flags)
    assert "not a shared library that can be patched" in preloaded(program, scaled, code=1).stderr


def test_llama_cpp_python_without_ropebend(scaled: Path) -> None:
    """ctypes opens the libraries RTLD_LOCAL."""
    script = (
        "import sys, llama_cpp; llm = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_batch=64, n_threads=1, verbose=False);"
        f"llm.eval({TOKENS[:24]}); ctx = llm._ctx.ctx;"
        "p = llama_cpp.llama_get_logits_ith(ctx, -1); print(*(p[i].hex() for i in range(llm.n_vocab())))"
    )
    done = preloaded(sys.executable, "-c", script, scaled)
    (ours,) = rows(done)
    assert np.array_equal(ours, in_process(scaled)[0])
    assert done.stderr.count("ropebend:") == 1


def test_ropebend_itself_refuses_to_scale_twice(scaled: Path) -> None:
    done = preloaded(sys.executable, "-m", "ropebend.cli", "doctor", scaled, code=1)
    assert "take ropebend out of LD_PRELOAD" in done.stderr


def test_under_sanitizers(tmp_path: Path, plain: Path, scaled: Path, decode: Path) -> None:
    """The library itself, built with ASan and UBSan, in the unmodified program."""
    sources = [
        "announce",
        "architectures",
        "ggml_layout",
        "gguf_metadata",
        "gguf_scan",
        "graph_owner",
        "pointer_map",
        "preload",
    ]
    sources += ["loaded_libraries", "rope_plan", "scaled_file"]
    library = compile_c(
        tmp_path / "libropebend_preload.so",
        [ROOT / "csrc" / f"{name}.c" for name in sources],
        *["-fPIC", "-shared", "-fvisibility=hidden", *SANITIZERS],
    )
    asan = [
        run(compiler(), f"-print-file-name={name}").stdout.strip() for name in ("libasan.so", "libubsan.so")
    ]  # the runtimes must come first
    env = {**os.environ, "LD_PRELOAD": ":".join([*asan, str(library)]), "ASAN_OPTIONS": "detect_leaks=0"}
    models = [plain, scaled, f"-{scaled}", plain]
    assert run(decode, 256, *models, env=env).stdout == preloaded(decode, 256, *models).stdout
