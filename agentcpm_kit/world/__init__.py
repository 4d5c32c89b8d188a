"""The atlas: a fictional, seeded, offline encyclopedia. facts -> pages -> index -> tools and tasks.

Fictional, so that nothing can be answered from memory; seeded, so that train, validation and test worlds are
disjoint by construction.
"""

from .atlas import SPLITS, World, make_world, world_seeds
from .tasks import Task, make_tasks
from .tools import FaultPlan, ToolFault, Tools, tool_schemas

__all__ = ["SPLITS", "FaultPlan", "Task", "ToolFault", "Tools", "World", "make_tasks", "make_world", "tool_schemas",
           "world_seeds"]
