"""agentcpm-kit: rerun and question AgentCPM-Explore (arXiv 2602.06485), from two CPU cores to one GPU.

The rooms follow the paper's pipeline: ``world`` -> ``agent`` -> ``train`` | ``evaluate`` -> ``report``.
"""

import os

# PyTorch's threads spin while they wait for one another: beside a single busy process two cores then took 118 s for what
# takes 15 s with threads that soon go to sleep. libgomp reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
