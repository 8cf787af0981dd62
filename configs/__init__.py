"""The configuration files of genrec: what to learn (demo, industrial, …) and where to run (cpu, a100, cluster)."""
