"""The atlas: a fictional, seeded, offline encyclopedia. facts -> pages -> index -> tools and tasks.

Fictional, so that nothing can be answered from memory; seeded, so that train, validation and test worlds are
disjoint by construction.
"""

from .atlas import SPLITS, World, WorldSpec, make_world, world_seeds
from .faults import FaultPlan, ToolFault
from .plain.chains import make_tasks
from .tasks import FAMILIES, GoldStep, Task, load_family
from .tools import Tools, tool_schemas

__all__ = ["FAMILIES", "SPLITS", "FaultPlan", "GoldStep", "Task", "ToolFault", "Tools", "World", "WorldSpec", "load_family",
           "make_tasks", "make_world", "tool_schemas", "world_seeds"]
