"""The agent: messages, engines, context refinement, and the one loop that data, training and evaluation share."""
