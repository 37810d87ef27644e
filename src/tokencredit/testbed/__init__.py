"""A laptop-sized RLVR laboratory: tasks with exact labels, a tiny policy, warm-up, training and evaluation."""
