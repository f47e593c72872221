"""Tests that are skipped for want of Debian packages say which; CI asks the same table before anything is installed."""

import subprocess
import sys

import toolchain


def test_a_machine_without_programs_lacks_every_package() -> None:
    command = [sys.executable, "-I", "-S", toolchain.__file__]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(toolchain.PACKAGES)


def test_skipped_tests_are_told_in_one_line() -> None:
    reasons = ["needs Debian's cmake g++", "Skipped: needs Debian's valgrind cmake", "needs a CUDA device"]
    expected = "for want of Debian packages: 2 tests skipped; apt install cmake g++ valgrind"
    assert toolchain.summary(reasons) == expected
    assert toolchain.summary(["needs a CUDA device"]) is None


def test_a_reason_can_be_read_again() -> None:
    told = toolchain.summary([toolchain.reason("chromium")])
    assert told == "for want of Debian packages: 1 tests skipped; apt install chromium"
