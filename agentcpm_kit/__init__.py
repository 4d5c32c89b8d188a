"""agentcpm-kit: rerun and question AgentCPM-Explore (arXiv 2602.06485), from two CPU cores to one GPU.

The rooms follow the paper's pipeline: ``world`` -> ``agent`` -> ``train`` | ``evaluate`` -> ``report``.

"The reference" is the paper's public code: github.com/OpenBMB/AgentCPM at 844c007, folder AgentCPM-Explore.
"""

import os

# PyTorch's threads spin while they wait for one another: beside a single busy process, rollouts on two cores then take many
# times as long. Let them go to sleep sooner (the default is 300,000). libgomp reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# oneDNN keeps what it compiles for each length of a row, 1,024 kernels in each of two caches: training a 135M model in bfloat16
# grew by 0.1 GB with every eight rows, and with 64 kernels by nothing, as fast. It reads these when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")  # PyTorch's own, above it

__version__ = "0.1.0"
