"""Compiles the Triton kernels ahead of time, for GPUs that need not be there, and prints the shared memory they take.

Needs TRITON_INTERPRET=0. Both values of every switch are compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokencredit.signals import attention_triton, triton_kernels

WIDTH = 128
KERNELS = (triton_kernels.row_sums, triton_kernels.near_sums, triton_kernels.column_sums)
POINTERS = {
    "position": "*i32",
    "first": "*i32",
    "log_sum_exp": "*fp32",
    "look_back": "*fp32",
    "sums": "*fp32",
}
ELEMENT = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SWITCHES = {
    torch.bfloat16: {"LOOK_BACK": True, "BANDED": True, "SOFTCAP": 0.0},
    torch.float32: {"LOOK_BACK": False, "BANDED": False, "SOFTCAP": 30.0},
}


def compiled(kernel: Any, architecture: int, dtype: torch.dtype) -> Any:
    sizes = attention_triton.tile_sizes(kernel, WIDTH, dtype)
    options = {"enable_fp_fusion": True, **{name: sizes.pop(name) for name in ("num_warps", "num_stages")}}
    # As at a launch, where channels lie next to each other.
    constants = {**sizes, **SWITCHES[dtype], "WIDTH": WIDTH, "UPCAST": False, "query_d": 1, "key_d": 1}
    types = {**POINTERS, "query": ELEMENT[dtype], "key": ELEMENT[dtype], "scaling": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name.startswith(("query_", "key_")) and name not in constants)
    }
    source = ASTSource(kernel, signature, {n: v for n, v in constants.items() if n in kernel.arg_names}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def main() -> None:
    for kernel in KERNELS:
        for architecture in (80, 90):
            for dtype in ELEMENT:
                made = compiled(kernel, architecture, dtype)
                if not made.asm["cubin"]:
                    raise SystemExit(f"{kernel.__name__} has no code")
                print(f"{kernel.__name__} sm_{architecture} {str(dtype)[6:]} {made.metadata.shared}")


if __name__ == "__main__":
    main()
