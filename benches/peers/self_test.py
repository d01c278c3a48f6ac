"""Tests of the peers, on the CPU, in under a minute: python self_test.py

Not part of `cargo test` and not run where PyTorch is not installed. The reference is tested against the repository's
meta-step fixtures, which an independent script made; everything else against the reference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch

from arms import ARMS, prepare
from batch import BadFile, Batch, Settings, read
from check import compare, reference
from closed_form import ClosedForm
from make_batch import make
from network import Architecture
from step import State, output
from windows import ArmFailed, Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
SMALL = ["--n", "8", "--m", "6", "--width", "4", "--blocks", "1", "1", "--image-size", "8", "--train-steps", "3"]

STAND_IN = """\
import subprocess, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from batch import Batch, write_output
from check import reference
arg = lambda name: sys.argv[sys.argv.index(name) + 1]
if sys.argv[1] == "meta-step":
    out = reference(Batch.load(Path(arg("--input"))), "l2b", "cpu")
    out["alpha_raw"] = {factor} * out["alpha_raw"]
    write_output(Path(arg("--output")), out)
else:
    assert sys.argv[2] == "--serve", sys.argv
    sys.exit(subprocess.call([sys.executable, {here!r} + "/worker.py", "--arm", "double_backprop", "--batch-file",
                              arg("--batch-file"), "--device", "cpu"]))
