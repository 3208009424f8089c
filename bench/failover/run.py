#!/usr/bin/env python3
"""From the power cut of a host to the RESUME of all its shards on other hosts, by Discord's count. Needs root and etcd."""

import argparse
import pathlib
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--binaries", type=pathlib.Path, required=True, help="directory of the release binaries")
parser.add_argument("--cuts", type=int, default=20, help="power cuts")
arguments = parser.parse_args()
command = [arguments.binaries / "bench-failover", "--cuts", str(arguments.cuts)]
sys.exit(subprocess.run(command, check=False).returncode)
