#!/usr/bin/env python3
"""The planner of 50,000 processes on 1,000 hosts beside a naive spread and rendezvous hashing."""

import argparse
import pathlib
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--binaries", type=pathlib.Path, required=True, help="directory of the release binaries")
arguments = parser.parse_args()
sys.exit(subprocess.run([arguments.binaries / "bench-placement"], check=False).returncode)
