"""Compile the portable core for another processor and compare its values: python scripts/cross.py [--to aarch64]

Needs a cross compiler (aarch64-linux-gnu-g++) and an emulator (qemu-aarch64): `apt-get install g++-aarch64-linux-gnu
qemu-user`. A small program beside core.cpp calls every profile, in products, gradients, softmax and the matrix itself,
in both precisions; what it prints on the other processor must be what it prints here, to rounding.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from pathlib import Path

CORE = Path(__file__).resolve().parents[1] / "src" / "mercer" / "machine" / "core.cpp"
PROGRAM = """
#include "core.cpp"
#include <stdio.h>
template <class T> void calls(const char* type) {
  constexpr int N = 37, M = 131, R = 3;
  for (int op = EXPONENTIAL; op <= IDENTITY; ++op)
    for (int d = 2; d <= 9; d += 7)
      for (int part = 0; part < 2; ++part) {
        const bool dot = op == POLYNOMIAL || op == IDENTITY || op == ARCCOSINE;
        T x[N * 9], y[M * 9], v[M * R], left[N * R], out[N * R], dx[N * 9], matrix[N * M];
        auto wave = [](int k) { return T(k * 7919 % 2048) / 1024 - 1; };  // the same numbers on any processor
        for (int k = 0; k < N * d; ++k) x[k] = wave(k);
        for (int k = 0; k < M * d; ++k) y[k] = wave(k + 5);
        for (int k = 0; k < M * R; ++k) v[k] = wave(k + 11);
        for (int k = 0; k < N * R; ++k) left[k] = wave(k + 23);
        T* sides[] = {x, y};
        if (op == ARCCOSINE)
          for (T* p : sides)
            for (int i = 0; i < (p == x ? N : M); ++i) {
              T size = 0;
              for (int k = 0; k < d; ++k) size += p[i * d + k] * p[i * d + k];
              for (int k = 0; k < d; ++k) p[i * d + k] /= T(__builtin_sqrt(size));
            }
        double shares[2] = {}, sums[N] = {};
        Factor factor = {x, y, d, d, nullptr, nullptr, dx, d, dot ? DOT : op == MATERN_12 ? DISTANCE : SQUARED};
        Step step = {op, 0, {op == EXPONENTIAL ? -0.5 : op == POWER ? 0.7 : 1.0, 3, 4, 0, 20, 20}};
        if (op == WENDLAND) step.p[0] = 4;
        if (op == POWER) step.p[1] = -1.3;
        if (op == WENDLAND) step.p[1] = 1;
        Job job = {};
        job.factors = &factor, job.steps = &step, job.factor_count = job.step_count = 1, job.n = N, job.m = M;
        job.last = N, job.end = M, job.v = v, job.v_stride = R, job.out = out, job.out_stride = R;
        job.r = R, job.part = part, job.left = left, job.left_stride = R, job.shares = shares;
        auto show = [&](const char* what, const T* from, int count) {
          printf("%s %d %d %d %s", type, op, d, part, what);
          for (int k = 0; k < count; ++k) printf(" %.17g", double(from[k]));
          printf("\\n");
        };
        if (product<T>(job)) return;
        show("product", out, N * R);
        if (gradient<T>(job)) return;
        show("gradient", dx, N * d);
        job.out = matrix, job.out_stride = M;
        if (block<T>(job)) return;
        show("block", matrix, N * M);
        if (op != EXPONENTIAL) continue;
        step.p[0] = 30, factor.statistic = DOT, job.out = out, job.out_stride = R, job.sums = sums;
        if (softmax<T>(job)) return;
        show("softmax", out, N * R);
      }
}
int main() { calls<float>("float"), calls<double>("double"); }
"""


def printed(compiler: str, room: Path, runner: list[str], *flags: str) -> dict[str, list[float]]:
    target = room / "calls"
    options = ["-std=c++17", "-O2", "-fno-math-errno", "-w", "-I", str(CORE.parent), *flags]
    (room / "calls.cpp").write_text(PROGRAM)
    subprocess.run([compiler, *options, str(room / "calls.cpp"), "-o", str(target)], check=True)
    text = subprocess.run([*runner, str(target)], check=True, capture_output=True, text=True).stdout
    return {" ".join(w[:5]): [float(n) for n in w[5:]] for w in map(str.split, text.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", default="aarch64")
    to = parser.parse_args().to
    with tempfile.TemporaryDirectory() as folder:
        here = printed("g++", Path(folder), [])
        there = printed(f"{to}-linux-gnu-g++", Path(folder), [f"qemu-{to}", "-L", f"/usr/{to}-linux-gnu"])
    assert len(here) > 80 and here.keys() == there.keys(), (len(here), len(there))
    worst = {"float": 0.0, "double": 0.0}
    for name, values in here.items():
        size = max(1.0, *map(abs, values))
        gap = max(abs(a - b) for a, b in zip(values, there[name], strict=True)) / size
        assert all(map(math.isfinite, values)) and math.isfinite(gap), name
        worst[name.split()[0]] = max(worst[name.split()[0]], gap)
    print(f"{len(here)} results, {sum(map(len, here.values()))} numbers; on {to} and here they differ by {worst}")
    assert worst["float"] < 2e-5 and worst["double"] < 1e-12, worst


if __name__ == "__main__":
    main()
