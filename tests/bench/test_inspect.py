"""Inspection of compiled code: XLA's dump of thunks, second copies, and the command for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bench import abstract_programs as programs
from bench import hlo, inspect, thunks
from kangaroo_jax.model import LlamaConfig

pytestmark = pytest.mark.optimised

CONFIG = LlamaConfig(
    vocab_size=251,
    hidden_size=46,
    intermediate_size=58,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=22,
)

# As XLA:GPU writes it (jaxlib 0.10.2), with fewer kernels: rounds, drafts in them; the second line of a loop is lost.
DEFAULT = """\
001: kCopy  [source       | next=002 (1)] kCopy
002: kWhile [prev=001 (1) | sink        ]
condition:
    003: kCustomKernel [source | sink] loop_and_fusion_1 grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    000: kCommandBuffer [source       | next=045 (1)]
        004: kCopy         [source       | sink        ] kCopy
        005: kCustomKernel [source       | sink        ] gemm_fusion_dot_41 grid: [768, 1, 1] threads: [64, 1, 1]
        006: kCustomKernel [source       | sink        ] loop_add_fusion_11 grid: [1, 1, 1] threads: [1, 1, 1]
    045: kWhile         [prev=000 (1) | next=000 (1)]
condition:
        046: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
      body:
        000: kCommandBuffer [source | sink]
            047: kCopy         [source       | next=049 (2) ] kCopy
            048: kCustomKernel [source       | next=068 (20)] loop_add_fusion_4 grid: [1, 1, 1] threads: [1, 1, 1]
    000: kCommandBuffer [prev=045 (1) | sink        ]
        104: kCustomKernel [source       | next=105 (1)] input_reduce_select_fusion grid: [1, 1, 1] threads: [256, 1, 1]
        105: kCustomKernel [prev=104 (1) | next=106 (1)] loop_multiply_fusion_11 grid: [32, 1, 1] threads: [128, 1, 1]
        106: kCustomKernel [prev=105 (1) | next=107 (1)] gemm_fusion_dot_41 grid: [768, 1, 1] threads: [64, 1, 1]
        107: kGemm         [prev=106 (1) | sink        ]
"""
ONE_GRAPH = """\
000: kCommandBuffer [source | sink]
    001: kCopy  [source       | next=002 (1)] kCopy
    002: kWhile [prev=001 (1) | sink        ]
condition:
        003: kCustomKernel [source | sink] loop_and_fusion_1 grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
      body:
        004: kCopy         [source       | next=045 (41)] kCopy
        045: kWhile        [prev=044 (1) | next=104 (1) ]
condition:
            046: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1] threads: [1, 1, 1]
          body:
            047: kCopy         [source       | next=049 (2) ] kCopy
            048: kCustomKernel [source       | next=068 (20)] loop_add_fusion_4 grid: [1, 1, 1] threads: [1, 1, 1]
        104: kCustomKernel [prev=045 (1) | next=105 (1) ] input_reduce_select_fusion grid: [1, 1, 1]
