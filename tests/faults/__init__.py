"""Faults that the world has in store: kills, full disks, damage, other processes. See RELIABILITY.md."""
