from twig.benchmarks.gpu.tables import tables
from twig.benchmarks.gpu.verdict import AIMS, SINGLE, failures


def step(rows, mfu, steps_per_second=10.0, stage=SINGLE):
    return {
        "part": "speed", "measure": "step", "stage": stage, "rows": rows, "ms": 1e3 / steps_per_second,
        "steps_per_second": steps_per_second, "job_steps_per_second": 2.0, "mfu": mfu, "idle": 0.1,
    }  # fmt: skip


def test_the_worst_of_what_counts_is_held_to_the_aim():
    rows = [step(2, 0.1, 80.0), step(16, 0.6), step(32, 0.45), step(8, 0.2), step(2, 0.1, 90.0, "draft")]
    found = {aim.what.split()[0]: aim.found(rows) for aim in AIMS}
    assert found["steps"] == 80.0
    assert found["operations"] == 0.45
    assert found["bytes"] is None


def test_of_several_ways_to_compile_the_fastest_counts():
    aim = next(aim for aim in AIMS if "diffusers" in aim.what)
    ways = [{"measure": "compiled", "over_compiled": 1.9}, {"measure": "compiled", "over_compiled": 1.2}]
    assert aim.found([*ways, {"measure": "compiled", "skipped": "no time"}]) == 1.2
    assert not aim.met(1.2)
    assert aim.met(1.3)


def test_a_load_beyond_what_was_measured_does_not_count():
    aim = next(aim for aim in AIMS if "static" in aim.what)
    rows = [{"measure": "equal-p95", "ratio": ratio, "exact": ratio < 2} for ratio in (1.5, 1.7, 1.9, 5.0)]
    assert aim.found(rows) == 1.7


def test_the_table_says_what_was_met_missed_and_not_measured():
    lines = list(tables([step(2, 0.1, 80.0), step(16, 0.4)]))
    single, compiled, utilisation, *_ = [line for line in lines if line.startswith("| ") and "at least" in line]
    assert single.endswith("| at least 72.6 | 80 | met |")
    assert "not measured" in compiled
    assert "| 40 % | **missed** |" in utilisation
    assert any(line.startswith(f"| {SINGLE} | 16 | 100 | 10 | 2 | 40 % | 10 %") for line in lines)


def test_a_failed_check_is_told_with_its_case_and_reason():
    rows = [
        {"part": "operators", "measure": "fp64", "kernel": "masked_attention", "ok": False, "why": "max error 1"},
        {"part": "operators", "measure": "part", "status": "done"},
    ]
    assert failures(rows, ["operators"]) == ["operators: fp64 (kernel masked_attention): max error 1"]
