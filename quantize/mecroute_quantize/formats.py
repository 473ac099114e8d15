"""The quantizations that can be asked for, under llama.cpp's names."""

from __future__ import annotations

from mecroute.errors import UsageError

#: Name → `llama_ftype` (llama.h). Those that llama.cpp refuses without an importance matrix are not offered.
QUANTIZATIONS: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_1": 3,
    "Q4_0": 2,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "Q2_K": 10,
}


def parse_quantization(name: str) -> str:
    """Return llama.cpp's spelling of a quantization, whatever case it was written in.

    Raises:
        UsageError: there is none of that name; the hint lists those there are.
    """
    canonical = name.strip().upper().replace("-", "_")
    if canonical not in QUANTIZATIONS:
        raise UsageError(
            f"'{name}' is not a quantization this can make", hint="choose one of " + ", ".join(QUANTIZATIONS)
        )
    return canonical