"""


def small(weights: str = "org", mode: str = "momentum") -> Batch:
    arch = Architecture(4, (1, 1), 3, 8, 5)
    return make(Settings(arch, "batch", mode, 0.1, 1.5, 0.1, 0.9, 5e-4, 0.25, weights), 9, 7, seed=3, steps=3)


class Reference(unittest.TestCase):
    def test_all_methods_reproduce_the_fixtures_in_f64(self) -> None:
        inputs = sorted(FIXTURES.glob("*.input.safetensors"))
        self.assertGreaterEqual(len(inputs), 14)
        for path in inputs:
            if path.name.startswith("batch-plain-n1."):
                continue  # PyTorch refuses batch statistics of one value per channel
            batch = Batch.load(path)
            want, _ = read(path.with_name(path.name.replace("input", "expected")))
            for joined in (None, False, True):
                if joined is None:
                    got = reference(batch, "l2b", "cpu")
                else:
                    state = State(batch, torch.device("cpu"), torch.float64, channels_last=True)
                    got = output(state, ClosedForm(state, torch.float64, False, joined).step("l2b"))
                for name in set(got) & set(want):
                    error = (got[name].double() - want[name].double()).norm()
                    size = want[name].double().norm()
                    self.assertLessEqual(float(error.detach()), 1e-12 * float(size) + 1e-15, (path.name, name, joined))
                self.assertLessEqual(set(want) - set(got), {"loss_pseudo"}, path.name)


class Arms(unittest.TestCase):
    def test_every_arm_passes_its_check(self) -> None:
        for weights, mode in (("org", "momentum"), ("softmax", "plain")):
            batch = small(weights, mode)
            for objective in ("ce", "l2rw", "l2b"):
                want = reference(batch, objective, "cpu")
                for name, asked in (("double_backprop", "f32"), ("double_backprop_fast", "bf16"),
                                    ("closed_form", "f64"), ("closed_form", "f32"), ("closed_form", "bf16")):
                    ready = prepare(ARMS[name], batch, torch.device("cpu"), asked, ["eager-joined"])
                    result = ready.runner(objective)()
                    got = output(ready.method.state, result)
                    loose = "bf16" if asked == "bf16" else asked
                    report = compare(batch, got, want, loose)
                    if asked != "bf16":  # tiny nets are too noisy for the real bound in bf16
                        self.assertTrue(report.passed, (name, asked, objective, report.text()))
                    self.assertTrue(all(c.cosine > 0.9 for c in report.comparisons), (name, asked, report.text()))

    def test_l2rw_weighs_the_given_labels_alone(self) -> None:
        batch = small()
        out = reference(batch, "l2rw", "cpu")
        self.assertNotIn("beta", out)
        self.assertAlmostEqual(float(out["alpha"].sum()), 1.0, places=6)


class Check(unittest.TestCase):
    def test_a_wrong_result_fails(self) -> None:
        batch = small()
        want = reference(batch, "l2b", "cpu")
        self.assertTrue(compare(batch, want, want, "f64").passed)
        first = next(iter(batch.params))
        wrong = {
            "alpha_raw": 1.1 * want["alpha_raw"], "beta": -want["beta"], "beta_raw": want["beta_raw"] * float("nan"),
            f"grad.{first}": torch.zeros_like(want[f"grad.{first}"]), f"param.{first}": batch.params[first].double(),
            "pseudo_labels": (want["pseudo_labels"] + 1) % 5,
            "running.layer1.0.bn1.running_mean": want["running.layer1.0.bn1.running_mean"] + 1}
        for name, value in wrong.items():
            for precision in ("f64", "f32", "tf32", "bf16"):
                report = compare(batch, want | {name: value}, want, precision)
                self.assertFalse(report.passed, (name, precision, report.text()))

    def test_bad_files_are_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.safetensors"
            path.write_bytes(b"no safetensors")
            with self.assertRaisesRegex(BadFile, "x.safetensors"):
                Batch.load(path)
        with self.assertRaisesRegex(BadFile, "norm"):
            Settings.parse(small().settings.to_json().replace('"norm": "batch"', '"norm": "none"'), "text")


class Compare(unittest.TestCase):
    """The whole script, on a small network, with a stand-in for the engine."""

    def run_it(self, factor: float | None, *more: str) -> tuple[int, dict, str]:
        with tempfile.TemporaryDirectory() as folder:
            ours = Path(folder) / "l2b"
            if factor is not None:
                ours.write_text(f"#!{sys.executable}\n" + STAND_IN.format(here=str(HERE), factor=factor))
                ours.chmod(0o755)
            record = Path(folder) / "record.json"
            command = [sys.executable, str(HERE / "compare.py"), *SMALL, "--device", "cpu", "--threads", "1",
                       "--windows", "3", "--window-seconds", "0.01", "--variants", "eager", "--l2b", str(ours),
                       "--out", str(record), *more]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            return done.returncode, json.loads(record.read_text()), done.stdout + done.stderr

    def test_rivals_and_ours_are_checked_and_timed(self) -> None:
        code, record, text = self.run_it(1.0, "--arms", "double_backprop", "closed_form")
        self.assertEqual(code, 0, text)
        (size,) = record["sizes"]
        self.assertEqual(set(size["checks"]), {"l2b", "double_backprop", "closed_form"})
        self.assertEqual({(s["arm"], s["objective"]) for s in size["series"]},
                         {(a, o) for a in size["checks"] for o in ("ce", "l2b")})
        for s in size["series"]:
            self.assertEqual(len(s["step_seconds"]), 3)
            self.assertGreater(s["step"]["median"], 0)
            self.assertEqual(s["windows"], 3)
        self.assertTrue(size["complete"])
        self.assertIn("of 3 windows", text)
        self.assertIn("/ ours", text)

    def test_an_arm_that_is_not_ready_in_time_is_left_out(self) -> None:
        # Nothing is ready after three quarters of a hundredth of a second.
        code, record, text = self.run_it(1.0, "--arms", "double_backprop", "--seconds", "0.01")
        self.assertEqual(code, 3, text)
        (size,) = record["sizes"]
        self.assertEqual((list(size["left_out"]), size["series"]), (["double_backprop"], []))
        self.assertIn("took more than", size["ours_absent"])
        self.assertIn("LEFT OUT: double_backprop: no answer within", text)

    def test_rounds_end_with_the_time(self) -> None:
        code, record, text = self.run_it(1.0, "--arms", "double_backprop", "--seconds", "60", "--windows", "1000000")
        self.assertEqual(code, 0, text)
        for s in record["sizes"][0]["series"]:
            self.assertTrue(1 <= s["windows"] < 1000000)

    def test_a_wrong_engine_is_not_timed(self) -> None:
        code, record, text = self.run_it(0.5, "--arms", "double_backprop")
        self.assertEqual(code, 1, text)
        self.assertEqual((record["sizes"][0]["series"], record["sizes"][0]["complete"]), ([], False))
        self.assertIn("fails its check", text)

    def test_an_absent_engine_is_said(self) -> None:
        code, record, text = self.run_it(None, "--arms", "double_backprop")
        self.assertEqual(code, 3, text)
        self.assertIn("not measured", text)
        self.assertIn("cannot start", record["sizes"][0]["ours_absent"])


class Protocol(unittest.TestCase):
    def test_a_process_that_breaks_is_named(self) -> None:
        for script, message in (("print('hello')", "not a JSON line"), ("raise SystemExit(4)", "exit code 4"),
                                ("print('[1]')", "not a JSON object"), ("print('{\"ready\": false}')", "ready"),
                                ("print('{\"error\": \"no such device\"}')", "no such device")):
            with self.assertRaisesRegex(ArmFailed, message):
                Client("arm", [sys.executable, "-c", script])
        with self.assertRaisesRegex(ArmFailed, "cannot start"):
            Client("arm", ["./no such program"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
