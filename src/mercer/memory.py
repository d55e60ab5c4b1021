from mercer.budget import free_memory, memory, memory_budget, parse_bytes  # noqa: F401
