"""LoL models: tasks, fitting, checkpoints, evaluation beside controls."""
