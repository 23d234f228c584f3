"""The kernels go through Triton's whole compiler for a Hopper GPU, and read rows in wide loads, once."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

#: In a process of its own: here, the kernels may have been made for the interpreter. Rows of states and of
#: vectors begin at multiples of 16 bytes, as Triton finds out when it is called.
PROGRAM = """
import json, re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steering_kernels import triton_ops

results = []
for name, signature, constants, aligned, num_warps in json.load(sys.stdin):
    kernel = getattr(triton_ops, name)
    at = kernel.arg_names.index
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(at(name),): value for name, value in constants.items()},
        attrs={(at(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    ptx = compiled.asm["ptx"]
    results.append({
        "num_bytes": len(compiled.asm["cubin"]),
        "moves": re.findall(r"(?:ld|st)\\.global[.\\w]*", ptx),
        "exits_early": bool(re.search(r"ld\\.global\\.b32.*?bra.*?ld\\.global\\.v4", ptx, re.DOTALL)),
    })
print(json.dumps(results))
"""

STATES = {"hidden_ptr": "*{dtype}", "residual_ptr": "*{dtype}", "rows_ptr": "*i32", "vectors_ptr": "*fp32"}
STRIDES = {"hidden_stride": "i32", "residual_stride": "i32"}
NORMS = {"stream_norms_ptr": "*fp32", "output_norms_ptr": "*fp32"}
STEER = STATES | {"parameters_ptr": "*fp32"} | NORMS | STRIDES
SCORE = STATES | {"uses_ptr": "*i32", "slots_ptr": "*i64", "scores_ptr": "*fp32"} | STRIDES
TABLES = {"fields_ptr": "*i32", "block_table_ptr": "*i32"}
STEP = {"fields_stride": "i32", "block_table_stride": "i32", "block_size": "i32"}
READ_FLAGS = TABLES | {"rules_ptr": "*i32", "flags_ptr": "*i8", "rows_ptr": "*i32"} | STEP
DECIDE = (
    TABLES
    | {"settings_ptr": "*fp32", "rules_ptr": "*i32", "scores_ptr": "*fp32", "pooled_ptr": "*fp32"}
    | {"flags_ptr": "*i8", "rows_ptr": "*i32", "layer": "i32"}
    | STEP
)
ALIGNED = ["hidden_ptr", "residual_ptr", "vectors_ptr", *STRIDES]


#: Kernel, signature, constants, aligned arguments, warps.
CASES: dict[str, tuple[str, dict[str, str], dict[str, Any], list[str], int]] = {
    **{
        f"steer-{dtype}-{sites}": (
            "_steer_kernel",
            {name: kind.format(dtype=dtype) for name, kind in STEER.items()},
            {"SIZE": 4096, "TILE": 4096, "HAS_STREAM": sites != "mlp", "HAS_OUTPUT": sites != "residual"},
            ALIGNED,
            8,
        )
        for dtype, sites in (("bf16", "residual"), ("bf16", "mlp"), ("bf16", "both"), ("fp32", "both"))
    },
    "steer-576": (
        "_steer_kernel",
        {name: kind.format(dtype="bf16") for name, kind in STEER.items()},
        {"SIZE": 576, "TILE": 1024, "HAS_STREAM": True, "HAS_OUTPUT": True},
        ALIGNED,
        2,
    ),
    "score": (
        "_score_kernel",
        {name: kind.format(dtype="bf16") for name, kind in SCORE.items()},
        {"SIZE": 4096, "TILE": 4096, "HAS_RESIDUAL": True},
        ALIGNED,
        8,
    ),
    "read-flags": ("_read_flags_kernel", READ_FLAGS, {"TILE": 256}, [], 1),
    "decide": ("_decide_kernel", DECIDE, {"TILE": 256}, [], 4),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """What the compiler made of each case."""
    pytest.importorskip("triton")
    # An earlier test of this worker may have asked for the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(CASES.values())),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    if "ptxas" in done.stderr and done.returncode:
        pytest.skip("Triton has no assembler for GPUs here")
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_compiles(compiled: dict[str, dict[str, Any]], case: str) -> None:
    assert compiled[case]["num_bytes"] > 0


@pytest.mark.parametrize(
    ("case", "num_loads", "num_stores"),
    [
        # Of 4096 numbers each of 256 threads has 16: two moves of 16 bytes in bfloat16, four in float32. The
        # vector is float32; states are read once, and both tensors are written.
        ("steer-bf16-residual", 2 + 2 + 4, 2 + 2),
        ("steer-bf16-mlp", 2 + 4, 2),
        ("steer-bf16-both", 2 + 2 + 4, 2 + 2),
        ("steer-fp32-both", 4 + 4 + 4, 4 + 4),
    ],
)
def test_a_token_leaves_early_or_is_read_once_in_wide_loads_and_written_in_wide_stores(
    compiled: dict[str, dict[str, Any]], case: str, num_loads: int, num_stores: int
) -> None:
    assert compiled[case]["exits_early"]
    assert compiled[case]["moves"].count("ld.global.v4.b32") == num_loads
    assert compiled[case]["moves"].count("st.global.v4.b32") == num_stores


def test_the_scores_of_all_probes_come_from_one_read_of_the_token(
    compiled: dict[str, dict[str, Any]],
) -> None:
    assert compiled["score"]["exits_early"]
    # Two for each of the two tensors, and four for each of four probes; one for what the probes use.
    assert compiled["score"]["moves"].count("ld.global.v4.b32") in (2 + 2 + 4 * 4, 2 + 2 + 4 * 4 + 1)
