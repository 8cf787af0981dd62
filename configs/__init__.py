"""The packaged configs: what to learn (demo, …), what to learn with (chat, versions/v1, …), where to run (cpu, …)."""