"""


def test_a_dump_with_graphs_in_loops() -> None:
    tree = thunks.parse_dump(DEFAULT)
    assert thunks.launches(tree) == thunks.Launches(outside=1, round=8, before=3, draft=3, after=5)
    assert thunks.graphs(tree) == 3 and thunks.host_loops(tree) == 2
    assert [node.name for node in thunks.walk(tree[1].body[1].body)] == ["", "kCopy", "loop_add_fusion_4"]


def test_a_dump_with_loops_in_a_graph() -> None:
    tree = thunks.parse_dump(ONE_GRAPH)
    assert thunks.launches(tree) == thunks.Launches(outside=1, round=3, before=1, draft=3, after=2)
    assert thunks.graphs(tree) == 1 and thunks.host_loops(tree) == 0
    assert thunks.outline(tree) == [
        "graph",
        "  1 kernel",
        "  while",
        "    1 kernel  (condition)",
        "    1 kernel",
        "    while",
        "      1 kernel  (condition)",
        "      2 kernels",
        "    1 kernel",
    ]


def test_a_dump_in_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no loop in the dump"):
        thunks.parse_dump("while_thunk { body { kernel } }")


def module_of(function: Any, *shapes: tuple[int, ...], dtype: Any = jnp.float32) -> hlo.Module:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_second_copies_are_found() -> None:
    weight, vector = (61, 134), (1, 61)
    converted = module_of(lambda x, w: jnp.dot(x, w.astype(jnp.float32)), vector, weight, dtype=jnp.float16)
    scaled = module_of(lambda x, w: (x @ (w * x.sum()), w * x.sum()), vector, weight)
    for module in (converted, scaled):
        found = hlo.second_copies(module, {weight})
        assert found and {one.size for one in found} == {61 * 134}
    assert hlo.second_copies(module_of(lambda x, w: x @ w, vector, weight), {weight}) == []


@pytest.fixture(scope="module")
def reports() -> dict[str, inspect.Report]:
    found = inspect.inspect("cpu", CONFIG, "float32", exit_layer=2, gamma=3, slots=256)
    return {one.program: one for one in found}


def test_the_code_for_this_machine_copies_nothing(reports: dict[str, inspect.Report]) -> None:
    assert tuple(reports) == inspect.PROGRAMS
    for one in reports.values():
        assert one.cache_copies == one.weight_copies == []
        assert one.cache_updates >= 2 * CONFIG.num_hidden_layers
        assert one.unshared_bytes == 0
        assert one.options == "as generate" and one.seconds > 0


def test_launches_follow_the_parts_of_decoding(reports: dict[str, inspect.Report]) -> None:
    plain, kangaroo = reports["plain"].launches, reports["kangaroo"].launches
    assert plain.draft is plain.before is plain.after is None
    assert kangaroo.before and kangaroo.draft and kangaroo.after
    assert kangaroo.round == kangaroo.before + kangaroo.after
    # A draft runs two layers, the adapter and the head; before it two layers run alone; after it the other two.
    assert kangaroo.before < kangaroo.draft < plain.round
    deeper = programs.Program("decode", spec=programs.dec.DecodeSpec(CONFIG, programs.dec.PLAIN, 0), slots=256)
    shallow = programs.build(programs.lower(deeper))
    assert thunks.launches(shallow.thunks) == plain
    assert thunks.host_loops(reports["kangaroo"].tree) == 2 and thunks.graphs(reports["kangaroo"].tree) == 0


def test_copies_of_weights_and_caches_are_reported() -> None:
    (plain,) = inspect.inspect("cpu", CONFIG, "float16", slots=256, programs=("plain",))
    assert len(plain.weight_copies) >= 4 * CONFIG.num_hidden_layers  # XLA:CPU multiplies fp16 matrices in fp32.
    lines = list(inspect.details(plain, tree=True, kernels=False))
    assert any(line.startswith("plain, as generate: copies of a weight: 4 x f32[46,") for line in lines)
    assert lines[-1].endswith(" kernels")


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--layers", "3", "--slots", "256", "--program", "plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("joey for cpu, float32, 3 layers, exit layer 2, gamma 6, 256 slots")
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert lines[4].startswith("| plain | as generate | 0 | 0 | ")


@pytest.mark.parametrize(("option", "value"), [("--layers", "2"), ("--exit-layer", "0"), ("--gamma", "0")])
def test_a_shape_without_a_deep_layer_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([option, value]) == 2
    assert capsys.readouterr().err.startswith("error: exit layer ")


def test_a_missing_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_plugin(*args: Any, **options: Any) -> Any:
        raise NotImplementedError("topology not implemented for cuda")

    # As JAX does without the plugin, which may be installed where this test runs.
    monkeypatch.setattr(programs.topologies, "get_topology_desc", without_plugin)
    assert inspect.main(["--target", "h200", "--wheels", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no CUDA plugin for JAX {jax.__version__}") and "make h200" in error
