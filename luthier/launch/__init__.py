"""Hands a command to where it runs: this machine, several processes, Slurm, Kubernetes, SkyPilot."""
