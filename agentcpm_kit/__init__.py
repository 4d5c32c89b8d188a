"""agentcpm-kit: rerun and question AgentCPM-Explore (arXiv 2602.06485), from two CPU cores to one GPU.

The rooms follow the paper's pipeline: ``world`` -> ``agent`` -> ``train`` | ``evaluate`` -> ``report``.
"""

__version__ = "0.1.0"
