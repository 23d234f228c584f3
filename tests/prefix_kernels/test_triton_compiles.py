"""The kernel goes through Triton's whole compiler for a Hopper GPU, and moves 16 bytes an instruction."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

#: In a process of its own: here, the kernels may have been made for the interpreter.
PROGRAM = """
import json, re, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from prefix_kernels.triton_ops import _write_prefix_kv_kernel as kernel

constants = dict(
    HEAD_SIZE=128, HALF=64, IS_INTERLEAVED=False, HAS_SHIFTS={has_shifts}, TILE_HEADS=8, TILE_DIM=128,
    SOURCE=tl.bfloat16, CACHE=tl.{cache}, FP8_MAX={fp8_max},
)
pointers = dict(tokens_ptr="*i64", writes_ptr="*i64", layers_ptr="*i64", cos_sin_ptr="*fp32")
numbers = dict.fromkeys(("max_layers", "num_heads", "block_size"), "i32")
source = ASTSource(
    fn=kernel,
    signature=pointers | numbers | dict.fromkeys(constants, "constexpr"),
    constexprs={{(kernel.arg_names.index(name),): value for name, value in constants.items()}},
)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={{"num_warps": 4}})
moves = re.findall(r"(?:ld|st)\\.global[.\\w]*", compiled.asm["ptx"])
print(json.dumps({{"num_bytes": len(compiled.asm["cubin"]), "moves": moves}}))
"""


def compile_for_hopper(has_shifts: bool, cache: str, fp8_max: float) -> dict[str, Any]:
    program = PROGRAM.format(has_shifts=has_shifts, cache=cache, fp8_max=fp8_max)
    # An earlier test of this worker may have asked for the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment
    )
    if "ptxas" in done.stderr and done.returncode:
        pytest.skip("Triton has no assembler for GPUs here")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("has_shifts", "cache", "fp8_max"),
    [(False, "bfloat16", 0), (True, "bfloat16", 0), (True, "float8e4nv", 448.0)],
    ids=["copy", "move", "move-fp8"],
)
def test_the_kernel_compiles_and_its_rows_move_in_wide_loads_and_stores(
    has_shifts: bool, cache: str, fp8_max: float
) -> None:
    pytest.importorskip("triton")
    result = compile_for_hopper(has_shifts, cache, fp8_max)
    assert result["num_bytes"] > 0
    # K and V, and the other half of K where it is turned.
    assert result["moves"].count("ld.global.v4.b32") == 2 + has_shifts
    wide_store = "st.global.v2.b32" if fp8_max else "st.global.v4.b32"
    assert [m for m in result["moves"] if m.startswith("st")] == [wide_store, wide_store]
