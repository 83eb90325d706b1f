"""Run independent jobs on several machines, and one training on several processes."""
