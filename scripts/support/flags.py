"""Flags that several scripts have."""

import os
from pathlib import Path
from typing import Annotated

import tyro

from bst.config import option

# the folder of a run is --run at every script; --model and --out are its former names
RunFolder = Annotated[Path, tyro.conf.arg(name="run", aliases=["--model"])]
RunFolders = Annotated[tuple[Path, ...], tyro.conf.arg(name="run", aliases=["--model"])]
NewRunFolder = Annotated[Path | None, tyro.conf.arg(name="run", aliases=["--model", "--out"])]
BASELINES_HELP = "baselines to compare with; none: no baseline; default: all that are fast enough"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SEEDS = option(5, "runs of each config, seeds 0, 1, ...", "[1, 1000]")
JOBS = option(1, "runs at a time; each gets its share of the cores", "[1, 1024]")
