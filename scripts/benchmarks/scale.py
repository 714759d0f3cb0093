"""To come."""
from dataclasses import dataclass
from scripts.benchmarks.common import Common
@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """To come."""
def run(args): return []
